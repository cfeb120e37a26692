//! The rank of this process: from the command line, or with `--rendezvous env` from the variables
//! that torchrun or Slurm sets.

use std::path::Path;
use std::{env, fs};

use crate::args::ProcessArgs;
use crate::say;
use kudos::{Cluster, DeviceInfo, EngineBuilder, Error, ErrorKind, Result, Secret};

/// The value of `--rendezvous` that stands for the environment.
const ENV: &str = "env";

/// The variable with the secret, if no file was given.
const SECRET: &str = "KUDOS_RENDEZVOUS_SECRET";

/// Returns the rank of this process, if it is one of several.
pub(super) fn rank(args: &ProcessArgs) -> Result<Option<Cluster>> {
    let variable = |name: &str| env::var(name).ok();
    let Some(mut process) = find(args, variable)? else { return Ok(None) };
    process.secret = secret(args.rendezvous_secret_file.as_deref(), variable)?;
    Ok(Some(process))
}

/// Computes for rank 0, which is another process, until that ends.
pub(super) fn follow(builder: EngineBuilder, process: &Cluster) -> Result<()> {
    let began = |device: &DeviceInfo, warnings: &[String]| {
        say(&format!("running on {device}, rank {} of {}", process.rank, process.world_size));
        warnings.iter().for_each(|warning| say(&format!("warning: {warning}")));
    };
    builder.serve(began)
}

pub(super) fn mistake(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Options, message)
}

/// Returns the rank without its secret. `variable` looks up the environment, which only
/// `--rendezvous env` uses: a stray RANK changes no other run.
fn find(args: &ProcessArgs, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Cluster>> {
    let Some(rendezvous) = args.rendezvous.clone() else { return Ok(None) };
    if rendezvous != ENV {
        let (Some(rank), Some(world_size)) = (args.rank, args.world_size) else {
            return Err(mistake("`--rendezvous HOST:PORT` needs `--rank` and `--world-size`").with_hint(
                "add them, or use `--rendezvous env`, which takes all three from the environment",
            ));
        };
        return Ok(Some(Cluster { rank, world_size, rendezvous, secret: None, local_rank: 0 }));
    }
    if args.rank.is_some() || args.world_size.is_some() {
        return Err(mistake("`--rendezvous env` takes rank and world size from the environment")
            .with_hint("leave out `--rank` and `--world-size`, or give `--rendezvous HOST:PORT`"));
    }
    let names = match variable("RANK") {
        Some(_) => ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
        None => ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"],
    };
    let text = |name: &str| {
        variable(name).ok_or_else(|| {
            mistake(format!("`--rendezvous env`: {name} is not set")).with_hint(
                "start it by torchrun, which sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; under Slurm, export \
                 the last two",
            )
        })
    };
    let number = |name: &str| {
        let text = text(name)?;
        text.parse::<usize>().map_err(|_| mistake(format!("{name} is `{text}`, expected a number")))
    };
    let (host, port) = (text("MASTER_ADDR")?, number("MASTER_PORT")?);
    // torchrun's agent listens at that port itself; all ranks can derive the next one.
    let taken = variable("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True");
    let port = port + usize::from(taken);
    // An IPv6 address has colons of its own.
    let rendezvous = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let local_rank = if variable(names[2]).is_some() { number(names[2])? } else { 0 };
    let (rank, world_size) = (number(names[0])?, number(names[1])?);
    Ok(Some(Cluster { rank, world_size, rendezvous, secret: None, local_rank }))
}

fn secret(file: Option<&Path>, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Secret>> {
    let Some(path) = file else { return variable(SECRET).map(Secret::new).transpose() };
    let text = fs::read(path).map_err(|error| {
        Error::new(ErrorKind::Io, "cannot read the secret").caused_by(error).at(path.display())
    })?;
    // Without the line break that editors add.
    Secret::new(text.trim_ascii_end()).map(Some).map_err(|error| error.at(path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(rank: Option<usize>, world_size: Option<usize>, rendezvous: Option<&str>) -> ProcessArgs {
        let rendezvous = rendezvous.map(str::to_owned);
        ProcessArgs { rank, world_size, rendezvous, rendezvous_secret_file: None }
    }

    fn found(args: &ProcessArgs, environment: &[(&str, &str)]) -> Result<Option<[String; 4]>> {
        let variable = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let process = find(args, variable)?;
        Ok(process.map(|Cluster { rank, world_size, rendezvous, local_rank, .. }| {
            [rank.to_string(), world_size.to_string(), rendezvous, local_rank.to_string()]
        }))
    }

    const MASTER: [(&str, &str); 2] = [("MASTER_ADDR", "node0"), ("MASTER_PORT", "29500")];

    #[test]
    fn a_stray_rank_in_the_environment_changes_nothing() {
        let stray = [("RANK", "3"), ("WORLD_SIZE", "4")];
        assert_eq!(found(&args(None, None, None), &stray).unwrap(), None);
        let named = found(&args(Some(1), Some(2), Some("here:1")), &stray).unwrap().unwrap();
        assert_eq!(named, ["1", "2", "here:1", "0"]);
    }

    #[test]
    fn rendezvous_env_reads_the_variables_of_torchrun_and_slurm() {
        let from_env = args(None, None, Some("env"));
        let torchrun = [("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("SLURM_PROCID", "0")];
        let set = [&torchrun[..], &MASTER].concat();
        assert_eq!(found(&from_env, &set).unwrap().unwrap(), ["3", "4", "node0:29500", "1"]);
        let agent = [&set[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
        assert_eq!(found(&from_env, &agent).unwrap().unwrap()[2], "node0:29501");
        let slurm = [("SLURM_PROCID", "2"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "0")];
        let set = [&slurm[..], &[("MASTER_ADDR", "::1"), ("MASTER_PORT", "29500")]].concat();
        assert_eq!(found(&from_env, &set).unwrap().unwrap(), ["2", "4", "[::1]:29500", "0"]);
    }

    #[test]
    fn a_missing_or_malformed_variable_is_named() {
        let from_env = args(None, None, Some("env"));
        for (environment, word) in [
            (&[][..], "MASTER_ADDR is not set"),
            (&[MASTER[0], MASTER[1]][..], "SLURM_PROCID is not set"),
            (&[MASTER[0], MASTER[1], ("RANK", "one")][..], "RANK is `one`"),
        ] {
            let error = found(&from_env, environment).unwrap_err();
            assert!(error.message().contains(word), "{error}");
        }
        assert!(found(&args(None, None, Some("a:1")), &[]).is_err());
        assert!(found(&args(Some(0), Some(2), Some("env")), &MASTER).is_err());
    }
}
