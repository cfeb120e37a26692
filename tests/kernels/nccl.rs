//! NCCL's bindings with a group of one rank, which any machine with a GPU can form: what is summed or collected over it
//! stays what it was. Several ranks are the engine's tests.

use std::sync::Arc;
use std::time::Duration;

use kudos::internals::backend::cuda::nccl::{Comm, Element, Group, version};
use kudos::internals::backend::cuda::ops::Ops;

use crate::numbers::{Random, download, upload, upload_raw};
use crate::{Gpu, Test};

pub(crate) const TESTS: &[Test] = &[
    ("a_sum_over_one_rank_is_itself", a_sum_over_one_rank_is_itself),
    ("numbers_collected_from_one_rank_are_its_own", numbers_collected_from_one_rank_are_its_own),
    ("collectives_refuse_to_leave_their_buffers", collectives_refuse_to_leave_their_buffers),
];

/// Whether there is an NCCL to test.
pub(crate) fn is_present() -> bool {
    match version() {
        Ok(version) => {
            eprintln!("kernels: NCCL {version}");
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

fn a_sum_over_one_rank_is_itself(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let comm = alone(&ops);
    let numbers = Random::new(1).rows(gpu.format, 1_000, 1.0);
    let mut buffer = upload(&ops, &numbers);
    let element = Element::Activation(gpu.format);
    comm.all_reduce(&mut buffer, 8, 900, element, ops.context().compute()).unwrap();
    comm.wait(ops.context()).unwrap();
    assert_eq!(download(&ops, &buffer), numbers);

    let floats: Vec<f32> = (0..100).map(|i| i as f32 / 3.0).collect();
    let mut buffer = upload_raw(&ops, &floats);
    comm.all_reduce(&mut buffer, 0, 100, Element::F32, ops.context().compute()).unwrap();
    comm.wait(ops.context()).unwrap();
    assert_eq!(buffer.all().download::<f32>(ops.context().compute()).unwrap(), floats);
}

fn numbers_collected_from_one_rank_are_its_own(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let comm = alone(&ops);
    let numbers = Random::new(2).rows(gpu.format, 1_000, 1.0);
    let (from, mut to) = (upload(&ops, &numbers), upload(&ops, &vec![0.0; 1_000]));
    let element = Element::Activation(gpu.format);
    comm.all_gather(&from, 100, &mut to, 800, element, ops.context().compute()).unwrap();
    comm.wait(ops.context()).unwrap();
    let expected: Vec<f64> = (0..1_000).map(|i| if i < 800 { numbers[100 + i] } else { 0.0 }).collect();
    assert_eq!(download(&ops, &to), expected);
}

fn collectives_refuse_to_leave_their_buffers(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let comm = alone(&ops);
    let (from, mut to) = (upload(&ops, &[0.0; 16]), upload(&ops, &[0.0; 15]));
    let (element, stream) = (Element::Activation(gpu.format), ops.context().compute());
    assert!(comm.all_reduce(&mut to, 1, 15, element, stream).is_err());
    assert!(comm.all_gather(&from, 0, &mut to, 16, element, stream).is_err());
    assert!(comm.all_gather(&from, 2, &mut to, 15, element, stream).is_err());
}
