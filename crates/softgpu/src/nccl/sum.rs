//! The results of collectives.

use super::element::Element;

/// The contributions one after another: an all-gather.
pub(super) fn concat(_: Element, parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// An exchange: from each other rank, in their order, the chunk that is for rank `rank`.
pub(super) fn chunks_for(rank: usize, parts: &[&[u8]]) -> Vec<u8> {
    let chunk = parts[rank].len() / (parts.len() - 1).max(1);
    let mut out = Vec::with_capacity(parts[rank].len());
    for (from, part) in parts.iter().enumerate().filter(|(from, _)| *from != rank) {
        // A rank has no chunk for itself.
        let index = if rank < from { rank } else { rank - 1 };
        out.extend_from_slice(&part[index * chunk..(index + 1) * chunk]);
    }
    out
}

/// The all-reduce: chunk c, of one chunk per rank, starts at rank c + 1 and goes round to rank c,
/// rounded at every hop. With two ranks both orders give equal sums; with more, an element's sum
/// depends on its chunk, so on where it lies and on the count.
pub(super) fn ring_sum(element: Element, parts: &[&[u8]]) -> Vec<u8> {
    let (ranks, size) = (parts.len(), element.bytes());
    let mut out = vec![0u8; parts[0].len()];
    let chunk = (out.len() / size).div_ceil(ranks).max(1) * size;
    for (index, out) in out.chunks_mut(chunk).enumerate() {
        let from = index * chunk;
        let hop = |hop: usize| parts[(index + 1 + hop) % ranks][from..from + out.len()].chunks_exact(size);
        let mut sums: Vec<f32> = hop(0).map(|bytes| element.read(bytes)).collect();
        for rank in 1..ranks {
            for (sum, bytes) in sums.iter_mut().zip(hop(rank)) {
                *sum = element.round(*sum + element.read(bytes));
            }
        }
        for (bytes, sum) in out.chunks_exact_mut(size).zip(sums) {
            element.write(sum, bytes);
        }
    }
    out
}
