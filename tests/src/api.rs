//! The daemon's API as any program may meet it: HTTP and JSON over a unix socket, with no type of the daemon's own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::daemon::Daemon;
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
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
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

    /// Begins a roll of `web`; `request` is the body.
    pub fn roll(&self, request: &str) -> Result<Roll> {
        let started = self.ask("POST", "/v1/services/web/roll", request)?;
        self.follow(started["id"].as_str().context("a roll without id")?)
    }

    /// Reads a roll's events from the first.
    pub fn follow(&self, id: &str) -> Result<Roll> {
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(EVENT_LIMIT))?;
        stream.write_all(&request("GET", &format!("/v1/rolls/{id}/events"), b""))?;
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            ensure!(lines.read_line(&mut line)? > 0, "the events end in their head");
        }
        Ok(Roll { id: id.to_owned(), lines, seen: Vec::new() })
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
#[derive(Debug)]
pub struct Roll {
    /// Its name.
    pub id: String,
    lines: BufReader<UnixStream>,
    /// The events read so far.
    pub seen: Vec<Value>,
}

impl Roll {
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

    /// Reads to the end.
    pub fn end(mut self) -> Result<Ending> {
        while self.event()?.is_some() {}
        let last = self.seen.last().context("a roll without events")?;
        Ending::read(last)
    }
}

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
