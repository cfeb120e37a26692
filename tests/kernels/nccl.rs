//! NCCL's bindings with a group of one rank, which any machine with a GPU can form: collectives
//! over it change nothing. The engine's tests have several ranks.

use std::sync::Arc;
use std::time::Duration;

use kudos::internals::backend::cuda::nccl::{Comm, Element, Group, library};
use kudos::internals::backend::cuda::ops::Ops;

use crate::numbers::{Random, download, upload, upload_raw};
use crate::{Gpu, Test};

pub(crate) const TESTS: &[Test] = &[
    ("an_all_reduce_over_one_rank_changes_nothing", an_all_reduce_over_one_rank_changes_nothing),
    (
        "an_all_gather_from_one_rank_gives_its_own_elements",
        an_all_gather_from_one_rank_gives_its_own_elements,
    ),
    ("slices_of_one_rank_stay_where_they_are", slices_of_one_rank_stay_where_they_are),
    ("collectives_refuse_to_leave_their_buffers", collectives_refuse_to_leave_their_buffers),
];

/// Whether NCCL can be loaded.
pub(crate) fn is_present() -> bool {
    match library() {
        Ok(library) => {
            eprintln!("kernels: {library}");
            true
        }
        Err(error) => {
            eprintln!("kernels: {error}");
            false
        }
    }
}

fn alone(ops: &Ops) -> Comm {
    let group = Arc::new(Group::new(1, Duration::from_secs(60)).unwrap());
    group.join(ops.context(), 0).unwrap()
}

fn an_all_reduce_over_one_rank_changes_nothing(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let comm = alone(&ops);
    let values = Random::new(1).rows(gpu.format, 1_000, 1.0);
    let mut buffer = upload(&ops, &values);
    let element = Element::Activation(gpu.format);
    comm.all_reduce(&mut buffer, 8, 900, element, ops.context().compute()).unwrap();
    ops.context().synchronize().unwrap();
    assert_eq!(download(&ops, &buffer), values);

    let floats: Vec<f32> = (0..100).map(|i| i as f32 / 3.0).collect();
    let mut buffer = upload_raw(&ops, &floats);
    comm.all_reduce(&mut buffer, 0, 100, Element::F32, ops.context().compute()).unwrap();
    ops.context().synchronize().unwrap();
    assert_eq!(buffer.all().download::<f32>(ops.context().compute()).unwrap(), floats);
}

fn an_all_gather_from_one_rank_gives_its_own_elements(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let comm = alone(&ops);
    let values = Random::new(2).rows(gpu.format, 1_000, 1.0);
    let (from, mut to) = (upload(&ops, &values), upload(&ops, &vec![0.0; 1_000]));
    let element = Element::Activation(gpu.format);
    comm.all_gather(&from, 100, &mut to, 800, element, ops.context().compute()).unwrap();
    ops.context().synchronize().unwrap();
    let expected: Vec<f64> = (0..1_000).map(|i| if i < 800 { values[100 + i] } else { 0.0 }).collect();
    assert_eq!(download(&ops, &to), expected);
}

fn slices_of_one_rank_stay_where_they_are(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let comm = alone(&ops);
    let values = Random::new(3).rows(gpu.format, 1_000, 1.0);
    let (mut from, mut to) = (upload(&ops, &values), upload(&ops, &vec![0.0; 1_000]));
    let (element, stream) = (Element::Activation(gpu.format), ops.context().compute());
    // A rank's own slice is not sent.
    comm.exchange_slices(&from, 8, &mut to, 900, element, stream).unwrap();
    comm.gather_slices(&mut from, 8, 900, element, stream).unwrap();
    ops.context().synchronize().unwrap();
    assert_eq!(download(&ops, &from), values);
    assert!(download(&ops, &to).iter().all(|&value| value == 0.0));
}

fn collectives_refuse_to_leave_their_buffers(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let comm = alone(&ops);
    let (from, mut to) = (upload(&ops, &[0.0; 16]), upload(&ops, &[0.0; 15]));
    let (element, stream) = (Element::Activation(gpu.format), ops.context().compute());
    assert!(comm.all_reduce(&mut to, 1, 15, element, stream).is_err());
    assert!(comm.all_gather(&from, 0, &mut to, 16, element, stream).is_err());
    assert!(comm.all_gather(&from, 2, &mut to, 15, element, stream).is_err());
    assert!(comm.exchange_slices(&from, 0, &mut to, 16, element, stream).is_err());
    assert!(comm.exchange_slices(&from, 2, &mut to, 15, element, stream).is_err());
    assert!(comm.gather_slices(&mut to, 1, 15, element, stream).is_err());
}
