//! The functions by which the engine runs ranks in other processes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::processes::{self, Follower, Remote};
use super::rendezvous::{self, Link, Settings};
use crate::engine::options::Options;
use crate::engine::parts::Parts;
use crate::engine::plan::{MemoryPlan, geometry};
use crate::engine::platform::{DeviceInfo, RankSetup};
use crate::engine::ranks::Rank;
use crate::error::{Error, ErrorKind, Result};
use crate::shard::Shard;

/// Waits at rank 0 for the ranks in other processes, agrees with them on the number of resident
/// layers, and returns the links to them; none where there is one process.
pub(in crate::engine) fn gather(parts: &mut Parts, options: &Options) -> Result<Vec<Arc<Link>>> {
    let Some(cluster) = options.cluster() else { return Ok(Vec::new()) };
    let settings = settings(parts, options);
    let links = rendezvous::gather(cluster, &settings, peer_timeout(options))?;
    parts.limit_resident(processes::agree(&links, parts.plan.placement.resident)?, options)?;
    Ok(links.into_iter().map(Arc::new).collect())
}

/// Returns the rank at the other end of a link. All ranks will connect by `nccl_id`.
pub(in crate::engine) fn remote(link: Arc<Link>, nccl_id: Vec<u8>) -> Result<Box<dyn Rank>> {
    Ok(Box::new(Remote::open(link, nccl_id)?))
}

/// Runs a rank other than 0: [`EngineBuilder::serve`](crate::EngineBuilder::serve).
pub(in crate::engine) fn serve(
    dir: &Path,
    options: Options,
    began: impl FnOnce(&DeviceInfo, &[String]),
) -> Result<()> {
    let Some(cluster) = options.cluster().filter(|cluster| cluster.rank > 0).cloned() else {
        return Err(Error::new(ErrorKind::Options, "rank 0 opens the engine and cannot serve it")
            .with_hint("`EngineBuilder::open` runs rank 0"));
    };
    let mut parts = Parts::in_folder(dir, &options)?;
    let settings = settings(&parts, &options);
    let link = rendezvous::join(&cluster, &settings, peer_timeout(&options))?;
    parts.limit_resident(processes::accept_resident(&link, parts.plan.placement.resident)?, &options)?;
    began(&parts.device(), &parts.warnings);
    let Parts { config, platform, ranks, mut tensors, plan, .. } = parts;
    let tensors = tensors.swap_remove(0);
    let geometry = geometry(&config, &options, Shard::new(&config, cluster.rank, ranks)?);
    let (vocab, capacity) = (config.vocab, plan.capacity);
    let (abort, platform) = (platform.abort(0), Arc::new(platform));
    let connecting = Arc::clone(&platform);
    let open = move || -> Result<Box<dyn Rank>> {
        let MemoryPlan { capacity, footprint, placement, .. } = plan;
        platform.open_rank(RankSetup {
            config: &config,
            replica: 0,
            geometry,
            capacity,
            tensors: &tensors,
            resident_layers: placement.resident,
            footprint: &footprint,
            loading: &options.loading,
            profile: options.profile.as_ref(),
            // Rank 0 has the same warnings.
            warn: &|_| {},
        })
    };
    let set_nccl_id = move |nccl_id: &[u8]| connecting.set_nccl_id(nccl_id);
    processes::follow(Follower { process: cluster, vocab, capacity, open, set_nccl_id, abort }, link)
}

/// Returns the time for which a rank waits for another one.
fn peer_timeout(options: &Options) -> Duration {
    options.cuda().map_or(Duration::MAX, |cuda| cuda.peer_timeout)
}

/// Returns the settings that must be equal on all ranks, by name.
fn settings(parts: &Parts, options: &Options) -> Settings {
    let Parts { config, platform, plan, tensors, .. } = parts;
    let cuda = options.cuda().cloned().unwrap_or_default();
    // Every rank holds these tensors whole, and fine-tuned copies of one model differ in them.
    let mut weights = Sha256::new();
    weights.update(tensors[0].final_norm.bytes());
    weights.update(tensors[0].head.bytes());
    let weights: String = weights.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let settings = [
        ("hidden_size", config.hidden.to_string()),
        ("layers", config.layers.to_string()),
        ("heads", format!("{} of {} with {} for keys", config.q_heads, config.head_dim, config.kv_heads)),
        ("ffn", config.ffn.to_string()),
        ("vocabulary", config.vocab.to_string()),
        ("rms_norm_eps", config.rms_norm_eps.to_string()),
        ("rope", format!("{:?}", config.rope)),
        ("biases", format!("{:?}", config.biases)),
        ("norms of heads", config.head_norms.to_string()),
        ("norms of branches", config.branch_norms.to_string()),
        ("norms", format!("{:?}", config.norm)),
        ("scale of embeddings", config.embedding_scale.to_string()),
        ("gate", format!("{:?}", config.gate)),
        ("scores", format!("{:?}", config.scores)),
        ("windows", format!("{:?}", config.windows)),
        ("cap of logits", format!("{:?}", config.logit_cap)),
        ("head", format!("{:?}", config.head)),
        ("digest of weights", weights),
        ("tier", platform.kernels().to_owned()),
        ("batch tokens", plan.batch_tokens.to_string()),
        ("max tokens", plan.max_tokens.to_string()),
        ("all-reduce", format!("{:?}", cuda.all_reduce).to_lowercase()),
        // All ranks must begin the same all-reduces in the same order.
        ("overlap", format!("{:?}", cuda.overlap).to_lowercase()),
        // Both ends of a link derive the heartbeat interval from it.
        ("peer timeout", format!("{} s", cuda.peer_timeout.as_secs_f64())),
        ("residency", format!("{:?}", options.residency).to_lowercase()),
    ];
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
