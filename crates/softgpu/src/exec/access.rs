//! Loads, stores and atomics of a warp: addresses checked lane by lane, bytes moved, sectors and
//! bank conflicts counted.

use super::Block;
use super::lanes::put;
use super::shared::Actor;
use super::warp::Warp;
use crate::check::{LaneFault, Violation};
use crate::decode::{Atomic, Inst, Shape, Space};
use crate::device::Access;

/// Generic addresses of shared memory and parameters: windows that no host address falls into.
pub(super) const SHARED_WINDOW: u64 = 0x7F00_0000_0000_0000;
pub(super) const PARAM_WINDOW: u64 = 0x7E00_0000_0000_0000;
pub(super) const WINDOW_MASK: u64 = 0xFF00_0000_0000_0000;

/// Space after generic addresses are resolved.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Home {
    Global,
    Shared,
    Param,
}

/// Lane indices of a mask, lowest first.
pub(super) fn lanes_of(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros() as usize;
        mask &= mask.wrapping_sub(1);
        (lane < 32).then_some(lane)
    })
}

impl Block<'_> {
    pub(super) fn load(
        &mut self,
        warp: &mut Warp,
        inst: &Inst,
        space: Space,
        shape: Shape,
        mask: u32,
    ) -> Result<(), LaneFault> {
        let (home, addresses) = self.addresses(warp, inst.r[0], inst.imm, space, mask)?;
        let bytes = shape.elem as usize * shape.count as usize;
        let mut data = [[0u8; 16]; 32];
        if mask == u32::MAX && addresses.iter().all(|&a| a == addresses[0]) {
            // A broadcast is one access: checked once, one sector, no bank conflict.
            self.fetch(home, addresses[0], bytes, Actor::lanes(warp.index), &mut data[0])
                .map_err(at_lane(0))?;
            data = [data[0]; 32];
        } else {
            for lane in lanes_of(mask) {
                self.fetch(home, addresses[lane], bytes, Actor::lane(warp.index, lane), &mut data[lane])
                    .map_err(at_lane(lane))?;
            }
        }
        self.count(home, &addresses, mask, bytes, Access::Read);
        let program = self.program;
        let list = &program.pool[inst.list as usize..][..inst.list_len as usize];
        for (k, &slot) in list.iter().enumerate() {
            let elem = shape.elem as usize;
            if elem == 4 && !shape.wide {
                let out = std::array::from_fn(|i| u32::from_le_bytes(part(&data[i], 4 * k)));
                put(&mut warp.w32[slot as usize].0, &out, mask);
                continue;
            }
            let mut values = [0u64; 32];
            match elem {
                4 => {
                    for i in 0..32 {
                        values[i] = u32::from_le_bytes(part(&data[i], 4 * k)) as u64
                    }
                }
                2 => {
                    for i in 0..32 {
                        values[i] = u16::from_le_bytes(part(&data[i], 2 * k)) as u64
                    }
                }
                8 => {
                    for i in 0..32 {
                        values[i] = u64::from_le_bytes(part(&data[i], 8 * k))
                    }
                }
                _ => {
                    for i in 0..32 {
                        values[i] = data[i][k] as u64
                    }
                }
            }
            if shape.signed && elem < 8 {
                let unused = 64 - 8 * elem as u32;
                values = values.map(|v| ((v << unused) as i64 >> unused) as u64);
            }
            if shape.wide {
                put(&mut warp.w64[slot as usize].0, &values, mask);
            } else {
                let keep = if shape.register_bits == 16 { 0xFFFF } else { u32::MAX };
                put(&mut warp.w32[slot as usize].0, &values.map(|v| v as u32 & keep), mask);
            }
        }
        Ok(())
    }

    pub(super) fn store(
        &mut self,
        warp: &mut Warp,
        inst: &Inst,
        space: Space,
        shape: Shape,
        mask: u32,
    ) -> Result<(), LaneFault> {
        let (home, addresses) = self.addresses(warp, inst.r[0], inst.imm, space, mask)?;
        let elem = shape.elem as usize;
        let bytes = elem * shape.count as usize;
        let mut data = [[0u8; 16]; 32];
        let program = self.program;
        let list = &program.pool[inst.list as usize..][..inst.list_len as usize];
        for (k, &slot) in list.iter().enumerate() {
            for i in 0..32 {
                let value = if shape.wide {
                    warp.w64[slot as usize].0[i]
                } else {
                    warp.w32[slot as usize].0[i] as u64
                };
                data[i][k * elem..(k + 1) * elem].copy_from_slice(&value.to_le_bytes()[..elem]);
            }
        }
        if home == Home::Shared {
            self.shared.begin_write();
        }
        for lane in lanes_of(mask) {
            self.commit(home, addresses[lane], bytes, Actor::lane(warp.index, lane), &data[lane])
                .map_err(at_lane(lane))?;
        }
        self.count(home, &addresses, mask, bytes, Access::Write);
        Ok(())
    }

    pub(super) fn atomic(
        &mut self,
        warp: &mut Warp,
        inst: &Inst,
        space: Space,
        op: Atomic,
        wide: bool,
        mask: u32,
    ) -> Result<(), LaneFault> {
        let (home, addresses) = self.addresses(warp, inst.r[1], inst.imm, space, mask)?;
        let bytes = if wide { 8 } else { 4 };
        let mut olds = [0u64; 32];
        for lane in lanes_of(mask) {
            let operand = |slot: u16| {
                if wide { warp.w64[slot as usize].0[lane] } else { warp.w32[slot as usize].0[lane] as u64 }
            };
            let (b, c) = (operand(inst.r[2]), operand(inst.r[3]));
            let old = self
                .exchange(home, addresses[lane], bytes, |old| apply(op, wide, old, b, c))
                .map_err(at_lane(lane))?;
            olds[lane] = old;
        }
        self.count(home, &addresses, mask, bytes, Access::Write);
        if wide {
            put(&mut warp.w64[inst.r[0] as usize].0, &olds, mask);
        } else {
            put(&mut warp.w32[inst.r[0] as usize].0, &olds.map(|v| v as u32), mask);
        }
        Ok(())
    }

    /// Addresses of the lanes; generic ones are resolved, and all lanes must lie in one space.
    fn addresses(
        &self,
        warp: &Warp,
        slot: u16,
        offset: i64,
        space: Space,
        mask: u32,
    ) -> Result<(Home, [u64; 32]), LaneFault> {
        let narrow =
            || warp.w32[slot as usize].0.map(|a| (a as u64).wrapping_add(offset as u64) & 0xFFFF_FFFF);
        let wide = || warp.w64[slot as usize].0.map(|a| a.wrapping_add(offset as u64));
        let (home, addresses) = match space {
            Space::Shared => (Home::Shared, narrow()),
            Space::Param => (Home::Param, narrow()),
            Space::SharedLong => (Home::Shared, wide()),
            Space::ParamLong => (Home::Param, wide()),
            Space::Global => (Home::Global, wide()),
            Space::Generic => {
                let first = mask.trailing_zeros() as usize % 32;
                let addresses = wide();
                let home = match addresses[first] & WINDOW_MASK {
                    SHARED_WINDOW => Home::Shared,
                    PARAM_WINDOW => Home::Param,
                    _ => Home::Global,
                };
                (home, addresses)
            }
        };
        // A pointer that went through cvta may still carry its window.
        Ok(match home {
            Home::Global => (home, addresses),
            Home::Shared => {
                (home, addresses.map(|a| if a & WINDOW_MASK == SHARED_WINDOW { a & !WINDOW_MASK } else { a }))
            }
            Home::Param => {
                (home, addresses.map(|a| if a & WINDOW_MASK == PARAM_WINDOW { a & !WINDOW_MASK } else { a }))
            }
        })
    }

    #[inline]
    fn fetch(
        &mut self,
        home: Home,
        address: u64,
        bytes: usize,
        actor: Actor,
        into: &mut [u8; 16],
    ) -> Result<(), (Violation, String)> {
        match home {
            Home::Global => {
                let from = self.memory.lane(address, bytes, Access::Read)?;
                // SAFETY: `lane` found all of [from, from + bytes) inside a live allocation; `into`
                // has 16 bytes, bytes <= 16.
                unsafe { copy_small(from, into.as_mut_ptr(), bytes) };
            }
            Home::Shared => {
                let at = self.shared.access(address, bytes, actor, Access::Read)?;
                let from = self.shared.at(at, bytes).as_ptr();
                // SAFETY: `from` is a slice of `bytes` bytes; `into` has 16, bytes <= 16.
                unsafe { copy_small(from, into.as_mut_ptr(), bytes) };
            }
            Home::Param => {
                let at = address as usize;
                let from = self.params.get(at..at.saturating_add(bytes)).ok_or_else(|| {
                    (
                        Violation::OutOfBounds,
                        format!("{bytes} bytes at parameter byte {at} of {}", self.params.len()),
                    )
                })?;
                into[..bytes].copy_from_slice(from);
            }
        }
        Ok(())
    }

    #[inline]
    fn commit(
        &mut self,
        home: Home,
        address: u64,
        bytes: usize,
        actor: Actor,
        from: &[u8; 16],
    ) -> Result<(), (Violation, String)> {
        match home {
            Home::Global => {
                let to = self.memory.lane(address, bytes, Access::Write)?;
                // SAFETY: `lane` found all of [to, to + bytes) inside a live allocation; `from` has
                // 16 bytes, bytes <= 16.
                unsafe { copy_small(from.as_ptr(), to, bytes) };
            }
            Home::Shared => {
                let at = self.shared.access(address, bytes, actor, Access::Write)?;
                self.shared.at(at, bytes).copy_from_slice(&from[..bytes]);
            }
            Home::Param => return Err((Violation::OutOfBounds, "parameters cannot be written".into())),
        }
        Ok(())
    }

    /// Atomic read-modify-write. Atomics on shared memory race with nothing, so only bounds and
    /// contents are checked.
    fn exchange(
        &mut self,
        home: Home,
        address: u64,
        bytes: usize,
        f: impl Fn(u64) -> u64,
    ) -> Result<u64, (Violation, String)> {
        let mut old = [0u8; 8];
        match home {
            Home::Global => {
                let at = self.memory.atomic_lane(address, bytes, Access::Read)?;
                self.memory.atomic_lane(address, bytes, Access::Write)?;
                // SAFETY: `lane` found all of [at, at + bytes) inside a live allocation; `old` has
                // 8 bytes, bytes <= 8.
                unsafe { std::ptr::copy_nonoverlapping(at, old.as_mut_ptr(), bytes) };
                let new = f(u64::from_le_bytes(old)).to_le_bytes();
                // SAFETY: as above.
                unsafe { std::ptr::copy_nonoverlapping(new.as_ptr(), at, bytes) };
            }
            Home::Shared => {
                let at = self.shared.atomic(address, bytes)?;
                old[..bytes].copy_from_slice(self.shared.at(at, bytes));
                let new = f(u64::from_le_bytes(old)).to_le_bytes();
                self.shared.at(at, bytes).copy_from_slice(&new[..bytes]);
            }
            Home::Param => return Err((Violation::OutOfBounds, "parameters cannot be written".into())),
        }
        Ok(u64::from_le_bytes(old))
    }

    fn count(&mut self, home: Home, addresses: &[u64; 32], mask: u32, bytes: usize, access: Access) {
        match home {
            Home::Global => self.count_global(addresses, mask, bytes, access),
            Home::Shared => {
                self.memory.counters.shared_requests += 1;
                self.memory.counters.bank_conflicts += bank_conflicts(addresses, mask, bytes);
            }
            Home::Param => {}
        }
    }

    pub(super) fn count_global(&mut self, addresses: &[u64; 32], mask: u32, bytes: usize, access: Access) {
        let (mut sectors, mut count, mut sorted) = ([0u64; 32], 0, true);
        for lane in lanes_of(mask) {
            let sector = addresses[lane] >> 5;
            if count > 0 && sectors[count - 1] == sector {
                continue;
            }
            sorted &= count == 0 || sectors[count - 1] < sector;
            sectors[count] = sector;
            count += 1;
        }
        let mut distinct = count;
        if !sorted {
            sectors[..count].sort_unstable();
            distinct = 0;
            for i in 0..count {
                if i == 0 || sectors[i] != sectors[i - 1] {
                    sectors[distinct] = sectors[i];
                    distinct += 1;
                }
            }
        }
        for &sector in &sectors[..distinct] {
            self.memory.touch(sector, access);
        }
        let asked = bytes as u64 * mask.count_ones() as u64;
        let counters = &mut self.memory.counters;
        counters.requests += 1;
        counters.request_sectors += distinct as u64;
        match access {
            Access::Read => counters.bytes_read += asked,
            Access::Write => counters.bytes_written += asked,
        }
    }
}

/// Passes beyond the fewest: 32 banks of 4 bytes; 8-byte accesses go by half warps, 16-byte ones by
/// quarters.
pub(super) fn bank_conflicts(addresses: &[u64; 32], mask: u32, bytes: usize) -> u64 {
    let words = bytes.div_ceil(4);
    let lanes_a_pass = 32 / words;
    (0..words)
        .map(|pass| passes(addresses, mask, pass * lanes_a_pass..(pass + 1) * lanes_a_pass, words as u64) - 1)
        .sum()
}

/// Distinct words of the fullest bank, 1 at least.
fn passes(addresses: &[u64; 32], mask: u32, lanes: std::ops::Range<usize>, words: u64) -> u64 {
    let (mut first, mut seen) = ([0u64; 32], 0u32);
    let mut before = u64::MAX;
    for lane in lanes.clone().filter(|&l| mask >> l & 1 == 1) {
        if std::mem::replace(&mut before, addresses[lane]) == addresses[lane] {
            continue;
        }
        for word in (addresses[lane] / 4..).take(words as usize) {
            let bank = word as usize % 32;
            if seen >> bank & 1 == 1 && first[bank] != word {
                return crowded_passes(addresses, mask, lanes, words);
            }
            seen |= 1 << bank;
            first[bank] = word;
        }
    }
    1
}

/// As [`passes`], where some bank holds two words at least.
#[cold]
fn crowded_passes(addresses: &[u64; 32], mask: u32, lanes: std::ops::Range<usize>, words: u64) -> u64 {
    let mut all: Vec<u64> = lanes
        .filter(|&l| mask >> l & 1 == 1)
        .flat_map(|lane| (addresses[lane] / 4..).take(words as usize))
        .collect();
    all.sort_unstable();
    all.dedup();
    let mut counts = [0u64; 32];
    all.iter().for_each(|word| counts[*word as usize % 32] += 1);
    counts.into_iter().max().unwrap_or(1).max(1)
}

/// A copy whose usual lengths are known to the compiler: a call of memmove costs more than the
/// bytes.
///
/// # Safety
/// `from` is readable and `to` writable for `bytes`, and they do not overlap.
#[inline(always)]
unsafe fn copy_small(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: the caller's promise, for each constant length as for `bytes` itself.
    unsafe {
        match bytes {
            16 => std::ptr::copy_nonoverlapping(from, to, 16),
            4 => std::ptr::copy_nonoverlapping(from, to, 4),
            2 => std::ptr::copy_nonoverlapping(from, to, 2),
            8 => std::ptr::copy_nonoverlapping(from, to, 8),
            _ => std::ptr::copy_nonoverlapping(from, to, bytes),
        }
    }
}

fn part<const N: usize>(bytes: &[u8; 16], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

pub(super) fn at_lane(lane: usize) -> impl Fn((Violation, String)) -> LaneFault {
    move |(violation, detail)| LaneFault { violation, lane, detail }
}

fn apply(op: Atomic, wide: bool, old: u64, b: u64, c: u64) -> u64 {
    let signed = |v: u64| if wide { v as i64 } else { v as u32 as i32 as i64 };
    match op {
        Atomic::Add => old.wrapping_add(b),
        Atomic::AddF32 => (f32::from_bits(old as u32) + f32::from_bits(b as u32)).to_bits() as u64,
        Atomic::MinS => {
            if signed(old) < signed(b) {
                old
            } else {
                b
            }
        }
        Atomic::MaxS => {
            if signed(old) > signed(b) {
                old
            } else {
                b
            }
        }
        Atomic::MinU => old.min(b),
        Atomic::MaxU => old.max(b),
        Atomic::And => old & b,
        Atomic::Or => old | b,
        Atomic::Xor => old ^ b,
        Atomic::Exch => b,
        Atomic::Cas => {
            if old == b {
                c
            } else {
                old
            }
        }
    }
}
