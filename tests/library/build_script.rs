//! `build.rs`: the architectures that a file of `kernels/` is compiled for, what it refuses of
//! ptxas' report, and the compilers that it takes; with small kernels planted into a folder.

use std::fs;
use std::path::Path;

use super::{
    ARCHITECTURES, Build, Kernel, NVCC_MIN, Nvcc, PTX, check_release, check_report, find_nvcc, hint_for,
    is_exact, release_of,
};

fn kernel(stem: &str) -> Kernel {
    Kernel { stem: stem.to_owned(), key: String::new() }
}

/// An nvcc that is not run, of the first release or of one that knows every architecture.
fn nvcc(full_release: &str) -> Nvcc {
    let (release, _) = full_release.rsplit_once('.').unwrap();
    let version = format!("Cuda compilation tools, release {release}, V{full_release}\nBuild");
    let newest = if full_release.starts_with("12.4") { "" } else { "sm_100\nsm_120\n" };
    Nvcc {
        path: "nvcc".into(),
        release: release_of(&version).unwrap(),
        version,
        codes: format!("sm_52\nsm_75\nsm_80\nsm_86\nsm_87\nsm_89\nsm_90\n{newest}"),
    }
}

#[test]
fn a_stem_decides_for_which_architectures_a_file_is() {
    let all = ARCHITECTURES.map(str::to_owned);
    for (stem, machine_code, ptx) in [
        ("rope", &ARCHITECTURES[..], &PTX[..]),
        ("a_small_kernel", &ARCHITECTURES, &PTX),
        ("attention_sm75", &ARCHITECTURES, &PTX),
        ("attention_sm80", &["80", "86", "89", "90a", "100", "120"], &["80"]),
        ("attention_sm90", &["90a", "100", "120"], &["90"]),
        ("attention_sm90a", &["90a"], &["90a"]),
        ("attention_sm90a_simple", &["90a"], &["90a"]),
        ("attention_sm120", &["120"], &["120"]),
    ] {
        let kernel = kernel(stem);
        assert_eq!(kernel.machine_code(&all), machine_code, "{stem}");
        assert_eq!(kernel.ptx(), ptx, "{stem}");
    }
}

#[test]
fn a_file_gets_ptx_and_no_foreign_machine_code() {
    // As KUDOS_CUDA_ARCHS may limit them.
    for limited in [&["80"][..], &["75", "120"], &["90a"]] {
        let limited: Vec<String> = limited.iter().map(|&name| name.to_owned()).collect();
        for stem in ["rope", "attention_sm80", "attention_sm90a"] {
            let kernel = kernel(stem);
            assert!(!kernel.ptx().is_empty(), "{stem}");
            for arch in kernel.machine_code(&limited) {
                assert!(limited.iter().any(|name| name == arch), "{stem}: {arch}");
                let exact = kernel.architecture().is_some_and(is_exact);
                assert!(!exact || arch == "90a", "{stem}: {arch}");
            }
        }
    }
}

#[test]
fn architectures_are_those_that_the_compiler_knows() {
    let (oldest, newest) = (nvcc("12.4.131"), nvcc("13.0.88"));
    assert_eq!((oldest.release, newest.release), (NVCC_MIN, (13, 0)));
    assert_eq!(newest.architectures(None).unwrap(), ARCHITECTURES);
    assert_eq!(oldest.architectures(None).unwrap(), ARCHITECTURES[..5]);
    assert_eq!(oldest.architectures(Some("75, 90a")).unwrap(), ["75", "90a"]);
    assert_eq!(newest.architectures(Some("120")).unwrap(), ["120"]);
    let unknown = oldest.architectures(Some("80,120")).unwrap_err();
    assert!(unknown.contains("`120`") && unknown.contains("nvcc 12.4.131 does not know"), "{unknown}");
    let wrong = newest.architectures(Some("80,90")).unwrap_err();
    assert!(wrong.contains("`90`, which is none of 75, 80"), "{wrong}");
}

#[test]
fn a_compiler_that_is_no_nvcc_or_too_old_is_refused() {
    assert_eq!(release_of("Cuda compilation tools, release 11.8, V11.8.89"), Some((11, 8)));
    assert_eq!(release_of("gcc (Debian) 12.2.0"), None);
    for (release, text) in [((11, 8), "11.8"), ((12, 3), "12.3")] {
        let error = check_release(release).unwrap_err();
        assert_eq!(error, format!("is of CUDA {text}, but 12.4 is needed"));
    }
    for release in [(12, 4), (12, 8), (13, 0), (14, 0)] {
        check_release(release).unwrap();
    }
    // A program that prints something else, and none at all.
    let other = Nvcc::ask("true".into()).unwrap_err();
    assert_eq!(other, "does not print its version");
    let none = Nvcc::ask("/nonexistent/nvcc".into()).unwrap_err();
    assert!(none.starts_with("cannot be run"), "{none}");
}

#[test]
fn a_host_compiler_that_is_too_new_gets_a_hint() {
    let report = "host_config.h:143:2: error: #error -- unsupported GNU version! gcc versions later than 13 are not supported!";
    assert!(hint_for(report).contains("NVCC_PREPEND_FLAGS='-ccbin g++-13'"));
    assert_eq!(hint_for("rope.cu(3): error: expected a \";\""), "");
}

const ENTRY: &str =
    "ptxas info    : Compiling entry function 'k' for 'sm_90a'\nptxas info    : Function properties for k\n";

#[test]
fn reports_of_spills_and_of_waiting_matmuls_are_refused() {
    let report = |more: &str| check_report("k.cu", &format!("{ENTRY}{more}"));
    let none = "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n";
    let used = "ptxas info    : Used 168 registers, used 1 barriers, 4096 bytes smem\n";
    report(&format!("{none}{used}")).unwrap();
    for more in [
        "    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n",
        "    0 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n",
    ] {
        let error = report(more).unwrap_err();
        assert!(error.contains("kernels/k.cu") && error.contains("keeps locals in memory"), "{error}");
    }
    for code in ["C7508", "C7510", "C7514", "C7519"] {
        let note = format!(
            "ptxas info    : ({code}) Potential Performance Loss: wgmma.mma_async instructions are serialized\n"
        );
        let error = report(&format!("{none}{note}{used}")).unwrap_err();
        assert!(error.contains("serialised the wgmma pipeline") && error.contains(code), "{error}");
    }
    assert!(check_report("k.cu", "").unwrap_err().contains("no entry"));
}

/// Compiles one planted file for these architectures, and returns its fatbin and ptxas' report.
fn compile(stem: &str, body: &str, architectures: &[&str]) -> Result<(Vec<u8>, String), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let source = format!("extern \"C\" __global__ void planted(float *out) {{ {body} }}\n");
    fs::write(path(&format!("{stem}.cu")), source).unwrap();
    let build = Build {
        nvcc: find_nvcc(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap(),
        kernels: folder.path().to_owned(),
        cache: folder.path().to_owned(),
        out: folder.path().to_owned(),
        architectures: architectures.iter().map(|&name| name.to_owned()).collect(),
    };
    let kernels = build.sources()?;
    build.compile_all(&kernels)?;
    let report = fs::read_to_string(path(&format!("{stem}.ptxas"))).unwrap();
    Ok((fs::read(path(&format!("{stem}.fatbin"))).unwrap(), report))
}

/// The words that follow `mark` in bytes.
fn words_after(bytes: &[u8], mark: &str) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let ends = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    text.split(mark).skip(1).map(|rest| rest.split(ends).next().unwrap().to_owned()).collect()
}

/// The targets of the PTX in a fatbin; with line information machine code has a copy of its own.
fn targets(fatbin: &[u8]) -> Vec<String> {
    let mut targets = words_after(fatbin, ".target sm_");
    targets.dedup();
    targets
}

/// An instruction of Hopper that no later GPU has: it makes its operands' registers ready for a
/// matmul.
const FENCE: &str = "asm volatile(\"wgmma.fence.sync.aligned;\"); out[threadIdx.x] = 1.0f;";

#[test]
fn a_planted_kernel_of_one_architecture_is_built_for_it_alone() {
    let (fatbin, report) = compile("planted_sm90a", FENCE, &["80", "90a", "89"]).unwrap();
    assert_eq!(words_after(report.as_bytes(), "for 'sm_"), ["90a"]);
    assert_eq!(targets(&fatbin), ["90a"]);
    // Where the machine code is limited to other architectures, the PTX is still there.
    let (fatbin, report) = compile("planted_sm90a", FENCE, &["80"]).unwrap();
    assert_eq!(report, "");
    assert_eq!(targets(&fatbin), ["90a"]);
    // One that no machine code is ever made for would run nowhere.
    let error = compile("planted_sm100a", FENCE, &["100"]).unwrap_err();
    assert!(error.contains("kernels/planted_sm100a.cu is for sm_100a alone"), "{error}");
    // Under another name it would be compiled for others, too, which the compiler refuses.
    let error = compile("planted_sm80", FENCE, &["80"]).unwrap_err();
    assert!(error.contains("nvcc failed on kernels/planted_sm80.cu"), "{error}");
}

#[test]
fn a_planted_kernel_whose_matmuls_wait_is_refused() {
    // A register of the sum changes while the matmul may still run.
    let matmul = "asm volatile(\"wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, \
                  0, 0;\" : \"+f\"(d[0]), \"+f\"(d[1]), \"+f\"(d[2]), \"+f\"(d[3]) : \"l\"(1ll), \"l\"(2ll));";
    let kernel = |between: &str| {
        format!(
            "float d[4] = {{}}; asm volatile(\"wgmma.fence.sync.aligned;\"); {matmul} {between} {matmul} \
             asm volatile(\"wgmma.commit_group.sync.aligned;\"); asm volatile(\"wgmma.wait_group.sync.aligned 0;\"); \
             for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = d[i];"
        )
    };
    compile("planted_sm90a", &kernel(""), &["90a"]).unwrap();
    let error = compile("planted_sm90a", &kernel("d[0] += 1.0f;"), &["90a"]).unwrap_err();
    assert!(error.contains("serialised the wgmma pipeline"), "{error}");
}
