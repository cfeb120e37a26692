//! Descriptors of matrices and matmuls, and preferences: boxes behind opaque pointers, whose
//! attributes are taken with their own sizes alone.

use super::elsewhere::forward;
use super::gemm::Element;
use super::status::{INVALID_VALUE, LtStatus, NOT_SUPPORTED, SUCCESS};
use crate::driver::calls::called;
use std::ffi::{c_uint, c_void};
use std::ops::RangeInclusive;
use std::sync::Once;

const LAYOUT_TYPE: c_uint = 0;
const LAYOUT_ORDER: c_uint = 1;
const LAYOUT_ROWS: c_uint = 2;
const LAYOUT_COLUMNS: c_uint = 3;
const LAYOUT_BATCH_COUNT: c_uint = 5;
const DESC_TRANSPOSE_A: c_uint = 3;
const DESC_TRANSPOSE_B: c_uint = 4;
const DESC_EPILOGUE: c_uint = 7;
const DESC_BIAS_POINTER: c_uint = 8;
const DESC_MULTIPROCESSORS: c_uint = 15;
const EPILOGUE_DEFAULT: i32 = 1;
const EPILOGUE_BIAS: i32 = 4;
const PREFERENCE_SEARCH_MODE: c_uint = 0;
const PREFERENCE_WORKSPACE: c_uint = 1;
const PREFERENCE_REDUCTIONS: c_uint = 3;
const PREFERENCE_ALIGNMENTS: RangeInclusive<c_uint> = 5..=8;
const PREFERENCE_WAVES: c_uint = 9;
const PREFERENCE_IMPLEMENTATIONS: c_uint = 12;

/// The alignment of a workspace, and the most that the library asks of an operand.
pub(super) const ALIGNMENT_MAX: u32 = 256;

/// `cublasLtMatrixLayout_t`.
pub struct Layout {
    pub(super) element: Option<Element>,
    pub(super) rows: u64,
    pub(super) columns: u64,
    pub(super) stride: i64,
    pub(super) row_order: bool,
}

/// `cublasLtMatmulDesc_t`.
pub struct Description {
    pub(super) transpose: [bool; 2],
    /// Whether the epilogue adds the bias.
    pub(super) biased: bool,
    pub(super) bias: u64,
    /// Multiprocessors that the caller leaves to the matmul; 0 for all.
    pub(super) multiprocessors: usize,
    pub(super) refused: Option<&'static str>,
}

impl Description {
    /// The alignment of the bias, from which a heuristic concludes on that of later ones. One that
    /// is null counts as fully aligned to the real library, which is reported once, and promises
    /// nothing here.
    pub(super) fn bias_alignment(&self) -> u16 {
        static REPORTED: Once = Once::new();
        if self.bias == 0 {
            REPORTED.call_once(|| {
                eprintln!(
                    "softgpu: cublasLtMatmulAlgoGetHeuristic: a bias at a null address counts as aligned to {ALIGNMENT_MAX} bytes"
                );
            });
            return 0;
        }
        1 << self.bias.trailing_zeros().min(ALIGNMENT_MAX.trailing_zeros())
    }
}

/// `cublasLtMatmulPreference_t`.
pub struct Preference {
    pub(super) workspace_bytes: u64,
    /// Bytes to which A, B, C and D are aligned.
    pub(super) alignments: [u32; 4],
}

/// A layout in column order.
///
/// # Safety
/// As cublasLt documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutCreate(
    layout: *mut *mut Layout,
    kind: c_uint,
    rows: u64,
    columns: u64,
    stride: i64,
) -> LtStatus {
    forward!(cublasLtMatrixLayoutCreate(layout, kind, rows, columns, stride));
    called("cublasLtMatrixLayoutCreate");
    let made = Layout { element: Element::from_number(kind), rows, columns, stride, row_order: false };
    // SAFETY: the caller's out parameter.
    unsafe { layout.write(Box::into_raw(Box::new(made))) };
    SUCCESS
}

/// Rows, columns, order; a batch count of 1. Other attributes are refused.
///
/// # Safety
/// As cublasLt documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutSetAttribute(
    layout: *mut Layout,
    attribute: c_uint,
    value: *const c_void,
    bytes: usize,
) -> LtStatus {
    forward!(cublasLtMatrixLayoutSetAttribute(layout, attribute, value, bytes));
    called("cublasLtMatrixLayoutSetAttribute");
    let size = if matches!(attribute, LAYOUT_TYPE | LAYOUT_ORDER | LAYOUT_BATCH_COUNT) { 4 } else { 8 };
    if layout.is_null() || value.is_null() || bytes != size {
        return wrong_size("cublasLtMatrixLayoutSetAttribute", attribute, bytes, size);
    }
    if matches!(attribute, LAYOUT_ROWS | LAYOUT_COLUMNS) {
        // SAFETY: the caller's layout, and a value of the 8 bytes that these two have.
        let (layout, size) = unsafe { (&mut *layout, value.cast::<u64>().read_unaligned()) };
        *(if attribute == LAYOUT_ROWS { &mut layout.rows } else { &mut layout.columns }) = size;
        return SUCCESS;
    }
    // SAFETY: the caller's layout, and a value of 4 bytes at least.
    let (layout, value) = unsafe { (&mut *layout, value.cast::<i32>().read_unaligned()) };
    match (attribute, value) {
        (LAYOUT_ORDER, 0 | 1) => layout.row_order = value == 1,
        (LAYOUT_BATCH_COUNT, 1) => {}
        _ => return refuse(&format!("cublasLtMatrixLayoutSetAttribute: attribute {attribute} = {value}")),
    }
    SUCCESS
}

/// Frees a layout.
///
/// # Safety
/// As cublasLt documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutDestroy(layout: *mut Layout) -> LtStatus {
    forward!(cublasLtMatrixLayoutDestroy(layout));
    called("cublasLtMatrixLayoutDestroy");
    // SAFETY: made by `cublasLtMatrixLayoutCreate`, destroyed once.
    drop(unsafe { Box::from_raw(layout) });
    SUCCESS
}

/// A description without transposes. Sums are in f32, whatever precision of at least that was asked
/// for.
///
/// # Safety
/// As cublasLt documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescCreate(
    desc: *mut *mut Description,
    compute: c_uint,
    scale: c_uint,
) -> LtStatus {
    forward!(cublasLtMatmulDescCreate(desc, compute, scale));
    called("cublasLtMatmulDescCreate");
    const COMPUTE_32F: c_uint = 68;
    const COMPUTE_32F_PEDANTIC: c_uint = 69;
    if !matches!(compute, COMPUTE_32F | COMPUTE_32F_PEDANTIC) || scale != 0 {
        return refuse(&format!("cublasLtMatmulDescCreate: compute type {compute}, scale type {scale}"));
    }
    // SAFETY: the caller's out parameter.
    unsafe {
        desc.write(Box::into_raw(Box::new(Description {
            transpose: [false; 2],
            biased: false,
            bias: 0,
            multiprocessors: 0,
            refused: None,
        })))
    };
    SUCCESS
}

/// Transposes; no epilogue, or one that adds a bias; multiprocessors. Other attributes are refused.
///
/// # Safety
/// As cublasLt documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescSetAttribute(
    desc: *mut Description,
    attribute: c_uint,
    value: *const c_void,
    bytes: usize,
) -> LtStatus {
    forward!(cublasLtMatmulDescSetAttribute(desc, attribute, value, bytes));
    called("cublasLtMatmulDescSetAttribute");
    // Those that are refused anyway have sizes of their own.
    let size = match attribute {
        DESC_TRANSPOSE_A | DESC_TRANSPOSE_B | DESC_EPILOGUE | DESC_MULTIPROCESSORS => 4,
        DESC_BIAS_POINTER => 8,
        _ => bytes.max(4),
    };
    if desc.is_null() || value.is_null() || bytes != size {
        return wrong_size("cublasLtMatmulDescSetAttribute", attribute, bytes, size);
    }
    let pointer = value;
    // SAFETY: the caller's description, and a value of 4 bytes at least.
    let (desc, value) = unsafe { (&mut *desc, value.cast::<i32>().read_unaligned()) };
    match attribute {
        DESC_TRANSPOSE_A => desc.transpose[0] = value != 0,
        DESC_TRANSPOSE_B => desc.transpose[1] = value != 0,
        DESC_EPILOGUE if matches!(value, EPILOGUE_DEFAULT | EPILOGUE_BIAS) => {
            desc.biased = value == EPILOGUE_BIAS;
        }
        DESC_MULTIPROCESSORS if value >= 0 => desc.multiprocessors = value as usize,
        // SAFETY: an address of 8 bytes, which this attribute's value holds.
        DESC_BIAS_POINTER => desc.bias = unsafe { pointer.cast::<u64>().read_unaligned() },
        _ => {
            desc.refused = Some("an attribute that is not supported");
            return refuse(&format!("cublasLtMatmulDescSetAttribute: attribute {attribute} = {value}"));
        }
    }
    SUCCESS
}

/// Frees a description.
///
/// # Safety
/// As cublasLt documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescDestroy(desc: *mut Description) -> LtStatus {
    forward!(cublasLtMatmulDescDestroy(desc));
    called("cublasLtMatmulDescDestroy");
    // SAFETY: made by `cublasLtMatmulDescCreate`, destroyed once.
    drop(unsafe { Box::from_raw(desc) });
    SUCCESS
}

/// The library's defaults: no workspace, and operands that are aligned to 256 bytes.
///
/// # Safety
/// As cublasLt documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceCreate(preference: *mut *mut Preference) -> LtStatus {
    forward!(cublasLtMatmulPreferenceCreate(preference));
    called("cublasLtMatmulPreferenceCreate");
    let made = Preference { workspace_bytes: 0, alignments: [ALIGNMENT_MAX; 4] };
    // SAFETY: the caller's out parameter.
    unsafe { preference.write(Box::into_raw(Box::new(made))) };
    SUCCESS
}

/// The workspace and the alignments of operands; search mode, reduction schemes, waves and
/// implementations are taken, and change nothing.
///
/// # Safety
/// As cublasLt documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    preference: *mut Preference,
    attribute: c_uint,
    value: *const c_void,
    bytes: usize,
) -> LtStatus {
    forward!(cublasLtMatmulPreferenceSetAttribute(preference, attribute, value, bytes));
    called("cublasLtMatmulPreferenceSetAttribute");
    let size = match attribute {
        PREFERENCE_WORKSPACE | PREFERENCE_IMPLEMENTATIONS => 8,
        PREFERENCE_SEARCH_MODE | PREFERENCE_REDUCTIONS | PREFERENCE_WAVES => 4,
        _ if PREFERENCE_ALIGNMENTS.contains(&attribute) => 4,
        _ => return refuse(&format!("cublasLtMatmulPreferenceSetAttribute: attribute {attribute}")),
    };
    if preference.is_null() || value.is_null() || bytes != size {
        return wrong_size("cublasLtMatmulPreferenceSetAttribute", attribute, bytes, size);
    }
    // SAFETY: the caller's preference, which is not null.
    let preference = unsafe { &mut *preference };
    if attribute == PREFERENCE_WORKSPACE {
        // SAFETY: a value of the attribute's 8 bytes.
        preference.workspace_bytes = unsafe { value.cast::<u64>().read_unaligned() };
    } else if PREFERENCE_ALIGNMENTS.contains(&attribute) {
        // SAFETY: a value of the attribute's 4 bytes.
        let alignment = unsafe { value.cast::<u32>().read_unaligned() };
        if !alignment.is_power_of_two() || alignment > ALIGNMENT_MAX {
            eprintln!("softgpu: cublasLt: operands aligned to {alignment} bytes");
            return INVALID_VALUE;
        }
        preference.alignments[(attribute - PREFERENCE_ALIGNMENTS.start()) as usize] = alignment;
    }
    SUCCESS
}

/// Frees a preference.
///
/// # Safety
/// As cublasLt documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceDestroy(preference: *mut Preference) -> LtStatus {
    forward!(cublasLtMatmulPreferenceDestroy(preference));
    called("cublasLtMatmulPreferenceDestroy");
    // SAFETY: made by `cublasLtMatmulPreferenceCreate`, destroyed once.
    drop(unsafe { Box::from_raw(preference) });
    SUCCESS
}

/// Reports an attribute that was given with another size than its own.
pub(super) fn wrong_size(function: &str, attribute: c_uint, bytes: usize, size: usize) -> LtStatus {
    eprintln!(
        "softgpu: {function}: {bytes} bytes for attribute {attribute}, which has {size}, or a null pointer"
    );
    INVALID_VALUE
}

/// Reports what is not supported.
pub(super) fn refuse(why: &str) -> LtStatus {
    eprintln!("softgpu: cublasLt: {why}");
    NOT_SUPPORTED
}
