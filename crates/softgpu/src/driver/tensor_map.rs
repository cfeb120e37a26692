//! `cuTensorMapEncodeTiled`.

use std::ffi::{c_uint, c_void};

use super::calls::called;
use super::status::Status;
use super::{CuResult, code};
use crate::device::tensor_map::{MAP_ALIGN, MAP_BYTES, RANK_MAX, TensorMap};

/// `CUtensorMapDataType` of elements of 16 bits.
const UINT16: c_uint = 1;
const FLOAT16: c_uint = 6;
const BFLOAT16: c_uint = 9;
/// `CUtensorMapSwizzle`.
const SWIZZLE_NONE: c_uint = 0;
const SWIZZLE_128B: c_uint = 3;
/// `CUtensorMapL2promotion` at most.
const PROMOTION_MAX: c_uint = 3;

/// Encodes a map of elements of 16 bits without interleaving, with the swizzle of 128 bytes or none, that
/// fills with zeros.
///
/// # Safety
/// As the CUDA driver documents: the arrays have `rank` elements, `strides` one less.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuTensorMapEncodeTiled(
    map: *mut c_void,
    data_type: c_uint,
    rank: c_uint,
    address: *const c_void,
    dims: *const u64,
    strides: *const u64,
    box_dims: *const u32,
    element_strides: *const u32,
    interleave: c_uint,
    swizzle: c_uint,
    promotion: c_uint,
    fill: c_uint,
) -> CuResult {
    called("cuTensorMapEncodeTiled");
    let is_known = matches!(data_type, UINT16 | FLOAT16 | BFLOAT16)
        && matches!(swizzle, SWIZZLE_NONE | SWIZZLE_128B)
        && interleave == 0
        && fill == 0;
    let rank = rank as usize;
    let refuse = |why: String| {
        eprintln!("softgpu: cuTensorMapEncodeTiled: {why}");
        Status::InvalidValue
    };
    if !is_known {
        eprintln!(
            "softgpu: cuTensorMapEncodeTiled: data type {data_type}, interleave {interleave}, swizzle {swizzle} or fill \
             {fill} is not supported"
        );
        return Status::NotSupported as u32;
    }
    if map.is_null()
        || !map.addr().is_multiple_of(MAP_ALIGN)
        || !(1..=RANK_MAX).contains(&rank)
        || promotion > PROMOTION_MAX
    {
        return code(Err(refuse(format!("a map at {map:p}, {rank} dimensions, promotion {promotion}"))));
    }
    let mut tensor = TensorMap {
        address: address.addr() as u64,
        rank,
        dims: [0; RANK_MAX],
        strides: [0; RANK_MAX],
        box_dims: [0; RANK_MAX],
        swizzled: swizzle == SWIZZLE_128B,
    };
    for axis in 0..rank {
        // SAFETY: the caller's arrays have this element.
        let (dim, box_dim, step) =
            unsafe { (*dims.add(axis), *box_dims.add(axis), *element_strides.add(axis)) };
        (tensor.dims[axis], tensor.box_dims[axis]) = (dim, box_dim);
        // SAFETY: as above; the first stride is the second dimension's.
        tensor.strides[axis] = if axis == 0 { 2 } else { unsafe { *strides.add(axis - 1) } };
        if step != 1 {
            return code(Err(refuse(format!(
                "elements of dimension {axis} are {step} apart: only 1 is known here"
            ))));
        }
    }
    code(tensor.checked().map_err(refuse).map(|tensor| {
        let bytes = tensor.encode();
        // SAFETY: the caller's map has this size.
        unsafe { map.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), MAP_BYTES) };
    }))
}
