//! A shadow of global memory during a launch: which block last wrote each 4-byte word. Blocks run
//! in any order on hardware, so one that reads or writes what another one wrote is a race. Here
//! they run one after another, which would hide it.

use super::access::Access;
use crate::check::Violation;

/// Words of a page, which exists from the first write on.
const PAGE_WORDS: usize = 1024;
/// A shadow word: the number of a block, and below it one bit for each of the word's bytes.
const BYTES_BITS: u32 = 4;
/// Blocks that can be numbered before all shadows start anew.
const NUMBERS_MAX: u32 = u32::MAX >> BYTES_BITS;

/// The block that runs, by a number that no block before it has.
#[derive(Default)]
pub(super) struct BlockClock {
    /// The last number before this launch.
    before: u32,
    now: u32,
    grid: [u32; 3],
}

impl BlockClock {
    /// Returns false where numbers start anew, so that shadows must be forgotten.
    pub(super) fn begin_launch(&mut self, grid: [u32; 3]) -> bool {
        self.grid = grid;
        self.before = self.now;
        let blocks = grid.iter().map(|&n| u64::from(n)).product::<u64>();
        let fits = u64::from(self.now) + blocks <= u64::from(NUMBERS_MAX);
        if !fits {
            (self.before, self.now) = (0, 0);
        }
        fits
    }

    /// Blocks beyond the greatest number share it, which misses races and invents none.
    pub(super) fn begin_block(&mut self) {
        self.now = (self.now + 1).min(NUMBERS_MAX);
    }

    fn index_of(&self, number: u32) -> [u32; 3] {
        let linear = number - self.before - 1;
        let [x, y, _] = self.grid;
        [linear % x, linear / x % y, linear / x / y]
    }
}

/// The shadow of one allocation.
#[derive(Default)]
pub(super) struct BlockShadow {
    pages: Vec<Option<Box<[u32; PAGE_WORDS]>>>,
    /// The last block that wrote any of it.
    last: u32,
}

impl BlockShadow {
    /// Checks an access of the block that runs, and notes a write. Of two blocks that write
    /// different bytes of a word the later one is remembered, which misses races and invents none.
    ///
    /// # Errors
    /// A race.
    #[inline]
    pub(super) fn access(
        &mut self,
        clock: &BlockClock,
        offset: usize,
        bytes: usize,
        access: Access,
    ) -> Result<(), (Violation, String)> {
        // Most of what is read was not written by this launch.
        if access == Access::Read
            && (self.last <= clock.before || self.last == clock.now && self.alone(clock))
        {
            return Ok(());
        }
        self.words(clock, offset, bytes, access)
    }

    /// Whether this launch has one block only.
    fn alone(&self, clock: &BlockClock) -> bool {
        clock.now == clock.before + 1
    }

    fn words(
        &mut self,
        clock: &BlockClock,
        offset: usize,
        bytes: usize,
        access: Access,
    ) -> Result<(), (Violation, String)> {
        let end = offset + bytes;
        let mut at = offset;
        while at < end {
            let (word, next) = (at / 4, (at / 4 + 1) * 4);
            let count = next.min(end) - at;
            let mask = ((1u32 << count) - 1) << (at % 4);
            let page = word / PAGE_WORDS;
            at = next.min(end);
            let known = match self.pages.get(page) {
                Some(Some(page)) => page[word % PAGE_WORDS],
                _ => 0,
            };
            let number = known >> BYTES_BITS;
            let of_another = number > clock.before && number != clock.now;
            if of_another && known & mask != 0 {
                return Err(race(clock, number, word * 4, access));
            }
            if access == Access::Write {
                let same = if number == clock.now { known & ((1 << BYTES_BITS) - 1) } else { 0 };
                self.page(page)[word % PAGE_WORDS] = clock.now << BYTES_BITS | same | mask;
                self.last = clock.now;
            }
        }
        Ok(())
    }

    #[inline]
    fn page(&mut self, page: usize) -> &mut [u32; PAGE_WORDS] {
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
        self.pages[page].get_or_insert_with(|| Box::new([0; PAGE_WORDS]))
    }
}

#[cold]
fn race(clock: &BlockClock, number: u32, byte: usize, access: Access) -> (Violation, String) {
    let does = if access == Access::Read { "reads" } else { "writes" };
    let other = clock.index_of(number);
    (Violation::BlockRace, format!("it {does} byte {byte} of an allocation, which block {other:?} wrote"))
}
