//! The project's own chores, one verb a module: `cargo xtask setup`, `test`, `bench` and `demo`.

mod bench;
mod demo;
mod fitness;
mod kernels;
mod libtest;
mod requirements;
mod setup;
mod suites;
mod test;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Chores of the deployer project.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Get whatever is missing to build, test and demonstrate deployer
    Setup(setup::Args),
    /// Run the checks and suites, each of them when none is named
    Test(test::Args),
    /// Measure what deployer costs, with the release build
    Bench,
    /// Roll 40 real workers behind a real nginx under load
    Demo(demo::Args),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = Workspace::find().and_then(|workspace| match args.verb {
        Verb::Setup(args) => setup::run(&workspace, &args),
        Verb::Test(args) => test::run(&workspace, &args),
        Verb::Bench => bench::run(&workspace),
        Verb::Demo(args) => demo::run(&workspace, &args),
    });
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
