//! The `oddgrad` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    match oddgrad::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
