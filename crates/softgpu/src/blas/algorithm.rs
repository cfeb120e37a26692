//! The algorithms on offer: several orders of summation, some of them in more than one tile, and
//! conditions on the columns of D, which are the rows of a linear layer.

use std::ffi::c_uint;

/// `cublasLtMatmulAlgo_t`: the attributes of an algorithm, as in `ALGORITHMS`, and a mark that it
/// was made here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Algorithm {
    id: u64,
    tile: u64,
    split_k: u64,
    reduction: u64,
    mark: u64,
    unused: [u64; 3],
}

const MARK: u64 = 0x736F_6674;

/// The order in which the terms of a sum are added.
#[derive(Clone, Copy)]
enum SumOrder {
    /// One after the other.
    Through,
    /// Blocks of this many terms, then the sums of blocks.
    Blocks(usize),
    /// `Through` for up to this many columns of D, blocks of 8 for more: bits of a row change with
    /// the number of rows.
    Changing(usize),
    /// Split-K in this many parts.
    SplitK(usize),
}

struct Kind {
    tile: u64,
    split_k: u64,
    reduction: u64,
    order: SumOrder,
    /// Columns of D come in multiples of this.
    columns_step: usize,
}

const fn kind(tile: u64, order: SumOrder, columns_step: usize) -> Kind {
    let (split_k, reduction) = match order {
        SumOrder::SplitK(parts) => (parts as u64, 2),
        _ => (1, 0),
    };
    Kind { tile, split_k, reduction, order, columns_step }
}

/// All algorithms, by id. Tiles are `cublasLtMatmulTile_t`'s: 64 x 64, 128 x 64, 128 x 128, 256 x 128.
const ALGORITHMS: [Kind; 7] = [
    kind(18, SumOrder::Through, 1),
    kind(15, SumOrder::Through, 1),
    kind(20, SumOrder::Blocks(8), 1),
    kind(15, SumOrder::Blocks(8), 1),
    kind(20, SumOrder::Through, 16),
    kind(20, SumOrder::Changing(128), 1),
    kind(20, SumOrder::SplitK(2), 1),
];

/// The first proposals for up to this many columns of D, by id. A caller that always takes the
/// first gets bits of a row that depend on the number of rows.
const PROPOSED: [(usize, [usize; 7]); 4] = [
    (64, [6, 3, 1, 0, 2, 5, 4]),
    (512, [6, 5, 2, 1, 3, 0, 4]),
    (2048, [2, 0, 1, 4, 3, 5, 6]),
    (usize::MAX, [6, 4, 0, 2, 3, 1, 5]),
];

const ID: c_uint = 0;
const TILE: c_uint = 1;
const SPLIT_K: c_uint = 2;
const REDUCTION: c_uint = 3;
const INNER_SHAPE: c_uint = 7;
const CLUSTER_SHAPE: c_uint = 8;

impl Algorithm {
    /// The algorithm that runs where the caller chooses none.
    pub(super) const DEFAULT: Self = Self::new(0);

    const fn new(id: usize) -> Self {
        let Kind { tile, split_k, reduction, .. } = ALGORITHMS[id];
        Self { id: id as u64, tile, split_k, reduction, mark: MARK, unused: [0; 3] }
    }

    /// The proposals for D of this many columns, best first.
    pub(super) fn proposed(columns: usize) -> impl Iterator<Item = Self> {
        let order = PROPOSED.iter().find(|(most, _)| columns <= *most).map_or([0; 7], |(_, order)| *order);
        order.into_iter().map(Self::new).filter(move |algorithm| algorithm.takes(columns))
    }

    /// Whether it is one of `ALGORITHMS`, not changed by the caller into another.
    pub(super) fn is_known(&self) -> bool {
        ALGORITHMS.len() as u64 > self.id && *self == Self::new(self.id as usize)
    }

    /// Whether it supports D of this many columns.
    pub(super) fn takes(&self, columns: usize) -> bool {
        self.kind().is_some_and(|kind| columns.is_multiple_of(kind.columns_step))
    }

    /// Terms summed separately before they are added to the total; 0 sums all in order.
    pub(super) fn k_block(&self, columns: usize, k: usize) -> usize {
        match self.kind().map_or(SumOrder::Through, |kind| kind.order) {
            SumOrder::Through => 0,
            SumOrder::Blocks(terms) => terms,
            SumOrder::Changing(most) => {
                if columns <= most {
                    0
                } else {
                    8
                }
            }
            SumOrder::SplitK(parts) => k.div_ceil(parts),
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    fn kind(&self) -> Option<&'static Kind> {
        ALGORITHMS.get(self.id as usize)
    }

    pub(super) fn attribute(&self, attribute: c_uint) -> u32 {
        let value = match attribute {
            ID => self.id,
            TILE => self.tile,
            SPLIT_K => self.split_k,
            REDUCTION => self.reduction,
            _ => 0,
        };
        value as u32
    }

    pub(super) fn attribute_bytes(attribute: c_uint) -> usize {
        if matches!(attribute, INNER_SHAPE | CLUSTER_SHAPE) { 2 } else { 4 }
    }

    /// Returns false where the attribute does not exist or cannot be set.
    pub(super) fn set(&mut self, attribute: c_uint, value: u32) -> bool {
        let place = match attribute {
            ID => &mut self.id,
            TILE => &mut self.tile,
            SPLIT_K => &mut self.split_k,
            REDUCTION => &mut self.reduction,
            _ => return false,
        };
        *place = u64::from(value);
        true
    }
}
