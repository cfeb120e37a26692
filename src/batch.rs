//! Sequences -> [`Packed`]: the trie of their unique tokens, under a token budget.
//!
//! Tokens that several sequences share from their start (the chat header, the prompt of N
//! responses) become one *segment* and are computed once. Each segment is one attention problem:
//! its tokens are the queries, and its keys are the rows of its whole path from the root, given as
//! a list of [`Span`]s, causal and aligned at the end. Positions come from depth in the trie, so a
//! token's position is the one it has in its own sequence and sharing needs no mask. A batch in
//! which nothing is shared is the special case of one span per segment.

use std::collections::HashMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Sharing of common prefixes among the sequences of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Sharing {
    /// Common prefixes are computed once
    #[default]
    Prefixes,
    /// Every sequence is computed by itself
    ///
    /// For measuring what sharing saves and showing that it changes nothing.
    Nothing,
}

/// Capacity of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Unique tokens. A first sequence that is longer than this is accepted: it makes a batch of
    /// its own.
    pub tokens: usize,
    /// Sequences whose last tokens are different ones.
    pub sequences: usize,
}

/// Rows `start..start + len` of a packed batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The first row.
    pub start: usize,
    /// Number of rows.
    pub len: usize,
}

/// A run of tokens that the same sequences go through: one node of the trie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The packed rows of its tokens.
    pub rows: Range<usize>,
    /// The position of its first token, which is the number of keys before it.
    pub first_position: usize,
    /// The rows of its path in order of position: the last span ends with the segment.
    pub spans: Vec<Span>,
}

/// A batch, ready for one pass through the model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// `[tokens]` token ids, one per packed row.
    pub tokens: Vec<u32>,
    /// `[tokens]` the position of each packed row in its sequences.
    pub positions: Vec<u32>,
    /// The segments, by ascending rows; a segment follows the ones on its path.
    pub segments: Vec<Segment>,
    /// The rows in which sequences end, each once, and the segment each belongs to; by ascending
    /// row.
    pub last: Vec<LastRow>,
    /// For each sequence, in the order they were added, the index into `last` of the row in which
    /// it ends.
    pub sequences: Vec<usize>,
}

impl Packed {
    /// Returns true if every index is in range and positions are those of their paths. Every batch
    /// of [`Batch::pack`] is sound; one from another process may not be.
    pub fn is_sound(&self, vocab: usize) -> bool {
        let count = self.tokens.len();
        if self.positions.len() != count || self.tokens.iter().any(|&id| id as usize >= vocab) {
            return false;
        }
        let mut next_row = 0;
        let segments_are = self.segments.iter().all(|segment| {
            let Segment { rows, first_position, spans } = segment;
            let follows = rows.start == next_row && rows.start < rows.end && rows.end <= count;
            next_row = rows.end;
            // A path has rows before its own, and ends with those.
            let inside = |span: &Span| span.start <= rows.end && span.len <= rows.end - span.start;
            let path = spans.iter().fold(0, |path: usize, span| path.saturating_add(span.len));
            follows
                && spans.iter().all(inside)
                && spans.last().is_some_and(|span| span.start + span.len == rows.end)
                && first_position.checked_add(rows.len()) == Some(path)
                && (*first_position..path).eq(self.positions[rows.clone()].iter().map(|&at| at as usize))
        });
        let last_rows = self.last.iter().map(|last| last.row);
        let ends =
            |last: &LastRow| self.segments.get(last.segment).is_some_and(|of| of.rows.end == last.row + 1);
        segments_are
            && next_row == count
            && !self.last.is_empty()
            && self.last.iter().all(ends)
            && last_rows.is_sorted_by(|a, b| a < b)
            && self.sequences.iter().all(|&last| last < self.last.len())
    }
}

/// A row in which at least one sequence ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRow {
    /// The packed row.
    pub row: usize,
    /// The index of the segment that it ends.
    pub segment: usize,
}

/// A trie that grows until its budget is used up.
#[derive(Debug)]
pub struct Batch {
    budget: Budget,
    sharing: Sharing,
    nodes: Vec<Node>,
    /// The node below `(node, next token)`; `None` stands for the root.
    children: HashMap<(Option<usize>, u32), usize>,
    /// The node in whose last token each sequence ends.
    ends: Vec<usize>,
    /// Unique tokens so far.
    tokens: usize,
    /// Tokens of all sequences so far, counted as if nothing were shared.
    nominal_tokens: usize,
    /// Nodes in which at least one sequence ends.
    distinct_ends: usize,
}

#[derive(Debug)]
struct Node {
    parent: Option<usize>,
    tokens: Vec<u32>,
    first_position: usize,
    ends_here: bool,
}

/// The part of a sequence that the trie already has.
struct Walk {
    /// The last node reached.
    node: Option<usize>,
    /// Matching tokens of that node.
    matched_in_node: usize,
    /// Matching tokens in all.
    matched: usize,
}

impl Batch {
    /// An empty batch.
    pub fn new(budget: Budget, sharing: Sharing) -> Self {
        Self {
            budget,
            sharing,
            nodes: Vec::new(),
            children: HashMap::new(),
            ends: Vec::new(),
            tokens: 0,
            nominal_tokens: 0,
            distinct_ends: 0,
        }
    }

    /// Adds the sequence and returns true if the budget allows it; otherwise the batch is
    /// unchanged. The first sequence of a batch is always added.
    ///
    /// Panics if `ids` is empty: a sequence without tokens has no last one.
    pub fn try_add(&mut self, ids: &[u32]) -> bool {
        assert!(!ids.is_empty(), "a sequence has at least one token");
        let walk = self.walk(ids);
        let ends_at_known_end = walk.matched == ids.len()
            && walk.node.is_some_and(|node| {
                self.nodes[node].ends_here && walk.matched_in_node == self.nodes[node].tokens.len()
            });
        let fits = self.tokens + ids.len() - walk.matched <= self.budget.tokens
            && (ends_at_known_end || self.distinct_ends < self.budget.sequences);
        if !fits && !self.ends.is_empty() {
            return false;
        }
        let end = self.insert(ids, walk);
        if !self.nodes[end].ends_here {
            self.nodes[end].ends_here = true;
            self.distinct_ends += 1;
        }
        self.ends.push(end);
        self.nominal_tokens += ids.len();
        true
    }

    /// Unique tokens so far, which a pass over this batch computes.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tokens of all sequences so far, counted as if nothing were shared.
    pub fn nominal_tokens(&self) -> usize {
        self.nominal_tokens
    }

    /// Returns true if no sequence was added yet.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn walk(&self, ids: &[u32]) -> Walk {
        let mut walk = Walk { node: None, matched_in_node: 0, matched: 0 };
        if self.sharing == Sharing::Nothing {
            return walk;
        }
        while let Some(&next) = ids.get(walk.matched).and_then(|&id| self.children.get(&(walk.node, id))) {
            let node = &self.nodes[next].tokens;
            let same = node.iter().zip(&ids[walk.matched..]).take_while(|(a, b)| a == b).count();
            walk = Walk { node: Some(next), matched_in_node: same, matched: walk.matched + same };
            if same < node.len() {
                break;
            }
        }
        walk
    }

    /// Inserts the tokens that the walk did not find, and returns the node in which the sequence
    /// ends.
    fn insert(&mut self, ids: &[u32], walk: Walk) -> usize {
        let above = match walk.node {
            Some(node) if walk.matched_in_node < self.nodes[node].tokens.len() => {
                Some(self.split(node, walk.matched_in_node))
            }
            node => node,
        };
        let rest = &ids[walk.matched..];
        match above {
            Some(node) if rest.is_empty() => node,
            parent => self.push(Node {
                parent,
                tokens: rest.to_vec(),
                first_position: walk.matched,
                ends_here: false,
            }),
        }
    }

    /// Cuts `node` after its first `at` tokens and returns the node above the cut. The node below
    /// keeps its index, so its sequences and children need no change.
    fn split(&mut self, node: usize, at: usize) -> usize {
        let below = self.nodes[node].tokens.split_off(at);
        let upper_tokens = std::mem::replace(&mut self.nodes[node].tokens, below);
        let upper = Node {
            parent: self.nodes[node].parent,
            tokens: upper_tokens,
            first_position: self.nodes[node].first_position,
            ends_here: false,
        };
        self.tokens -= at; // `push` counts them again
        let above = self.push(upper);
        let lower = &mut self.nodes[node];
        lower.parent = Some(above);
        lower.first_position += at;
        self.children.insert((Some(above), lower.tokens[0]), node);
        above
    }

    fn push(&mut self, node: Node) -> usize {
        let index = self.nodes.len();
        self.tokens += node.tokens.len();
        if self.sharing == Sharing::Prefixes {
            self.children.insert((node.parent, node.tokens[0]), index);
        }
        self.nodes.push(node);
        index
    }

    /// Lays out the trie in rows, depth first, so that a path's segments are near each other.
    pub fn pack(&self) -> Packed {
        let mut below: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        let mut roots = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            match node.parent {
                Some(parent) => below[parent].push(index),
                None => roots.push(index),
            }
        }
        let mut packed = Packed::default();
        let mut segment_of = vec![usize::MAX; self.nodes.len()];
        let mut to_visit: Vec<usize> = roots.into_iter().rev().collect();
        while let Some(index) = to_visit.pop() {
            let node = &self.nodes[index];
            let rows = packed.tokens.len()..packed.tokens.len() + node.tokens.len();
            let mut spans = match node.parent {
                Some(parent) => packed.segments[segment_of[parent]].spans.clone(),
                None => Vec::new(),
            };
            extend_path(&mut spans, Span { start: rows.start, len: rows.len() });
            segment_of[index] = packed.segments.len();
            packed.tokens.extend_from_slice(&node.tokens);
            packed.positions.extend((node.first_position..).take(rows.len()).map(|position| position as u32));
            packed.segments.push(Segment { rows, first_position: node.first_position, spans });
            to_visit.extend(below[index].iter().rev());
        }
        let mut last_of = vec![usize::MAX; self.nodes.len()];
        let mut ending: Vec<usize> =
            (0..self.nodes.len()).filter(|&index| self.nodes[index].ends_here).collect();
        ending.sort_by_key(|&index| segment_of[index]);
        for index in ending {
            let segment = segment_of[index];
            last_of[index] = packed.last.len();
            packed.last.push(LastRow { row: packed.segments[segment].rows.end - 1, segment });
        }
        packed.sequences = self.ends.iter().map(|&end| last_of[end]).collect();
        packed
    }
}

/// Appends a span to a path. A child that lies directly after its parent continues the parent's
/// span.
fn extend_path(spans: &mut Vec<Span>, span: Span) {
    match spans.last_mut() {
        Some(last) if last.start + last.len == span.start => last.len += span.len,
        _ => spans.push(span),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const ROOMY: Budget = Budget { tokens: usize::MAX, sequences: usize::MAX };

    fn pack(sequences: &[&[u32]], sharing: Sharing) -> Packed {
        let mut batch = Batch::new(ROOMY, sharing);
        for ids in sequences {
            assert!(batch.try_add(ids));
        }
        let packed = batch.pack();
        assert_eq!(packed.tokens.len(), batch.tokens());
        packed
    }

    /// Follows each sequence's spans back from its last row and reads the tokens and positions on
    /// it.
    fn check_paths(sequences: &[&[u32]], packed: &Packed) {
        assert_eq!(packed.sequences.len(), sequences.len());
        assert!(packed.is_sound(1 + packed.tokens.iter().copied().max().unwrap() as usize));
        let mut next_row = 0;
        for segment in &packed.segments {
            assert_eq!(segment.rows.start, next_row, "segments lie one after the other");
            next_row = segment.rows.end;
            let path: usize = segment.spans.iter().map(|span| span.len).sum();
            assert_eq!(path, segment.first_position + segment.rows.len(), "a path ends with its segment");
        }
        assert_eq!(next_row, packed.tokens.len());
        assert!(packed.last.windows(2).all(|pair| pair[0].row < pair[1].row));
        for (ids, &last) in sequences.iter().zip(&packed.sequences) {
            let last = packed.last[last];
            let segment = &packed.segments[last.segment];
            assert_eq!(last.row, segment.rows.end - 1);
            let rows: Vec<usize> =
                segment.spans.iter().flat_map(|span| span.start..span.start + span.len).collect();
            let tokens: Vec<u32> = rows.iter().map(|&row| packed.tokens[row]).collect();
            let positions: Vec<u32> = rows.iter().map(|&row| packed.positions[row]).collect();
            assert_eq!(&tokens, ids);
            assert_eq!(positions, (0..ids.len() as u32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn responses_to_one_prompt_cost_the_unique_tokens() {
        let sequences: [&[u32]; 3] = [&[1, 2, 3, 4, 5], &[1, 2, 3, 6], &[1, 2, 3, 4, 7, 8]];
        let packed = pack(&sequences, Sharing::Prefixes);
        assert_eq!(packed.tokens.len(), 8, "3 of the prompt, a shared 4, then 5 | 6 | 7 8");
        assert_eq!(packed.segments.len(), 5);
        check_paths(&sequences, &packed);
    }

    #[test]
    fn ordinary_cases_keep_tokens_positions_and_order() {
        let cases: [&[&[u32]]; 7] = [
            &[&[7]],                                                                // one token
            &[&[1, 2], &[3, 4], &[5]],                                              // no sharing at all
            &[&[1, 2, 3], &[1, 2, 3], &[1, 2, 3]],                                  // duplicates
            &[&[1, 2, 3, 4], &[1, 2], &[1, 2, 3]], // prefixes of another, after it
            &[&[1], &[1, 2], &[1, 2, 3], &[1, 2, 4]], // prefixes of another, before it
            &[&[9, 1], &[1, 9], &[9], &[1], &[9, 1, 1]], // two trees, interleaved
            &[&[1, 2, 3, 4, 5, 6], &[1, 2, 3, 9], &[1, 8], &[1, 2, 3, 4, 7], &[1]], // splits above splits
        ];
        for sequences in cases {
            for sharing in [Sharing::Prefixes, Sharing::Nothing] {
                check_paths(sequences, &pack(sequences, sharing));
            }
        }
        assert_eq!(pack(cases[2], Sharing::Prefixes).tokens.len(), 3);
        assert_eq!(pack(cases[2], Sharing::Prefixes).last.len(), 1, "duplicates end in the same row");
        assert_eq!(pack(cases[2], Sharing::Nothing).tokens.len(), 9);
        assert_eq!(pack(cases[3], Sharing::Prefixes).tokens.len(), 4);
    }

    #[test]
    fn random_batches_keep_every_path() {
        let mut bits = Random::new(1);
        let mut random = move |below: u64| bits.next_bits() % below;
        for _ in 0..200 {
            let sequences: Vec<Vec<u32>> =
                (0..=random(30)).map(|_| (0..=random(12)).map(|_| random(3) as u32).collect()).collect();
            let borrowed: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
            let packed = pack(&borrowed, Sharing::Prefixes);
            check_paths(&borrowed, &packed);
            let mut prefixes: Vec<&[u32]> =
                borrowed.iter().flat_map(|ids| (1..=ids.len()).map(|n| &ids[..n])).collect();
            prefixes.sort();
            prefixes.dedup();
            assert_eq!(packed.tokens.len(), prefixes.len(), "one row per distinct prefix");
        }
    }

    #[test]
    fn a_batch_with_an_index_that_points_elsewhere_is_not_sound() {
        let packed = pack(&[&[1, 2, 3], &[1, 2, 4], &[5, 6]], Sharing::Prefixes);
        assert!(packed.is_sound(7) && !packed.is_sound(6));
        let spoilt: [fn(&mut Packed); 14] = [
            |packed| packed.tokens[0] = 7,
            |packed| packed.tokens.truncate(5),
            |packed| packed.positions.truncate(5),
            |packed| packed.positions[2] = 9,
            |packed| packed.segments[1].rows.end += 1,
            |packed| packed.segments[0].rows = 0..usize::MAX,
            |packed| packed.segments[1].first_position = usize::MAX,
            |packed| packed.segments[2].spans[0].start = 3,
            |packed| packed.segments[1].spans[0] = Span { start: usize::MAX, len: 2 },
            |packed| packed.segments[1].spans.clear(),
            |packed| drop(packed.segments.pop()),
            |packed| packed.last[1].segment = 9,
            |packed| packed.last[1] = packed.last[0],
            |packed| packed.last.clear(),
        ];
        for (index, spoil) in spoilt.into_iter().enumerate() {
            let mut packed = packed.clone();
            spoil(&mut packed);
            assert!(!packed.is_sound(7), "{index}: {packed:?}");
        }
    }

    #[test]
    fn the_budget_counts_unique_tokens_and_refusals_change_nothing() {
        let mut batch = Batch::new(Budget { tokens: 6, sequences: 10 }, Sharing::Prefixes);
        assert!(batch.try_add(&[1, 2, 3, 4]));
        assert!(!batch.try_add(&[1, 9, 9, 9]), "three more would make seven");
        assert_eq!((batch.tokens(), batch.pack().segments.len()), (4, 1));
        assert!(batch.try_add(&[1, 2, 8, 8]));
        assert!(batch.try_add(&[1, 2]), "a prefix costs nothing");
        assert!(!batch.try_add(&[5]));
        assert_eq!((batch.tokens(), batch.nominal_tokens()), (6, 10));
    }

    #[test]
    fn the_budget_counts_sequences_that_end_differently() {
        let mut batch = Batch::new(Budget { tokens: 100, sequences: 2 }, Sharing::Prefixes);
        assert!(batch.try_add(&[1, 2]) && batch.try_add(&[1, 3]));
        assert!(!batch.try_add(&[1, 4]) && !batch.try_add(&[1]));
        assert!(batch.try_add(&[1, 3]), "a duplicate ends where the first one ends");
        assert_eq!(batch.pack().last.len(), 2);
    }

    #[test]
    fn a_first_sequence_over_the_budget_makes_a_batch_of_its_own() {
        let mut batch = Batch::new(Budget { tokens: 2, sequences: 1 }, Sharing::Prefixes);
        assert!(batch.try_add(&[1, 2, 3]));
        assert!(!batch.try_add(&[1, 2, 3, 4]));
    }
}
