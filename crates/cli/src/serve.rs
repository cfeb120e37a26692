//! `kudos serve`: the command around the server of `kudos-server`. It ends by SIGTERM or SIGINT, after
//! the requests that are under way; by a second one at once; and where the engine fails.

use std::io::{self, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process;
use std::sync::Arc;
use std::time::Duration;
use std::{env, fs};

use anyhow::Context;
use tracing::Level;

use crate::args::{LogArg, ServeArgs};
use crate::{Outcome, model_dir, process as ranks, progress, running_on, say};
use kudos::{Engine, Error, ErrorKind, Loading};
use kudos_server::{ApiKey, Canary, Drained, Options, Server};

/// The variable with the key, if no file was given.
const API_KEY: &str = "KUDOS_API_KEY";

/// Interval at which the engine is checked for a failure.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Limit on threads that read and write: scoring has its own.
const IO_THREADS_MAX: usize = 4;

/// The status after a second signal, which ends the process at once.
const INTERRUPTED: i32 = 130;

pub(super) fn run(args: &ServeArgs) -> anyhow::Result<Outcome> {
    let dir = model_dir::find(&args.model.model)?;
    let process = ranks::rank(&args.engine.process)?;
    if let Some(process) = process.clone().filter(|process| process.rank > 0) {
        ranks::follow(args.engine.builder(&args.model.prompt, &dir, Some(process.clone()))?, &process)?;
        return Ok(Outcome::Complete);
    }
    // Before the model, which takes longer: errors of the options show at once.
    let options = options(args)?;
    let address = address(args);
    drop(TcpListener::bind(&address).map_err(|error| cannot_listen(&address, error))?);
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get()).min(IO_THREADS_MAX);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(threads).enable_all().build().context("cannot start threads")?;
    log(args.log);
    let loading = Loading::default();
    let builder = args.engine.builder(&args.model.prompt, &dir, process)?.loading(loading.clone());
    let engine = Arc::new(progress::while_loading(&loading, || builder.open())?);
    say(&running_on(engine.device()));
    engine.warnings().iter().for_each(|warning| say(&format!("warning: {warning}")));
    let drained = runtime.block_on(serve(&address, options, &engine))?;
    let failure = engine.failure();
    engine.close();
    if let Some(error) = failure {
        return Err(error.into());
    }
    match drained {
        Drained::All => Ok(Outcome::Complete),
        Drained::Cut(count) => {
            say(&format!("warning: {count} requests had no answer after {} s", args.drain.as_secs_f64()));
            Ok(Outcome::SomeFailed)
        }
    }
}

/// Returns the address to listen at, with its port.
fn address(args: &ServeArgs) -> String {
    // An IPv6 address has colons of its own.
    if args.host.contains(':') && !args.host.starts_with('[') {
        format!("[{}]:{}", args.host, args.port)
    } else {
        format!("{}:{}", args.host, args.port)
    }
}

fn cannot_listen(address: &str, error: io::Error) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => "another program listens there: choose another port with `--port`",
        _ => "`--host` is an address or name of this machine, and `--port` one that this user may listen at",
    };
    Error::new(ErrorKind::Io, format!("cannot listen at {address}")).caused_by(error).with_hint(hint)
}

async fn serve(address: &str, options: Options, engine: &Arc<Engine>) -> anyhow::Result<Drained> {
    let has_key = options.api_key.is_some();
    // Before the first request is accepted: one that comes then ends the server as later ones do.
    let mut signals = Signals::new()?;
    let server = Server::bind(Arc::clone(engine), options, address).await;
    let server = server.map_err(|error| cannot_listen(address, error))?;
    let bound = server.local_addr()?;
    say(&format!("listening on http://{bound}"));
    if !bound.ip().is_loopback() && !has_key {
        say(
            "warning: every machine that reaches this address can use the server: there is no API key (`--api-key-file`)",
        );
    }
    let failed = Arc::clone(engine);
    let end = async move {
        tokio::select! {
            () = signals.next() => say("ending after the requests under way; a second signal ends at once"),
            () = failure(&failed) => {}
        }
        tokio::spawn(async move {
            signals.next().await;
            process::exit(INTERRUPTED);
        });
    };
    Ok(server.run(end).await)
}

/// Returns when the engine has failed.
async fn failure(engine: &Engine) {
    while engine.failure().is_none() {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The signals that end a server.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            #[cfg(unix)]
            terminate: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = self.terminate.recv() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }
}

fn options(args: &ServeArgs) -> anyhow::Result<Options> {
    let mut canary = args.canary.as_deref().map(Canary::read).transpose()?.unwrap_or_default();
    if let Some(tolerance) = args.canary_tolerance {
        canary = canary.with_tolerance(tolerance);
    }
    let model_name = Path::new(&args.model.model).file_name().map(|name| name.to_string_lossy().into_owned());
    let is_cached = !Path::new(&args.model.model).exists();
    Ok(Options {
        model_name: model_name.filter(|_| !is_cached).unwrap_or_else(|| args.model.model.clone()),
        served_model_names: args.served_model_name.clone(),
        allowed_hosts: args.allow_host.clone(),
        allowed_origins: args.allow_origin.clone(),
        api_key: api_key(args.api_key_file.as_deref())?,
        body_bytes_max: args.body_limit_mib.get() << 20,
        queue_tokens: args.queue_tokens.map(Into::into),
        gather: Duration::from_millis(args.gather_ms),
        timeout: args.timeout,
        drain: args.drain,
        connections_max: args.connections.get(),
        canary,
        ..Options::default()
    })
}

fn api_key(file: Option<&Path>) -> anyhow::Result<Option<ApiKey>> {
    let (text, place) = match (file, env::var(API_KEY)) {
        (Some(path), _) => {
            let text = fs::read_to_string(path).map_err(|error| {
                Error::new(ErrorKind::Io, "cannot read the API key").caused_by(error).at(path.display())
            })?;
            (text, path.display().to_string())
        }
        (None, Ok(text)) => (text, API_KEY.to_owned()),
        (None, Err(_)) => return Ok(None),
    };
    // Without the line break that editors add.
    Ok(Some(ApiKey::new(text.trim_ascii_end()).map_err(|error| error.at(place))?))
}

/// Writes events to standard error; one that cannot be written is lost.
fn log(level: LogArg) {
    let level = match level {
        LogArg::Error => Level::ERROR,
        LogArg::Warn => Level::WARN,
        LogArg::Info => Level::INFO,
        LogArg::Debug => Level::DEBUG,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(false)
        .log_internal_errors(false)
        .with_writer(|| Lossy(io::stderr()));
    // Fails only where a program that calls this has set another one.
    let _ = subscriber.try_init();
}

/// A writer without errors.
struct Lossy(io::Stderr);

impl Write for Lossy {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let _ = self.0.write_all(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
