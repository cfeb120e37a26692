//! The `kudos` command.

use std::process::ExitCode;

#[cfg(target_os = "linux")]
#[used]
// SAFETY: the loader calls the functions of this section once each, before `main`, on the only
// thread, by the C ABI. This one ignores its arguments and uses nothing that Rust's runtime has to
// initialise first.
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = kudos_cli::files::note_closed_streams;

fn main() -> ExitCode {
    kudos_cli::main()
}
