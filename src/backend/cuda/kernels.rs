//! The kernels: device code embedded by the build, loaded into a context, looked up by name once.
//!
//! Entry names stand in `kernels/README.md`; this file and `build.rs` are the only ones that know them.

use cudarc::driver::CudaFunction;
use cudarc::driver::sys::CUfunction_attribute;
use cudarc::nvrtc::Ptx;

use super::Storage;
use super::context::Context;
use super::fault::OrFault;
use crate::error::{Error, ErrorKind, Result};

/// Every file of `kernels/`, compiled: its stem and its fatbin.
static FATBINS: &[(&str, &[u8])] = &include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// The widths of a head that attention is compiled for; narrower heads use the next one.
const HEAD_DIMS: [usize; 3] = [64, 128, 256];

/// The kernels of one rank, ready to be launched in its context.
pub struct Kernels {
    pub(super) storage: Storage,
    pub(super) add_rms_norm: CudaFunction,
    pub(super) attention_plain: Attention,
    pub(super) fill_normal: CudaFunction,
    pub(super) gather_rows: CudaFunction,
    pub(super) rope: CudaFunction,
    pub(super) score: CudaFunction,
    pub(super) seam_tiles: CudaFunction,
    pub(super) silu_mul: CudaFunction,
}

/// An attention kernel with what its launch depends on.
pub(super) struct Attention {
    pub(super) function: CudaFunction,
    /// The widest head that it can do.
    pub(super) head_dim_max: usize,
    /// Dynamic shared memory of a block.
    pub(super) shared_bytes: usize,
}

impl Kernels {
    /// Loads the kernels for numbers stored as `storage` and heads of `head_dim`.
    ///
    /// [`ErrorKind::Unsupported`] for a head that is too wide; [`ErrorKind::Device`] when the build has no code for
    /// this GPU.
    pub fn load(context: &Context, storage: Storage, head_dim: usize) -> Result<Self> {
        let typed = |stem: &str| load(context, stem, &format!("{stem}_{}", storage.suffix()));
        Ok(Self {
            storage,
            add_rms_norm: typed("add_rms_norm")?,
            attention_plain: Attention::load(context, storage, head_dim)?,
            fill_normal: typed("fill_normal")?,
            gather_rows: load(context, "gather_rows", "gather_rows")?,
            rope: typed("rope")?,
            score: typed("score")?,
            seam_tiles: load(context, "seam_tiles", "seam_tiles")?,
            silu_mul: typed("silu_mul")?,
        })
    }
}

impl Attention {
    fn load(context: &Context, storage: Storage, head_dim: usize) -> Result<Self> {
        let Some(head_dim_max) = HEAD_DIMS.into_iter().find(|&max| max >= head_dim) else {
            let message =
                format!("head_dim {head_dim} is more than the {} that CUDA attention goes to", HEAD_DIMS[2]);
            return Err(Error::new(ErrorKind::Unsupported, message));
        };
        let entry = format!("attention_plain_{}_d{head_dim_max}", storage.suffix());
        let function = load(context, "attention_plain", &entry)?;
        let shared_bytes = shared_bytes(head_dim_max);
        if shared_bytes > context.info().shared_bytes_max {
            let has = context.info().shared_bytes_max;
            let message =
                format!("`{entry}` needs {shared_bytes} bytes of shared memory, but a block may have {has}");
            return Err(Error::new(ErrorKind::Device, message).at(&context.info().name));
        }
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, shared_bytes as i32).or_fault("asking for shared memory")?;
        Ok(Self { function, head_dim_max, shared_bytes })
    }
}

/// Dynamic shared memory of `attention_plain` (its `struct Shared`): a padded tile of 64 keys or values, 16 queries in
/// f32, 64 weights in f32 for each of them.
fn shared_bytes(head_dim_max: usize) -> usize {
    64 * (head_dim_max + 8) * Storage::BYTES
        + 16 * head_dim_max * size_of::<f32>()
        + 16 * 64 * size_of::<f32>()
}

/// An entry of the file `stem`. Its module lives as long as the function.
fn load(context: &Context, stem: &str, entry: &str) -> Result<CudaFunction> {
    let fatbin = FATBINS.iter().find(|(name, _)| *name == stem).map(|(_, bytes)| bytes.to_vec());
    let fatbin = fatbin.unwrap_or_else(|| panic!("the build made no fatbin of `{stem}`"));
    let doing = |what: &str| format!("{what} the kernel `{entry}` on {}", context.info().name);
    let module = context.cuda().load_module(Ptx::from_binary(fatbin)).or_fault(doing("loading"))?;
    module.load_function(entry).or_fault(doing("finding"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fatbin_is_one_and_its_ptx_can_be_read() {
        assert_eq!(FATBINS.len(), 8);
        for (stem, bytes) in FATBINS {
            assert_eq!(bytes[..4], [0x50, 0xED, 0x55, 0xBA], "{stem}");
            let entry = format!(".entry {stem}");
            assert!(bytes.windows(entry.len()).any(|window| window == entry.as_bytes()), "{stem}");
        }
    }

    #[test]
    fn attention_fits_the_shared_memory_of_a_turing_gpu() {
        assert_eq!(HEAD_DIMS.map(shared_bytes), [17_408, 29_696, 54_272]);
        assert!(HEAD_DIMS.iter().all(|&head_dim| shared_bytes(head_dim) <= 64 << 10));
    }
}
