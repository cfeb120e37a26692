//! The `kudos` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    kudos::cli::main()
}
