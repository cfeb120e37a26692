//! Copies of embedding rows to the GPU.

use kudos::internals::backend::cuda::staging::Staging;

use crate::{Gpu, Test};

pub(crate) const TESTS: &[Test] = &[
    ("prefetched_rows_are_copied", prefetched_rows_are_copied),
    ("rows_beyond_the_capacity_are_not_prefetched", rows_beyond_the_capacity_are_not_prefetched),
];

/// Four rows fill a slot.
const ROW_BYTES: usize = 2 << 20;

/// Fills a row with bytes that identify its id.
fn fill(id: u32, bytes: &mut [u8]) {
    bytes.fill(id as u8);
    bytes[..4].copy_from_slice(&id.to_le_bytes());
}

fn prefetched_rows_are_copied(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let context = ops.context();
    // Ids of each pass, those that were prefetched, and the count of rows that are left to fill
    // when it begins: all where the pass does not begin with those that were prefetched. Ten rows
    // take three slots, the last of them in part.
    let ids = |first: u32| (first..first + 10).collect::<Vec<u32>>();
    let one_differs = [&ids(300)[..6], &[7], &ids(307)[..3]].concat();
    let passes = [
        (ids(100), None, 10),
        (ids(200), Some(ids(200)), 0),
        (one_differs, Some(ids(300)), 10),
        (ids(400)[..3].to_vec(), Some(ids(400)), 3),
        (ids(500), Some(ids(500)[..8].to_vec()), 2),
        (ids(600), None, 10),
    ];
    let mut staging = Staging::new(context, 10, ROW_BYTES, 8).unwrap();
    let mut to = context.allocate(10 * ROW_BYTES).unwrap();
    for (ids, expected, to_fill) in passes {
        if let Some(expected) = expected {
            assert!(staging.prefetch(context, &expected, fill).unwrap(), "all of {expected:?}");
        }
        let mut filled = 0;
        let count = |id: u32, bytes: &mut [u8]| {
            filled += 1;
            fill(id, bytes);
        };
        staging.copy_rows(context, &mut to, &ids, count).unwrap();
        assert_eq!(filled, to_fill, "rows filled for {ids:?}");
        let rows: Vec<u8> = to.slice(0..ids.len() * ROW_BYTES).download(context.compute()).unwrap();
        for (id, row) in ids.iter().zip(rows.chunks(ROW_BYTES)) {
            let mut whole = vec![0; ROW_BYTES];
            fill(*id, &mut whole);
            assert!(row == whole, "row of id {id}");
        }
    }
}

fn rows_beyond_the_capacity_are_not_prefetched(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let context = ops.context();
    // 64 MiB hold 32 of them.
    let ids: Vec<u32> = (0..34).collect();
    let mut staging = Staging::new(context, ids.len(), ROW_BYTES, 8).unwrap();
    let mut to = context.allocate(ids.len() * ROW_BYTES).unwrap();
    assert!(!staging.prefetch(context, &ids, fill).unwrap());
    let mut filled = Vec::new();
    let count = |id: u32, bytes: &mut [u8]| {
        filled.push(id);
        fill(id, bytes);
    };
    staging.copy_rows(context, &mut to, &ids, count).unwrap();
    assert_eq!(filled, [32, 33]);
    for id in [0, 31, 32, 33] {
        let row = id as usize * ROW_BYTES..(id as usize + 1) * ROW_BYTES;
        let (mut whole, row) = (vec![0; ROW_BYTES], to.slice(row));
        fill(id, &mut whole);
        assert!(row.download::<u8>(context.compute()).unwrap() == whole, "row of id {id}");
    }
}
