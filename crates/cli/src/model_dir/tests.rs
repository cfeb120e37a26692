use super::*;

const HOME: (&str, &str) = ("HOME", "/home/me");

/// Environments and the `huggingface_hub.constants.HF_HUB_CACHE` that huggingface_hub 2.4.0 (Python
/// 3.11) has in them.
#[rustfmt::skip]
const CASES: &[(&[(&str, &str)], &str)] = &[
    (&[HOME], "/home/me/.cache/huggingface/hub"),
    (&[("HOME", "/home/me//")], "/home/me/.cache/huggingface/hub"),
    (&[("HOME", "")], "/.cache/huggingface/hub"),
    (&[("HOME", "/")], "/.cache/huggingface/hub"),
    (&[HOME, ("XDG_CACHE_HOME", "/xdg")], "/xdg/huggingface/hub"),
    (&[HOME, ("XDG_CACHE_HOME", "~/xdg")], "/home/me/xdg/huggingface/hub"),
    (&[HOME, ("XDG_CACHE_HOME", "$HOME/xdg/")], "/home/me/xdg/huggingface/hub"),
    (&[HOME, ("XDG_CACHE_HOME", "")], "huggingface/hub"),
    (&[HOME, ("HF_HOME", "/hf")], "/hf/hub"),
    (&[HOME, ("HF_HOME", "~/hf")], "/home/me/hf/hub"),
    (&[HOME, ("HF_HOME", "$HOME/hf")], "/home/me/hf/hub"),
    (&[HOME, ("HF_HOME", "${HOME}/hf")], "/home/me/hf/hub"),
    (&[HOME, ("HF_HOME", "")], "hub"),
    (&[HOME, ("HF_HOME", "~")], "/home/me/hub"),
    (&[HOME, ("HF_HOME", "/hf"), ("XDG_CACHE_HOME", "/xdg")], "/hf/hub"),
    (&[HOME, ("HF_HUB_CACHE", "/hub")], "/hub"),
    (&[HOME, ("HF_HUB_CACHE", "~/hub")], "/home/me/hub"),
    (&[HOME, ("HF_HUB_CACHE", "$A/hub"), ("A", "/a")], "/a/hub"),
    (&[HOME, ("HF_HUB_CACHE", "$A/${A}b/$Ab/$A-$A"), ("A", "/a")], "/a//ab/$Ab//a-/a"),
    (&[HOME, ("HF_HUB_CACHE", "")], ""),
    (&[HOME, ("HF_HUB_CACHE", "/hub"), ("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/hub"),
    (&[HOME, ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
    (&[HOME, ("HUGGINGFACE_HUB_CACHE", "~/old/$A"), ("A", "a")], "/home/me/old/a"),
    (&[HOME, ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "/hf")], ""),
    (&[HOME, ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HOME", "/hf")], "/old"),
    (&[HOME, ("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", "/old")], ""),
    (&[HOME, ("HF_HOME", "$A"), ("A", "~/a")], "/home/me/a/hub"),
    (&[HOME, ("HF_HUB_CACHE", "$A"), ("A", "~/a")], "~/a"),
    (&[HOME, ("HF_HOME", "$A/$B"), ("A", "$B"), ("B", "/b")], "/b//b/hub"),
    (&[HOME, ("HF_HUB_CACHE", "$A"), ("A", "$B"), ("B", "/b")], "$B"),
    (&[HOME, ("HF_HUB_CACHE", "$UNSET/${UNSET}/a")], "$UNSET/${UNSET}/a"),
    (&[HOME, ("HF_HUB_CACHE", "/a$")], "/a$"),
    (&[HOME, ("HF_HUB_CACHE", "/a$$A$"), ("A", "x")], "/a$x$"),
    (&[HOME, ("HF_HUB_CACHE", "/${A")], "/${A"),
    (&[HOME, ("HF_HUB_CACHE", "/${}/$-/${A}"), ("A", "")], "/${}/$-/"),
    (&[HOME, ("HF_HUB_CACHE", "/a/~/b")], "/a/~/b"),
    (&[HOME, ("HF_HUB_CACHE", "~nosuchuser/hub")], "~nosuchuser/hub"),
    (&[HOME, ("HF_HUB_CACHE", "/ü/$A"), ("A", "ä")], "/ü/ä"),
    (&[HOME, ("HF_HUB_CACHE", "/$ü"), ("ü", "x")], "/$ü"),
    (&[HOME, ("HF_HUB_CACHE", "/${ü}/$1_a"), ("ü", "x"), ("1_a", "y")], "/x/y"),
    (&[HOME, ("HF_HUB_CACHE", "/${${A}}"), ("A", "x")], "/${${A}}"),
    (&[HOME, ("HF_HUB_CACHE", "relative/hub")], "relative/hub"),
];

#[test]
fn the_cache_is_where_huggingface_hub_has_it() {
    for (environment, expected) in CASES {
        let variable = |name: &str| {
            let found = environment.iter().find(|(found, _)| *found == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        assert_eq!(cache_dir(&variable).as_deref(), Some(*expected), "{environment:?}");
    }
}

#[test]
fn without_a_home_only_paths_that_need_none_are_found() {
    let with = |name: &'static str, value: &'static str| {
        cache_dir(&|asked: &str| (asked == name).then(|| value.to_owned()))
    };
    assert_eq!(with("OTHER", ""), None);
    assert_eq!(with("HF_HOME", "~/hf"), None);
    assert_eq!(with("HF_HUB_CACHE", "/hub").as_deref(), Some("/hub"));
    assert_eq!(with("XDG_CACHE_HOME", "/xdg").as_deref(), Some("/xdg/huggingface/hub"));
}
