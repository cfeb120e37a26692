//! Progress for a person: two bars on standard error, where that is a terminal, and nothing where it is not.
//!
//! The first shows weights on their way to the GPU, the second conversations. Whatever else is said on standard error
//! meanwhile goes through `Progress::say`, which keeps the bar below it.

use std::io::{self, IsTerminal};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::say;
use kudos::{Loading, Stats};

/// How often a bar is drawn anew, at most.
const DRAW: Duration = Duration::from_millis(200);

/// A bar and what stands beside it.
const STYLE: &str = "{bar:24} {percent:>3}%  {msg}";

/// The same where the end is not known.
const STYLE_ENDLESS: &str = "{msg}";

/// Runs `open` under a bar that shows how far weights have come, if any are to be brought anywhere.
pub fn while_loading<T>(loading: &Loading, open: impl FnOnce() -> T) -> T {
    if !io::stderr().is_terminal() {
        return open();
    }
    let (opened, is_open) = channel::<()>();
    let loading = loading.clone();
    let watch = thread::spawn(move || {
        let mut bar = None;
        while is_open.recv_timeout(DRAW) == Err(RecvTimeoutError::Timeout) {
            let total = loading.total_bytes();
            if total > 0 {
                let (bar, began) = bar.get_or_insert_with(|| (bar_of(Some(total)), Instant::now()));
                let brought = loading.brought_bytes();
                bar.set_length(total);
                bar.set_position(brought.min(total));
                bar.set_message(loading_text(brought, total, began.elapsed()));
            }
        }
        bar.inspect(|(bar, _)| bar.finish_and_clear());
    });
    let result = open();
    drop(opened);
    // It ends, since the channel has.
    let _ = watch.join();
    result
}

/// `3.2 of 12.8 GB of weights, 1.61 GB/s`
fn loading_text(brought: u64, total: u64, elapsed: Duration) -> String {
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let rate = gb(brought) / elapsed.as_secs_f64().max(1e-3);
    format!("{:.1} of {:.1} GB of weights, {rate:.2} GB/s", gb(brought), gb(total))
}

/// The bar over conversations, or nothing.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    /// What the engine had computed before, and the position in the input.
    before: (Stats, u64),
    began: Instant,
    drawn: Instant,
    /// Bytes of the input, where that is known.
    size: Option<u64>,
}

/// Where results go, as far as the bar is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Results {
    /// The person sees them, and by them how far things are.
    OnTerminal,
    Elsewhere,
}

impl Progress {
    /// A bar from `position` in an input of `size` bytes, for an engine that has computed `stats`.
    pub(super) fn new(results: Results, size: Option<u64>, position: u64, stats: Stats) -> Self {
        let shown = io::stderr().is_terminal() && results == Results::Elsewhere;
        let now = Instant::now();
        Self { bar: shown.then(|| bar_of(size)), before: (stats, position), began: now, drawn: now, size }
    }

    /// A line on standard error.
    pub(super) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }

    /// Results are written up to `position` of the input.
    pub(super) fn reached(&mut self, position: u64, stats: impl FnOnce() -> Stats) {
        let Some(bar) = self.bar.as_ref().filter(|_| self.drawn.elapsed() >= DRAW) else { return };
        self.drawn = Instant::now();
        let elapsed = self.began.elapsed();
        let left = self.size.and_then(|size| left(self.before.1, position, size, elapsed));
        bar.set_position(position);
        bar.set_message(scoring_text(&self.before.0, &stats(), elapsed, left));
    }

    /// Takes the bar away and leaves the sum of it all.
    pub(super) fn end(self, stats: &Stats) {
        let Some(bar) = self.bar else { return };
        bar.finish_and_clear();
        let elapsed = self.began.elapsed();
        let text = scoring_text(&self.before.0, stats, elapsed, None);
        say(&format!("{text}, in {}", HumanDuration(elapsed)));
    }
}

/// `12,345 conversations, 411/s, 23,456 tokens/s, 61% shared, 3 minutes left`: what was done since `before`, by seconds of
/// the whole time; tokens as conversations have them, and the part of them that did not have to be computed again.
fn scoring_text(before: &Stats, stats: &Stats, elapsed: Duration, left: Option<Duration>) -> String {
    let mut since = *stats;
    for (now, before) in [
        (&mut since.passes, before.passes),
        (&mut since.sequences, before.sequences),
        (&mut since.tokens, before.tokens),
        (&mut since.unique_tokens, before.unique_tokens),
    ] {
        *now -= before;
    }
    let per_second = |count: u64| HumanCount((count as f64 / elapsed.as_secs_f64().max(1e-3)) as u64);
    let (conversations, shared) = (HumanCount(since.sequences), 100.0 * since.shared());
    let (rate, tokens) = (per_second(since.sequences), per_second(since.tokens));
    let left = left.map(|left| format!(", {} left", HumanDuration(left))).unwrap_or_default();
    format!("{conversations} conversations, {rate}/s, {tokens} tokens/s, {shared:.0}% shared{left}")
}

/// The time that the rest of the input takes if it goes on as it went since `before`.
fn left(before: u64, position: u64, size: u64, elapsed: Duration) -> Option<Duration> {
    let (done, rest) = (position.saturating_sub(before), size.saturating_sub(position));
    let seconds = elapsed.as_secs_f64() * rest as f64 / done as f64;
    Duration::try_from_secs_f64(seconds).ok().filter(|_| done > 0)
}

fn bar_of(length: Option<u64>) -> ProgressBar {
    let style = if length.is_some() { STYLE } else { STYLE_ENDLESS };
    let style = ProgressStyle::with_template(style).expect("a constant that is well formed");
    ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr()).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_counts_from_where_the_run_began() {
        let stats = |sequences, tokens, unique_tokens| {
            let mut stats = Stats::default();
            (stats.sequences, stats.tokens, stats.unique_tokens) = (sequences, tokens, unique_tokens);
            stats
        };
        let text = scoring_text(
            &stats(2, 100, 100),
            &stats(12_002, 1_000_100, 250_100),
            Duration::from_secs(10),
            left(1000, 3000, 9000, Duration::from_secs(10)),
        );
        assert_eq!(text, "12,000 conversations, 1,200/s, 100,000 tokens/s, 75% shared, 30 seconds left");
        assert_eq!(left(1000, 1000, 9000, Duration::from_secs(10)), None, "nothing done, nothing known");
        let text = scoring_text(&Stats::default(), &Stats::default(), Duration::ZERO, None);
        assert_eq!(text, "0 conversations, 0/s, 0 tokens/s, 0% shared");
        let text = loading_text(3_220_000_000, 12_800_000_000, Duration::from_secs(2));
        assert_eq!(text, "3.2 of 12.8 GB of weights, 1.61 GB/s");
    }
}
