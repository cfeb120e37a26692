//! Virtual registers to slots by liveness. PTX is SSA-like: a warp of an attention kernel would
//! need 470 KB otherwise.
//!
//! Liveness is per lane, as control flow is: writes are masked, so lanes on two sides of a branch
//! may share a slot.

use super::builder::{Builder, Class, Draft, OperandSlot};
use super::flow::Flow;
use super::inst::{Inst, NO_GUARD, Op, Preset, Touched};

/// Code over slots.
pub(super) struct Allotted {
    pub(super) code: Vec<Inst>,
    pub(super) pool: Vec<u16>,
    pub(super) slots: (usize, usize, usize),
    pub(super) presets: Vec<Preset>,
    pub(super) touched: Vec<Vec<Touched>>,
}

/// Gives every virtual register a slot, constants and special registers first.
pub(super) fn allot(drafts: &mut [Draft], builder: &Builder<'_>, flow: &Flow) -> Allotted {
    let mut slot = vec![u16::MAX; builder.classes.len()];
    let mut used = [0u16; 3];
    let mut presets = Vec::new();
    let mut next = |class: Class| -> u16 {
        let file = &mut used[class as usize];
        *file += 1;
        *file - 1
    };
    for (&(class, value), &register) in &builder.constants {
        let at = next(class);
        slot[register as usize] = at;
        presets.push(match class {
            Class::Pred => Preset::Pred(at, value != 0),
            Class::W32 => Preset::W32(at, value as u32),
            Class::W64 => Preset::W64(at, value),
        });
    }
    for (&special, &register) in &builder.specials {
        let at = next(Class::W32);
        slot[register as usize] = at;
        presets.push(Preset::Special(at, special));
    }
    assign(&intervals(drafts, builder, flow), builder, &mut slot, &mut used);

    let (mut code, mut pool) = (Vec::with_capacity(drafts.len()), Vec::new());
    for draft in drafts.iter() {
        let mut inst = draft.inst;
        inst.list = pool.len() as u32;
        pool.extend(std::iter::repeat_n(0, inst.list_len as usize));
        inst.guard = NO_GUARD;
        for field in &draft.fields {
            let at = slot[field.register as usize];
            match field.slot {
                OperandSlot::Guard => inst.guard = at,
                OperandSlot::Fixed(i) => inst.r[i] = at,
                OperandSlot::List(i) => pool[inst.list as usize + i] = at,
            }
        }
        code.push(inst);
    }
    let touched = if drafts.iter().any(|draft| matches!(draft.inst.op, Op::GroupMatmul(_))) {
        drafts.iter().map(|draft| touched(draft, builder, &slot)).collect()
    } else {
        Vec::new()
    };
    let slots = (
        used[Class::W32 as usize] as usize,
        used[Class::W64 as usize] as usize,
        used[Class::Pred as usize] as usize,
    );
    Allotted { code, pool, slots, presets, touched }
}

/// The 32-bit registers of an instruction.
fn touched(draft: &Draft, builder: &Builder<'_>, slot: &[u16]) -> Vec<Touched> {
    let fields = draft.fields.iter().filter(|field| builder.classes[field.register as usize] == Class::W32);
    fields.map(|field| Touched { slot: slot[field.register as usize], writes: field.defines }).collect()
}

/// Linear scan over (register, first, last), which arrive sorted by `first`.
fn assign(intervals: &[(u32, usize, usize)], builder: &Builder<'_>, slot: &mut [u16], used: &mut [u16; 3]) {
    let mut free: [Vec<u16>; 3] = Default::default();
    let mut active: Vec<(usize, u32)> = Vec::new();
    for &(register, first, last) in intervals {
        active.retain(|&(end, r)| {
            let alive = end >= first;
            if !alive {
                free[builder.classes[r as usize] as usize].push(slot[r as usize]);
            }
            alive
        });
        let class = builder.classes[register as usize] as usize;
        slot[register as usize] = free[class].pop().unwrap_or_else(|| {
            used[class] += 1;
            used[class] - 1
        });
        active.push((last, register));
    }
}

/// The span of instructions over which each register is live, holes filled.
fn intervals(drafts: &[Draft], builder: &Builder<'_>, flow: &Flow) -> Vec<(u32, usize, usize)> {
    let count = builder.classes.len();
    let words = count.div_ceil(64);
    let blocks = flow.blocks.len();
    let (mut reads, mut kills) = (vec![vec![0u64; words]; blocks], vec![vec![0u64; words]; blocks]);
    let mut span = vec![(usize::MAX, 0usize); count];
    let mut touch = |register: u32, at: usize| {
        let s = &mut span[register as usize];
        *s = (s.0.min(at), s.1.max(at));
    };
    for (b, &(start, end)) in flow.blocks.iter().enumerate() {
        for at in start..end {
            let draft = &drafts[at];
            for f in &draft.fields {
                touch(f.register, at);
                let (word, bit) = (f.register as usize / 64, 1u64 << (f.register % 64));
                // A guarded write keeps the old value in the other lanes, so the old value is read.
                let reads_old = !f.defines || draft.inst.guard != NO_GUARD;
                if reads_old && kills[b][word] & bit == 0 {
                    reads[b][word] |= bit;
                }
            }
            for f in draft.fields.iter().filter(|f| f.defines && draft.inst.guard == NO_GUARD) {
                kills[b][f.register as usize / 64] |= 1u64 << (f.register % 64);
            }
        }
    }
    let mut live_in = reads.clone();
    let mut changed = true;
    while changed {
        changed = false;
        for b in (0..blocks).rev() {
            for w in 0..words {
                let out =
                    flow.successors[b].iter().filter(|&&s| s < blocks).fold(0, |all, &s| all | live_in[s][w]);
                let new = reads[b][w] | (out & !kills[b][w]);
                changed |= new != live_in[b][w];
                live_in[b][w] = new;
            }
        }
    }
    for (b, &(start, end)) in flow.blocks.iter().enumerate() {
        for w in 0..words {
            let out =
                flow.successors[b].iter().filter(|&&s| s < blocks).fold(0, |all, &s| all | live_in[s][w]);
            for bit in 0..64 {
                let register = (w * 64 + bit) as u32;
                if live_in[b][w] >> bit & 1 == 1 {
                    touch(register, start);
                }
                if out >> bit & 1 == 1 {
                    touch(register, end - 1);
                }
            }
        }
    }
    // Registers of a matmul of a warpgroup are the hardware's from the fence before it to a wait after
    // it: no other value may share their slots there.
    let is = |op: Op| move |draft: &Draft| draft.inst.op == op;
    let last_wait = drafts.iter().rposition(is(Op::GroupWait)).unwrap_or(0);
    for (at, draft) in drafts.iter().enumerate() {
        if let Op::GroupMatmul(_) = draft.inst.op {
            let fence = drafts[..at].iter().rposition(is(Op::GroupFence)).unwrap_or(at);
            for field in &draft.fields {
                touch(field.register, fence);
                touch(field.register, last_wait.max(at));
            }
        }
    }
    let preset: std::collections::HashSet<u32> =
        builder.constants.values().chain(builder.specials.values()).copied().collect();
    let mut out: Vec<_> = (0..count as u32)
        .filter(|r| span[*r as usize].0 != usize::MAX && !preset.contains(r))
        .map(|r| (r, span[r as usize].0, span[r as usize].1))
        .collect();
    out.sort_by_key(|&(_, first, _)| first);
    out
}
