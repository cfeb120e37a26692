//! The public surface: `public_api.txt` lists what is exported, and a change of it is seen in review.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The most names that a reader takes in.
const NAMES_MAX: usize = 60;

/// Returns `kind path` of every item in rustdoc's list of all items.
fn exported(page: &str) -> BTreeSet<String> {
    let links = page.split("<a href=\"").skip(1).filter_map(|rest| rest.split_once('"'));
    links
        .filter_map(|(link, _)| {
            let (path, file) = link.rsplit_once('/').map_or(("", link), |(path, file)| (path, file));
            let (kind, name) = file.strip_suffix(".html")?.split_once('.')?;
            let kinds = ["struct", "enum", "trait", "fn", "type", "constant", "static", "macro", "union"];
            let path = if path.is_empty() {
                name.to_owned()
            } else {
                format!("{}::{name}", path.replace('/', "::"))
            };
            kinds.contains(&kind).then(|| format!("{kind} {path}"))
        })
        .collect()
}

#[test]
fn the_public_api_is_the_committed_list() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), Into::into);
    let page = target.join("doc/kudos/all.html");
    let Ok(page) = fs::read_to_string(&page) else {
        let required =
            std::env::var("KUDOS_TEST_REQUIRE").is_ok_and(|names| names.split(',').any(|name| name == "doc"));
        assert!(!required, "{} is missing: `make doc` writes it", page.display());
        return eprintln!("not run: {} is missing, which `make doc` writes", page.display());
    };
    let found = exported(&page);
    let list = fs::read_to_string(root.join("tests/library/public_api.txt")).unwrap();
    let listed: BTreeSet<String> = list.lines().map(str::to_owned).collect();
    let added: Vec<&String> = found.difference(&listed).collect();
    let removed: Vec<&String> = listed.difference(&found).collect();
    assert!(
        added.is_empty() && removed.is_empty(),
        "tests/library/public_api.txt lacks {added:?} and has {removed:?}, which is not exported"
    );
    assert!(found.len() <= NAMES_MAX, "{} names are exported", found.len());
}
