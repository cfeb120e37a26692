//! `build.rs`: the compilers that it takes, and the architectures that they know.

use super::{ARCHITECTURES, NVCC_MIN, Nvcc, release_of};

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
    assert!((11, 8) < NVCC_MIN && (12, 3) < NVCC_MIN && (12, 8) > NVCC_MIN && (13, 0) > NVCC_MIN);
    // A program that prints something else, and none at all.
    let other = Nvcc::ask("/bin/true".into()).unwrap_err();
    assert_eq!(other, "does not print its version");
    let none = Nvcc::ask("/nonexistent/nvcc".into()).unwrap_err();
    assert!(none.starts_with("cannot be run"), "{none}");
}
