//! [`Input`]: one sequence to score.

use crate::conversation::Conversation;
use crate::error::Result;
use crate::prompt::PromptTokens;

/// One sequence to score, made by `From`: a [`Conversation`], a prompt and its response, token ids,
/// or what [`Engine::prepare`](crate::Engine::prepare) returned.
#[derive(Clone, Debug)]
pub struct Input(pub(super) Kind);

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Conversation(Conversation),
    Tokens(Vec<u32>),
    Prepared(Result<PromptTokens>),
}

impl From<Conversation> for Input {
    fn from(conversation: Conversation) -> Self {
        Self(Kind::Conversation(conversation))
    }
}

impl From<&Conversation> for Input {
    fn from(conversation: &Conversation) -> Self {
        conversation.clone().into()
    }
}

/// A prompt and its response.
impl<P: Into<String>, R: Into<String>> From<(P, R)> for Input {
    fn from((prompt, response): (P, R)) -> Self {
        Conversation::exchange(prompt, response).into()
    }
}

/// Token ids, scored as they are.
impl From<Vec<u32>> for Input {
    fn from(ids: Vec<u32>) -> Self {
        Self(Kind::Tokens(ids))
    }
}

/// Token ids, scored as they are.
impl From<&[u32]> for Input {
    fn from(ids: &[u32]) -> Self {
        ids.to_vec().into()
    }
}

impl From<PromptTokens> for Input {
    fn from(tokens: PromptTokens) -> Self {
        Self(Kind::Prepared(Ok(tokens)))
    }
}

/// An input that was prepared, or the error for which it was not, which is then its score.
impl From<Result<PromptTokens>> for Input {
    fn from(tokens: Result<PromptTokens>) -> Self {
        Self(Kind::Prepared(tokens))
    }
}

/// Token ids, scored as they are.
impl From<&Vec<u32>> for Input {
    fn from(ids: &Vec<u32>) -> Self {
        ids.clone().into()
    }
}
