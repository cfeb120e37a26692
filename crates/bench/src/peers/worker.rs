//! A baseline's process: its script, the lines between it and this process, and its signals.
//!
//! The script gets the path of a request, and writes one JSON object per line. `prepare` writes
//! [`Prepared`] and ends. `run` writes [`Ready`] when its model is loaded, and then answers each line
//! `run N` with [`Answer`], until its standard input ends.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::load::Group;
use super::name::Peer;
use kudos::{Error, ErrorKind, Result};

/// Settings of a baseline, by name: `batch`, `threads` and others that its script knows.
pub(super) type Settings = Map<String, Value>;

/// A process that has been asked to end is killed after this time.
const END_WAIT: Duration = Duration::from_secs(10);

/// Variables that would take threads from a baseline, and are set by its settings alone.
const THREAD_VARIABLES: [&str; 5] = ["OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_"];

/// The settings that a baseline is tried with.
#[derive(Debug, Deserialize)]
pub(super) struct Prepared {
    /// Those that it begins with.
    #[serde(default)]
    pub(super) settings: Settings,
    /// Values of single settings, in the order in which they are tried.
    #[serde(default)]
    pub(super) axes: Vec<(String, Vec<Value>)>,
    /// The reason for which it cannot score this model in this arithmetic.
    pub(super) unsupported: Option<String>,
}

/// An open baseline.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Ready {
    /// Its name and the versions of its packages.
    pub(super) engine: String,
    pub(super) device: String,
    pub(super) dtype: String,
}

/// The runs of one line `run N`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Answer {
    pub(super) seconds: Vec<f64>,
    /// Those of the last run.
    pub(super) rewards: Vec<f32>,
}

/// How a baseline's process is started for one test.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    pub(super) peer: Peer,
    python: &'a Path,
    script: PathBuf,
    request: PathBuf,
    /// Its standard error.
    log: PathBuf,
}

impl<'a> Launch<'a> {
    /// Writes the request into the folder of scripts.
    pub(super) fn new(peer: Peer, python: &'a Path, scripts: &Path, request: &Value) -> Result<Self> {
        let path = scripts.join(format!("{peer}-{}.json", request["dtype"].as_str().unwrap_or_default()));
        fs::write(&path, request.to_string()).map_err(|error| {
            Error::new(ErrorKind::Io, format!("cannot write the request of the baseline `{peer}`: {error}"))
        })?;
        let script = scripts.join(format!("{peer}_worker.py"));
        Ok(Self { peer, python, script, log: path.with_extension("log"), request: path })
    }

    /// Converts the model where the baseline needs that, and returns its settings.
    pub(super) fn prepare(&self) -> Result<Prepared> {
        let mut worker = self.start(&["prepare"])?;
        let prepared = worker.read::<Prepared>("prepared")?;
        match prepared.unsupported {
            None => Ok(prepared),
            Some(reason) => {
                let message = format!("the baseline `{}` cannot score this: {reason}", self.peer);
                let hint = format!("`--without {}` leaves it out", self.peer);
                Err(Error::new(ErrorKind::Unsupported, message).with_hint(hint))
            }
        }
    }

    /// Starts it with these settings, and waits until its model is loaded.
    pub(super) fn open(&self, settings: &Settings) -> Result<(Worker, Ready)> {
        let settings = Value::Object(settings.clone()).to_string();
        let mut worker = self.start(&["run", &settings])?;
        let ready = worker.read("ready")?;
        Ok((worker, ready))
    }

    fn start(&self, arguments: &[&str]) -> Result<Worker> {
        let cannot = |error: std::io::Error| {
            let message = format!("cannot run the baseline `{}`: {error}", self.peer);
            Error::new(ErrorKind::Io, message).at(self.python.display()).with_hint(self.peer.hint())
        };
        let log = File::create(&self.log).map_err(cannot)?;
        let mut command = Command::new(self.python);
        command.arg(&self.script).arg(&self.request).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        for (name, _) in std::env::vars_os() {
            if THREAD_VARIABLES.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        // A group of its own, so that all its processes are stopped together.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(cannot)?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("it was piped"));
        let (python, log) = (self.python.to_owned(), self.log.clone());
        Ok(Worker { peer: self.peer, python, log, child, stdin, stdout })
    }
}

/// A baseline's process, which ends with this value.
#[derive(Debug)]
pub(super) struct Worker {
    peer: Peer,
    python: PathBuf,
    log: PathBuf,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

/// A signal to a process group.
#[derive(Clone, Copy, Debug)]
enum Signal {
    Stop,
    Continue,
    Kill,
}

impl Worker {
    /// Scores all sequences so many times.
    pub(super) fn run(&mut self, runs: usize) -> Result<Answer> {
        // A process that has ended is reported by the read.
        if let Some(stdin) = &mut self.stdin {
            let _ = writeln!(stdin, "run {runs}").and_then(|()| stdin.flush());
        }
        let answer: Answer = self.read("measured")?;
        if answer.seconds.len() == runs {
            return Ok(answer);
        }
        Err(self.failed(format!("measured {} of {runs} runs", answer.seconds.len())))
    }

    /// Lets a stopped process run again.
    pub(super) fn wake(&self) {
        self.signal(Signal::Continue);
    }

    /// Stops the process: some engines spin while they are idle.
    pub(super) fn stop(&self) {
        self.signal(Signal::Stop);
    }

    pub(super) fn group(&self) -> Group {
        Group(self.child.id())
    }

    /// The next object that it writes; lines of the libraries that it uses are skipped.
    fn read<T: DeserializeOwned>(&mut self, expected: &str) -> Result<T> {
        let mut line = String::new();
        loop {
            line.clear();
            match self.stdout.read_line(&mut line) {
                Ok(0) => return Err(self.ended(expected)),
                Ok(_) if line.starts_with('{') => break,
                Ok(_) => {}
                Err(error) => return Err(self.failed(format!("wrote what cannot be read: {error}"))),
            }
        }
        serde_json::from_str(&line)
            .map_err(|error| self.failed(format!("wrote a line that is not what it has {expected}: {error}")))
    }

    /// The error of a process that ended before it wrote what was expected.
    fn ended(&mut self, expected: &str) -> Error {
        let status =
            self.child.wait().map_or_else(|error| error.to_string(), |status: ExitStatus| status.to_string());
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        // The last line of a Python traceback is the exception.
        let last = log.lines().rev().map(str::trim).find(|line| !line.is_empty());
        let last = last.map_or_else(String::new, |line| format!(": {line}"));
        self.failed(format!("ended with {status} before it had {expected}{last}"))
    }

    fn failed(&self, message: String) -> Error {
        Error::new(ErrorKind::Io, format!("the baseline `{}` {message}", self.peer))
            .at(self.python.display())
            .with_hint(self.peer.hint())
    }

    #[cfg(unix)]
    fn signal(&self, signal: Signal) {
        use rustix::process::{self, Pid};
        let signal = match signal {
            Signal::Stop => process::Signal::STOP,
            Signal::Continue => process::Signal::CONT,
            Signal::Kill => process::Signal::KILL,
        };
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // A group that has ended needs no signal.
        let _ = group.map(|group| process::kill_process_group(group, signal));
    }

    /// Idle processes run on where there are no signals.
    #[cfg(not(unix))]
    fn signal(&self, _: Signal) {}
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.wake();
        self.stdin = None;
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && began.elapsed() < END_WAIT {
            thread::sleep(Duration::from_millis(20));
        }
        self.signal(Signal::Kill);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
