//! A caller that dials the service address all the while, and knows to the nanosecond when.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::sandbox::{Place, Sandbox};

/// A connection that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialled {
    /// When `connect()` was called, ns of `CLOCK_MONOTONIC`.
    pub begun_ns: u64,
    /// When it had returned.
    pub done_ns: u64,
    /// The version that answered.
    pub version: String,
}

/// What a probe has seen.
#[derive(Clone, Debug, Default)]
pub struct Probed {
    /// In the order dialled.
    pub dialled: Vec<Dialled>,
    /// What went wrong.
    pub failed: Vec<String>,
}

/// A probe under way; ends when dropped.
#[derive(Debug)]
pub struct Probe {
    child: Child,
    stdin: Option<ChildStdin>,
    reader: Option<JoinHandle<Result<Probed>>>,
}

impl Probe {
    /// Dials `to`, `host:port`, with a pause in between.
    pub fn start(sandbox: &Sandbox, to: &str, pause_ms: u32) -> Result<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/app/probe.py");
        let mut command = sandbox.command(Place::Callers, "/usr/bin/python3");
        command.args(["-sE", script, to, &pause_ms.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start a probe")?;
        let stdin = child.stdin.take();
        let mut lines = BufReader::new(child.stdout.take().context("a probe's output")?).lines();
        ensure!(lines.next().transpose()?.as_deref() == Some("ready"), "a probe does not begin");
        let reader = std::thread::spawn(move || {
            let mut probed = Probed::default();
            for line in lines {
                probed.note(&line?)?;
            }
            Ok(probed)
        });
        Ok(Self { child, stdin, reader: Some(reader) })
    }

    /// Ends it; what it has seen.
    pub fn stop(mut self) -> Result<Probed> {
        self.stdin = None;
        let reader = self.reader.take().context("a probe is stopped once")?;
        reader.join().map_err(|panic| anyhow!("a probe's reader has panicked: {panic:?}"))?
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stdin = None;
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Probed {
    fn note(&mut self, line: &str) -> Result<()> {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["E", ..] => self.failed.push(line.to_owned()),
            [begun, done, version, _] => {
                let (begun_ns, done_ns) = (begun.parse()?, done.parse()?);
                self.dialled.push(Dialled { begun_ns, done_ns, version: version.to_owned() });
            }
            _ => bail!("a probe says {line:?}"),
        }
        Ok(())
    }
}
