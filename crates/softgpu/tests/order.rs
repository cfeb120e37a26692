//! The order of warps that nothing orders: by index, or at random by a seed.

mod common;

use std::collections::HashSet;

use common::Gpu;
use softgpu::report::softgpu_order;

const WARPS: u32 = 8;

/// Every warp draws a number, which counts up, and stores it.
const DRAW: &str = ".version 9.0\n.target sm_80\n.address_size 64\n\
    .visible .entry draw(.param .u64 out_param)\n{\n\
    .reg .pred %p<4>;\n.reg .b32 %r<8>;\n.reg .b64 %d<4>;\n\
    ld.param.u64 %d1, [out_param];\nmov.u32 %r1, %tid.x;\nand.b32 %r2, %r1, 31;\n\
    setp.ne.u32 %p1, %r2, 0;\n@%p1 bra END;\n\
    atom.global.add.u32 %r3, [%d1], 1;\nshr.u32 %r4, %r1, 5;\nmul.wide.u32 %d2, %r4, 4;\nadd.s64 %d3, %d1, %d2;\n\
    st.global.u32 [%d3+4], %r3;\nEND:\nret;\n}\n";

#[test]
fn warps_run_by_index_or_in_the_order_of_a_seed() {
    let gpu = Gpu::new();
    let function = gpu.function(DRAW, "draw");
    let drawn = |seed: u64| {
        softgpu_order(seed);
        let output = gpu.upload(&[0; 1 + WARPS as usize]);
        assert_eq!(gpu.launch(function, 1, 32 * WARPS, &[output]), 0);
        let words = gpu.download(output, 1 + WARPS as usize).unwrap_or_else(|_| panic!("{}", gpu.message()));
        softgpu_order(0);
        words[1..].to_vec()
    };
    let by_index: Vec<u32> = (0..WARPS).collect();
    assert_eq!(drawn(0), by_index);
    let orders: Vec<Vec<u32>> = (1..=6).map(drawn).collect();
    for order in &orders {
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, by_index);
    }
    assert_eq!(drawn(3), orders[2], "a seed always gives the same order");
    assert!(orders.iter().collect::<HashSet<_>>().len() > 3, "{orders:?}");
}
