//! Where the repository is.

use std::env;
use std::path::{Path, PathBuf};

/// Where `tests/fixtures` and `demo` are: the repository, or what `KUDOS_TEST_ROOT` names where there is none. Packages
/// whose tests are here lie in folders of their own.
pub(crate) fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let repository = package.ancestors().find(|folder| folder.join("tests/fixtures").is_dir());
    env::var_os("KUDOS_TEST_ROOT").map_or_else(|| repository.unwrap_or(package).to_owned(), PathBuf::from)
}
