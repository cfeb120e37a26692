//! Basic blocks, their successors, and immediate post-dominators (where diverged lanes meet again).

use super::builder::Draft;
use super::inst::{NO_GUARD, Op};

/// The control-flow graph of one kernel.
pub(super) struct Flow {
    /// (first, end) instruction of each block, in program order.
    pub(super) blocks: Vec<(usize, usize)>,
    /// Successor blocks; returning counts as the virtual block `blocks.len()`.
    pub(super) successors: Vec<Vec<usize>>,
    code_len: usize,
}

impl Flow {
    pub(super) fn new(code: &[Draft]) -> Self {
        let mut leads = vec![false; code.len() + 1];
        leads[0] = true;
        for (at, draft) in code.iter().enumerate() {
            match draft.inst.op {
                Op::Branch => {
                    leads[draft.inst.imm as usize] = true;
                    leads[at + 1] = true;
                }
                Op::Ret | Op::Trap => leads[at + 1] = true,
                _ => {}
            }
        }
        let starts: Vec<usize> = (0..code.len()).filter(|&at| leads[at]).collect();
        let mut block_of = vec![0; code.len() + 1];
        let mut blocks = Vec::new();
        for (index, &start) in starts.iter().enumerate() {
            let end = starts.get(index + 1).copied().unwrap_or(code.len());
            block_of[start..end].fill(index);
            blocks.push((start, end));
        }
        block_of[code.len()] = blocks.len();
        let successors = blocks
            .iter()
            .map(|&(_, end)| {
                let last = &code[end - 1].inst;
                let next = block_of[end];
                let conditional = last.guard != NO_GUARD;
                match last.op {
                    Op::Branch if conditional => vec![block_of[last.imm as usize], next],
                    Op::Branch => vec![block_of[last.imm as usize]],
                    Op::Ret | Op::Trap if conditional => vec![blocks.len(), next],
                    Op::Ret | Op::Trap => vec![blocks.len()],
                    _ => vec![next],
                }
            })
            .collect();
        Self { blocks, successors, code_len: code.len() }
    }

    /// For each instruction the first one of its block's immediate post-dominator; the code's
    /// length where that is the exit.
    pub(super) fn reconvergence(&self) -> Vec<u32> {
        let immediate = self.post_dominators();
        let mut out = vec![self.code_len as u32; self.code_len];
        for (index, &(start, end)) in self.blocks.iter().enumerate() {
            let target = immediate[index];
            let at = self.blocks.get(target).map_or(self.code_len, |b| b.0);
            out[start..end].fill(at as u32);
        }
        out
    }

    /// Cooper, Harvey and Kennedy's algorithm on the reversed graph, rooted at the virtual exit.
    fn post_dominators(&self) -> Vec<usize> {
        let exit = self.blocks.len();
        let order = self.reverse_post_order();
        let mut rank = vec![usize::MAX; exit + 1];
        for (position, &block) in order.iter().enumerate() {
            rank[block] = position;
        }
        let mut parent = vec![usize::MAX; exit + 1];
        parent[exit] = exit;
        let mut changed = true;
        while changed {
            changed = false;
            for &block in order.iter().filter(|&&b| b != exit) {
                let mut best = usize::MAX;
                for &next in self.successors[block].iter().filter(|&&n| parent[n] != usize::MAX) {
                    best = if best == usize::MAX { next } else { meet(&parent, &rank, best, next) };
                }
                if parent[block] != best {
                    parent[block] = best;
                    changed = true;
                }
            }
        }
        // Blocks from which no path leads out (an endless loop) meet at the exit.
        parent.iter().map(|&p| if p == usize::MAX { exit } else { p }).collect()
    }

    /// Reverse post-order of the reversed graph.
    fn reverse_post_order(&self) -> Vec<usize> {
        let exit = self.blocks.len();
        let mut predecessors = vec![Vec::new(); exit + 1];
        for (block, next) in self.successors.iter().enumerate() {
            for &n in next {
                predecessors[n].push(block);
            }
        }
        let (mut seen, mut post) = (vec![false; exit + 1], Vec::new());
        let mut stack = vec![(exit, 0)];
        seen[exit] = true;
        while let Some((block, child)) = stack.pop() {
            if let Some(&next) = predecessors[block].get(child) {
                stack.push((block, child + 1));
                if !seen[next] {
                    seen[next] = true;
                    stack.push((next, 0));
                }
            } else {
                post.push(block);
            }
        }
        post.reverse();
        post
    }
}

fn meet(parent: &[usize], rank: &[usize], mut a: usize, mut b: usize) -> usize {
    while a != b {
        while rank[a] > rank[b] {
            a = parent[a];
        }
        while rank[b] > rank[a] {
            b = parent[b];
        }
    }
    a
}
