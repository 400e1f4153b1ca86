//! `cargo xtask bench`: what deployer costs, by the release build, on this machine as it is now.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::requirements::Scope;
use crate::workspace::{Workspace, run_quietly, shown};
use crate::{fitness, setup};

/// The suites that measure, and which of their tests. They assert what was promised, too.
const MEASURE: &[(&str, &[&str])] = &[
    ("framing", &["cost"]),
    ("reaper", &["crowd"]),
    ("kept-alive", &["empty", "hot"]),
    ("metrics", &["thousand"]),
    ("versions", &["one_write"]),
];

/// The verb itself.
pub(crate) fn run(workspace: &Workspace) -> Result<ExitCode> {
    fitness::check()?;
    setup::ensure(workspace, Scope::All)?;
    let suites: Vec<_> = MEASURE.iter().flat_map(|(suite, _)| ["--test", suite]).collect();
    let release = ["--release", "--package"];
    run_quietly(workspace.cargo(["build"]).args(release).args(["deployer", "--bins"]))?;
    run_quietly(workspace.cargo(["build"]).args(release).arg("deployer-tests").args(&suites))?;
    let mut is_good = true;
    for (suite, filters) in MEASURE {
        let mut command = workspace.cargo(["test"]);
        command.args(release).args(["deployer-tests", "--test", suite, "--", "--test-threads", "1", "--nocapture"]);
        command.args(*filters).env("DEPLOYER_FULL", "1").env("DEPLOYER_BIN", workspace.release("deployer"));
        let Ok(status) = command.status() else { bail!("cannot run `{}`", shown(&command)) };
        is_good &= status.success();
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
