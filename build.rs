//! Compiles `kernels/*.cu` with nvcc into one fatbin per file, which the library embeds.
//!
//! A fatbin holds machine code for every architecture of [`ARCHITECTURES`] that the nvcc knows, and
//! PTX for newer ones. It is made again only when something that goes into it changes: the outputs
//! stay beside the `OUT_DIR`s, of which cargo has one for builds and another for checks.
//! `KUDOS_CUDA_ARCHS` (such as `80` or `75,90a`) limits the machine code while working on a kernel.
//! Without the cargo feature `cuda` nothing happens here. `tests/library/build_script.rs` tests it.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Mutex;
use std::{env, fs, thread};

/// Architectures to make machine code for: Turing, A100, RTX 30, RTX 40, H100, B200, RTX 50. The
/// last two have been known since CUDA 12.8.
const ARCHITECTURES: [&str; 7] = ["75", "80", "86", "89", "90a", "100", "120"];

/// Architectures to make PTX for: the oldest that runs the fp16 entries, and the oldest that runs
/// the bf16 ones as well.
const PTX: [&str; 2] = ["75", "80"];

/// A stem that holds this and an architecture, up to its end or the next `_`, is for that one and
/// later ones (`attention_sm80.cu`), or for that one alone where it has a letter
/// (`attention_sm90a.cu`).
const ARCHITECTURE_MARK: &str = "_sm";

/// The first CUDA whose nvcc was tried.
const NVCC_MIN: Release = (12, 4);

/// `-fmad=false`: a multiplication and an addition are fused where the source has `fmaf` and
/// nowhere else, on every architecture. `--no-compress`: the PTX stays readable in the library.
const FLAGS: [&str; 8] = [
    "-fatbin",
    "--no-compress",
    "-std=c++17",
    "-O3",
    "-fmad=false",
    "-lineinfo",
    "-Werror=all-warnings",
    "-Xptxas=-v",
];

/// Flags that nvcc takes from the environment, such as the host compiler to use.
const NVCC_VARIABLES: [&str; 3] = ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN"];

/// A release of CUDA, such as 13.0.
type Release = (u32, u32);

/// A compiler.
#[derive(Debug)]
struct Nvcc {
    path: PathBuf,
    /// The output of `nvcc --version`.
    version: String,
    release: Release,
    /// The output of `nvcc --list-gpu-code`: `sm_75` and so on, without architectures with a letter.
    codes: String,
}

/// One file of `kernels/`, to be compiled.
struct Kernel {
    stem: String,
    /// Digest of everything that goes into the output.
    key: String,
}

/// The compiler, and the folders of inputs and outputs.
struct Build {
    nvcc: Nvcc,
    kernels: PathBuf,
    /// The folder in which outputs stay, one for each choice of architectures.
    cache: PathBuf,
    out: PathBuf,
    architectures: Vec<String>,
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=kernels");
    for variable in ["NVCC", "CUDA_HOME", "PATH", "KUDOS_CUDA_ARCHS"].iter().chain(&NVCC_VARIABLES) {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if let Err(message) = build() {
        eprintln!("error: {message}");
        exit(1);
    }
}

fn build() -> Result<(), String> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let nvcc = find_nvcc(&root)?;
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let architectures = nvcc.architectures(env::var("KUDOS_CUDA_ARCHS").ok().as_deref())?;
    // OUT_DIR is build/kudos-<digest>/out.
    let beside = out.ancestors().nth(2).expect("cargo makes it so deep").join("kudos-kernels");
    let cache = beside.join(architectures.join("-"));
    fs::create_dir_all(&cache).map_err(|error| format!("cannot create {}: {error}", cache.display()))?;
    let build = Build { nvcc, kernels: root.join("kernels"), cache, out, architectures };
    let kernels = build.sources()?;
    build.compile_all(&kernels)?;
    build.write_table(&kernels)?;
    // The major number decides which drivers run the kernels, the full one is for
    // `kudos --version`.
    println!("cargo::rustc-env=KUDOS_CUDA_MAJOR={}", build.nvcc.release.0);
    println!("cargo::rustc-env=KUDOS_NVCC={}", build.nvcc.full_release());
    let targets: Vec<String> = build.architectures.iter().map(|name| format!("sm_{name}")).collect();
    println!("cargo::rustc-env=KUDOS_CUDA_TARGETS={}", targets.join(", "));
    build.write_reports(&kernels)
}

/// The compiler. One that a variable names must do; unsuitable ones elsewhere are skipped.
fn find_nvcc(root: &Path) -> Result<Nvcc, String> {
    let named = [
        ("NVCC", env::var_os("NVCC").map(PathBuf::from)),
        ("CUDA_HOME", env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"))),
    ];
    for (variable, nvcc) in named {
        if let Some(path) = nvcc {
            let name = path.display().to_string();
            return Nvcc::ask(path).map_err(|why| format!("{name}, from {variable}, {why}"));
        }
    }
    let on_path = env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = env::split_paths(&on_path).map(|dir| dir.join("nvcc")).collect();
    places.push("/usr/local/cuda/bin/nvcc".into());
    places.push(root.join("target/cuda/nvidia/cu13/bin/nvcc"));
    let mut skipped = String::new();
    for path in places.into_iter().filter(|path| path.is_file()) {
        let name = path.display().to_string();
        match Nvcc::ask(path) {
            Ok(nvcc) => return Ok(nvcc),
            Err(why) => skipped += &format!("\n  {name} {why}"),
        }
    }
    let (major, minor) = NVCC_MIN;
    Err(format!(
        "found no nvcc of CUDA {major}.{minor} or later to compile the CUDA kernels with{skipped}\n\n\
         hint: `make cuda-toolchain` puts one into target/cuda; or set NVCC or CUDA_HOME; or build for the CPU alone \
         with `--no-default-features`"
    ))
}

impl Nvcc {
    /// The compiler at this path, if it is new enough; otherwise the problem.
    fn ask(path: PathBuf) -> Result<Self, String> {
        let version = output_of(&path, "--version")?;
        let release = release_of(&version).ok_or("does not print its version")?;
        check_release(release)?;
        let codes = output_of(&path, "--list-gpu-code")?;
        Ok(Self { path, version, release, codes })
    }

    /// The release with its patch, such as 13.0.88: the output ends in `..., V13.0.88`.
    fn full_release(&self) -> &str {
        let rest = self.version.split(", V").nth(1).and_then(|rest| rest.split_whitespace().next());
        rest.unwrap_or("of an unknown version")
    }

    /// The architectures to make machine code for: those of `KUDOS_CUDA_ARCHS`, or all that this
    /// compiler knows.
    fn architectures(&self, wanted: Option<&str>) -> Result<Vec<String>, String> {
        // sm_90 stands for 90a as well.
        let code = |name: &str| format!("sm_{}", architecture_number(name));
        let knows = |name: &str| self.codes.split_whitespace().any(|known| known == code(name));
        let Some(wanted) = wanted else {
            return Ok(ARCHITECTURES.into_iter().filter(|name| knows(name)).map(str::to_owned).collect());
        };
        let wanted: Vec<String> = wanted.split(',').map(|name| name.trim().to_owned()).collect();
        if let Some(name) = wanted.iter().find(|name| !ARCHITECTURES.contains(&name.as_str())) {
            let all = ARCHITECTURES.join(", ");
            return Err(format!("KUDOS_CUDA_ARCHS names `{name}`, which is none of {all}"));
        }
        match wanted.iter().find(|name| !knows(name)) {
            Some(name) => Err(format!(
                "KUDOS_CUDA_ARCHS names `{name}`, which nvcc {} does not know ({})",
                self.full_release(),
                self.path.display()
            )),
            None => Ok(wanted),
        }
    }
}

/// The output of the compiler with one argument.
fn output_of(nvcc: &Path, argument: &str) -> Result<String, String> {
    let output =
        Command::new(nvcc).arg(argument).output().map_err(|error| format!("cannot be run: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Refuses releases before the first that was tried.
fn check_release(release: Release) -> Result<(), String> {
    let ((major, minor), (major_min, minor_min)) = (release, NVCC_MIN);
    if release < NVCC_MIN {
        return Err(format!("is of CUDA {major}.{minor}, but {major_min}.{minor_min} is needed"));
    }
    Ok(())
}

/// The release in the output of `nvcc --version`: `..., release 13.0, ...`.
fn release_of(version: &str) -> Option<Release> {
    let (major, minor) = version.split("release ").nth(1)?.split(',').next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

impl Kernel {
    /// Whether the file is for this architecture, by its stem.
    fn is_for(&self, arch: &str) -> bool {
        match self.architecture() {
            None => true,
            Some(own) if is_exact(own) => arch == own,
            Some(own) => architecture_number(arch) >= architecture_number(own),
        }
    }

    /// The architecture in the stem.
    fn architecture(&self) -> Option<&str> {
        let (_, rest) = self.stem.rsplit_once(ARCHITECTURE_MARK)?;
        let arch = rest.split('_').next()?;
        arch.starts_with(|first: char| first.is_ascii_digit()).then_some(arch)
    }

    /// Those of `architectures` that the file gets machine code for.
    fn machine_code<'a>(&self, architectures: &'a [String]) -> Vec<&'a str> {
        architectures.iter().map(String::as_str).filter(|arch| self.is_for(arch)).collect()
    }

    /// The architectures that the file gets PTX for: those of [`PTX`] that it is for, or its own.
    /// Every file has some, whatever the machine code: the tests interpret it.
    fn ptx(&self) -> Vec<&str> {
        let mut ptx: Vec<&str> = PTX.into_iter().filter(|arch| self.is_for(arch)).collect();
        if ptx.is_empty() {
            ptx.extend(self.architecture());
        }
        ptx
    }
}

/// Whether code for an architecture runs on no other: its name ends in a letter.
fn is_exact(arch: &str) -> bool {
    arch.ends_with(char::is_alphabetic)
}

/// 90a -> 90
fn architecture_number(arch: &str) -> u32 {
    arch.trim_end_matches(char::is_alphabetic).parse().unwrap_or(0)
}

impl Build {
    /// The kernels by name, each with the digest of its inputs.
    fn sources(&self) -> Result<Vec<Kernel>, String> {
        let place = |error| format!("cannot read {}: {error}", self.kernels.display());
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.kernels).map_err(place)? {
            paths.push(entry.map_err(place)?.path());
        }
        paths.sort();
        let with = |extension: &'static str| {
            paths.iter().filter(move |path| path.extension().is_some_and(|found| found == extension))
        };
        let mut common = DefaultHasher::new();
        (&self.nvcc.version, FLAGS, PTX, &self.architectures).hash(&mut common);
        NVCC_VARIABLES.map(env::var_os).hash(&mut common);
        for header in with("cuh") {
            fs::read(header).map_err(place)?.hash(&mut common);
        }
        with("cu")
            .map(|path| {
                let mut digest = common.clone();
                fs::read(path).map_err(place)?.hash(&mut digest);
                let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let kernel = Kernel { stem, key: format!("{:016x}", digest.finish()) };
                match kernel.architecture().filter(|own| is_exact(own) && !ARCHITECTURES.contains(own)) {
                    Some(own) => Err(format!(
                        "kernels/{}.cu is for sm_{own} alone, which no machine code is made for",
                        kernel.stem
                    )),
                    None => Ok(kernel),
                }
            })
            .collect()
    }

    /// Compiles the files whose outputs are out of date, as many at a time as cargo allows. All
    /// errors are reported.
    fn compile_all(&self, kernels: &[Kernel]) -> Result<(), String> {
        let stale = kernels.iter().filter(|kernel| {
            let key = fs::read_to_string(self.cached(&kernel.stem, "key"));
            key.ok().as_ref() != Some(&kernel.key) || !self.cached(&kernel.stem, "fatbin").is_file()
        });
        let queue = Mutex::new(stale.collect::<VecDeque<_>>());
        let errors = Mutex::new(Vec::new());
        let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1_usize);
        let next = || queue.lock().expect("no thread panics").pop_front();
        thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    while let Some(kernel) = next() {
                        if let Err(message) = self.compile(kernel) {
                            errors.lock().expect("no thread panics").push(message);
                        }
                    }
                });
            }
        });
        let errors = errors.into_inner().expect("no thread panics");
        if errors.is_empty() { Ok(()) } else { Err(errors.join("\n\nerror: ")) }
    }

    fn compile(&self, kernel: &Kernel) -> Result<(), String> {
        let source = format!("{}.cu", kernel.stem);
        // The output is not valid until it was checked.
        let _ = fs::remove_file(self.cached(&kernel.stem, "key"));
        let architectures = kernel.machine_code(&self.architectures);
        let machine_code =
            architectures.iter().map(|arch| format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
        let ptx = kernel.ptx();
        let ptx = ptx.iter().map(|arch| format!("-gencode=arch=compute_{arch},code=compute_{arch}"));
        // Run inside `kernels/`, so that the line information holds relative paths.
        let nvcc = &self.nvcc.path;
        let output = Command::new(nvcc)
            .current_dir(&self.kernels)
            .args(FLAGS)
            .args(machine_code.chain(ptx))
            .arg("-o")
            .arg(self.cached(&kernel.stem, "fatbin"))
            .arg(&source)
            .output()
            .map_err(|error| format!("cannot run {}: {error}", nvcc.display()))?;
        let report = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let stdout = String::from_utf8_lossy(&output.stdout);
            let hint = hint_for(&report);
            return Err(format!(
                "nvcc failed on kernels/{source} ({})\n{stdout}{report}{hint}",
                output.status
            ));
        }
        if !architectures.is_empty() {
            check_report(&source, &report)?;
        }
        let write = |extension, text: &str| {
            let path = self.cached(&kernel.stem, extension);
            fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
        };
        write("ptxas", &report)?;
        write("key", &kernel.key)
    }

    /// Writes `ptxas.txt`, from which the tests make the page of the kernels: the compiler's
    /// version, then its report of each entry's registers and shared memory.
    fn write_reports(&self, kernels: &[Kernel]) -> Result<(), String> {
        let mut reports = format!("{}\n", self.nvcc.version.trim());
        for Kernel { stem, .. } in kernels {
            let path = self.cached(stem, "ptxas");
            reports += &fs::read_to_string(&path)
                .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        }
        let path = self.out.join("ptxas.txt");
        fs::write(&path, reports).map_err(|error| format!("cannot write {}: {error}", path.display()))
    }

    fn cached(&self, stem: &str, extension: &str) -> PathBuf {
        self.cache.join(format!("{stem}.{extension}"))
    }

    /// Copies the fatbins to `OUT_DIR` and writes `fatbins.rs`, the table of them that the library
    /// includes.
    fn write_table(&self, kernels: &[Kernel]) -> Result<(), String> {
        let mut table = "[\n".to_owned();
        for Kernel { stem, .. } in kernels {
            let (from, to) = (self.cached(stem, "fatbin"), self.out.join(format!("{stem}.fatbin")));
            fs::copy(&from, &to).map_err(|error| format!("cannot copy {}: {error}", from.display()))?;
            table +=
                &format!("    ({stem:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{stem}.fatbin\"))),\n");
        }
        let path = self.out.join("fatbins.rs");
        fs::write(&path, table + "]\n").map_err(|error| format!("cannot write {}: {error}", path.display()))
    }
}

/// A hint for a failure of nvcc, where there is one.
fn hint_for(report: &str) -> &'static str {
    match report.contains("unsupported GNU version") {
        true => {
            "\n\nhint: this nvcc takes older compilers only: name one, such as NVCC_PREPEND_FLAGS='-ccbin g++-13'; or \
             another nvcc with NVCC, such as that of `make cuda-toolchain`, which is in target/cuda"
        }
        false => "",
    }
}

/// Refuses an entry that keeps locals in memory (a stack frame or spilled registers), and one whose
/// matmuls on Hopper's tensor cores wait for each other: ptxas says so in a note (C7508 to C7519),
/// which is no warning, and the results are right.
fn check_report(source: &str, report: &str) -> Result<(), String> {
    let mut entry = "";
    let mut entries = 0;
    for line in report.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function ") {
            entry = rest;
            entries += 1;
        } else if line.contains("bytes stack frame") {
            let bytes = line.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
            if bytes.into_iter().any(|digits| digits != "0") {
                return Err(format!("kernels/{source}: {entry} keeps locals in memory: {}", line.trim()));
            }
        } else if line.contains("(C75") {
            return Err(format!("kernels/{source}: ptxas serialised the wgmma pipeline: {}", line.trim()));
        }
    }
    if entries == 0 {
        Err(format!("kernels/{source}: ptxas reported on no entry:\n{report}"))
    } else {
        Ok(())
    }
}

#[cfg(test)]
#[path = "tests/library/build_script.rs"]
mod tests;
