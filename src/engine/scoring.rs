//! What an open engine does: conversations in, [`Score`]s out.

use std::collections::VecDeque;

use half::bf16;

use crate::conversation::Conversation;
use crate::engine::queue::{self, Facts, Job, Pending, WhenFull};
use crate::engine::{Engine, warn_once};
use crate::error::{Error, ErrorKind, Result};
use crate::prompt::{self, DoubleBos, PromptTokens, Truncate};

/// What the model thinks of one conversation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Score {
    /// The reward in f32, as computed: the raw logit 0, finite.
    pub reward: f32,
    /// The reward rounded to bf16, which is the number that Transformers reports for a bf16 model.
    pub reward_bf16: f32,
    /// Every label's logit, the reward first: more than one only for classifiers with several labels.
    pub logits: Vec<f32>,
    /// Tokens of the conversation, after truncation.
    pub tokens: usize,
    /// Whether the conversation was cut to the limit.
    pub truncated: bool,
    /// The token whose logits these are, counted from 0: the last one, except for a classifier whose input ends in
    /// `pad_token_id`.
    pub scored_token: usize,
}

impl Score {
    pub(super) fn new(logits: &[f32], facts: Facts) -> Result<Self> {
        if let Some(bad) = logits.iter().find(|logit| !logit.is_finite()) {
            return Err(Error::new(ErrorKind::NonFinite, format!("the reward came out as {bad}")).with_hint(
                "the weights hold NaN or infinity, or numbers that overflow; check the files against their source",
            ));
        }
        let (reward, logits) = (logits[0], logits.to_vec());
        let reward_bf16 = bf16::from_f32(reward).to_f32();
        let Facts { tokens, truncated, scored_token } = facts;
        Ok(Self { reward, reward_bf16, logits, tokens, truncated, scored_token })
    }
}

impl Engine {
    /// Scores conversations; results are in their order, and one's failure is not another's.
    pub fn score(&self, conversations: &[Conversation]) -> Vec<Result<Score>> {
        self.score_each(conversations.iter().map(|conversation| self.tokens(conversation)))
    }

    /// Scores sequences of token ids, taken as they are; results are in their order.
    pub fn score_tokens(&self, sequences: &[Vec<u32>]) -> Vec<Result<Score>> {
        self.score_each(sequences.iter().map(|ids| self.limited(ids.clone())))
    }

    /// Scores conversations as they come; results are in their order. Reads ahead far enough to fill batches, so
    /// memory stays bounded however many there are.
    pub fn score_all<I>(&self, conversations: I) -> ScoreAll<'_, I::IntoIter>
    where
        I: IntoIterator<Item = Conversation>,
    {
        ScoreAll { engine: self, source: conversations.into_iter(), ahead: VecDeque::new(), ahead_tokens: 0 }
    }

    /// What [`submit`](Self::submit) does to a conversation first: renders and tokenizes it, and holds it to the limit.
    /// Takes the caller's time and none of the engine's, so that several threads can prepare for one that submits.
    pub fn prepare(&self, conversation: &Conversation) -> Result<PromptTokens> {
        self.tokens(conversation)
    }

    /// What [`submit_tokens`](Self::submit_tokens) does to token ids first.
    pub fn prepare_tokens(&self, ids: Vec<u32>) -> Result<PromptTokens> {
        self.limited(ids)
    }

    /// Puts what was prepared into the queue and returns its score to come. Blocks while the queue is full.
    pub fn submit_prepared(&self, tokens: PromptTokens) -> Result<Pending> {
        self.enqueue(tokens, WhenFull::Wait)
    }

    /// Puts what was prepared into the queue together, so that what the sequences share is found in the first pass already;
    /// where they are very many, in groups that fill several passes, so that the first need not wait for the last. Results
    /// are in their order. Blocks while the queue is full.
    pub fn submit_together(
        &self,
        sequences: impl IntoIterator<Item = Result<PromptTokens>>,
    ) -> Vec<Result<Pending>> {
        let (mut pending, mut group, mut group_tokens) = (Vec::new(), Vec::new(), 0);
        for sequence in sequences {
            pending.push(sequence.and_then(|tokens| self.job(tokens)).map(|(job, pending)| {
                group_tokens += job.ids.len();
                group.push(job);
                pending
            }));
            if group_tokens >= self.plan.lookahead_tokens() {
                self.queue.push_all(group.drain(..));
                group_tokens = 0;
            }
        }
        self.queue.push_all(group);
        pending
    }

    /// Puts one conversation into the queue and returns its score to come. Blocks while the queue is full.
    pub fn submit(&self, conversation: &Conversation) -> Result<Pending> {
        self.enqueue(self.tokens(conversation)?, WhenFull::Wait)
    }

    /// Puts one sequence of token ids into the queue. Blocks while the queue is full.
    pub fn submit_tokens(&self, ids: Vec<u32>) -> Result<Pending> {
        self.enqueue(self.limited(ids)?, WhenFull::Wait)
    }

    /// Like [`submit`](Self::submit), but an error of kind [`ErrorKind::QueueFull`] while the queue is full.
    pub fn try_submit(&self, conversation: &Conversation) -> Result<Pending> {
        self.enqueue(self.tokens(conversation)?, WhenFull::Refuse)
    }

    fn tokens(&self, conversation: &Conversation) -> Result<PromptTokens> {
        self.prompt()?.tokens(conversation, self.plan.max_tokens)
    }

    fn limited(&self, ids: Vec<u32>) -> Result<PromptTokens> {
        match &self.prompt {
            Ok(prompt) => prompt.limit(ids, self.plan.max_tokens),
            // Without a tokenizer the token that must stay at the start is unknown, so nothing is cut off.
            Err(_) => prompt::limited(ids, self.plan.max_tokens, Truncate::Refuse, DoubleBos::Refuse, None),
        }
    }

    fn score_each(&self, sequences: impl Iterator<Item = Result<PromptTokens>>) -> Vec<Result<Score>> {
        self.submit_together(sequences).into_iter().map(|pending| pending?.wait()).collect()
    }

    fn enqueue(&self, tokens: PromptTokens, when_full: WhenFull) -> Result<Pending> {
        let (job, pending) = self.job(tokens)?;
        self.queue.push(job, when_full)?;
        Ok(pending)
    }

    /// A sequence as the queue takes it, and its score to come.
    fn job(&self, PromptTokens { mut ids, truncated }: PromptTokens) -> Result<(Job, Pending)> {
        if let Some((index, id)) = ids.iter().enumerate().find(|&(_, &id)| id as usize >= self.config.vocab) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("token {index} has id {id}; the model's vocabulary has {} ids", self.config.vocab),
            )
            .with_hint(
                "the tokenizer and the model are from different folders, or the ids are another model's",
            ));
        }
        let facts = Facts { tokens: ids.len(), truncated, scored_token: self.scored_token(&ids) };
        // Nothing after the scored token can change its logits.
        ids.truncate(facts.scored_token + 1);
        let (reply, pending) = queue::pending(facts);
        Ok((Job { ids, reply }, pending))
    }

    /// The index of the token that is scored, with a warning where it is not the last one.
    fn scored_token(&self, ids: &[u32]) -> usize {
        let scored = self.config.head.scored_token(ids);
        if scored != ids.len() - 1 {
            let pad = ids[ids.len() - 1];
            let warning = format!(
                "a sequence ends in token {pad}, which is the classifier's pad_token_id: its reward is that of the \
                 rightmost other token, as in Transformers"
            );
            warn_once(&self.warnings, warning);
        }
        scored
    }
}

/// The iterator of [`Engine::score_all`].
#[derive(Debug)]
pub struct ScoreAll<'a, I> {
    engine: &'a Engine,
    source: I,
    ahead: VecDeque<(usize, Result<Pending>)>,
    ahead_tokens: usize,
}

impl<I: Iterator<Item = Conversation>> Iterator for ScoreAll<'_, I> {
    type Item = Result<Score>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ahead_tokens < self.engine.plan.lookahead_tokens() {
            let Some(conversation) = self.source.next() else { break };
            let tokens = self.engine.tokens(&conversation);
            // A conversation that failed already counts too: errors also take memory.
            let weight = tokens.as_ref().map_or(1, |tokens| tokens.ids.len());
            let pending = tokens.and_then(|tokens| self.engine.enqueue(tokens, WhenFull::Wait));
            self.ahead.push_back((weight, pending));
            self.ahead_tokens += weight;
        }
        let (weight, pending) = self.ahead.pop_front()?;
        self.ahead_tokens -= weight;
        Some(pending.and_then(Pending::wait))
    }
}
