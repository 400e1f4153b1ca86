//! What goes over the loopback device between callers and workers, packet by packet: the only witness that knows to the
//! microsecond when a connection was begun, and which of them a dying worker had.

use std::collections::HashMap;
use std::fs;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::dial::PYTHON;
use crate::pace::SOON;
use crate::process::Process;
use crate::sandbox::{Place, Sandbox};

/// The mark of the daemon's own sockets, whose warm-up requests are nobody's.
const DAEMON_MARK: &str = "0x6470";
/// The farthest that the time of day, by which the kernel stamps packets, may be moved meanwhile.
const MOST_DRIFT_NS: i64 = 1_000_000;

/// A connection to a worker. Times are of CLOCK_MONOTONIC, in ns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The worker's port: the one that the connection went to, whatever was dialled.
    pub port: u16,
    /// When its first SYN was sent, which is while its caller is in `connect()`.
    pub begin_ns: u64,
    /// Whether the kernel took it.
    pub established: bool,
    /// The id of the request that it carried.
    pub id: Option<String>,
    /// Whether the worker sent anything.
    pub answered: bool,
    /// When the worker's end was closed, in good order or by reset; `None`: not before the capture ended.
    pub end_ns: Option<u64>,
}

impl Connection {
    /// Nobody listened.
    pub fn is_refused(&self) -> bool {
        !self.established && self.end_ns.is_some()
    }

    /// The worker's end was closed without a word.
    pub fn is_lost(&self) -> bool {
        self.established && !self.answered && self.end_ns.is_some()
    }
}

/// A capture under way.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Begins to watch the connections to these ports of 127.0.0.1.
    pub fn start(sandbox: &Sandbox, ports: &RangeInclusive<u16>) -> Result<Self> {
        let (script, file) = (sandbox.dir().join("capture.py"), sandbox.dir().join("capture.log"));
        fs::write(&script, include_str!("../app/capture.py")).context("write capture.py")?;
        let mut command = sandbox.command(Place::Outside, PYTHON);
        command.args(["-s", "-S"]).arg(script);
        command.args([&ports.start().to_string(), &ports.end().to_string(), DAEMON_MARK]).arg(&file);
        let mut process = Process::start("capture.py", command, &sandbox.dir().join("capture.out"))?;
        process.wait_ready(SOON, || fs::read(&file).is_ok_and(|text| !text.is_empty()))?;
        Ok(Self { process, file })
    }

    /// Ends it. All connections that were begun meanwhile, in the order of their beginnings.
    ///
    /// # Errors
    /// When packets were missed, or the clock was set: then it is no witness.
    pub fn stop(mut self) -> Result<Vec<Connection>> {
        let exit = self.process.stop(Duration::from_secs(20))?;
        ensure!(exit.success(), "capture.py: {exit}:\n{}", self.process.log_tail());
        read(&fs::read_to_string(&self.file).context("what was captured")?)
    }
}

/// The connections in what capture.py has written.
pub fn read(text: &str) -> Result<Vec<Connection>> {
    let mut connections = Vec::new();
    // By the ports of caller and worker: the latest connection, and the sequence number of its SYN.
    let mut latest: HashMap<(&str, &str), (usize, &str)> = HashMap::new();
    let mut whole = false;
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match *words.as_slice() {
            ["ready"] => {}
            ["D", lost, drift] => {
                let drift: i64 = drift.parse().context("drift")?;
                ensure!(lost == "0" && drift.abs() < MOST_DRIFT_NS, "{lost} packets lost, clock set by {drift} ns");
                whole = true;
            }
            // The same SYN once more: nobody has answered the first.
            ["S", _, from, port, seq] if latest.get(&(from, port)).is_some_and(|(_, known)| *known == seq) => {}
            ["S", at, from, port, seq] => {
                latest.insert((from, port), (connections.len(), seq));
                connections.push(Connection {
                    port: port.parse().context("port")?,
                    begin_ns: at.parse().context("time")?,
                    established: false,
                    id: None,
                    answered: false,
                    end_ns: None,
                });
            }
            [kind, at, from, port, ref rest @ ..] => {
                // Not one that is older than the capture, or the daemon's own.
                let Some((index, _)) = latest.get(&(from, port)) else { continue };
                note(&mut connections[*index], kind, at.parse().context("time")?, rest.first().copied())?;
            }
            _ => bail!("captured: {line:?}"),
        }
    }
    ensure!(whole, "the capture has no end");
    Ok(connections)
}

fn note(connection: &mut Connection, kind: &str, at: u64, id: Option<&str>) -> Result<()> {
    match kind {
        // Over: what comes now is of one that the daemon has begun from the same port.
        _ if connection.end_ns.is_some() => {}
        "E" => connection.established = true,
        "Q" => connection.id = id.map(str::to_owned),
        "A" => connection.answered = true,
        "F" | "R" => connection.end_ns = Some(at),
        _ => bail!("{kind:?} was captured"),
    }
    Ok(())
}
