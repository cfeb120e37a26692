//! Metadata of a packed batch: the parts of a pass, positions and attention plans.

use std::ops::Range;

use super::attention::{AttentionPlan, Heads, Queries};
use crate::backend::Tokens;
use crate::batch::Packed;

/// Rows of a part at most. Ranks share the processor, so overlapping other work with their
/// all-reduces gains nothing; but what one op of a part writes is still in a cache when the next
/// one reads it.
const PART_ROWS: usize = 1024;

/// Metadata of a pass.
pub struct Metadata {
    /// Row ranges: all packed rows, cut.
    parts: Vec<Range<usize>>,
    /// Positions of all packed rows.
    positions: Vec<u32>,
    /// One plan per part.
    attention: Vec<AttentionPlan>,
    last: LastRows,
}

/// The rows in which sequences end.
struct LastRows {
    /// Their indices among the packed rows.
    rows: Vec<usize>,
    positions: Vec<u32>,
    attention: AttentionPlan,
}

impl Metadata {
    /// Cuts the rows of `packed` into parts and plans the attention of each.
    pub(super) fn new(heads: Heads, packed: &Packed) -> Self {
        let rows = packed.tokens.len();
        let part_rows = rows.div_ceil(rows.div_ceil(PART_ROWS).max(1)).max(1);
        // A pass without rows has one part, too.
        let starts = (0..rows.max(1)).step_by(part_rows);
        let parts: Vec<_> = starts.map(|start| start..rows.min(start + part_rows)).collect();
        let attention = parts.iter().map(|part| {
            let within = packed.segments.iter().map(|segment| {
                let start = segment.rows.start.clamp(part.start, part.end);
                let end = segment.rows.end.clamp(start, part.end);
                let first_position = segment.first_position + start.saturating_sub(segment.rows.start);
                Queries { rows: start..end, first_position, spans: &segment.spans }
            });
            AttentionPlan::new(heads, within.filter(|queries| !queries.rows.is_empty()))
        });
        let last = packed.last.iter().enumerate().map(|(index, last)| Queries {
            rows: index..index + 1,
            first_position: packed.positions[last.row] as usize,
            spans: &packed.segments[last.segment].spans,
        });
        Self {
            attention: attention.collect(),
            parts,
            positions: packed.positions.clone(),
            last: LastRows {
                rows: packed.last.iter().map(|last| last.row).collect(),
                positions: packed.last.iter().map(|last| packed.positions[last.row]).collect(),
                attention: AttentionPlan::new(heads, last),
            },
        }
    }

    /// Row ranges of the parts of a pass.
    pub(super) fn parts(&self) -> &[Range<usize>] {
        &self.parts
    }

    /// Number of packed rows.
    pub(super) fn row_count(&self) -> usize {
        self.positions.len()
    }

    /// The packed rows in which sequences end.
    pub(super) fn last_rows(&self) -> &[usize] {
        &self.last.rows
    }

    /// Returns the rows of `tokens` in an activation, and their positions.
    pub(super) fn rows(&self, tokens: Tokens) -> (Range<usize>, &[u32]) {
        match tokens {
            Tokens::Part(part) => (self.parts[part].clone(), &self.positions[self.parts[part].clone()]),
            Tokens::Last => (0..self.last.rows.len(), &self.last.positions),
        }
    }

    pub(super) fn attention(&self, tokens: Tokens) -> &AttentionPlan {
        match tokens {
            Tokens::Part(part) => &self.attention[part],
            Tokens::Last => &self.last.attention,
        }
    }
}
