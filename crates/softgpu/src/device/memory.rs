//! Device memory: host memory in a reserved range, with guard gaps, and shadow bits for every byte
//! and sector.
//!
//! A device pointer is a host address. Addresses are never reused, so every freed one is
//! recognised.

use super::access::Access;
use super::blocks::{BlockClock, BlockShadow};
use super::counters::Counters;
use crate::check::Violation;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Address space reserved for each device; only what is allocated becomes memory.
const RESERVED_BYTES: usize = 2 << 40;
/// Unmapped bytes after each allocation at least.
const GAP_BYTES: usize = 64 << 10;
const PAGE_BYTES: usize = 4096;
const SECTOR_SHIFT: usize = 5;

struct Allocation {
    base: usize,
    size: usize,
    /// Which block last wrote each word.
    blocks: BlockShadow,
    /// One bit a byte: it was written.
    written: Vec<u64>,
    /// One bit a sector: read, written in this launch.
    sectors: [Vec<u64>; 2],
    /// Nonzero words of `sectors`.
    touched: [Vec<u32>; 2],
}

/// Memory that a library takes beside the program's; it comes back when this is dropped.
#[derive(Debug)]
pub struct Reservation {
    bytes: usize,
    reserved: Arc<AtomicUsize>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The memory of one device.
pub struct DeviceMemory {
    base: usize,
    next: usize,
    limit: usize,
    used: usize,
    /// Bytes of all reservations.
    reserved: Arc<AtomicUsize>,
    peak: usize,
    reclaimed: usize,
    checked: bool,
    /// Sorted by base.
    allocations: Vec<Allocation>,
    /// (base, size) of what was freed, sorted by base.
    freed: Vec<(usize, usize)>,
    last: usize,
    /// The block that runs.
    block: BlockClock,
    /// Counts since the last [`DeviceMemory::begin_launch`].
    pub counters: Counters,
}

impl DeviceMemory {
    /// Reserves the range; `limit` is the bytes it will hand out.
    ///
    /// # Panics
    /// If the host has no address space left.
    pub fn new(limit: usize, checked: bool) -> Self {
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing that
        // exists.
        let base = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(std::ptr::null_mut(), RESERVED_BYTES, libc::PROT_NONE, flags, -1, 0)
        };
        assert_ne!(base, libc::MAP_FAILED, "softgpu: no address space for a device");
        let base = base as usize;
        Self {
            base,
            next: base + GAP_BYTES,
            limit,
            used: 0,
            reserved: Arc::default(),
            peak: 0,
            reclaimed: 0,
            checked,
            allocations: Vec::new(),
            freed: Vec::new(),
            last: 0,
            block: BlockClock::default(),
            counters: Counters::default(),
        }
    }

    /// Bytes free and in all.
    pub fn free_and_total(&self) -> (usize, usize) {
        (self.limit - self.used - self.reserved_bytes(), self.limit)
    }

    /// Takes memory that no allocation of the program has then; `None` when it is out.
    pub fn reserve(&mut self, bytes: usize) -> Option<Reservation> {
        if bytes > self.free_and_total().0 {
            return None;
        }
        self.reserved.fetch_add(bytes, Ordering::Relaxed);
        Some(Reservation { bytes, reserved: self.reserved.clone() })
    }

    /// Bytes that libraries have reserved.
    pub fn reserved_bytes(&self) -> usize {
        self.reserved.load(Ordering::Relaxed)
    }

    /// Bytes of the program's allocations.
    pub fn live_bytes(&self) -> usize {
        self.used
    }

    /// The addresses that belong to this device.
    pub fn addresses(&self) -> std::ops::Range<u64> {
        self.base as u64..(self.base + RESERVED_BYTES) as u64
    }

    /// A new allocation, 512-byte aligned; `None` when memory is out.
    pub fn allocate(&mut self, size: usize) -> Option<u64> {
        if size == 0 || size > self.free_and_total().0 {
            return None;
        }
        let mapped = size.next_multiple_of(PAGE_BYTES);
        let end = self.next + mapped + GAP_BYTES;
        if end > self.base + RESERVED_BYTES {
            return None;
        }
        let base = self.next;
        // SAFETY: [base, base + mapped) lies in this device's reserved range and in no allocation.
        let status = unsafe { libc::mprotect(base as *mut _, mapped, libc::PROT_READ | libc::PROT_WRITE) };
        if status != 0 {
            return None;
        }
        self.next = end;
        self.used += size;
        self.peak = self.peak.max(self.used);
        let sectors = size.div_ceil(32).div_ceil(64);
        self.allocations.push(Allocation {
            base,
            size,
            blocks: BlockShadow::default(),
            written: vec![0; size.div_ceil(64)],
            sectors: [vec![0; sectors], vec![0; sectors]],
            touched: Default::default(),
        });
        Some(base as u64)
    }

    /// Frees the allocation that starts at `address`; false if there is none.
    pub fn free(&mut self, address: u64) -> bool {
        let Ok(at) = self.allocations.binary_search_by_key(&(address as usize), |a| a.base) else {
            return false;
        };
        let gone = self.allocations.remove(at);
        let mapped = gone.size.next_multiple_of(PAGE_BYTES);
        // SAFETY: the range was this allocation's alone; a fresh mapping without access replaces
        // it.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
            libc::mmap(gone.base as *mut _, mapped, libc::PROT_NONE, flags, -1, 0);
        }
        self.used -= gone.size;
        let slot = self.freed.partition_point(|f| f.0 < gone.base);
        self.freed.insert(slot, (gone.base, gone.size));
        self.last = 0;
        true
    }

    /// The most bytes that were allocated at one time, over the process.
    pub fn peak_bytes(&self) -> usize {
        self.peak
    }

    /// Bytes that [`DeviceMemory::clear`] had to free, over the process: those that the program
    /// itself did not free.
    pub fn reclaimed_bytes(&self) -> usize {
        self.reclaimed
    }

    /// Allocations that are not freed.
    pub fn allocations(&self) -> usize {
        self.allocations.len()
    }

    /// Frees everything.
    pub fn clear(&mut self) {
        self.reclaimed += self.used;
        while let Some(a) = self.allocations.last() {
            self.free(a.base as u64);
        }
    }

    /// Zeroes the counters and forgets which sectors were touched, and which blocks wrote.
    pub fn begin_launch(&mut self, grid: [u32; 3]) {
        if !self.block.begin_launch(grid) {
            self.allocations.iter_mut().for_each(|allocation| allocation.blocks = BlockShadow::default());
        }
        self.counters = Counters::default();
        for allocation in &mut self.allocations {
            for kind in 0..2 {
                for word in allocation.touched[kind].drain(..) {
                    allocation.sectors[kind][word as usize] = 0;
                }
            }
        }
    }

    /// Begins the next block of the launch.
    pub fn begin_block(&mut self) {
        self.block.begin_block();
    }

    /// Like [`DeviceMemory::range`], for what a kernel reads.
    ///
    /// # Errors
    /// As [`DeviceMemory::range`], and a race with another block of the launch.
    pub fn kernel_read(&mut self, address: u64, bytes: usize) -> Result<(), (Violation, String)> {
        self.range(address, bytes, Access::Read)?;
        if !self.checked || bytes == 0 {
            return Ok(());
        }
        let at = self.find(address as usize, bytes)?;
        let allocation = &mut self.allocations[at];
        allocation.blocks.access(&self.block, address as usize - allocation.base, bytes, Access::Read)
    }

    /// Checks `bytes` at `address`, and notes a write. The range is host memory that may be used
    /// when this returns Ok.
    ///
    /// # Errors
    /// The violation, with the allocation it is nearest to.
    pub fn range(&mut self, address: u64, bytes: usize, access: Access) -> Result<(), (Violation, String)> {
        if bytes == 0 {
            return Ok(());
        }
        let at = self.find(address as usize, bytes)?;
        let allocation = &mut self.allocations[at];
        let offset = address as usize - allocation.base;
        match access {
            Access::Write => set_bits(&mut allocation.written, offset, bytes),
            Access::Read if self.checked => {
                if let Some(first) = first_clear_bit(&allocation.written, offset, bytes) {
                    let detail = format!(
                        "byte {first} of an allocation of {} bytes was never written",
                        allocation.size
                    );
                    return Err((Violation::Uninitialised, detail));
                }
            }
            Access::Read => {}
        }
        Ok(())
    }

    /// Checks bounds alone.
    ///
    /// # Errors
    /// The violation, with the allocation it is nearest to.
    pub fn peek(&self, address: u64, bytes: usize) -> Result<(), (Violation, String)> {
        if bytes == 0 { Ok(()) } else { self.find(address as usize, bytes).map(|_| ()) }
    }

    /// One lane's access of 1 to 16 bytes, a power of two. Returns the host pointer.
    ///
    /// # Errors
    /// The violation and its detail, which a race with another block of the launch is, too.
    #[inline]
    pub fn lane(
        &mut self,
        address: u64,
        bytes: usize,
        access: Access,
    ) -> Result<*mut u8, (Violation, String)> {
        let pointer = self.atomic_lane(address, bytes, access)?;
        if self.checked {
            // The access before has found it.
            let allocation = &mut self.allocations[self.last];
            allocation.blocks.access(&self.block, address as usize - allocation.base, bytes, access)?;
        }
        Ok(pointer)
    }

    /// Like [`DeviceMemory::lane`], for atomics, which race with no other block.
    ///
    /// # Errors
    /// The violation and its detail.
    #[inline]
    pub fn atomic_lane(
        &mut self,
        address: u64,
        bytes: usize,
        access: Access,
    ) -> Result<*mut u8, (Violation, String)> {
        let address = address as usize;
        if address & (bytes - 1) != 0 {
            return Err((Violation::Misaligned, format!("{bytes} bytes at {address:#x}")));
        }
        let hit = self
            .allocations
            .get(self.last)
            .is_some_and(|a| address >= a.base && address + bytes <= a.base + a.size);
        if !hit {
            self.last = self.find(address, bytes)?;
        }
        let allocation = &mut self.allocations[self.last];
        let offset = address - allocation.base;
        let (word, bits) = (offset >> 6, ((1u64 << bytes) - 1) << (offset & 63));
        match access {
            Access::Write => allocation.written[word] |= bits,
            Access::Read if self.checked && allocation.written[word] & bits != bits => {
                let detail =
                    format!("{bytes} bytes at byte {offset} of an allocation of {} bytes", allocation.size);
                return Err((Violation::Uninitialised, detail));
            }
            Access::Read => {}
        }
        Ok(address as *mut u8)
    }

    /// Counts a sector (address / 32) of a valid access as touched in this launch.
    #[inline]
    pub fn touch(&mut self, sector: u64, access: Access) {
        let address = (sector as usize) << SECTOR_SHIFT;
        let hit =
            self.allocations.get(self.last).is_some_and(|a| address >= a.base && address < a.base + a.size);
        if !hit {
            let at = self.allocations.partition_point(|a| a.base <= address);
            self.last = at.saturating_sub(1);
        }
        let kind = access as usize;
        let Some(allocation) = self.allocations.get_mut(self.last) else { return };
        let index = (address - allocation.base) >> SECTOR_SHIFT;
        let (word, bit) = (index / 64, 1u64 << (index % 64));
        let old = allocation.sectors[kind][word];
        if old & bit == 0 {
            if old == 0 {
                allocation.touched[kind].push(word as u32);
            }
            allocation.sectors[kind][word] = old | bit;
            match access {
                Access::Read => self.counters.sectors_read += 1,
                Access::Write => self.counters.sectors_written += 1,
            }
        }
    }

    /// Copies which bytes were written along with a device-to-device copy of valid ranges.
    pub fn copy_written(&mut self, to: u64, from: u64, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let locate = |address: u64| self.allocations.partition_point(|a| a.base as u64 <= address) - 1;
        let (source, target) = (locate(from), locate(to));
        let (from, to) =
            (from as usize - self.allocations[source].base, to as usize - self.allocations[target].base);
        let bits: Vec<bool> = (0..bytes).map(|i| bit(&self.allocations[source].written, from + i)).collect();
        let written = &mut self.allocations[target].written;
        for (i, set) in bits.into_iter().enumerate() {
            let (word, mask) = ((to + i) / 64, 1u64 << ((to + i) % 64));
            written[word] = if set { written[word] | mask } else { written[word] & !mask };
        }
    }

    /// Index of the allocation that holds the whole range.
    fn find(&self, address: usize, bytes: usize) -> Result<usize, (Violation, String)> {
        let at = self.allocations.partition_point(|a| a.base <= address);
        if at > 0 {
            let a = &self.allocations[at - 1];
            if address + bytes <= a.base + a.size {
                return Ok(at - 1);
            }
        }
        let freed = self.freed.partition_point(|f| f.0 <= address);
        if freed > 0 && address < self.freed[freed - 1].0 + self.freed[freed - 1].1 {
            let (base, size) = self.freed[freed - 1];
            let detail =
                format!("{bytes} bytes at byte {} of a freed allocation of {size} bytes", address - base);
            return Err((Violation::UseAfterFree, detail));
        }
        let near = at.checked_sub(1).map(|i| &self.allocations[i]);
        let detail = near.map_or_else(
            || format!("{bytes} bytes at {address:#x}, before every allocation"),
            |a| {
                format!(
                    "{bytes} bytes at {address:#x}, byte {} of an allocation of {} bytes",
                    address - a.base,
                    a.size
                )
            },
        );
        Err((Violation::OutOfBounds, detail))
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: the range was reserved by `new` and has no other owner.
        unsafe { libc::munmap(self.base as *mut _, RESERVED_BYTES) };
    }
}

fn bit(bits: &[u64], at: usize) -> bool {
    bits[at / 64] >> (at % 64) & 1 == 1
}

fn set_bits(bits: &mut [u64], start: usize, count: usize) {
    for_words(start, count, |word, mask| {
        bits[word] |= mask;
        true
    });
}

fn first_clear_bit(bits: &[u64], start: usize, count: usize) -> Option<usize> {
    let mut found = None;
    for_words(start, count, |word, mask| {
        let clear = !bits[word] & mask;
        if clear != 0 {
            found = Some(word * 64 + clear.trailing_zeros() as usize);
        }
        clear == 0
    });
    found
}

/// Calls `f(word, mask)` for the words of a bit range until it returns false.
fn for_words(start: usize, count: usize, mut f: impl FnMut(usize, u64) -> bool) {
    let mut at = start;
    let end = start + count;
    while at < end {
        let bits = (64 - at % 64).min(end - at);
        let mask = if bits == 64 { u64::MAX } else { ((1u64 << bits) - 1) << (at % 64) };
        if !f(at / 64, mask) {
            return;
        }
        at += bits;
    }
}
