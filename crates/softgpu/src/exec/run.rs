//! The interpreter's loop, compiled twice: for AVX2 + FMA and for any machine.

use super::access::{PARAM_WINDOW, SHARED_WINDOW};
use super::lanes::{one64, put, three32, three64, two32};
use super::warp::{Frame, State, Warp};
use super::{Block, convert, float, int, tensor, together};
use crate::check::{LaneFault, Violation};
use crate::decode::{Inst, NO_GUARD, Op, Vote};

/// Instruction index and fault.
type Stopped = (usize, LaneFault);

impl Block<'_> {
    /// Runs a warp to its next barrier or its end.
    pub(super) fn run_warp(&mut self, warp: &mut Warp) -> Result<(), Stopped> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: both features were found a line above.
            return unsafe { self.run_avx2(warp) };
        }
        self.run_here(warp)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
    fn run_avx2(&mut self, warp: &mut Warp) -> Result<(), Stopped> {
        self.run_here(warp)
    }

    #[inline(always)]
    fn run_here(&mut self, warp: &mut Warp) -> Result<(), Stopped> {
        let program = self.program;
        let code = &program.code[..];
        let mut executed = 0u64;
        let Some(mut top) = warp.stack.pop() else { return Ok(()) };
        let outcome = loop {
            if top.pc == top.reconverge || top.mask == 0 {
                let Some(next) = warp.stack.pop() else {
                    warp.state = State::Done;
                    break Ok(());
                };
                top = next;
                top.mask &= warp.live;
                continue;
            }
            let at = top.pc as usize;
            let inst = &code[at];
            let mut mask = top.mask;
            if inst.guard != NO_GUARD {
                let p = warp.predicates[inst.guard as usize];
                mask &= if inst.guard_negated { !p } else { p };
            }
            executed += 1;
            top.pc += 1;
            if mask == 0 {
                continue;
            }
            if !program.touched.is_empty()
                && let Err(fault) = warp.matmuls.touch(program, at)
            {
                break Err((at, fault));
            }
            match inst.op {
                Op::Branch => branch(warp, &mut top, inst.imm as u32, program.reconverge[at], mask),
                Op::Ret => {
                    warp.live &= !mask;
                    top.mask &= !mask;
                }
                Op::BarSync if mask == warp.live => {
                    warp.stack.push(top);
                    warp.state = State::AtBarrier;
                    break Ok(());
                }
                Op::GroupMatmul(_) if mask == u32::MAX => {
                    warp.stack.push(top);
                    warp.state = State::AtMatmul;
                    break Ok(());
                }
                Op::CopyBox => {
                    if let Err(fault) = self.copy_box(warp, at, inst, mask) {
                        break Err((at, fault));
                    }
                }
                Op::MbarrierWait => match self.wait(warp, inst, mask) {
                    Ok(None) => {}
                    Ok(Some(state)) => {
                        warp.stack.push(top);
                        warp.state = state;
                        break Ok(());
                    }
                    Err(fault) => break Err((at, fault)),
                },
                _ => {
                    if let Err(fault) = self.step(warp, inst, mask) {
                        break Err((at, fault));
                    }
                }
            }
        };
        self.memory.counters.warp_instructions += executed;
        outcome
    }

    /// Everything but control flow.
    #[inline(always)]
    fn step(&mut self, warp: &mut Warp, inst: &Inst, mask: u32) -> Result<(), LaneFault> {
        let r = &inst.r;
        match inst.op {
            Op::I32(op) => int::int32(op, &mut warp.w32, r, mask),
            Op::I64(op) => int::int64(op, &mut warp.w64, &warp.w32, r, mask),
            Op::I16(op) => int::int16(op, &mut warp.w32, r, mask),
            Op::U32(op) => int::one_of_32(op, &mut warp.w32, r, mask),
            Op::U64(op) => int::one_of_64(op, &mut warp.w64, r, mask),
            Op::U16(op) => int::one_of_16(op, &mut warp.w32, r, mask),
            Op::F32(op, mods) => float::two_f32(op, mods, &mut warp.w32, r, mask),
            Op::FmaF32(mods) => float::fma_f32(mods, &mut warp.w32, r, mask),
            Op::FmaF32Directed(round, mods) => float::fma_directed(round, mods, &mut warp.w32, r, mask),
            Op::F32One(op, mods) => float::one_f32(op, mods, &mut warp.w32, r, mask),
            Op::F64(op) => float::two_f64(op, &mut warp.w64, r, mask),
            Op::FmaF64 => float::fma_f64(&mut warp.w64, r, mask),
            Op::F64One(op) => float::one_f64(op, &mut warp.w64, r, mask),
            Op::HalfOne { op, of } | Op::HalfTwo { op, of } => float::half(op, of, &mut warp.w32, r, mask),
            Op::Load(space, shape) => self.load(warp, inst, space, shape, mask)?,
            Op::Store(space, shape) => self.store(warp, inst, space, shape, mask)?,
            Op::Cvt { to, from, round, integral, mods } => {
                let rule = convert::Rule { to, from, round, integral, mods };
                convert::cvt(rule, &mut warp.w32, &mut warp.w64, r, mask);
            }
            Op::CvtPair { to, relu } => convert::cvt_pair(to, relu, &mut warp.w32, r, mask),
            Op::Setp { compare, of, combine, negate_c } => {
                let holds = convert::compare(compare, of, &warp.w32, &warp.w64, r[2], r[3]);
                let with = warp.predicates[r[4] as usize];
                let (p, q) = convert::combine(combine, holds, if negate_c { !with } else { with });
                set_predicate(warp, r[1], q, mask);
                set_predicate(warp, r[0], p, mask);
            }
            Op::Select32 => {
                let p = warp.predicates[r[3] as usize];
                let (a, b) = (&warp.w32[r[1] as usize].0, &warp.w32[r[2] as usize].0);
                let mut out = [0; 32];
                for i in 0..32 {
                    out[i] = if p >> i & 1 == 1 { a[i] } else { b[i] };
                }
                put(&mut warp.w32[r[0] as usize].0, &out, mask);
            }
            Op::Select64 => {
                let p = warp.predicates[r[3] as usize];
                let (a, b) = (&warp.w64[r[1] as usize].0, &warp.w64[r[2] as usize].0);
                let mut out = [0; 32];
                for i in 0..32 {
                    out[i] = if p >> i & 1 == 1 { a[i] } else { b[i] };
                }
                put(&mut warp.w64[r[0] as usize].0, &out, mask);
            }
            Op::PredAnd => predicates2(warp, r, mask, |a, b| a & b),
            Op::PredOr => predicates2(warp, r, mask, |a, b| a | b),
            Op::PredXor => predicates2(warp, r, mask, |a, b| a ^ b),
            Op::PredNot => predicates2(warp, r, mask, |a, _| !a),
            Op::PredMov => predicates2(warp, r, mask, |a, _| a),
            Op::MulWide { signed } => mul_wide(warp, r, mask, signed, false),
            Op::MadWide { signed } => mul_wide(warp, r, mask, signed, true),
            _ => self.step_rare(warp, inst, mask)?,
        }
        Ok(())
    }

    #[inline(always)]
    fn step_rare(&mut self, warp: &mut Warp, inst: &Inst, mask: u32) -> Result<(), LaneFault> {
        let r = &inst.r;
        let program = self.program;
        let list = &program.pool[inst.list as usize..][..inst.list_len as usize];
        let w32 = &mut warp.w32;
        match inst.op {
            Op::Mad32 => three32(w32, r, mask, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
            Op::Mad16 => three32(w32, r, mask, |a, b, c| a.wrapping_mul(b).wrapping_add(c) & 0xFFFF),
            Op::Mad64 => three64(&mut warp.w64, r, mask, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
            Op::MadHi { signed: true } => three32(w32, r, mask, |a, b, c| {
                (((a as i32 as i64 * b as i32 as i64) >> 32) as u32).wrapping_add(c)
            }),
            Op::MadHi { signed: false } => {
                three32(w32, r, mask, |a, b, c| (((a as u64 * b as u64) >> 32) as u32).wrapping_add(c))
            }
            Op::MulWide16 { signed: true } => {
                two32(w32, r, mask, |a, b| (a as i16 as i32 * b as i16 as i32) as u32)
            }
            Op::MulWide16 { signed: false } => two32(w32, r, mask, |a, b| a as u16 as u32 * b as u16 as u32),
            Op::Bfe { signed } => three32(w32, r, mask, |a, b, c| int::bit_extract(a, b, c, signed)),
            Op::Bfi => {
                let [insert, into, position, length] = [r[1], r[2], r[3], r[4]].map(|s| w32[s as usize].0);
                let mut out = [0; 32];
                for i in 0..32 {
                    out[i] = int::bit_insert(insert[i], into[i], position[i], length[i]);
                }
                put(&mut w32[r[0] as usize].0, &out, mask);
            }
            Op::Prmt => three32(w32, r, mask, int::permute_bytes),
            Op::FunnelLeft { wrap } => three32(w32, r, mask, |low, high, by| {
                let by = if wrap { by & 31 } else { by.min(32) };
                ((((high as u64) << 32 | low as u64) << by) >> 32) as u32
            }),
            Op::FunnelRight { wrap } => three32(w32, r, mask, |low, high, by| {
                let by = if wrap { by & 31 } else { by.min(32) };
                (((high as u64) << 32 | low as u64) >> by) as u32
            }),
            Op::Lop3 => {
                let table = inst.imm as u32;
                three32(w32, r, mask, |a, b, c| int::logic3(a, b, c, table));
            }
            Op::Popc64 => count64(warp, r, mask, u64::count_ones),
            Op::Clz64 => count64(warp, r, mask, u64::leading_zeros),
            Op::Pack { part_bits, wide } => {
                convert::pack(part_bits, wide, w32, &mut warp.w64, r[0], list, mask)
            }
            Op::Unpack { part_bits, wide } => {
                convert::unpack(part_bits, wide, w32, &warp.w64, r[0], list, mask)
            }
            Op::SharedToGeneric => one64(&mut warp.w64, r, mask, |a| a.wrapping_add(SHARED_WINDOW)),
            Op::GenericToShared => one64(&mut warp.w64, r, mask, |a| a.wrapping_sub(SHARED_WINDOW)),
            Op::ParamToGeneric => one64(&mut warp.w64, r, mask, |a| a.wrapping_add(PARAM_WINDOW)),
            Op::Shfl(how) => {
                together::members(w32, list[0], mask)?;
                together::shuffle(how, w32, &mut warp.predicates, r, mask)?;
            }
            Op::VoteSync(how, negated) => {
                together::members(w32, r[2], mask)?;
                let source = warp.predicates[r[1] as usize];
                let out = together::vote(how, if negated { !source } else { source }, mask);
                if how == Vote::Ballot {
                    put(&mut w32[r[0] as usize].0, &[out; 32], mask);
                } else {
                    set_predicate(warp, r[0], out, mask);
                }
            }
            Op::Redux(op) => {
                together::members(w32, r[2], mask)?;
                together::reduce(op, w32, r, mask);
            }
            Op::ActiveMask => put(&mut w32[r[0] as usize].0, &[mask; 32], mask),
            Op::BarWarp => {
                together::members(w32, r[0], mask)?;
                self.shared.sync_warp(warp.index);
            }
            Op::Atom { space, op, wide, .. } => self.atomic(warp, inst, space, op, wide, mask)?,
            Op::CpAsync { bytes, sized } => self.copy_async(warp, inst, bytes, sized, mask)?,
            Op::CpAsyncCommit => {
                let open = std::mem::take(&mut warp.open);
                warp.groups.push_back(open);
            }
            Op::CpAsyncWait { all } => self.wait_copies(warp, inst.imm as usize, all)?,
            Op::Ldmatrix { transposed, wide } => {
                Self::whole_warp(mask)?;
                self.ldmatrix(warp, inst, transposed, wide)?;
            }
            Op::Mma(kind) => {
                Self::whole_warp(mask)?;
                self.memory.counters.mma += 1;
                tensor::mma(kind, warp, list);
            }
            Op::GroupFence => {
                Self::whole_warp(mask)?;
                warp.matmuls.fence();
            }
            Op::GroupCommit => {
                Self::whole_warp(mask)?;
                warp.matmuls.commit();
            }
            Op::GroupWait => {
                Self::whole_warp(mask)?;
                self.wait_matmuls(warp, inst.imm as usize)?;
            }
            Op::GroupMatmul(_) => Self::whole_warp(mask)?,
            Op::MbarrierInit => self.begin_mbarriers(warp, inst, mask)?,
            Op::MbarrierArrive => self.arrive(warp, inst, mask)?,
            Op::MbarrierFence => self.shared.fence_mbarriers(warp.index),
            Op::SetRegisters => self.set_registers(warp, inst.imm as u32, mask)?,
            // By some of the lanes it orders nothing for the others.
            Op::ProxyFence if mask == warp.live => self.shared.fence_proxy(warp.index),
            Op::BarSync => {
                let detail =
                    format!("lanes {mask:#010x} of {:#010x} meet a barrier of the whole block", warp.live);
                return Err(LaneFault {
                    violation: Violation::Barrier,
                    lane: mask.trailing_zeros() as usize,
                    detail,
                });
            }
            Op::Trap => {
                let lane = mask.trailing_zeros() as usize;
                return Err(LaneFault {
                    violation: Violation::Trap,
                    lane,
                    detail: "the kernel executed `trap`".into(),
                });
            }
            _ => {}
        }
        Ok(())
    }
}

/// Lanes of `mask` go to `target`, the others on; they meet again at `meet`.
#[inline(always)]
fn branch(warp: &mut Warp, top: &mut Frame, target: u32, meet: u32, mask: u32) {
    let stay = top.mask & !mask;
    if stay == 0 {
        top.pc = target;
        return;
    }
    let next = top.pc;
    // The frame that waits at the meeting point exists already when this region ends there, too.
    if meet != top.reconverge {
        warp.stack.push(Frame { pc: meet, mask: top.mask, reconverge: top.reconverge });
    }
    let on = Frame { pc: next, mask: stay, reconverge: meet };
    let away = Frame { pc: target, mask, reconverge: meet };
    if next == meet {
        *top = away;
    } else if target == meet {
        *top = on;
    } else {
        warp.stack.push(away);
        *top = on;
    }
}

#[inline(always)]
fn set_predicate(warp: &mut Warp, slot: u16, value: u32, mask: u32) {
    let p = &mut warp.predicates[slot as usize];
    *p = *p & !mask | value & mask;
}

#[inline(always)]
fn predicates2(warp: &mut Warp, r: &[u16; 5], mask: u32, f: impl Fn(u32, u32) -> u32) {
    let (a, b) = (warp.predicates[r[1] as usize], warp.predicates[r[2] as usize]);
    set_predicate(warp, r[0], f(a, b), mask);
}

#[inline(always)]
fn mul_wide(warp: &mut Warp, r: &[u16; 5], mask: u32, signed: bool, add: bool) {
    let (a, b) = (&warp.w32[r[1] as usize].0, &warp.w32[r[2] as usize].0);
    let mut out = [0u64; 32];
    if signed {
        for i in 0..32 {
            out[i] = (a[i] as i32 as i64).wrapping_mul(b[i] as i32 as i64) as u64;
        }
    } else {
        for i in 0..32 {
            out[i] = (a[i] as u64).wrapping_mul(b[i] as u64);
        }
    }
    if add {
        let c = &warp.w64[r[3] as usize].0;
        for i in 0..32 {
            out[i] = out[i].wrapping_add(c[i]);
        }
    }
    put(&mut warp.w64[r[0] as usize].0, &out, mask);
}

#[inline(always)]
fn count64(warp: &mut Warp, r: &[u16; 5], mask: u32, f: impl Fn(u64) -> u32) {
    let a = &warp.w64[r[1] as usize].0;
    let mut out = [0; 32];
    for i in 0..32 {
        out[i] = f(a[i]);
    }
    put(&mut warp.w32[r[0] as usize].0, &out, mask);
}
