//! The `deployer` command: the daemon and its clients in one binary; see `deployer --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    deployer::cli::main()
}
