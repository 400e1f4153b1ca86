//! `racer.py`: callers, robbers of ports, busy loops.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Stdio};

use anyhow::{Context, Result, ensure};
use deployer_tests::dial::PYTHON;
use deployer_tests::sandbox::{Place, Sandbox};
use serde::Deserialize;

/// A process of it, ended with the test.
pub(crate) struct Racer {
    child: Child,
    output: BufReader<ChildStdout>,
    /// Its first word.
    pub(crate) said: String,
}

/// What callers have seen of the connections that they looked after.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Sights {
    /// Connections that were begun.
    pub(crate) begun: u64,
    /// Those that are still open, and are not looked after.
    pub(crate) silent: u64,
    pub(crate) seen: Vec<Sight>,
}

/// One connection.
#[derive(Debug, Deserialize)]
pub(crate) struct Sight {
    /// When connect() began, on the monotonic clock, ns.
    pub(crate) at: u64,
    /// What was dialled.
    pub(crate) port: u16,
    /// Who answered.
    pub(crate) answer: Option<u16>,
    /// Whether it was cold, as it said.
    #[serde(default)]
    pub(crate) cold: bool,
    /// Why there is no answer.
    pub(crate) error: Option<i32>,
}

impl Sights {
    /// The connections that were lost, or served by a cold process.
    pub(crate) fn harmed(&self) -> Vec<&Sight> {
        self.seen.iter().filter(|one| one.error.is_some() || one.answer.is_none() || one.cold).collect()
    }
}

/// Where the script is.
pub(crate) fn script(sandbox: &Sandbox) -> Result<PathBuf> {
    let script = sandbox.dir().join("racer.py");
    fs::write(&script, include_str!("../../app/racer.py")).context("write racer.py")?;
    Ok(script)
}

impl Racer {
    /// Starts it in a place, and waits until it has begun.
    pub(crate) fn start(sandbox: &Sandbox, place: Place, words: &[&str]) -> Result<Self> {
        let mut command = sandbox.command(place, PYTHON);
        command.args(["-s", "-S"]).arg(script(sandbox)?).args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start racer.py")?;
        let output = BufReader::new(child.stdout.take().context("its output")?);
        let mut racer = Self { child, output, said: String::new() };
        racer.said = racer.line().with_context(|| format!("racer.py {words:?}"))?;
        Ok(racer)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to begin no more connections; what it has seen. What it does not look at stays open with it.
    pub(crate) fn end(&mut self) -> Result<Sights> {
        self.child.stdin.take().context("its input")?.write_all(b"\n").context("tell racer.py")?;
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("racer.py: {line:?}"))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("read from racer.py")?;
        ensure!(!line.is_empty(), "it says nothing");
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().and_then(|()| self.child.wait()).ok();
    }
}

/// What all of these have seen.
pub(crate) fn end(racers: &mut [Racer]) -> Result<Sights> {
    let mut all = Sights::default();
    for racer in racers {
        let one = racer.end()?;
        all.begun += one.begun;
        all.silent += one.silent;
        all.seen.extend(one.seen);
    }
    Ok(all)
}
