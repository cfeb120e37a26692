//! Ranks in other processes, as the engine uses them.

use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::processes::{self, Follower, Remote};
use super::rendezvous::{self, Facts, Link};
use crate::engine::parts::{Parts, geometry};
use crate::engine::ranks::Rank;
use crate::engine::{MemoryPlan, Options};
use crate::error::{Error, ErrorKind, Result};
use crate::shard::Shard;

/// At rank 0: waits for the ranks in other processes, and agrees with them on what stays on the devices. None where
/// there is one process.
pub(in crate::engine) fn gather(parts: &mut Parts, options: &Options) -> Result<Vec<Arc<Link>>> {
    let Some(process) = options.several_processes() else { return Ok(Vec::new()) };
    let links = rendezvous::gather(process, &facts(parts, options), options.peer_timeout)?;
    parts.keep(processes::agree(&links, parts.plan.placement.resident)?, options)?;
    Ok(links.into_iter().map(Arc::new).collect())
}

/// The rank at the other end of a link. All ranks will meet at this NCCL id.
pub(in crate::engine) fn remote(link: Arc<Link>, nccl_id: Vec<u8>) -> Result<Box<dyn Rank>> {
    Ok(Box::new(Remote::open(link, nccl_id)?))
}

/// [`Engine::serve`](crate::Engine::serve).
pub(in crate::engine) fn serve(
    dir: &Path,
    options: Options,
    began: impl FnOnce(&str, &[String]),
) -> Result<()> {
    let Some(process) = options.several_processes().filter(|process| process.rank > 0).cloned() else {
        return Err(Error::new(ErrorKind::Options, "rank 0 opens the engine, and serves none")
            .with_hint("`Engine::open` runs rank 0"));
    };
    let mut parts = Parts::in_folder(dir, &options)?;
    let link = rendezvous::join(&process, &facts(&parts, &options), options.peer_timeout)?;
    parts.keep(processes::agreed(&link, parts.plan.placement.resident)?, &options)?;
    let Parts { config, chosen, ranks, mut tensors, plan, warnings } = parts;
    let tensors = tensors.swap_remove(0);
    began(&chosen.describe(), &warnings);
    let geometry = geometry(&config, &options, Shard::new(&config, process.rank, ranks)?);
    let (vocab, capacity) = (config.vocab, plan.capacity);
    let (abort, chosen) = (chosen.abort(), Arc::new(chosen));
    let meeting = Arc::clone(&chosen);
    let open = move || -> Result<Box<dyn Rank>> {
        let MemoryPlan { capacity, footprint, placement, .. } = plan;
        // Rank 0 has the same ones to tell.
        let unheard = |_| {};
        chosen.open_rank(geometry, capacity, &tensors, placement.resident, &footprint, &unheard)
    };
    let meet = move |nccl_id: &[u8]| meeting.meet_at(nccl_id);
    processes::follow(Follower { process, vocab, capacity, open, meet, abort }, link)
}

/// Settings that must be equal on all ranks, by name.
fn facts(parts: &Parts, options: &Options) -> Facts {
    let Parts { config, chosen, plan, tensors, .. } = parts;
    // Rows that every rank holds whole, and in which models differ that are trained from the same one.
    let mut weights = Sha256::new();
    weights.update(tensors[0].final_norm.bytes());
    weights.update(tensors[0].head.bytes());
    let weights: String = weights.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let facts = [
        ("hidden_size", config.hidden.to_string()),
        ("layers", config.layers.to_string()),
        ("heads", format!("{} of {} with {} for keys", config.q_heads, config.head_dim, config.kv_heads)),
        ("ffn", config.ffn.to_string()),
        ("vocabulary", config.vocab.to_string()),
        ("rms_norm_eps", config.rms_norm_eps.to_string()),
        ("rope", format!("{:?}", config.rope)),
        ("biases", format!("attention {}, mlp {}", config.attention_bias, config.mlp_bias)),
        ("head", format!("{:?}", config.head)),
        ("digest of weights", weights),
        ("tier", chosen.tier_name().to_owned()),
        ("batch tokens", plan.batch_tokens.to_string()),
        ("max tokens", plan.max_tokens.to_string()),
        ("all-reduce", format!("{:?}", options.all_reduce).to_lowercase()),
        // Ranks begin the same sums in the same order.
        ("overlap", format!("{:?}", options.overlap).to_lowercase()),
        // Signs of life are sent as often as the one who waits for them expects.
        ("peer timeout", format!("{} s", options.peer_timeout.as_secs_f64())),
        ("residency", format!("{:?}", options.residency).to_lowercase()),
    ];
    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
