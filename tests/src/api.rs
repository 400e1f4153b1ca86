//! The daemon's API as any program may meet it: HTTP and JSON over a unix socket, with no type of the daemon's own.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::daemon::Daemon;
use crate::pace::patient;
use crate::sandbox::Sandbox;

/// The longest that an answer may take; a roll's events come as they happen.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
const EVENT_LIMIT: Duration = Duration::from_secs(60);

/// Where a daemon answers.
#[derive(Clone, Debug)]
pub struct Api {
    socket: PathBuf,
}

/// A complete answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body, which must be JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("{}: {:?} is no JSON", self.status, self.body))
    }

    /// The `error` and `exit` of an answer that is no success.
    pub fn refusal(&self) -> Result<(String, String)> {
        let json = self.json()?;
        let text = |key: &str| json[key].as_str().map(str::to_owned).with_context(|| format!("no `{key}` in {json}"));
        Ok((text("error")?, text("exit")?))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no HTTP answer: {text:?}"))?;
        let status = head.split(' ').nth(1).context("no status")?.parse().context("bad status")?;
        Ok(Self { status, body: body.to_owned() })
    }
}

impl Api {
    /// The API of a sandbox's daemon.
    pub fn of(sandbox: &Sandbox) -> Self {
        Self { socket: Daemon::socket_of(sandbox) }
    }

    /// A connection on which nothing has been said.
    pub fn connect(&self) -> Result<UnixStream> {
        let stream = UnixStream::connect(&self.socket).context("connect to the daemon")?;
        stream.set_read_timeout(Some(patient(ANSWER_LIMIT)))?;
        stream.set_write_timeout(Some(patient(ANSWER_LIMIT)))?;
        Ok(stream)
    }

    /// Sends these very bytes; returns all that comes back before the connection ends.
    pub fn raw(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut stream = self.connect()?;
        // A daemon that has heard enough may close early; what it has said is still to be read.
        stream.write_all(bytes).ok();
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => bail!("neither an answer nor an end"),
            _ => Ok(answer),
        }
    }

    /// One call.
    pub fn call(&self, method: &str, path: &str, body: &[u8]) -> Result<Answer> {
        Answer::parse(&self.raw(&request(method, path, body))?)
    }

    /// One call that must succeed.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Result<Value> {
        let answer = self.call(method, path, body.as_bytes())?;
        ensure!(answer.status == 200, "{method} {path} {body}: {answer:?}");
        answer.json()
    }

    /// All there is to know.
    pub fn status(&self) -> Result<Value> {
        self.ask("GET", "/v1/status", "")
    }

    /// The workers of the service `web`, by port.
    pub fn workers(&self) -> Result<BTreeMap<u16, Value>> {
        let status = self.status()?;
        let services = status["services"].as_array().context("services")?;
        let web = services.iter().find(|service| service["name"] == "web").context("no service web")?;
        let workers = web["workers"].as_array().context("workers")?;
        workers.iter().map(|worker| Ok((port(&worker["at"])?, worker.clone()))).collect()
    }

    /// The phases of the workers of `web`, by port.
    pub fn phases(&self) -> Result<BTreeMap<u16, String>> {
        let workers = self.workers()?.into_iter();
        Ok(workers.map(|(port, worker)| (port, worker["phase"].as_str().unwrap_or("?").to_owned())).collect())
    }

    /// Reads a roll's events from the first.
    pub fn follow(&self, id: &str) -> Result<Roll> {
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(patient(EVENT_LIMIT)))?;
        stream.write_all(&request("GET", &format!("/v1/rolls/{id}/events"), b""))?;
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            ensure!(lines.read_line(&mut line)? > 0, "the events end in their head");
        }
        Ok(Roll { lines: Box::new(lines), seen: Vec::new(), client: None })
    }
}

/// HTTP/1.0, so that answers end with the connection and are never chunked.
fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.0\r\nHost: deployer\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

fn port(address: &Value) -> Result<u16> {
    let port = address.as_str().and_then(|at| at.rsplit(':').next()).and_then(|port| port.parse().ok());
    port.with_context(|| format!("{address} is no address"))
}

/// A roll, as its events tell it.
pub struct Roll {
    lines: Box<dyn BufRead>,
    /// The events read so far.
    pub seen: Vec<Value>,
    /// Who reads them for us: `deployer roll --json`.
    client: Option<Child>,
}

impl fmt::Debug for Roll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roll").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl Roll {
    /// A roll that `deployer roll --json` has begun, its standard output in a pipe.
    pub fn by(mut client: Child) -> Result<Self> {
        let output = client.stdout.take().context("its output")?;
        Ok(Self { lines: Box::new(BufReader::new(output)), seen: Vec::new(), client: Some(client) })
    }

    /// Its name.
    pub fn id(&self) -> Result<String> {
        let first = self.seen.first().context("no event read yet")?;
        Ok(first["roll"].as_str().context("no name")?.to_owned())
    }

    /// The process id of its client.
    pub fn client(&self) -> Result<u32> {
        Ok(self.client.as_ref().context("no client")?.id())
    }

    /// Hears no more: the reading end of the client's output is closed.
    pub fn deaf(self) -> Result<Child> {
        self.client.context("no client")
    }

    /// The next event; `None` after the last.
    pub fn event(&mut self) -> Result<Option<Value>> {
        let mut line = String::new();
        if self.lines.read_line(&mut line).context("waiting for an event")? == 0 {
            return Ok(None);
        }
        let event: Value = serde_json::from_str(&line).with_context(|| format!("{line:?}"))?;
        ensure!(event["seq"] == self.seen.len(), "a gap before {event}");
        self.seen.push(event.clone());
        Ok(Some(event))
    }

    /// Reads up to the first event that is `wanted`.
    pub fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        while let Some(event) = self.event()? {
            if wanted(&event) {
                return Ok(event);
            }
        }
        bail!("it never came; the roll: {:?}", self.seen)
    }

    /// Reads up to the event that a worker has come into a phase.
    pub fn until_phase(&mut self, worker: u16, phase: &str) -> Result<Value> {
        let is = |event: &Value| {
            event["event"] == "phase" && event["phase"] == phase && port(&event["worker"]).is_ok_and(|p| p == worker)
        };
        self.until(is).with_context(|| format!("waiting for {worker} to be {phase}"))
    }

    /// Reads to the end; the client's exit code must be the one that the result stands for.
    pub fn end(mut self) -> Result<Ending> {
        let (code, printed) = self.left()?;
        let ending = Ending::read(self.seen.last().context("a roll without events")?)?;
        let wanted = EXITS.iter().find(|(name, _)| *name == ending.result).map(|(_, code)| *code);
        ensure!(code.is_none() || code == wanted, "exit code {code:?} after {ending:?}; printed {printed:?}");
        Ok(ending)
    }

    /// Reads what comes; returns its client's exit code, and what that has printed as errors.
    pub fn left(&mut self) -> Result<(Option<i32>, String)> {
        while self.event()?.is_some() {}
        let Some(client) = self.client.take() else { return Ok((None, String::new())) };
        let output = client.wait_with_output().context("wait for deployer roll")?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

/// Exit codes by their names in the API.
const EXITS: [(&str, i32); 8] = [
    ("done", 0),
    ("failed", 1),
    ("usage", 2),
    ("stopped", 3),
    ("busy", 4),
    ("rolled-back", 5),
    ("no-daemon", 6),
    ("incomplete", 7),
];

/// How a roll has ended.
#[derive(Clone, Debug)]
pub struct Ending {
    /// `done`, `failed`, `stopped`, ...
    pub result: String,
    /// In a sentence.
    pub text: String,
    /// Workers on the new version.
    pub changed: u64,
    /// Workers that failed, and are out.
    pub failed: Vec<u16>,
    /// How long it took.
    pub seconds: f64,
}

impl Ending {
    /// From the last event.
    pub fn read(event: &Value) -> Result<Self> {
        ensure!(event["event"] == "finished", "the last event is {event}");
        let text = |key: &str| event[key].as_str().map(str::to_owned).with_context(|| format!("no `{key}`: {event}"));
        Ok(Self {
            result: text("result")?,
            text: text("text")?,
            changed: event["changed"].as_u64().context("changed")?,
            failed: event["failed"].as_array().context("failed")?.iter().map(port).collect::<Result<_>>()?,
            seconds: event["seconds"].as_f64().context("seconds")?,
        })
    }

    /// Whether it ended like this, and its text names all of these.
    pub fn must(&self, result: &str, named: &[&str]) -> Result<()> {
        ensure!(self.result == result, "{result} was expected, not {self:?}");
        for name in named {
            ensure!(self.text.contains(name), "{name:?} is missing in {:?}", self.text);
        }
        Ok(())
    }
}
