//! The kernels: device code embedded by the build, loaded into a context, looked up by name once;
//! and the table of those that do attention.
//!
//! `kernels/README.md` lists the names; this file and `build.rs` are the only ones that know them.

use std::fmt;

use cudarc::driver::CudaFunction;
use cudarc::driver::sys::CUfunction_attribute;
use cudarc::nvrtc::Ptx;

use super::context::Context;
use super::fault::OrFault;
use super::format::ActivationFormat;
use super::probe::{Capability, DeviceInfo};
use super::tiles::{TILE_KEYS, TileNeeds};
use crate::error::{Error, ErrorKind, Result};

/// Every file of `kernels/`, compiled: its stem and its fatbin.
static FATBINS: &[(&str, &[u8])] = &include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// The GPUs that a kernel runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// Those of this compute capability and of later ones.
    AtLeast(Capability),
    /// Those of this compute capability alone: the kernel uses instructions that later GPUs do not
    /// have.
    Exactly(Capability),
}

impl Arch {
    /// Whether a GPU of this capability is among them.
    pub fn runs_on(self, capability: Capability) -> bool {
        match self {
            Self::AtLeast(least) => capability >= least,
            Self::Exactly(only) => capability == only,
        }
    }
}

/// Features of attention beside the causal mask: those that a kernel has, or that a model needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttentionFeatures {
    /// A sliding window: a query sees the last keys alone.
    pub window: bool,
    /// A soft cap on the logits.
    pub cap: bool,
}

impl AttentionFeatures {
    /// None of them.
    pub const NONE: Self = Self { window: false, cap: false };

    /// All of them.
    pub const ALL: Self = Self { window: true, cap: true };

    /// Whether all that are needed are among them.
    fn cover(self, needed: Self) -> bool {
        (self.window || !needed.window) && (self.cap || !needed.cap)
    }
}

impl fmt::Display for AttentionFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [(self.window, " with a sliding window"), (self.cap, " with a soft cap")];
        named.into_iter().filter(|(needed, _)| *needed).try_for_each(|(_, name)| f.write_str(name))
    }
}

/// An attention kernel, and what its launch depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AttentionKernel {
    /// The function in its file.
    pub name: &'static str,
    /// The file of `kernels/`.
    pub stem: &'static str,
    /// The GPUs that it runs on.
    pub arch: Arch,
    /// The format of q, k, v and the result.
    pub format: ActivationFormat,
    /// The widest head that it can do; narrower ones cost as much.
    pub head_dim: usize,
    /// Keys of a tile.
    pub tile_keys: usize,
    /// Rows that a block works on, pairs of (token, head of a kv head's group):
    /// [`WorkItem::pairs`](super::tiles::WorkItem::pairs) at most.
    pub block_rows: usize,
    /// Dynamic shared memory of a block: its queries and its tiles.
    pub shared_bytes: usize,
    /// Whether it takes q, k and v as boxes, each of whose tiles has all of its rows.
    pub boxes: bool,
    /// Its features beside the causal mask.
    pub features: AttentionFeatures,
    /// Threads of a block.
    pub threads: usize,
    /// Blocks that should be on a multiprocessor together: it is not chosen where their shared
    /// memory, with what the driver keeps of each block's, does not fit.
    pub blocks: usize,
}

/// Every attention kernel, the best first: of those that differ in features alone, the one without
/// any. Those at the end have not been measured on hardware, and are taken by name alone.
pub const ATTENTION: [AttentionKernel; 28] = {
    use ActivationFormat::{Bf16, F16};
    let sm80_d64 = tensor("attention_sm80", "attention_sm80_bf16_d64", Bf16, (64, 128, 128, 3, 2));
    let sm80_d128 = tensor("attention_sm80", "attention_sm80_bf16_d128", Bf16, (128, 128, 128, 3, 2));
    let sm80_d128_r64 = tensor("attention_sm80", "attention_sm80_bf16_d128_r64", Bf16, (128, 128, 64, 2, 2));
    let sm80_d256 = tensor("attention_sm80", "attention_sm80_bf16_d256", Bf16, (256, 128, 64, 2, 1));
    let sm75_d64 = tensor("attention_sm75", "attention_sm75_f16_d64", F16, (64, 128, 128, 2, 2));
    let sm75_d128 = tensor("attention_sm75", "attention_sm75_f16_d128", F16, (128, 256, 128, 2, 1));
    [
        sm80_d64,
        sm80_d128,
        sm80_d128_r64,
        sm80_d256,
        sm75_d64,
        sm75_d128,
        plain("attention_plain_bf16_d64", Bf16, 64),
        plain("attention_plain_bf16_d128", Bf16, 128),
        plain("attention_plain_bf16_d256", Bf16, 256),
        plain("attention_plain_f16_d64", F16, 64),
        plain("attention_plain_f16_d128", F16, 128),
        plain("attention_plain_f16_d256", F16, 256),
        with_window_and_cap("attention_sm80_bf16_d64_wc", sm80_d64),
        with_window_and_cap("attention_sm80_bf16_d128_wc", sm80_d128),
        with_window_and_cap("attention_sm80_bf16_d128_r64_wc", sm80_d128_r64),
        with_window_and_cap("attention_sm80_bf16_d256_wc", sm80_d256),
        with_window_and_cap("attention_sm75_f16_d64_wc", sm75_d64),
        with_window_and_cap("attention_sm75_f16_d128_wc", sm75_d128),
        with_window_and_cap("attention_plain_bf16_d64_wc", plain("", Bf16, 64)),
        with_window_and_cap("attention_plain_bf16_d128_wc", plain("", Bf16, 128)),
        with_window_and_cap("attention_plain_bf16_d256_wc", plain("", Bf16, 256)),
        with_window_and_cap("attention_plain_f16_d64_wc", plain("", F16, 64)),
        with_window_and_cap("attention_plain_f16_d128_wc", plain("", F16, 128)),
        with_window_and_cap("attention_plain_f16_d256_wc", plain("", F16, 256)),
        sm90a_simple("attention_sm90a_simple_bf16_d64", 64),
        sm90a_simple("attention_sm90a_simple_bf16_d128", 128),
        sm90a("attention_sm90a_bf16_d64", 64),
        sm90a("attention_sm90a_bf16_d128", 128),
    ]
};

const PLAIN: &str = "attention_plain";

/// The kernels that take boxes.
const BOXES: &str = "attention_sm90a";

/// The oldest GPUs with instructions for a format.
const fn with_format(format: ActivationFormat) -> Arch {
    Arch::AtLeast(match format {
        ActivationFormat::F16 => Capability { major: 7, minor: 5 },
        ActivationFormat::Bf16 => Capability { major: 8, minor: 0 },
    })
}

/// A kernel of `attention_tensor.cuh`, with its template arguments: head_dim, threads, rows,
/// stages, blocks.
const fn tensor(
    stem: &'static str,
    name: &'static str,
    format: ActivationFormat,
    (head_dim, threads, block_rows, stages, blocks): (usize, usize, usize, usize, usize),
) -> AttentionKernel {
    AttentionKernel {
        name,
        stem,
        arch: with_format(format),
        format,
        head_dim,
        tile_keys: TILE_KEYS,
        block_rows,
        shared_bytes: (block_rows + stages * TILE_KEYS) * head_dim * format.bytes(),
        boxes: false,
        features: AttentionFeatures::NONE,
        threads,
        blocks,
    }
}

/// A kernel of `attention_sm90a_simple.cu`: two tiles of keys, each of two of the table's, and two of
/// values.
const fn sm90a_simple(name: &'static str, head_dim: usize) -> AttentionKernel {
    let (format, block_rows) = (ActivationFormat::Bf16, 128);
    AttentionKernel {
        name,
        stem: "attention_sm90a_simple",
        arch: Arch::Exactly(Capability { major: 9, minor: 0 }),
        format,
        head_dim,
        tile_keys: TILE_KEYS,
        block_rows,
        shared_bytes: (block_rows + 4 * 2 * TILE_KEYS) * head_dim * format.bytes(),
        boxes: false,
        features: AttentionFeatures::NONE,
        threads: 256,
        blocks: 1,
    }
}

/// A kernel of `attention_sm90a.cu`: as much, a place for the result, and ten barriers.
const fn sm90a(name: &'static str, head_dim: usize) -> AttentionKernel {
    let simple = sm90a_simple(name, head_dim);
    let result_bytes = simple.block_rows * head_dim * simple.format.bytes();
    AttentionKernel {
        stem: BOXES,
        shared_bytes: simple.shared_bytes + result_bytes + 10 * size_of::<u64>(),
        boxes: true,
        threads: 384,
        ..simple
    }
}

/// A kernel of `attention_plain.cu`.
const fn plain(name: &'static str, format: ActivationFormat, head_dim: usize) -> AttentionKernel {
    let block_rows = 16;
    // `struct Shared` of the kernel: a padded tile, queries in f32, weights in f32 for each of
    // them.
    let tile_bytes = TILE_KEYS * (head_dim + 8) * format.bytes();
    AttentionKernel {
        name,
        stem: PLAIN,
        arch: with_format(format),
        format,
        head_dim,
        tile_keys: TILE_KEYS,
        block_rows,
        shared_bytes: tile_bytes + block_rows * (head_dim + TILE_KEYS) * size_of::<f32>(),
        boxes: false,
        features: AttentionFeatures::NONE,
        threads: 128,
        blocks: 1,
    }
}

/// The entry of this name, which is `kernel` with a window and a cap.
const fn with_window_and_cap(name: &'static str, kernel: AttentionKernel) -> AttentionKernel {
    AttentionKernel { name, features: AttentionFeatures::ALL, ..kernel }
}

impl AttentionKernel {
    /// Whether it does without tensor cores.
    pub fn is_plain(&self) -> bool {
        self.stem == PLAIN
    }

    /// The needs of the tables that it reads, for `group` query heads per kv head.
    pub fn tile_needs(&self, group: usize) -> TileNeeds {
        // Boxes begin with a token's first head.
        let block_pairs = if self.boxes { (self.block_rows / group).max(1) * group } else { self.block_rows };
        TileNeeds { block_pairs, whole: self.boxes }
    }

    /// Whether a kernel of this name, as [`named`](Self::named) takes it, or the best one without a name, takes
    /// boxes.
    pub fn takes_boxes(name: Option<&str>) -> bool {
        name.is_some_and(|name| ATTENTION.iter().any(|kernel| kernel.boxes && kernel.is_named(name)))
    }

    /// Whether this is its name, or its file's, such as `sm80` for `attention_sm80`.
    fn is_named(&self, name: &str) -> bool {
        self.name == name || self.stem.strip_prefix("attention_") == Some(name)
    }

    /// Whether it can run on this GPU, for heads of `head_dim` in this format, and has the features
    /// that are needed.
    pub fn fits(
        &self,
        device: &DeviceInfo,
        format: ActivationFormat,
        head_dim: usize,
        needed: AttentionFeatures,
    ) -> bool {
        self.arch.runs_on(device.capability)
            && self.format == format
            && self.head_dim >= head_dim
            && self.features.cover(needed)
            && self.shared_bytes <= device.shared_bytes_max
    }

    /// Whether the shared memory of a multiprocessor is enough for as many blocks as should be on it
    /// together. For one that fits it always is.
    pub fn shares(&self, device: &DeviceInfo) -> bool {
        let bytes = self.blocks * (self.shared_bytes + device.shared_bytes_reserved);
        self.blocks == 1 || bytes <= device.shared_bytes_sm
    }

    /// The best kernel that fits, of those whose blocks share a multiprocessor as they should.
    ///
    /// [`ErrorKind::Unsupported`] when there is none.
    pub fn choose(
        device: &DeviceInfo,
        format: ActivationFormat,
        head_dim: usize,
        needed: AttentionFeatures,
    ) -> Result<&'static Self> {
        let fits = |kernel: &&Self| kernel.fits(device, format, head_dim, needed) && kernel.shares(device);
        ATTENTION.iter().find(fits).ok_or_else(|| {
            let (name, capability) = (format.name(), device.capability);
            let message = format!(
                "no CUDA kernel does attention{needed} for head_dim {head_dim} in {name} at compute capability {capability}"
            );
            let widest = ATTENTION.iter().map(|kernel| kernel.head_dim).max().unwrap_or_default();
            Error::new(ErrorKind::Unsupported, message)
                .with_hint(format!("CUDA kernels do head_dim up to {widest}; the CPU can score this model"))
        })
    }

    /// The kernel of this name, or of a file's name, such as `sm80` for `attention_sm80`, the best of that
    /// file.
    ///
    /// [`ErrorKind::Options`] for a name that no kernel has, and for kernels that do not fit; the hint
    /// lists the kernels that fit.
    pub fn named(
        name: &str,
        device: &DeviceInfo,
        format: ActivationFormat,
        head_dim: usize,
        needed: AttentionFeatures,
    ) -> Result<&'static Self> {
        let fitting = || ATTENTION.iter().filter(|kernel| kernel.fits(device, format, head_dim, needed));
        let is_named = |kernel: &&Self| kernel.is_named(name);
        let best = fitting().filter(is_named).find(|kernel| kernel.shares(device));
        best.or_else(|| fitting().find(is_named)).ok_or_else(|| {
            let message = match ATTENTION.iter().any(|kernel| is_named(&kernel)) {
                true => format!(
                    "attention kernel `{name}` does not fit head_dim {head_dim} in {} on this GPU{needed}",
                    format.name()
                ),
                false => format!("there is no attention kernel `{name}`"),
            };
            let names: Vec<&str> = fitting().map(|kernel| kernel.name).collect();
            let hint = match names[..] {
                [] => "no kernel fits".to_owned(),
                _ => format!("kernels that fit: {}", names.join(", ")),
            };
            Error::new(ErrorKind::Options, message).at(&device.name).with_hint(hint)
        })
    }
}

/// The kernels of one rank, ready to be launched in its context.
pub struct Kernels {
    pub(super) add_branch_rms_norm: CudaFunction,
    pub(super) add_parts: CudaFunction,
    pub(super) add_rms_norm: CudaFunction,
    pub(super) attention: CudaFunction,
    pub(super) attention_kernel: &'static AttentionKernel,
    pub(super) digest_rows: CudaFunction,
    pub(super) fill_normal: CudaFunction,
    pub(super) gate_mul_gelu: CudaFunction,
    pub(super) gate_mul_silu: CudaFunction,
    pub(super) gather_rows: CudaFunction,
    pub(super) rope: CudaFunction,
    pub(super) rope_norm: CudaFunction,
    pub(super) score: CudaFunction,
    pub(super) seam_tiles: CudaFunction,
}

impl Kernels {
    /// Loads this attention kernel and the other kernels of its format.
    ///
    /// [`ErrorKind::Device`] when the build has no code for this GPU.
    pub fn load(context: &Context, attention: &'static AttentionKernel) -> Result<Self> {
        let format = attention.format.name();
        let typed = |stem: &str| load(context, stem, &format!("{stem}_{format}"));
        let gate_mul = |gate: &str| load(context, "gate_mul", &format!("gate_mul_{gate}_{format}"));
        Ok(Self {
            add_branch_rms_norm: typed("add_branch_rms_norm")?,
            add_parts: typed("add_parts")?,
            add_rms_norm: typed("add_rms_norm")?,
            attention: load_attention(context, attention)?,
            attention_kernel: attention,
            digest_rows: load(context, "digest_rows", "digest_rows")?,
            fill_normal: typed("fill_normal")?,
            gate_mul_gelu: gate_mul("gelu")?,
            gate_mul_silu: gate_mul("silu")?,
            gather_rows: load(context, "gather_rows", "gather_rows")?,
            rope: typed("rope")?,
            rope_norm: typed("rope_norm")?,
            score: typed("score")?,
            seam_tiles: load(context, "seam_tiles", "seam_tiles")?,
        })
    }
}

/// The use that an attention kernel makes of a multiprocessor, as the driver has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// Blocks that it holds together.
    pub blocks: usize,
    /// The part of its memory that should be shared memory, in percent; -1 where the driver
    /// chooses.
    pub carveout_percent: i32,
}

impl Kernels {
    /// The occupancy of the attention kernel.
    pub fn attention_occupancy(&self) -> Result<Occupancy> {
        let AttentionKernel { threads, shared_bytes, .. } = *self.attention_kernel;
        let doing = "asking for the blocks of a multiprocessor";
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        // Binds the context, which the next call needs.
        let carveout_percent = self.attention.get_attribute(attribute).or_fault(doing)?;
        let blocks =
            self.attention.occupancy_max_active_blocks_per_multiprocessor(threads as u32, shared_bytes, None);
        Ok(Occupancy { blocks: blocks.or_fault(doing)? as usize, carveout_percent })
    }
}

fn load_attention(context: &Context, kernel: &AttentionKernel) -> Result<CudaFunction> {
    let function = load(context, kernel.stem, kernel.name)?;
    let (needs, has) = (kernel.shared_bytes, context.info().shared_bytes_max);
    if needs > has {
        let message =
            format!("`{}` needs {needs} bytes of shared memory, but a block may have {has}", kernel.name);
        return Err(Error::new(ErrorKind::Device, message).at(&context.info().name));
    }
    let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    function.set_attribute(attribute, needs as i32).or_fault("asking for shared memory")?;
    if !kernel.is_plain() {
        // Left to itself, the driver may give a kernel's blocks less of the memory that shared
        // memory and the L1 cache divide than several of them need.
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        function.set_attribute(attribute, CARVEOUT_PERCENT).or_fault("asking for shared memory")?;
    }
    Ok(function)
}

/// The part of a multiprocessor's memory that becomes shared memory for attention on tensor cores:
/// all that can.
const CARVEOUT_PERCENT: i32 = 100;

/// An entry of the file `stem`. Its module lives as long as the function.
fn load(context: &Context, stem: &str, entry: &str) -> Result<CudaFunction> {
    let fatbin = FATBINS.iter().find(|(name, _)| *name == stem).map(|(_, bytes)| bytes.to_vec());
    let fatbin = fatbin.unwrap_or_else(|| panic!("the build made no fatbin of `{stem}`"));
    let doing = |what: &str| format!("{what} the kernel `{entry}` on {}", context.info().name);
    let module = context.cuda().load_module(Ptx::from_binary(fatbin)).or_fault(doing("loading"))?;
    let function = module.load_function(entry).or_fault(doing("finding"))?;
    // Drivers load a function when it is first used, and take memory for it; asking for its
    // registers is such a use, so that no pass has to.
    function.num_regs().or_fault(doing("loading"))?;
    Ok(function)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fatbin_is_one_and_its_ptx_can_be_read() {
        assert_eq!(FATBINS.len(), 16);
        for (stem, bytes) in FATBINS {
            assert_eq!(bytes[..4], [0x50, 0xED, 0x55, 0xBA], "{stem}");
            let entry = format!(".entry {stem}");
            assert!(bytes.windows(entry.len()).any(|window| window == entry.as_bytes()), "{stem}");
        }
    }

    #[test]
    fn every_attention_kernel_is_in_the_fatbin_of_its_name() {
        for kernel in &ATTENTION {
            let (_, bytes) = FATBINS.iter().find(|(stem, _)| *stem == kernel.stem).unwrap();
            let entry = format!(".entry {}(", kernel.name);
            assert!(bytes.windows(entry.len()).any(|window| window == entry.as_bytes()), "{}", kernel.name);
            let parts = [kernel.format.name(), &format!("d{}", kernel.head_dim)].join("_");
            assert!(kernel.name.starts_with(&format!("{}_{parts}", kernel.stem)), "{}", kernel.name);
            assert_eq!(
                kernel.name.ends_with("_wc"),
                kernel.features == AttentionFeatures::ALL,
                "{}",
                kernel.name
            );
        }
    }

    const KIB: usize = 1 << 10;

    /// A GPU whose blocks may ask for all of its shared memory but what the driver keeps of each.
    fn device((major, minor): (u32, u32), shared_kib: usize) -> DeviceInfo {
        let shared_bytes_reserved = if major < 8 { 0 } else { KIB };
        DeviceInfo {
            ordinal: 0,
            name: "a GPU".to_owned(),
            capability: Capability { major, minor },
            memory_bytes: 0,
            multiprocessors: 1,
            shared_bytes_max: shared_kib * KIB,
            shared_bytes_sm: shared_kib * KIB + shared_bytes_reserved,
            shared_bytes_reserved,
            has_clock: false,
        }
    }

    /// Shared memory that a block may have, by compute capability.
    const DEVICES: [((u32, u32), usize); 7] = [
        ((7, 5), 64),
        ((8, 0), 163),
        ((8, 6), 99),
        ((8, 9), 99),
        ((9, 0), 227),
        ((10, 0), 227),
        ((12, 0), 99),
    ];

    #[test]
    fn attention_is_chosen_by_gpu_format_and_width() {
        use ActivationFormat::{Bf16, F16};
        for (capability, kib) in DEVICES {
            let device = device(capability, kib);
            let chosen = |format, head_dim, needed| {
                let kernel = AttentionKernel::choose(&device, format, head_dim, needed);
                kernel.map_or("none", |kernel| kernel.name)
            };
            let wide = if kib < 160 { "attention_sm80_bf16_d128_r64" } else { "attention_sm80_bf16_d128" };
            let none_on_turing = |name| if capability == (7, 5) { "none" } else { name };
            for (format, head_dim, name) in [
                (F16, 16, "attention_sm75_f16_d64"),
                (F16, 64, "attention_sm75_f16_d64"),
                (F16, 80, "attention_sm75_f16_d128"),
                (F16, 128, "attention_sm75_f16_d128"),
                (F16, 136, "attention_plain_f16_d256"),
                (F16, 264, "none"),
                (Bf16, 16, none_on_turing("attention_sm80_bf16_d64")),
                (Bf16, 64, none_on_turing("attention_sm80_bf16_d64")),
                (Bf16, 80, none_on_turing(wide)),
                (Bf16, 128, none_on_turing(wide)),
                (Bf16, 136, none_on_turing("attention_sm80_bf16_d256")),
                (Bf16, 256, none_on_turing("attention_sm80_bf16_d256")),
                (Bf16, 264, "none"),
            ] {
                let chosen = |needed| chosen(format, head_dim, needed);
                let what = format!("{capability:?}, {format:?}, {head_dim}");
                assert_eq!(chosen(AttentionFeatures::NONE), name, "{what}");
                // Any feature selects the variant of the same kernel.
                let name = if name == "none" { name.to_owned() } else { format!("{name}_wc") };
                for needed in [WINDOW, CAP, AttentionFeatures::ALL] {
                    assert_eq!(chosen(needed), name, "{what}{needed}");
                }
            }
        }
    }

    #[test]
    fn blocks_share_a_multiprocessor_with_what_the_driver_keeps() {
        let shares = |half_kib: usize, blocks, device: &DeviceInfo| {
            let kernel = AttentionKernel {
                shared_bytes: half_kib * KIB / 2,
                blocks,
                ..tensor("", "", ActivationFormat::F16, (64, 128, 64, 2, 1))
            };
            kernel.shares(device)
        };
        // Two blocks of 49 KiB and 1 KiB each fill the 100 KiB of an RTX 30, whose blocks may have
        // 99; two of 49.5 do not fit, although they would without it.
        let rtx30 = device((8, 6), 99);
        assert!(shares(98, 2, &rtx30) && !shares(99, 2, &rtx30));
        // Turing keeps nothing: two blocks of 32 KiB, or one of 64, which a driver that keeps
        // something must not take away.
        let turing = device((7, 5), 64);
        assert!(shares(64, 2, &turing) && !shares(65, 2, &turing));
        assert!(shares(128, 1, &DeviceInfo { shared_bytes_reserved: KIB, ..turing }));
    }

    const WINDOW: AttentionFeatures = AttentionFeatures { window: true, cap: false };
    const CAP: AttentionFeatures = AttentionFeatures { window: false, cap: true };

    #[test]
    fn features_that_no_kernel_has_are_refused() {
        let device = device((9, 0), 227);
        for (needed, word) in [(WINDOW, "sliding window"), (CAP, "soft cap")] {
            assert!(!AttentionFeatures::NONE.cover(needed) && needed.cover(AttentionFeatures::NONE));
            let error = AttentionKernel::choose(&device, ActivationFormat::Bf16, 264, needed).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.message().contains(word), "{error}");
            // A kernel that is named must have them too.
            let (name, format) = ("attention_sm80_bf16_d64", ActivationFormat::Bf16);
            let error = AttentionKernel::named(name, &device, format, 64, needed).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Options);
            assert!(error.message().contains(word), "{error}");
            assert!(error.hint().is_some_and(|hint| hint.contains("attention_sm80_bf16_d64_wc")), "{error}");
        }
    }

    #[test]
    fn a_kernel_of_one_architecture_runs_on_no_other() {
        let [older, hopper, newer] = [8, 9, 10].map(|major| Capability { major, minor: 0 });
        let runs = |arch: Arch| [older, hopper, newer].map(|capability| arch.runs_on(capability));
        assert_eq!(runs(Arch::Exactly(hopper)), [false, true, false]);
        assert_eq!(runs(Arch::AtLeast(hopper)), [false, true, true]);
    }

    #[test]
    fn a_named_kernel_is_taken_where_it_fits() {
        let named = |name, capability, head_dim| {
            let device = device(capability, 163);
            let (format, needed) = (ActivationFormat::Bf16, AttentionFeatures::NONE);
            AttentionKernel::named(name, &device, format, head_dim, needed)
        };
        for name in ["attention_plain_bf16_d256", "attention_sm80_bf16_d128_r64"] {
            assert_eq!(named(name, (8, 0), 128).unwrap().name, name);
        }
        for (name, capability, head_dim) in [
            ("attention", (8, 0), 128),
            ("attention_sm80_bf16_d64", (8, 0), 128),
            ("attention_sm75_f16_d128", (8, 0), 128),
            ("attention_sm80_bf16_d128", (7, 5), 128),
        ] {
            let error = named(name, capability, head_dim).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Options, "{error}");
            let fits = error.hint().is_some_and(|hint| hint.contains("attention_plain_bf16_d256"));
            assert!(error.message().contains(name) && fits == (capability == (8, 0)), "{error}");
        }
    }

    #[test]
    fn shared_memory_is_what_the_headers_of_the_kernels_say() {
        let bytes = ATTENTION.map(|kernel| kernel.shared_bytes);
        assert_eq!(bytes[..6], [40 << 10, 80 << 10, 48 << 10, 96 << 10, 32 << 10, 64 << 10]);
        assert_eq!(bytes[6..9], [17_408, 29_696, 54_272]);
        assert_eq!(bytes[9..12], bytes[6..9]);
        assert_eq!(bytes[12..24], bytes[..12], "the variants with a window and a cap");
        assert_eq!(bytes[24..26], [80 << 10, 160 << 10]);
        assert_eq!(bytes[26..], [(96 << 10) + 80, (192 << 10) + 80]);
    }
}
