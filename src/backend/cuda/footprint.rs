//! The memory that a rank takes, by shapes alone: what [`Cuda`] allocates, known before there is a
//! device.

use super::backend::Cuda;
use super::format::ActivationFormat;
use super::gemm::WORKSPACE_BYTES;
use super::gemm::trial::Trial;
use super::heads::HeadLayout;
use super::kernels::AttentionKernel;
use super::matmuls::{self, Biases};
use super::ops::RopeTables;
use super::sizes::{AllReduceSizes, normed_width, scratch_elements, tables_bytes};
use super::staging::Staging;
use super::weight::WeightLayout;
use crate::backend::tier::CudaTier;
use crate::backend::{AllReduce, Capacity, Footprint, Geometry, HostWeight, Matrix};
use crate::weights::{ModelTensors, WeightBytes};

/// Memory for the code of cublasLt's kernels, of which trials load dozens, and for the driver's.
const CODE_BYTES: usize = 256 << 20;

/// Memory for NCCL's channels: reports name 0.5 to 1.1 GB of a communicator, by its version and the
/// links between the GPUs.
const NCCL_BYTES: usize = 1 << 30;

/// Memory for NCCL's connections between pairs of ranks, through which slices are exchanged: an
/// estimate, for 7 peers with 8 channels each and buffers of up to 9 MiB a channel.
const PEERS_BYTES: usize = 512 << 20;

/// Bytes to leave to the vendor's libraries on each rank's GPU.
fn libraries_bytes(geometry: &Geometry) -> usize {
    let nccl = if geometry.shard.ranks > 1 { NCCL_BYTES } else { 0 };
    let exchanges = geometry.all_reduce == AllReduce::Ordered && geometry.adds_by_slices();
    CODE_BYTES + nccl + if exchanges { PEERS_BYTES } else { 0 }
}

impl Cuda {
    /// Bytes of a rank's weights on the device, whatever format they are stored in. The embeddings
    /// stay on the host.
    pub fn weight_bytes(tier: CudaTier, geometry: &Geometry, tensors: &ModelTensors) -> WeightBytes {
        let layout = WeightLayout::new(ActivationFormat::of(tier), HeadLayout::new(geometry));
        let bytes = |part: &HostWeight<'_>| {
            let (values, bias) = layout.bytes(part);
            values + bias.unwrap_or(0)
        };
        let one = |matrix, tensor| HostWeight { matrix, pieces: std::slice::from_ref(tensor), bias: None };
        let layers =
            tensors.layers.iter().map(|layer| HostWeight::all_of(layer).iter().map(bytes).sum::<usize>());
        let norms = tensors.mlp_branch_norms.iter().chain([&tensors.final_norm]);
        let norms: usize = norms.map(|norm| bytes(&one(None, norm))).sum();
        let head = norms + bytes(&one(Some(Matrix::Head), &tensors.head));
        let layer_max = layers.clone().max().unwrap_or(0);
        WeightBytes { layers: layers.sum(), layer_max, head, embedding: 0 }
    }

    /// The memory that a rank of this geometry will allocate, when its weights take `weights`
    /// bytes and attention is done by a kernel of this name, or by the best one.
    pub fn footprint(
        tier: CudaTier,
        geometry: &Geometry,
        capacity: &Capacity,
        weights: usize,
        attention: Option<&str>,
    ) -> Footprint {
        let whole = AttentionKernel::takes_boxes(attention);
        let (heads, format) = (HeadLayout::new(geometry), ActivationFormat::of(tier));
        let rows = capacity.tokens + capacity.sequences;
        let row_bytes =
            geometry.hidden * format.residual_bytes() + normed_width(geometry, &heads) * format.bytes();
        let scratch = scratch_elements(geometry, &heads, capacity, whole) * format.bytes();
        let logits = capacity.sequences * geometry.labels * size_of::<f32>();
        let rope_tables = RopeTables::bytes(format, heads.padded, capacity.tokens);
        let all_reduce = AllReduceSizes::bytes(geometry, capacity, format);
        let tables = tables_bytes(geometry, &heads, capacity, whole);
        // Trials of matmuls use the memory of activations before those are allocated, and take this
        // at least.
        let shapes = matmuls::of_layers(geometry, &heads, capacity, format, Biases::default());
        let trial = shapes.iter().map(|(shape, _)| Trial::least_bytes(format, *shape)).max().unwrap_or(0);
        let activations = (rows * row_bytes + scratch).max(trial);
        let staging = Staging::device_bytes(capacity.tokens, geometry.hidden * format.residual_bytes());
        let workspace = activations + staging + all_reduce + tables + rope_tables + logits + WORKSPACE_BYTES;
        Footprint { weights, workspace, libraries: libraries_bytes(geometry) }
    }
}
