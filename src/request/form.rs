//! Requests, and the forms of their results.

use serde_json::value::RawValue;

use super::keys::wrong;
use crate::conversation::{Conversation, Message};
use crate::error::Result;

/// A request: one reward, one per response, or those of a pair.
#[derive(Debug)]
pub enum Request {
    /// One reward.
    One(Input),
    /// One reward per response to a prompt.
    Responses(Responses),
    /// The rewards of a preferred conversation and of the other one.
    Pair {
        /// The preferred one.
        chosen: Conversation,
        /// The other one.
        rejected: Conversation,
    },
}

/// The form of a request's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One reward.
    One,
    /// A list of so many rewards.
    Responses(usize),
    /// A chosen and a rejected reward.
    Pair,
}

impl Form {
    /// Returns the number of sequences to score.
    pub fn sequences(self) -> usize {
        match self {
            Self::One => 1,
            Self::Responses(count) => count,
            Self::Pair => 2,
        }
    }
}

impl Request {
    /// Returns the form of the result.
    pub fn form(&self) -> Form {
        match self {
            Self::One(_) => Form::One,
            Self::Responses(all) => Form::Responses(all.count()),
            Self::Pair { .. } => Form::Pair,
        }
    }

    /// Returns the turns before the response, of a pair before the chosen one; `None` for token
    /// ids.
    pub fn prompt(&self) -> Option<&[Message]> {
        let before = |conversation: &'_ Conversation| conversation.messages().len().saturating_sub(1);
        match self {
            Self::One(Input::Tokens(_)) => None,
            Self::Responses(all) => Some(all.prompt.messages()),
            Self::One(Input::Conversation(whole)) | Self::Pair { chosen: whole, .. } => {
                Some(&whole.messages()[..before(whole)])
            }
        }
    }

    /// Returns what comes before the responses, and the turns of each response: of one conversation
    /// its last turn, and of a pair what follows the turns that both have.
    pub fn into_candidates(self) -> Result<(Conversation, Vec<Vec<Message>>)> {
        match self {
            Self::Responses(Responses { prompt, responses }) => Ok((prompt, responses)),
            Self::One(Input::Conversation(whole)) => {
                let before = whole.messages().len().saturating_sub(1);
                let (prompt, response) = whole.split_at(before);
                Ok((prompt, vec![response]))
            }
            Self::Pair { chosen, rejected } => {
                let both = chosen.messages().iter().zip(rejected.messages());
                let common = both.take_while(|(chosen, rejected)| chosen == rejected).count();
                let shorter = chosen.messages().len().min(rejected.messages().len());
                let (prompt, chosen) = chosen.split_at(common.min(shorter.saturating_sub(1)));
                let (_, rejected) = rejected.split_at(prompt.messages().len());
                Ok((prompt, vec![chosen, rejected]))
            }
            Self::One(Input::Tokens(_)) => Err(wrong("token ids have no response, only a conversation has")),
        }
    }

    /// Returns whether the request is token ids, which need no chat template.
    pub fn is_tokens(&self) -> bool {
        matches!(self, Self::One(Input::Tokens(_)))
    }

    /// Returns the sequences to score, in order: each response, or the chosen conversation and the
    /// rejected one. Each conversation is made when the iterator reaches it.
    pub fn into_inputs(self) -> Box<dyn Iterator<Item = Input>> {
        match self {
            Self::One(input) => Box::new(std::iter::once(input)),
            Self::Responses(all) => Box::new(all.into_conversations().map(Input::Conversation)),
            Self::Pair { chosen, rejected } => {
                Box::new([chosen, rejected].into_iter().map(Input::Conversation))
            }
        }
    }
}

/// Input that has one reward.
#[derive(Debug)]
pub enum Input {
    /// A conversation, whole.
    Conversation(Conversation),
    /// Token ids without those that the attention mask leaves out.
    Tokens(Vec<u32>),
}

/// Responses to one prompt. Each makes a conversation with all of the prompt in it: they are made
/// one at a time.
#[derive(Debug)]
pub struct Responses {
    pub(super) prompt: Conversation,
    /// The turns of each.
    pub(super) responses: Vec<Vec<Message>>,
}

impl Responses {
    /// Number of responses.
    pub fn count(&self) -> usize {
        self.responses.len()
    }

    /// One conversation per response, in order.
    fn into_conversations(self) -> impl Iterator<Item = Conversation> {
        let Self { prompt, responses } = self;
        responses.into_iter().map(move |turns| prompt.clone().with_turns(turns))
    }
}

/// The result of reading one object.
#[derive(Debug)]
pub struct Parsed {
    /// `id` as the object spells it; `None` when it is absent, null, given twice, or the text is
    /// not an object.
    pub id: Option<Box<RawValue>>,
    /// The request, or why it cannot be read.
    pub request: Result<Request>,
}
