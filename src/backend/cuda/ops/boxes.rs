//! Boxes: parts of q, k and v that one instruction on Hopper copies to shared memory, and the maps by which
//! the attention kernels name them.

use std::ffi::c_void;

use cudarc::driver::DeviceRepr;
use cudarc::driver::sys;

use crate::backend::cuda::buffer::DeviceSlice;
use crate::backend::cuda::fault::OrFault;
use crate::backend::cuda::format::ActivationFormat;
use crate::backend::cuda::tiles::TILE_KEYS;
use crate::error::Result;

/// Elements of a row of a box: the 128 bytes of a swizzled row. A wider head takes several boxes.
const BOX_COLUMNS: u32 = 64;

/// `struct BoxMap` of the kernels.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct BoxMap(sys::CUtensorMap);

// SAFETY: plain values, which the driver writes for kernels to have by value.
unsafe impl DeviceRepr for BoxMap {}

/// The sizes of q, k and v, `[rows, heads, head_dim]` in bf16, and of the blocks that take boxes of them.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// Width of a head.
    pub(super) head_dim: usize,
    /// Query heads, key heads and value heads.
    pub(super) heads: usize,
    /// Query heads per kv head.
    pub(super) group: usize,
    /// Rows with queries.
    pub(super) query_rows: usize,
    /// The most pairs of a block, `group` or more.
    pub(super) block_rows: usize,
}

/// The maps of one launch.
pub(super) struct BoxMaps {
    /// Boxes of a group's heads, in as many rows as a block has whole groups.
    pub(super) queries: BoxMap,
    /// Boxes of one head, in the rows of a tile.
    pub(super) keys_and_values: BoxMap,
}

impl BoxMaps {
    /// The maps of `qkv`. Boxes have zeros where they leave its rows; those of queries, where they leave rows
    /// with queries, which are the first.
    ///
    /// [`ErrorKind::Device`](crate::ErrorKind::Device) when the driver refuses one.
    pub(super) fn new(qkv: DeviceSlice<'_>, sizes: Sizes) -> Result<Self> {
        let Sizes { head_dim, heads, group, query_rows, block_rows } = sizes;
        let rows = qkv.bytes() / (heads * head_dim * ActivationFormat::Bf16.bytes());
        let encode = |rows, box_of| encode(qkv, [head_dim, heads, rows], box_of);
        Ok(Self {
            queries: encode(query_rows, [group, block_rows / group])?,
            keys_and_values: encode(rows, [1, TILE_KEYS])?,
        })
    }
}

/// The map of a tensor in bf16 with these dimensions, head_dim, heads and rows, for boxes of so many heads and
/// rows.
fn encode(qkv: DeviceSlice<'_>, dims: [usize; 3], box_of: [usize; 2]) -> Result<BoxMap> {
    use sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    use sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
    use sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE;
    use sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_128B;
    use sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B;
    let head_bytes = dims[0] * ActivationFormat::Bf16.bytes();
    let strides = [head_bytes, dims[1] * head_bytes].map(|bytes| bytes as u64);
    let dims = dims.map(|dim| dim as u64);
    let box_dims = [BOX_COLUMNS, box_of[0] as u32, box_of[1] as u32];
    let mut map = BoxMap(sys::CUtensorMap { opaque: [0; 16] });
    // SAFETY: the arrays have as many elements as the tensor has dimensions, strides one less, and the map is
    // a local. The call touches no memory of the GPU; a kernel that is given the map reads within the
    // dimensions, which the caller has checked that `qkv` covers.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map.0,
            CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            dims.len() as u32,
            qkv.address() as *mut c_void,
            dims.as_ptr(),
            strides.as_ptr(),
            box_dims.as_ptr(),
            [1_u32; 3].as_ptr(),
            CU_TENSOR_MAP_INTERLEAVE_NONE,
            CU_TENSOR_MAP_SWIZZLE_128B,
            CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()
    .or_fault("describing q, k and v to the GPU's copies of boxes")?;
    Ok(map)
}
