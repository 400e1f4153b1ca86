//! The one binary: daemon and command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    let path = std::env::args().nth(3).unwrap_or_default();
    let rt = tokio::runtime::Runtime::new().unwrap();
    if let Err(error) = rt.block_on(deployer::daemon::run(path.as_ref())) {
        eprintln!("deployer: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
