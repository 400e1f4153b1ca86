//! A caller that keeps idle connections, and says which of them live.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::dial::PYTHON;
use crate::sandbox::{Place, Sandbox};

/// Connections that a holder has to each address.
pub const EACH: usize = 3;

/// A running holder in [`Place::Callers`]; ends when dropped.
#[derive(Debug)]
pub struct Holder {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Holder {
    /// Has [`EACH`] connections to each of these addresses, each with one answered request.
    pub fn start(sandbox: &Sandbox, addresses: &[&str]) -> Result<Self> {
        let command = sandbox.command(Place::Callers, PYTHON);
        Self::by(sandbox, command, addresses)
    }

    /// The same, among this sandbox's callers, but in the network namespace of `netns`.
    pub fn start_in(sandbox: &Sandbox, netns: &Path, addresses: &[&str]) -> Result<Self> {
        // The inner one is entered last.
        let mut command = sandbox.command(Place::Callers, "nsenter");
        let mut net = std::ffi::OsString::from("--net=");
        net.push(netns);
        command.arg(net).arg(PYTHON);
        Self::by(sandbox, command, addresses)
    }

    fn by(sandbox: &Sandbox, mut command: Command, addresses: &[&str]) -> Result<Self> {
        let script = sandbox.dir().join("holder.py");
        fs::write(&script, include_str!("../app/holder.py")).context("write holder.py")?;
        command.arg(script).args(addresses).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start a holder")?;
        let orders = child.stdin.take().context("its input")?;
        let answers = BufReader::new(child.stdout.take().context("its output")?);
        let mut holder = Self { child, orders, answers };
        let line = holder.line()?;
        ensure!(line == "ready", "the holder says {line:?}");
        Ok(holder)
    }

    /// How many connections live, by address.
    pub fn look(&mut self) -> Result<BTreeMap<String, usize>> {
        self.order("look")
    }

    /// Sends a request on each that lives; how many were answered, by address.
    pub fn use_all(&mut self) -> Result<BTreeMap<String, usize>> {
        self.order("use")
    }

    fn order(&mut self, order: &str) -> Result<BTreeMap<String, usize>> {
        writeln!(self.orders, "{order}").context("order a holder")?;
        let line = self.line()?;
        let words: Vec<_> = line.split(' ').collect();
        let pair = |pair: &[&str]| Ok((pair[0].to_owned(), pair[1].parse().with_context(|| line.clone())?));
        ensure!(words.len().is_multiple_of(2), "the holder says {line:?}");
        words.chunks(2).map(pair).collect()
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.answers.read_line(&mut line).context("hear a holder")? > 0, "the holder has ended");
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
