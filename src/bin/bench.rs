//! The `bench` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Here and not in the library, which is then not built anew for every commit.
    kudos::bench::main(option_env!("KUDOS_COMMIT").filter(|commit| !commit.is_empty()))
}
