//! The command line and the API behind it, used well and badly: exit codes, messages, nothing that panics. Run with
//! `--test-threads=1`.

mod bad_api;
mod bad_config;
mod check;
mod interrupt;
mod old_release;
mod refused;

use std::process::Output;

use anyhow::{Result, ensure};

use deployer_tests::daemon::Daemon;

/// Runs a verb that must end with this exit code and name all of these; returns what it printed.
fn verb(daemon: &Daemon<'_>, arguments: &[&str], code: i32, named: &[&str]) -> Result<String> {
    must(&daemon.cli(arguments)?, &arguments.join(" "), code, named)
}

fn must(output: &Output, what: &str, code: i32, named: &[&str]) -> Result<String> {
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let said = format!("{out}{errors}");
    eprintln!("deployer {what}: exit {:?}: {}", output.status.code(), said.trim().lines().next().unwrap_or_default());
    ensure!(output.status.code() == Some(code), "deployer {what}: {output:?}");
    ensure!(!said.contains("panicked"), "deployer {what}: {said}");
    for name in named {
        ensure!(said.contains(name), "deployer {what}: {name:?} is missing in {said:?}");
    }
    Ok(out.into_owned())
}
