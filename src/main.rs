//! The `lifeboat` program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(lifeboat::cli::run(std::env::args_os().collect()))
}
