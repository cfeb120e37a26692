//! [`Prefetcher`]: a thread that has the kernel read files before their readers get there.
//!
//! Ranges are queued in the order in which they will be read, and the thread asks for them step by
//! step, up to [`WINDOW_BYTES`] in front of the readers: enough reads are in progress for any disk,
//! and pages that were read early are not dropped again before they are used. Where readers are
//! faster, it skips what they have passed.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::map::MappedFile;
use super::tensor::HostTensor;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::lock;

/// Bytes in front of the readers, at most: some 100 ms of a fast disk.
const WINDOW_BYTES: u64 = 256 << 20;

/// A call that takes less for 1 MiB found all of it in the page cache. On the machine of the
/// benches that took 14 to 20 us, and beginning to read 1 MiB 225 to 450 us.
const CACHED_TIME: Duration = Duration::from_micros(50);

/// Bytes that are skipped after a call that found all of its own in the page cache: layers that are
/// streamed again and again are there, and asking for each of their bytes would take a core a
/// quarter of the time that copying them takes.
const CACHED_SKIP_BYTES: u64 = 15 << 20;

/// The thread, and the ranges that it asks for. Dropping it ends the thread.
pub struct Prefetcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// Ranges, of which the bytes are numbered from the first of the first range on.
#[derive(Default)]
struct Queue {
    /// Those that are not asked for yet, each with the number of its first byte.
    ranges: VecDeque<(u64, Arc<MappedFile>, Range<usize>)>,
    /// Bytes of all ranges that were queued.
    queued: u64,
    /// Bytes that readers have read.
    read: u64,
    /// Whether the ranges are a guess, which the first that are queued replace.
    guessed: bool,
    ended: bool,
}

impl Prefetcher {
    /// Starts the thread; [`ErrorKind::Io`] when that fails.
    pub fn new() -> Result<Self> {
        let shared = Arc::<Shared>::default();
        let work = Arc::clone(&shared);
        let thread = thread::Builder::new().name("kudos-prefetcher".to_owned()).spawn(move || work.run());
        let thread = thread.map_err(|error| {
            Error::new(ErrorKind::Io, "cannot start a thread that prefetches weights").caused_by(error)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Queues the bytes of tensors, which will be read after those before. Random weights have
    /// none.
    pub fn queue<'a>(&self, tensors: impl IntoIterator<Item = &'a HostTensor>) {
        self.push(tensors, false);
    }

    /// Begins to read tensors that will probably be read first, before any are queued.
    pub fn guess<'a>(&self, tensors: impl IntoIterator<Item = &'a HostTensor>) {
        self.push(tensors, true);
    }

    fn push<'a>(&self, tensors: impl IntoIterator<Item = &'a HostTensor>, guessed: bool) {
        let mut queue = lock(&self.shared.queue);
        if queue.guessed != guessed {
            *queue = Queue { guessed, ended: queue.ended, ..Queue::default() };
        }
        for (file, bytes) in tensors.into_iter().filter_map(HostTensor::file_bytes) {
            let first = queue.queued;
            queue.queued += bytes.len() as u64;
            queue.ranges.push_back((first, Arc::clone(file), bytes));
        }
        self.shared.changed.notify_one();
    }

    /// Counts bytes of queued tensors that were read.
    pub fn advance(&self, bytes: usize) {
        lock(&self.shared.queue).read += bytes as u64;
        self.shared.changed.notify_one();
    }
}

impl Queue {
    /// Drops what lies before byte `number`.
    fn skip_to(&mut self, number: u64) {
        while let Some((first, _, bytes)) = self.ranges.front_mut() {
            let skipped = number.saturating_sub(*first).min(bytes.len() as u64);
            *first += skipped;
            bytes.start += skipped as usize;
            if bytes.start < bytes.end {
                return;
            }
            self.ranges.pop_front();
        }
    }

    /// The next bytes to ask for, and the number of the first, unless readers must read others
    /// first.
    fn next(&mut self) -> Option<(u64, Arc<MappedFile>, Range<usize>)> {
        self.skip_to(self.read);
        let limit = self.read + WINDOW_BYTES;
        self.ranges.front().filter(|(first, ..)| *first < limit).cloned()
    }
}

impl Shared {
    fn run(&self) {
        let mut queue = lock(&self.queue);
        while !queue.ended {
            let Some((first, file, bytes)) = queue.next() else {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(queue);
            let begun = Instant::now();
            let asked = file.prefetch(bytes);
            let cached = begun.elapsed() * (1 << 20) < CACHED_TIME * asked as u32;
            queue = lock(&self.queue);
            // Others may have been queued in place of a guess.
            if queue
                .ranges
                .front()
                .is_some_and(|(number, front, _)| *number == first && Arc::ptr_eq(front, &file))
            {
                queue.skip_to(first + asked as u64 + if cached { CACHED_SKIP_BYTES } else { 0 });
            }
        }
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        lock(&self.shared.queue).ended = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It only asks: a panic of it has harmed nothing.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Prefetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prefetcher").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Dtype;

    /// A tensor of so many bytes.
    fn tensor(bytes: usize) -> HostTensor {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        std::fs::File::create(&path).unwrap().set_len(bytes as u64).unwrap();
        let file = Arc::new(MappedFile::open(&path).unwrap());
        HostTensor::new(file, "m".into(), Dtype::BF16, 0, [1, bytes / 2])
    }

    /// A queue without a thread.
    fn queue() -> Prefetcher {
        Prefetcher { shared: Arc::default(), thread: None }
    }

    /// Number and bytes of the next range.
    fn next(reads: &Prefetcher) -> Option<(u64, Range<usize>)> {
        lock(&reads.shared.queue).next().map(|(first, _, bytes)| (first, bytes))
    }

    #[test]
    fn no_byte_is_asked_for_far_in_front_of_the_readers() {
        let (reads, window) = (queue(), WINDOW_BYTES as usize);
        let tensors = [tensor(window), tensor(4096)];
        reads.queue(&tensors);
        assert_eq!(next(&reads), Some((0, 0..window)));
        lock(&reads.shared.queue).skip_to(WINDOW_BYTES);
        assert_eq!(next(&reads), None);
        reads.advance(1);
        assert_eq!(next(&reads), Some((WINDOW_BYTES, 0..4096)));
    }

    #[test]
    fn bytes_that_readers_have_passed_are_skipped() {
        let reads = queue();
        reads.queue(&[tensor(4096), tensor(8192)]);
        reads.advance(4096 + 100);
        assert_eq!(next(&reads), Some((4196, 100..8192)));
        reads.advance(8092);
        assert_eq!(next(&reads), None);
        reads.queue(&[tensor(64)]);
        assert_eq!(next(&reads), Some((12288, 0..64)));
    }

    #[test]
    fn tensors_that_are_queued_replace_a_guess() {
        let reads = queue();
        reads.guess(&[tensor(4096)]);
        assert_eq!(next(&reads), Some((0, 0..4096)));
        reads.queue(&[tensor(64)]);
        assert_eq!(next(&reads), Some((0, 0..64)));
    }

    #[test]
    fn the_thread_asks_for_all_bytes_and_ends() {
        let reads = Prefetcher::new().unwrap();
        reads.queue(&[tensor(3 << 20), tensor(5000)]);
        let begun = Instant::now();
        while next(&reads).is_some() {
            assert!(begun.elapsed() < Duration::from_secs(30));
            thread::yield_now();
        }
        drop(reads);
    }
}
