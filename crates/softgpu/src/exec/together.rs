//! Exchanges between lanes: `shfl.sync`, `vote.sync`, `redux.sync`.

use super::lanes::{W32, put};
use crate::check::{LaneFault, Violation};
use crate::decode::{Int2, Shuffle, Vote};

/// Every executing lane's member mask must name exactly the lanes that are here.
#[inline(always)]
pub(super) fn members(file: &[W32], slot: u16, mask: u32) -> Result<(), LaneFault> {
    let lane = mask.trailing_zeros() as usize % 32;
    let named = file[slot as usize].0[lane];
    if named == mask {
        return Ok(());
    }
    missing(named, mask, lane)
}

#[cold]
fn missing(named: u32, mask: u32, lane: usize) -> Result<(), LaneFault> {
    let detail = format!("the member mask names lanes {named:#010x}, those executing are {mask:#010x}");
    Err(LaneFault { violation: Violation::Trap, lane, detail })
}

/// `shfl.sync d|p, a, b, c`: c holds the segment mask (upper) and the clamp (lower five bits).
#[inline(always)]
pub(super) fn shuffle(
    how: Shuffle,
    file: &mut [W32],
    predicates: &mut [u32],
    r: &[u16; 5],
    mask: u32,
) -> Result<(), LaneFault> {
    let a = file[r[2] as usize].0;
    let (b, c) = (file[r[3] as usize].0, file[r[4] as usize].0);
    let mut out = [0; 32];
    let mut valid = 0u32;
    let mut absent = 0u32;
    for lane in 0..32u32 {
        let by = b[lane as usize] & 31;
        let (clamp, segment) = (c[lane as usize] & 31, c[lane as usize] >> 8 & 31);
        let last = (lane & segment) | (clamp & !segment);
        let first = lane & segment;
        let (source, inside) = match how {
            Shuffle::Up => (lane.wrapping_sub(by), lane as i32 - by as i32 >= last as i32),
            Shuffle::Down => (lane + by, lane + by <= last),
            Shuffle::Bfly => (lane ^ by, lane ^ by <= last),
            Shuffle::Idx => (first | (by & !segment), first | (by & !segment) <= last),
        };
        let source = if inside { source & 31 } else { lane };
        out[lane as usize] = a[source as usize];
        valid |= (inside as u32) << lane;
        absent |= (mask >> lane & !(mask >> source) & 1) << lane;
    }
    if absent != 0 {
        let detail = format!("reads a lane that is not among {mask:#010x}");
        return Err(LaneFault { violation: Violation::Trap, lane: absent.trailing_zeros() as usize, detail });
    }
    put(&mut file[r[0] as usize].0, &out, mask);
    let p = &mut predicates[r[1] as usize];
    *p = *p & !mask | valid & mask;
    Ok(())
}

/// The result of a vote: all ones or zero for predicates, the ballot otherwise.
#[inline(always)]
pub(super) fn vote(how: Vote, holds: u32, mask: u32) -> u32 {
    let holds = holds & mask;
    let yes = match how {
        Vote::All => holds == mask,
        Vote::Any => holds != 0,
        Vote::Uni => holds == mask || holds == 0,
        Vote::Ballot => return holds,
    };
    if yes { u32::MAX } else { 0 }
}

/// Reduces the lanes of `mask` and gives all of them the result.
#[inline(always)]
pub(super) fn reduce(op: Int2, file: &mut [W32], r: &[u16; 5], mask: u32) {
    let a = file[r[1] as usize].0;
    let lanes = (0..32).filter(|i| mask >> i & 1 == 1).map(|i| a[i as usize]);
    let out = match op {
        Int2::Add => lanes.fold(0, u32::wrapping_add),
        Int2::MinS => lanes.map(|v| v as i32).min().unwrap_or(0) as u32,
        Int2::MaxS => lanes.map(|v| v as i32).max().unwrap_or(0) as u32,
        Int2::MinU => lanes.min().unwrap_or(0),
        Int2::MaxU => lanes.max().unwrap_or(0),
        Int2::And => lanes.fold(u32::MAX, |x, v| x & v),
        Int2::Or => lanes.fold(0, |x, v| x | v),
        _ => lanes.fold(0, |x, v| x ^ v),
    };
    put(&mut file[r[0] as usize].0, &[out; 32], mask);
}
