//! Kazoo, another client of ZooKeeper's: reads server sets, and flips by a watch, as those do who have no fleet.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::{Fleet, Host, NAME, ROOT};
use crate::daemon::Daemon;
use crate::dial::PYTHON;
use crate::process::run;
use crate::sandbox::{Place, Sandbox};

/// The node whose change means: flip.
const NODE: &str = "/bench/flip";

/// A member of a server set, by Kazoo's account.
#[derive(Clone, Debug, Deserialize)]
pub struct Member {
    /// What is written in its node.
    pub data: Value,
    /// Whether it goes with its maker's session.
    pub ephemeral: bool,
}

/// Who flips a host when a node changes. Ends with it, or when dropped.
#[derive(Debug)]
pub struct Watcher(Child);

impl Fleet {
    /// The members of the set of service web that is active, or of a version's, by the names of their nodes.
    pub fn server_set(&self, version: Option<&str>) -> Result<BTreeMap<String, Member>> {
        let set = version.map_or_else(|| "active".to_owned(), |version| format!("versions/{version}"));
        let path = format!("{ROOT}/{NAME}/serversets/web/{set}");
        let mut command = script(&self.hub.sandbox, "serversets.py");
        let said = run(command.arg(self.plan.connect()).arg(&path))?;
        let mut sets: BTreeMap<String, BTreeMap<String, Member>> =
            serde_json::from_str(&said).with_context(|| format!("server sets: {said}"))?;
        sets.remove(&path).context("no such set")
    }

    /// Has each host flip as soon as it hears of a node's change; see [`Self::call`].
    pub fn watch(&self) -> Result<Vec<Watcher>> {
        self.each(|host| Watcher::start(host, &self.plan.connect()))
    }

    /// Changes that node.
    pub fn call(&self) -> Result<()> {
        run(script(&self.hub.sandbox, "watchflip.py").arg(self.plan.connect()).arg(NODE)).map(drop)
    }
}

impl Watcher {
    fn start(host: &Host, connect: &str) -> Result<Self> {
        let mut command = script(&host.sandbox, "watchflip.py");
        command.args([connect, NODE]).arg(Daemon::socket_of(&host.sandbox)).stdout(Stdio::piped());
        let mut watcher = Self(command.spawn().context("start watchflip.py")?);
        let mut line = String::new();
        BufReader::new(watcher.0.stdout.take().context("its output")?).read_line(&mut line).context("its output")?;
        ensure!(line.trim() == "watching", "watchflip.py of {} says {line:?}", host.name);
        Ok(watcher)
    }

    /// Waits until it has flipped its host.
    pub fn flipped(mut self) -> Result<()> {
        let status = self.0.wait().context("wait for watchflip.py")?;
        ensure!(status.success(), "watchflip.py: {status}");
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn script(sandbox: &Sandbox, name: &str) -> Command {
    let mut command = sandbox.command(Place::Outside, PYTHON);
    command.arg("-s").arg(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/app")).join(name)).stdin(Stdio::null());
    command
}
