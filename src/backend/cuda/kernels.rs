//! The kernels: device code embedded by the build, loaded into a context, looked up by name once.
//!
//! Entry names stand in `kernels/README.md`; this file and `build.rs` are the only ones that know them.

use cudarc::driver::CudaFunction;
use cudarc::driver::sys::CUfunction_attribute;
use cudarc::nvrtc::Ptx;

use super::context::Context;
use super::fault::OrFault;
use super::format::ActivationFormat;
use super::tiles::TILE_KEYS;
use crate::backend::tier::CudaTier;
use crate::error::{Error, ErrorKind, Result};

/// Every file of `kernels/`, compiled: its stem and its fatbin.
static FATBINS: &[(&str, &[u8])] = &include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// A kernel of attention, and what its launch depends on. `entry` is its name.
#[derive(Debug, PartialEq, Eq)]
pub struct AttentionKernel {
    /// The file of `kernels/`.
    pub stem: &'static str,
    /// The function in it.
    pub entry: &'static str,
    /// The tier whose numbers it takes.
    pub tier: CudaTier,
    /// The widest head that it can do; narrower ones cost as much.
    pub head_dim_max: usize,
    /// Threads of a block.
    pub threads: usize,
    /// Pairs of (token, head of a kv head's group) that a block works on: [`Work::pairs`](super::tiles::Work::pairs) at
    /// most.
    pub block_pairs: usize,
    /// Tiles of keys or values that are in shared memory at a time.
    pub stages: usize,
    /// Blocks that should be on a multiprocessor together: it is not chosen where shared memory has no room for them.
    pub blocks: usize,
}

/// Every attention kernel, in the order of preference.
pub const ATTENTION: [AttentionKernel; 11] = {
    use CudaTier::{Sm75, Sm80};
    [
        tensor("attention_sm80", "attention_sm80_bf16_d64", Sm80, (64, 128, 128, 3, 2)),
        tensor("attention_sm80", "attention_sm80_bf16_d128", Sm80, (128, 128, 128, 3, 2)),
        tensor("attention_sm80", "attention_sm80_bf16_d128_r64", Sm80, (128, 128, 64, 2, 2)),
        tensor("attention_sm75", "attention_sm75_f16_d64", Sm75, (64, 128, 128, 2, 2)),
        tensor("attention_sm75", "attention_sm75_f16_d128", Sm75, (128, 256, 128, 2, 1)),
        plain("attention_plain_bf16_d64", Sm80, 64),
        plain("attention_plain_bf16_d128", Sm80, 128),
        plain("attention_plain_bf16_d256", Sm80, 256),
        plain("attention_plain_f16_d64", Sm75, 64),
        plain("attention_plain_f16_d128", Sm75, 128),
        plain("attention_plain_f16_d256", Sm75, 256),
    ]
};

const PLAIN: &str = "attention_plain";
const PLAIN_THREADS: usize = 128;
const PLAIN_PAIRS: usize = 16;

/// One of `attention_tensor.cuh`, with its template arguments: head_dim, threads, rows, stages, blocks.
const fn tensor(
    stem: &'static str,
    entry: &'static str,
    tier: CudaTier,
    (head_dim_max, threads, block_pairs, stages, blocks): (usize, usize, usize, usize, usize),
) -> AttentionKernel {
    AttentionKernel { stem, entry, tier, head_dim_max, threads, block_pairs, stages, blocks }
}

const fn plain(entry: &'static str, tier: CudaTier, head_dim_max: usize) -> AttentionKernel {
    let (threads, block_pairs) = (PLAIN_THREADS, PLAIN_PAIRS);
    AttentionKernel { stem: PLAIN, entry, tier, head_dim_max, threads, block_pairs, stages: 1, blocks: 1 }
}

impl AttentionKernel {
    /// Whether it is the one without tensor cores.
    pub fn is_plain(&self) -> bool {
        self.stem == PLAIN
    }

    /// Dynamic shared memory of a block: its queries and its tiles.
    pub fn shared_bytes(&self) -> usize {
        if self.is_plain() {
            // `struct Shared` of the kernel: a padded tile, queries in f32, weights in f32 for each of them.
            TILE_KEYS * (self.head_dim_max + 8) * ActivationFormat::of(self.tier).bytes()
                + self.block_pairs * (self.head_dim_max + TILE_KEYS) * size_of::<f32>()
        } else {
            (self.block_pairs + self.stages * TILE_KEYS)
                * self.head_dim_max
                * ActivationFormat::of(self.tier).bytes()
        }
    }

    /// The kernel for heads of `head_dim` in a tier, where a block may have so much shared memory.
    ///
    /// [`ErrorKind::Unsupported`] for a head that is too wide.
    pub fn choose(tier: CudaTier, head_dim: usize, shared_bytes_max: usize) -> Result<&'static Self> {
        let fits = |kernel: &&Self| {
            kernel.tier == tier
                && kernel.head_dim_max >= head_dim
                && kernel.blocks * kernel.shared_bytes() <= shared_bytes_max
        };
        ATTENTION.iter().find(fits).ok_or_else(|| {
            let widest = ATTENTION.iter().map(|kernel| kernel.head_dim_max).max().unwrap_or_default();
            let message =
                format!("head_dim {head_dim} is more than the {widest} that CUDA attention goes to");
            Error::new(ErrorKind::Unsupported, message)
        })
    }
}

/// The kernels of one rank, ready to be launched in its context.
pub struct Kernels {
    pub(super) tier: CudaTier,
    pub(super) add_rms_norm: CudaFunction,
    pub(super) attention: CudaFunction,
    pub(super) attention_kernel: &'static AttentionKernel,
    pub(super) fill_normal: CudaFunction,
    pub(super) gather_rows: CudaFunction,
    pub(super) rope: CudaFunction,
    pub(super) score: CudaFunction,
    pub(super) seam_tiles: CudaFunction,
    pub(super) silu_mul: CudaFunction,
}

impl Kernels {
    /// Loads the kernels of a tier with this one for attention.
    ///
    /// [`ErrorKind::Device`] when the build has no code for this GPU.
    pub fn load(context: &Context, attention: &'static AttentionKernel) -> Result<Self> {
        let tier = attention.tier;
        let typed =
            |stem: &str| load(context, stem, &format!("{stem}_{}", ActivationFormat::of(tier).name()));
        Ok(Self {
            tier,
            add_rms_norm: typed("add_rms_norm")?,
            attention: load_attention(context, attention)?,
            attention_kernel: attention,
            fill_normal: typed("fill_normal")?,
            gather_rows: load(context, "gather_rows", "gather_rows")?,
            rope: typed("rope")?,
            score: typed("score")?,
            seam_tiles: load(context, "seam_tiles", "seam_tiles")?,
            silu_mul: typed("silu_mul")?,
        })
    }
}

fn load_attention(context: &Context, kernel: &AttentionKernel) -> Result<CudaFunction> {
    let function = load(context, kernel.stem, kernel.entry)?;
    let (needs, has) = (kernel.shared_bytes(), context.info().shared_bytes_max);
    if needs > has {
        let message =
            format!("`{}` needs {needs} bytes of shared memory, but a block may have {has}", kernel.entry);
        return Err(Error::new(ErrorKind::Device, message).at(&context.info().name));
    }
    let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    function.set_attribute(attribute, needs as i32).or_fault("asking for shared memory")?;
    Ok(function)
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
        assert_eq!(FATBINS.len(), 10);
        for (stem, bytes) in FATBINS {
            assert_eq!(bytes[..4], [0x50, 0xED, 0x55, 0xBA], "{stem}");
            let entry = format!(".entry {stem}");
            assert!(bytes.windows(entry.len()).any(|window| window == entry.as_bytes()), "{stem}");
        }
    }

    #[test]
    fn every_attention_kernel_is_in_its_fatbin_and_named_after_what_it_is() {
        for kernel in &ATTENTION {
            let (_, bytes) = FATBINS.iter().find(|(stem, _)| *stem == kernel.stem).unwrap();
            let entry = format!(".entry {}(", kernel.entry);
            assert!(bytes.windows(entry.len()).any(|window| window == entry.as_bytes()), "{}", kernel.entry);
            let parts =
                [ActivationFormat::of(kernel.tier).name(), &format!("d{}", kernel.head_dim_max)].join("_");
            assert!(kernel.entry.starts_with(&format!("{}_{parts}", kernel.stem)), "{}", kernel.entry);
        }
    }

    #[test]
    fn attention_is_chosen_by_the_width_of_heads_and_by_shared_memory() {
        // What a block may have on sm_75, 80, 86 / 89 / 120, 90 / 100.
        const KIB: usize = 1 << 10;
        let chosen =
            |tier, head_dim, kib: usize| AttentionKernel::choose(tier, head_dim, kib * KIB).unwrap().entry;
        for kib in [64, 99, 163, 227] {
            assert_eq!(chosen(CudaTier::Sm75, 64, kib), "attention_sm75_f16_d64");
            assert_eq!(chosen(CudaTier::Sm75, 128, kib), "attention_sm75_f16_d128");
            assert_eq!(chosen(CudaTier::Sm75, 136, kib), "attention_plain_f16_d256");
        }
        for (kib, d128) in [
            (99, "attention_sm80_bf16_d128_r64"),
            (163, "attention_sm80_bf16_d128"),
            (227, "attention_sm80_bf16_d128"),
        ] {
            assert_eq!(chosen(CudaTier::Sm80, 16, kib), "attention_sm80_bf16_d64");
            assert_eq!(chosen(CudaTier::Sm80, 80, kib), d128);
            assert_eq!(chosen(CudaTier::Sm80, 128, kib), d128);
            assert_eq!(chosen(CudaTier::Sm80, 256, kib), "attention_plain_bf16_d256");
        }
        let error = AttentionKernel::choose(CudaTier::Sm80, 264, 227 * KIB).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn shared_memory_is_what_the_headers_of_the_kernels_say() {
        let bytes = ATTENTION.map(|kernel| kernel.shared_bytes());
        assert_eq!(bytes[..5], [40 << 10, 80 << 10, 48 << 10, 32 << 10, 64 << 10]);
        assert_eq!(bytes[5..8], [17_408, 29_696, 54_272]);
        assert_eq!(bytes[8..], bytes[5..8]);
    }
}
