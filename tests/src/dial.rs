//! Small servers that say who they are, and callers that say what they saw: for what the kernel does with single
//! connections, where a whole load balancer would only be in the way.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::pace::SOON;
use crate::process::Process;
use crate::sandbox::{Place, Sandbox};

/// Debian's own; `python3` in the path may be a shell script that looks for another.
pub const PYTHON: &str = "/usr/bin/python3";
/// Keep Python from looking for what is not needed: it starts in half the time.
const QUICK: [&str; 2] = ["-s", "-S"];

/// Connects, reads one line, says what it saw.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Dial<'a> {
    /// Address or name.
    pub to: &'a str,
    /// Port.
    pub port: u16,
    /// How often, one after the other; 0: until it is told ([`Running::tell`]).
    pub times: u32,
    /// With so many milliseconds between two.
    pub pause_ms: u32,
    /// By a non-blocking socket.
    pub nonblocking: bool,
    /// UDP instead.
    pub udp: bool,
    /// With IPV6_V6ONLY.
    pub v6only: bool,
    /// From this address.
    pub source: Option<&'a str>,
    /// Which is not one of this host: connect() fails after the hook.
    pub freebind: bool,
    /// Multipath TCP.
    pub mptcp: bool,
    /// With TCP_FASTOPEN_CONNECT.
    pub fastopen: bool,
    /// The connection stays open ([`Caller::hold`]).
    pub keep: bool,
    /// Ends with a reset.
    pub reset: bool,
    /// `elsewhere`: then connects the same socket to port `then`. `retried`: the first connect() of the socket fails
    /// after the hook, the second is as usual. Both see two things. `silent`: connects, reads nothing, stays.
    pub odd: Option<&'a str>,
    /// See `odd`.
    pub then: u16,
    /// From this port; 0: any.
    pub source_port: u16,
    /// With SO_BINDTODEVICE.
    pub device: Option<&'a str>,
    /// Not by connect(): `sendto` (TCP Fast Open), `uring`, `uring-async`, `uring-sqpoll` (io_uring: by the caller's own
    /// thread, by a worker thread, by a polling thread).
    pub via: Option<&'a str>,
    /// What is written before the answer is read.
    pub ask: Option<&'a str>,
    /// Between connecting and asking it waits to be told ([`Running::tell`]).
    pub told: bool,
}

impl<'a> Dial<'a> {
    /// Dials once.
    pub fn to(to: &'a str, port: u16) -> Self {
        Self { to, port, times: 1, ..Self::default() }
    }

    /// Dials so often.
    pub fn times(self, times: u32) -> Self {
        Self { times, ..self }
    }
}

/// What a caller saw of one connection.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Seen {
    /// What connect() itself said: 0 or an errno.
    pub connect: i32,
    /// What became known later: 0 or an errno.
    pub later: i32,
    /// What getpeername() says: `127.0.0.1 8000`.
    pub peer: Option<String>,
    /// What the server said.
    pub answer: Option<u16>,
    /// Its process, if it said that, too.
    pub pid: Option<u32>,
    /// Whether it was cold, as it said.
    #[serde(default)]
    pub cold: bool,
    /// How long connect() took.
    #[serde(default)]
    pub ms: f64,
}

impl Seen {
    /// Refused, inside connect() or later.
    pub fn is_refused(&self) -> bool {
        const ECONNREFUSED: i32 = 111;
        self.connect == ECONNREFUSED || self.later == ECONNREFUSED
    }
}

/// How often each server answered; 0 stands for none.
pub fn answers(seen: &[Seen]) -> BTreeMap<u16, usize> {
    let mut answers = BTreeMap::new();
    for one in seen {
        *answers.entry(one.answer.unwrap_or(0)).or_insert(0) += 1;
    }
    answers
}

/// Where dialling is done: network namespace, cgroup, executable.
#[derive(Clone, Debug)]
pub struct Caller<'a> {
    sandbox: &'a Sandbox,
    netns: PathBuf,
    cgroup: PathBuf,
    python: PathBuf,
    /// The file that has the executable's name in a mount namespace of the caller's own.
    hidden: Option<PathBuf>,
}

impl<'a> Caller<'a> {
    /// In a place of the sandbox.
    pub fn at(sandbox: &'a Sandbox, place: Place) -> Self {
        let (netns, cgroup) = (sandbox.netns_path().to_owned(), sandbox.cgroup(place));
        Self { sandbox, netns, cgroup, python: PYTHON.into(), hidden: None }
    }

    /// In another sandbox's network namespace, but still in this one's cgroup.
    pub fn in_netns_of(self, other: &Sandbox) -> Self {
        Self { netns: other.netns_path().to_owned(), ..self }
    }

    /// In another cgroup.
    pub fn in_cgroup(self, cgroup: &Path) -> Self {
        Self { cgroup: cgroup.to_owned(), ..self }
    }

    /// By a copy of Python of its own: another executable. A process that runs the former copy goes on running it.
    pub fn copied(self, name: &str) -> Result<Self> {
        let python = self.sandbox.dir().join(name);
        let aside = python.with_extension("new");
        fs::copy(PYTHON, &aside).context("copy Python")?;
        fs::rename(&aside, &python).context("put the copy in place")?;
        Ok(Self { python, ..self })
    }

    /// In a container: in its mount namespace another file has the executable's name.
    pub fn contained(self) -> Result<Self> {
        let hidden = self.sandbox.dir().join("hidden");
        fs::copy(PYTHON, &hidden).context("copy Python")?;
        Ok(Self { hidden: Some(hidden), ..self })
    }

    /// The executable.
    pub fn executable(&self) -> &Path {
        &self.python
    }

    fn command(&self, mode: &str) -> Result<Command> {
        let script = self.sandbox.dir().join("dial.py");
        if !script.exists() {
            fs::write(&script, include_str!("../app/dial.py")).context("write dial.py")?;
            fs::write(script.with_file_name("uring.py"), include_str!("../app/uring.py")).context("write uring.py")?;
        }
        let mut net = OsStr::new("--net=").to_owned();
        net.push(&self.netns);
        let mut command = Command::new("nsenter");
        command.arg(net).args(["sh", "-c", r#"echo 0 > "$0/cgroup.procs" && exec "$@""#]).arg(&self.cgroup);
        if let Some(hidden) = &self.hidden {
            let bind = r#"mount --bind "$0" "$1" && shift && exec "$@""#;
            command.args(["unshare", "--mount", "sh", "-c", bind]).arg(hidden).arg(&self.python);
        }
        // A copy of Python looks for its library beside itself.
        command.arg(&self.python).args(QUICK).arg(script).arg(mode);
        command.env("PYTHONHOME", "/usr");
        Ok(command)
    }

    /// Does these, in order, in one process.
    pub fn dial(&self, dials: &[Dial<'_>]) -> Result<Vec<Seen>> {
        self.start(dials)?.finish()
    }

    /// Like [`Self::dial`], but does not wait.
    pub fn start(&self, dials: &[Dial<'_>]) -> Result<Running> {
        let mut command = self.command("dial")?;
        command.arg(serde_json::to_string(dials)?).stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Running(command.spawn().context("start dial.py")?))
    }

    /// Does one, in a process of its own.
    pub fn once(&self, dial: Dial<'_>) -> Result<Vec<Seen>> {
        self.dial(&[dial])
    }

    /// Does these, and keeps open those that say so until the result is dropped.
    pub fn hold(&self, dials: &[Dial<'_>]) -> Result<Held> {
        let mut command = self.command("hold")?;
        command.arg(serde_json::to_string(dials)?).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start dial.py")?;
        let mut line = String::new();
        let output = child.stdout.take().context("its output")?;
        let read = BufReader::new(output).read_line(&mut line);
        let mut held = Held { child, seen: Vec::new() };
        read.context("what dial.py saw")?;
        held.seen = serde_json::from_str(&line).context("what dial.py saw")?;
        Ok(held)
    }
}

/// A process that dials.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Lets one that waits for it ask (`told`).
    pub fn tell(&mut self) -> Result<()> {
        self.0.stdin.as_mut().context("its input")?.write_all(b"\n").context("tell dial.py")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits for its end, and says what it saw.
    pub fn finish(self) -> Result<Vec<Seen>> {
        let output = self.0.wait_with_output().context("wait for dial.py")?;
        if !output.status.success() {
            bail!("dial.py: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).context("what dial.py saw")
    }
}

/// A process that keeps connections open.
#[derive(Debug)]
pub struct Held {
    child: Child,
    /// What it saw of them.
    pub seen: Vec<Seen>,
}

impl Held {
    /// Ends it without a word, as a crash would.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("kill dial.py")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The end of its input is its end.
        drop(self.child.stdin.take());
        if let Err(error) = self.child.wait() {
            eprintln!("dial.py: {error}");
        }
    }
}

/// A server that answers every connection with a number, usually its port.
#[derive(Debug)]
pub struct Server {
    /// Its port.
    pub port: u16,
    process: Process,
}

impl Server {
    /// Starts it at `host` (`::`: both families) and waits until it listens.
    pub fn start(sandbox: &Sandbox, host: &str, port: u16) -> Result<Self> {
        Self::start_saying(sandbox, &Caller::at(sandbox, Place::Workers), host, port, port)
    }

    /// The same, of another kind: `words` are those of dial.py's `serve`.
    pub fn start_kind(sandbox: &Sandbox, host: &str, port: u16, words: &[&str]) -> Result<Self> {
        Self::start_any(sandbox, &Caller::at(sandbox, Place::Workers), host, port, port, words)
    }

    /// Starts it where `place` is, in the network namespace of `netns`, answering `say`.
    pub fn start_saying(netns: &Sandbox, place: &Caller<'_>, host: &str, port: u16, say: u16) -> Result<Self> {
        Self::start_any(netns, place, host, port, say, &[])
    }

    fn start_any(netns: &Sandbox, place: &Caller<'_>, host: &str, port: u16, say: u16, words: &[&str]) -> Result<Self> {
        let reached = if host == "::" { "127.0.0.1" } else { host };
        let mut command = place.command("serve")?;
        command.args([host, &port.to_string(), &say.to_string()]).args(words);
        let log = place.sandbox.dir().join(format!("server-{say}.log"));
        let mut process = Process::start("dial.py", command, &log)?;
        process.wait_ready(SOON, || {
            let connected = netns.in_netns(|| TcpStream::connect((reached, port)).is_ok());
            connected.unwrap_or(false)
        })?;
        Ok(Self { port, process })
    }

    /// One a port.
    pub fn start_all(sandbox: &Sandbox, host: &str, ports: impl IntoIterator<Item = u16>) -> Result<Vec<Self>> {
        ports.into_iter().map(|port| Self::start(sandbox, host, port)).collect()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Ends it and waits until it is gone.
    pub fn stop(mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    /// Lets it stand still: it still listens, and nobody accepts.
    pub fn freeze(&mut self) -> Result<()> {
        self.process.signal(Signal::STOP)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has nothing to save; a SIGTERM that meets a frozen process would wait.
        self.process.kill().ok();
    }
}
