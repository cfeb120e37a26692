//! Scoring: [`Input`]s in, [`Score`]s out.

use std::collections::VecDeque;

use crate::config::Head;
use crate::engine::handle::{Engine, warn_once};
use crate::engine::input::{Input, Kind};
use crate::engine::queue::{self, Job, Pending, Submit};
use crate::engine::score::{Score, Sequence};
use crate::error::{Error, ErrorKind, Result};
use crate::prompt::{self, DoubleBos, PromptTokens, Truncate};

impl Engine {
    /// Scores inputs and returns the results in their order. The failure of one leaves the others
    /// alone.
    ///
    /// ```no_run
    /// # fn main() -> kudos::Result<()> {
    /// let engine = kudos::Engine::open("models/reward")?;
    /// for score in engine.score([("What is 1+1?", "1+1=2"), ("What is 1+1?", "1+1=3")]) {
    ///     println!("{}", score?.reward);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn score<I: Into<Input>>(&self, inputs: impl IntoIterator<Item = I>) -> Vec<Result<Score>> {
        self.submit_all(inputs).into_iter().map(|pending| pending?.wait()).collect()
    }

    /// Scores inputs as they come and returns the results in their order. Reads as many inputs as fill
    /// batches, so memory is bounded whatever the number of inputs.
    pub fn score_iter<I>(&self, inputs: I) -> ScoreIter<'_, I::IntoIter>
    where
        I: IntoIterator,
        I::Item: Into<Input>,
    {
        ScoreIter {
            engine: self,
            source: inputs.into_iter(),
            submitted: VecDeque::new(),
            submitted_tokens: 0,
        }
    }

    /// Renders, tokenizes and checks an input: the part of a submission that takes the caller's
    /// time and none of the engine's. Threads can prepare inputs for one that submits them.
    pub fn prepare(&self, input: impl Into<Input>) -> Result<PromptTokens> {
        self.limited(input.into()).map_err(|error| match error.kind() {
            ErrorKind::TooLong { .. } if self.plan.limited_by_memory => error.with_hint(
                "the limit follows from the GPU's memory, with all layers on it: `--max-tokens` sets another, up to the model's",
            ),
            _ => error,
        })
    }

    fn limited(&self, input: Input) -> Result<PromptTokens> {
        let max_tokens = self.plan.max_tokens;
        match input.0 {
            Kind::Conversation(conversation) => self.prompt()?.tokens(&conversation, max_tokens),
            Kind::Prepared(tokens) => {
                let PromptTokens { ids, truncated } = tokens?;
                let tokens = prompt::limited(ids, max_tokens, Truncate::Refuse, DoubleBos::Allow, None)?;
                Ok(PromptTokens { truncated, ..tokens })
            }
            Kind::Tokens(ids) => match &self.prompt {
                Ok(prompt) => prompt.limit(ids, max_tokens),
                // Without a tokenizer the token that must stay at the start is unknown: nothing is
                // cut off.
                Err(_) => prompt::limited(ids, max_tokens, Truncate::Refuse, DoubleBos::Refuse, None),
            },
        }
    }

    /// Prepares an input at once, and returns a future of its place in the queue, which waits while
    /// the queue is full. An async caller awaits it, and a thread blocks on [`Submit::wait`]; then
    /// the [`Pending`] score is awaited or waited for in the same way. No runtime is needed.
    ///
    /// Submissions enter the queue in the order of the calls. Dropping the future takes the input
    /// back.
    pub fn submit(&self, input: impl Into<Input>) -> Submit {
        match self.prepare(input).and_then(|tokens| self.job(tokens)) {
            Ok((job, pending)) => self.queue.submit(job, pending),
            Err(error) => Submit::refused(error),
        }
    }

    /// Like [`submit`](Self::submit) for inputs that enter the queue together, so that the first
    /// pass finds what they share. Returns a future for each, in the order of the inputs, and does
    /// not block.
    pub fn submit_group<I: Into<Input>>(&self, inputs: impl IntoIterator<Item = I>) -> Vec<Submit> {
        let job = |input| self.prepare(input).and_then(|tokens| self.job(tokens));
        // Prepared before the queue is locked.
        let jobs: Vec<_> = inputs.into_iter().map(job).collect();
        self.queue.submit_group(jobs)
    }

    /// Like [`submit`](Self::submit), with an error of kind [`ErrorKind::QueueFull`] instead of
    /// waiting.
    pub fn try_submit(&self, input: impl Into<Input>) -> Result<Pending> {
        let (job, pending) = self.job(self.prepare(input)?)?;
        self.queue.try_push(job)?;
        Ok(pending)
    }

    /// Submits inputs together, so that the first pass finds what they share; very many in groups
    /// that fill several passes, so that the first pass need not wait for the last input. Returns
    /// pending scores in the order of the inputs. Blocks while the queue is full.
    pub fn submit_all<I: Into<Input>>(&self, inputs: impl IntoIterator<Item = I>) -> Vec<Result<Pending>> {
        let (mut pending, mut group, mut group_tokens) = (Vec::new(), Vec::new(), 0);
        for input in inputs {
            let tokens = self.prepare(input);
            pending.push(tokens.and_then(|tokens| self.job(tokens)).map(|(job, pending)| {
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

    /// Makes the queue's form of a sequence, and its pending score.
    fn job(&self, PromptTokens { mut ids, truncated }: PromptTokens) -> Result<(Job, Pending)> {
        let vocab = self.config.vocab;
        if let Some((index, id)) = ids.iter().enumerate().find(|&(_, &id)| id as usize >= vocab) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("token {index} has id {id}; the model's vocabulary has {vocab} ids"),
            )
            .with_hint(
                "the tokenizer and the model are from different folders, or the ids are another model's",
            ));
        }
        let sequence = Sequence {
            tokens: ids.len(),
            truncated,
            scored_token: self.scored_token(&ids),
            normalization: self.config.normalization,
        };
        // Nothing after the scored token can change its logits.
        ids.truncate(sequence.scored_token + 1);
        let (reply, pending) = queue::pending(sequence);
        Ok((Job { ids, reply }, pending))
    }

    /// Returns the index of the token that is scored, and warns where it is not the last one.
    fn scored_token(&self, ids: &[u32]) -> usize {
        let scored = self.config.head.scored_token(ids);
        if scored != ids.len() - 1 {
            let warning = match self.config.head {
                Head::ScoreMlp { pad_token_id: Some(pad), .. } => format!(
                    "a sequence holds token {pad}, which is the classifier's pad_token_id: its reward is that of the \
                     token before, as in the model's own code"
                ),
                _ => format!(
                    "a sequence ends in token {}, which is the classifier's pad_token_id: its reward is that of the \
                     rightmost other token, as in Transformers",
                    ids[ids.len() - 1]
                ),
            };
            warn_once(&self.warnings, warning);
        }
        scored
    }
}

/// The iterator of [`Engine::score_iter`].
#[derive(Debug)]
pub struct ScoreIter<'a, I> {
    engine: &'a Engine,
    source: I,
    /// Inputs in their order, with their tokens.
    submitted: VecDeque<(usize, Result<Pending>)>,
    submitted_tokens: usize,
}

impl<I> Iterator for ScoreIter<'_, I>
where
    I: Iterator,
    I::Item: Into<Input>,
{
    type Item = Result<Score>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.submitted_tokens < self.engine.plan.lookahead_tokens() {
            let Some(input) = self.source.next() else { break };
            let tokens = self.engine.prepare(input);
            // A failed input counts as one token: its error takes memory too.
            let weight = tokens.as_ref().map_or(1, |tokens| tokens.ids.len());
            self.submitted.push_back((weight, self.engine.submit(tokens).wait()));
            self.submitted_tokens += weight;
        }
        let (weight, pending) = self.submitted.pop_front()?;
        self.submitted_tokens -= weight;
        Some(pending.and_then(Pending::wait))
    }
}
