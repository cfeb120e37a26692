//! Progress bars on standard error, if that is a terminal.
//!
//! The first bar shows the weights being loaded to the GPU, the second the conversations. Other
//! lines on standard error go through `Progress::say` meanwhile, which keeps the bar below them.

use std::io::{self, IsTerminal};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::say;
use kudos::{Loading, Stats};

/// Least interval between two drawings of a bar.
const DRAW_INTERVAL: Duration = Duration::from_millis(200);

/// A bar and the text beside it.
const STYLE: &str = "{bar:24} {percent:>3}%  {msg}";

/// Text alone, for an input of unknown size.
const STYLE_ENDLESS: &str = "{msg}";

/// Runs `open` with a bar of the weights loaded, if any are to be copied to a device.
pub fn while_loading<T>(loading: &Loading, open: impl FnOnce() -> T) -> T {
    if !io::stderr().is_terminal() {
        return open();
    }
    let (opened, is_open) = channel::<()>();
    let loading = loading.clone();
    let watch = thread::spawn(move || {
        let mut bar = None;
        while is_open.recv_timeout(DRAW_INTERVAL) == Err(RecvTimeoutError::Timeout) {
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
    // It ends because the channel is closed.
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
    /// The engine's counts and the position in the input when the bar began.
    before: (Stats, u64),
    began: Instant,
    drawn: Instant,
    /// Bytes of the input, where known.
    size: Option<u64>,
}

/// Whether the results themselves show the progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Results {
    /// They appear on the terminal, and no bar is drawn.
    OnTerminal,
    /// They go to a file or a pipe.
    Elsewhere,
}

impl Progress {
    /// A bar that begins at `position` of an input of `size` bytes, for an engine whose counts are
    /// `stats`.
    pub(super) fn new(results: Results, size: Option<u64>, position: u64, stats: Stats) -> Self {
        let shown = io::stderr().is_terminal() && results == Results::Elsewhere;
        let now = Instant::now();
        Self { bar: shown.then(|| bar_of(size)), before: (stats, position), began: now, drawn: now, size }
    }

    /// Writes a line to standard error.
    pub(super) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }

    /// Draws the bar for results written up to `position` of the input, if it is due.
    pub(super) fn reached(&mut self, position: u64, stats: impl FnOnce() -> Stats) {
        let Some(bar) = self.bar.as_ref().filter(|_| self.drawn.elapsed() >= DRAW_INTERVAL) else { return };
        self.drawn = Instant::now();
        let elapsed = self.began.elapsed();
        let left = self.size.and_then(|size| left(self.before.1, position, size, elapsed));
        bar.set_position(position);
        bar.set_message(scoring_text(&self.before.0, &stats(), elapsed, left));
    }

    /// Removes the bar, and writes a line with the totals.
    pub(super) fn end(self, stats: &Stats) {
        let Some(bar) = self.bar else { return };
        bar.finish_and_clear();
        let elapsed = self.began.elapsed();
        let text = scoring_text(&self.before.0, stats, elapsed, None);
        say(&format!("{text}, in {}", HumanDuration(elapsed)));
    }
}

/// `12,345 conversations, 411/s, 23,456 tokens/s, 61% shared, 3 minutes left`: the work since
/// `before`, with rates over the whole time. Tokens are those of the conversations; shared is the
/// part of them that was not computed because another conversation of the batch has the same
/// prefix.
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

/// The time for the rest of the input at the mean rate since `before`.
fn left(before: u64, position: u64, size: u64, elapsed: Duration) -> Option<Duration> {
    let (done, rest) = (position.saturating_sub(before), size.saturating_sub(position));
    let seconds = elapsed.as_secs_f64() * rest as f64 / done as f64;
    Duration::try_from_secs_f64(seconds).ok().filter(|_| done > 0)
}

fn bar_of(length: Option<u64>) -> ProgressBar {
    let style = if length.is_some() { STYLE } else { STYLE_ENDLESS };
    let style = ProgressStyle::with_template(style).expect("the constant is well formed");
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
        assert_eq!(
            left(1000, 1000, 9000, Duration::from_secs(10)),
            None,
            "no time is estimated before the first result"
        );
        let text = scoring_text(&Stats::default(), &Stats::default(), Duration::ZERO, None);
        assert_eq!(text, "0 conversations, 0/s, 0 tokens/s, 0% shared");
        let text = loading_text(3_220_000_000, 12_800_000_000, Duration::from_secs(2));
        assert_eq!(text, "3.2 of 12.8 GB of weights, 1.61 GB/s");
    }
}
