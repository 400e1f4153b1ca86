//! A light, steady load on a site, by steered callers: each request on a connection of its own (tests/app/visitor.py).

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::dial::PYTHON;
use crate::sandbox::{Place, Sandbox};

/// What came of one request.
#[derive(Clone, Debug, Deserialize)]
pub struct Visit {
    /// Where to.
    pub target: String,
    /// When it began, milliseconds since 1970.
    pub began_ms: f64,
    /// When it ended.
    pub ended_ms: f64,
    /// The version that answered; empty: none.
    #[serde(default)]
    pub version: String,
    /// Its lane.
    #[serde(default)]
    pub lane: String,
    /// What getpeername() says.
    #[serde(default)]
    pub peer: String,
    /// What went wrong.
    pub error: Option<String>,
}

/// Who goes on asking until they are stopped.
#[derive(Debug)]
pub struct Visitors(Child);

/// What all of them have seen, in order.
#[derive(Clone, Debug)]
pub struct Visits(pub Vec<Visit>);

impl Visitors {
    /// In [`Place::Callers`]; some 80 requests a second over all of the targets, `127.0.0.1:9000`.
    pub fn start(sandbox: &Sandbox, targets: &[&str]) -> Result<Self> {
        Self::run(sandbox, &sandbox.cgroup(Place::Callers), "10", targets)
    }

    /// Has each of these asked once, by somebody in this cgroup; what came of it.
    pub fn once(sandbox: &Sandbox, cgroup: &Path, targets: &[&str]) -> Result<Visits> {
        Self::run(sandbox, cgroup, "once", targets)?.stop()
    }

    fn run(sandbox: &Sandbox, cgroup: &Path, how: &str, targets: &[&str]) -> Result<Self> {
        let script = sandbox.dir().join("visitor.py");
        fs::write(&script, include_str!("../app/visitor.py")).context("write visitor.py")?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", sandbox.netns_path().display()));
        command.args(["sh", "-c", r#"echo 0 > "$0/cgroup.procs" && exec "$@""#]).arg(cgroup);
        command.args([PYTHON, "-s", "-S"]).arg(script).arg(how).args(targets);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().map(Self).context("start visitor.py")
    }

    /// Ends them; what they saw.
    pub fn stop(mut self) -> Result<Visits> {
        drop(self.0.stdin.take());
        let output = self.0.wait_with_output().context("wait for visitor.py")?;
        ensure!(output.status.success(), "visitor.py: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).map(Visits).context("what visitor.py saw")
    }
}

impl Visits {
    /// Those to one target.
    pub fn to(&self, target: &str) -> Self {
        Self(self.0.iter().filter(|visit| visit.target == target).cloned().collect())
    }

    /// Those that began within a span, milliseconds since 1970.
    pub fn between(&self, from_ms: f64, to_ms: f64) -> Self {
        Self(self.0.iter().filter(|visit| from_ms <= visit.began_ms && visit.began_ms < to_ms).cloned().collect())
    }

    /// The versions that answered, in order, each once for as long as it lasted; `-` where nobody did.
    pub fn versions(&self) -> Vec<&str> {
        let mut versions: Vec<_> =
            self.0.iter().map(|visit| if visit.error.is_some() { "-" } else { visit.version.as_str() }).collect();
        versions.dedup();
        versions
    }

    /// When a version answered first, by the beginning of that request.
    pub fn first(&self, version: &str) -> Option<f64> {
        self.0.iter().find(|visit| visit.version == version).map(|visit| visit.began_ms)
    }

    /// Nobody was left without an answer, and there were at least so many.
    pub fn must_be_whole(&self, least: usize) -> Result<()> {
        let failed: Vec<_> = self.0.iter().filter(|visit| visit.error.is_some()).collect();
        ensure!(
            failed.is_empty(),
            "{} of {} failed: {:#?}",
            failed.len(),
            self.0.len(),
            &failed[..failed.len().min(5)]
        );
        ensure!(self.0.len() >= least, "only {} requests", self.0.len());
        Ok(())
    }
}

impl fmt::Display for Visits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed = self.0.iter().filter(|visit| visit.error.is_some()).count();
        write!(f, "{} requests, {failed} failed", self.0.len())?;
        let mut targets: Vec<_> = self.0.iter().map(|visit| visit.target.as_str()).collect();
        targets.sort_unstable();
        targets.dedup();
        for target in targets {
            let of = self.to(target);
            write!(f, "; {target}: {} ({})", of.versions().join(" > "), of.0.len())?;
        }
        Ok(())
    }
}
