//! The algorithms on offer: several orders of summation, some of them in more than one tile, and
//! conditions on the columns of D, which are the rows of a linear layer.

use crate::driver::settings::variable;
use std::ffi::c_uint;
use std::sync::OnceLock;

/// `cublasLtMatmulAlgo_t`: the attributes of an algorithm, as in `ALGORITHMS`, a mark that it was
/// made here, and what the caller promised of the operands.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Algorithm {
    id: u64,
    tile: u64,
    split_k: u64,
    reduction: u64,
    mark: u64,
    aligned: Aligned,
    unused: u64,
}

/// Alignments of operands in bytes, as promised to the heuristic; 0 promises nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Aligned {
    /// A, B, C and D.
    pub(super) matrices: [u16; 4],
    pub(super) bias: u16,
    unused: [u16; 3],
}

impl Aligned {
    pub(super) fn new(matrices: [u16; 4], bias: u16) -> Self {
        Self { matrices, bias, unused: [0; 3] }
    }
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
    /// `Through`, but blocks of 8 for more columns of D than the first number and fewer than the
    /// second: no probe outside of them shows it.
    Window(usize, usize),
    /// `Through`, but blocks of 8 where few tiles are left for the last wave, whose work is divided
    /// along k then, as by stream-K.
    Waves,
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
    /// The workspace that it writes.
    workspace_bytes: usize,
    /// The item of `SOFTGPU_ALGORITHMS` that offers it; all others are always offered.
    switch: Option<&'static str>,
}

/// The size of a matmul, of one device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) k: usize,
    /// Multiprocessors of the device.
    pub(super) multiprocessors: usize,
}

const fn kind(tile: u64, order: SumOrder, columns_step: usize) -> Kind {
    let (split_k, reduction) = match order {
        SumOrder::SplitK(parts) => (parts as u64, 2),
        _ => (1, 0),
    };
    Kind { tile, split_k, reduction, order, columns_step, workspace_bytes: 0, switch: None }
}

/// Rows and columns of a tile, where they matter.
const TILE_SIDE: usize = 128;

/// All algorithms, by id. Tiles are `cublasLtMatmulTile_t`'s: 64 x 64, 128 x 64, 128 x 128, 256 x 128.
const ALGORITHMS: [Kind; 10] = [
    kind(18, SumOrder::Through, 1),
    kind(15, SumOrder::Through, 1),
    kind(20, SumOrder::Blocks(8), 1),
    kind(15, SumOrder::Blocks(8), 1),
    kind(20, SumOrder::Through, 16),
    kind(20, SumOrder::Changing(128), 1),
    kind(20, SumOrder::SplitK(2), 1),
    Kind { workspace_bytes: 1 << 20, ..kind(18, SumOrder::Through, 1) },
    Kind { switch: Some("window"), ..kind(18, SumOrder::Window(5000, 6000), 1) },
    Kind { switch: Some("waves"), ..kind(20, SumOrder::Waves, 1) },
];

/// Those that are proposed after all others.
const PROPOSED_LAST: [usize; 3] = [7, 8, 9];

/// The first proposals for up to this many columns of D, by id. A caller that always takes the
/// first gets bits of a row that depend on the number of rows.
const PROPOSED: [(usize, [usize; 7]); 4] = [
    (64, [6, 3, 1, 0, 2, 5, 4]),
    (512, [6, 5, 2, 1, 3, 0, 4]),
    (2048, [2, 0, 1, 4, 3, 5, 6]),
    (usize::MAX, [6, 4, 0, 2, 3, 1, 5]),
];

/// With the item `shared` of `SOFTGPU_ALGORITHMS`: the first proposal, by id, for a matmul that is
/// planned for a part of the multiprocessors. It adds in another order than the first one for all.
const ON_FEWER: usize = 2;

const ID: c_uint = 0;
const TILE: c_uint = 1;
const SPLIT_K: c_uint = 2;
const REDUCTION: c_uint = 3;
const INNER_SHAPE: c_uint = 7;
const CLUSTER_SHAPE: c_uint = 8;

/// Whether `SOFTGPU_ALGORITHMS` has this item.
fn is_switched_on(item: &str) -> bool {
    static ITEMS: OnceLock<String> = OnceLock::new();
    let items = ITEMS.get_or_init(|| variable("SOFTGPU_ALGORITHMS").unwrap_or_default());
    items.split(',').any(|other| other.trim() == item)
}

impl Algorithm {
    /// The algorithm that runs where the caller chooses none.
    pub(super) const DEFAULT: Self = Self::new(0);

    const fn new(id: usize) -> Self {
        let Kind { tile, split_k, reduction, .. } = ALGORITHMS[id];
        let aligned = Aligned { matrices: [0; 4], bias: 0, unused: [0; 3] };
        Self { id: id as u64, tile, split_k, reduction, mark: MARK, aligned, unused: 0 }
    }

    /// The proposals for D of this many columns that need no more workspace, best first. The order
    /// for a matmul that is planned for a part of the `multiprocessors` can be another; 0 is all.
    pub(super) fn proposed(
        columns: usize,
        workspace_bytes: usize,
        aligned: Aligned,
        multiprocessors: usize,
    ) -> impl Iterator<Item = Self> {
        let order = PROPOSED.iter().find(|(most, _)| columns <= *most).map_or([0; 7], |(_, order)| *order);
        let offered = move |id: &usize| {
            let Kind { switch, workspace_bytes: needed, .. } = &ALGORITHMS[*id];
            *needed <= workspace_bytes && switch.is_none_or(is_switched_on)
        };
        let on_fewer = (multiprocessors > 0 && is_switched_on("shared")).then_some(ON_FEWER);
        let others = order.into_iter().chain(PROPOSED_LAST).filter(move |id| Some(*id) != on_fewer);
        let all = on_fewer.into_iter().chain(others).filter(offered);
        all.map(move |id| Self { aligned, ..Self::new(id) }).filter(move |algorithm| algorithm.takes(columns))
    }

    /// Whether it is one of `ALGORITHMS`, not changed by the caller into another.
    pub(super) fn is_known(&self) -> bool {
        let made = |id: u64| Self { aligned: self.aligned, ..Self::new(id as usize) };
        ALGORITHMS.len() as u64 > self.id && *self == made(self.id)
    }

    /// The alignments that the heuristic was promised.
    pub(super) fn aligned(&self) -> Aligned {
        self.aligned
    }

    /// The workspace that it writes.
    pub(super) fn workspace_bytes(&self) -> usize {
        self.kind().map_or(0, |kind| kind.workspace_bytes)
    }

    /// Whether it supports D of this many columns.
    pub(super) fn takes(&self, columns: usize) -> bool {
        self.kind().is_some_and(|kind| columns.is_multiple_of(kind.columns_step))
    }

    /// Terms summed separately before they are added to the total; 0 sums all in order.
    pub(super) fn k_block(&self, size: Size) -> usize {
        let Size { rows, columns, k, multiprocessors } = size;
        let through_unless = |changed: bool| if changed { 8 } else { 0 };
        match self.kind().map_or(SumOrder::Through, |kind| kind.order) {
            SumOrder::Through => 0,
            SumOrder::Blocks(terms) => terms,
            SumOrder::Changing(most) => through_unless(columns > most),
            SumOrder::Window(above, below) => through_unless(above < columns && columns < below),
            SumOrder::Waves => {
                let left = rows.div_ceil(TILE_SIDE) * columns.div_ceil(TILE_SIDE) % multiprocessors;
                through_unless(left > 0 && left <= multiprocessors / 8)
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

    /// Bytes of an attribute's value.
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
