//! `cargo xtask demo`: builds the real thing and hands over to the demo program.

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Error, Result};

use crate::requirements::Scope;
use crate::workspace::{Workspace, run_quietly, shown};
use crate::{fitness, setup};

/// Options of `cargo xtask demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// 8 workers in place of 40, done in little more than a minute
    #[arg(long)]
    quick: bool,
    /// Print one JSON object on stdout, everything else on stderr
    #[arg(long)]
    json: bool,
}

/// The verb itself; where all is well it does not return, as the demo takes the place of this process
/// (so that it has the terminal, gets its signals and can clean up).
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    fitness::check()?;
    setup::ensure(workspace, Scope::All)?;
    // One package at a time: the features that the demo asks of shared dependencies stay out of the binary that is shown.
    for package in ["deployer", "deployer-tests"] {
        run_quietly(&mut workspace.cargo(["build", "--release", "--package", package, "--bins"]))?;
    }
    let mut demo = workspace.command(workspace.release("demo"));
    demo.env("DEPLOYER_BIN", workspace.release("deployer"));
    demo.args(args.quick.then_some("--quick")).args(args.json.then_some("--json"));
    let error = demo.exec();
    Err(Error::new(error).context(format!("cannot run `{}`", shown(&demo))))
}
