//! Talks to the daemon: one connection a call, and errors that say what to do.

use std::{
    fmt::{Display, Write as _},
    io,
    marker::PhantomData,
    path::PathBuf,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, time::timeout};

use super::out;
use crate::api::{Entry, ErrorBody, Event, Exit};

/// No call takes long in the daemon: a roll answers when it has begun. Longer is a daemon that hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// More cannot be an answer of the daemon's.
const LONGEST_ANSWER: usize = 64 << 20;
/// More cannot be an event.
const LONGEST_LINE: usize = 4 << 20;
/// Of an answer that is not understood, so much is shown.
const SHOWN: usize = 120;

/// Why a verb did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct Failure {
    pub(super) exit: Exit,
    /// What was tried, on what, why it failed, what to do.
    pub(super) message: String,
}

/// Calls the daemon behind a socket.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) socket: PathBuf,
    pub(super) answer_within: Duration,
}

/// Events as they come.
#[derive(Debug)]
pub(super) struct Events<T = Event> {
    client: Client,
    /// What was asked for.
    path: String,
    body: Incoming,
    /// The daemon went away in the middle.
    pub(super) is_cut: bool,
    buffer: Vec<u8>,
    /// How much of the buffer is known to hold no end of line.
    searched: usize,
    event: PhantomData<T>,
}

/// An event, and how it was written: `--json` shows also what this version does not know.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Received<T = Event> {
    pub(super) line: String,
    pub(super) event: T,
}

/// What comes in a row.
pub(super) trait Numbered {
    /// Its number.
    fn seq(&self) -> u64;
}

impl Numbered for Event {
    fn seq(&self) -> u64 {
        self.seq
    }
}

impl Numbered for Entry {
    fn seq(&self) -> u64 {
        self.seq
    }
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket, answer_within: ANSWER_WITHIN }
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let body = serde_json::to_vec(body)
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot write the request POST {path}: {error}")))?;
        self.call(Method::POST, path, body.into()).await
    }

    /// Events, a line each.
    pub(super) async fn events<T>(&self, path: &str) -> Result<Events<T>, Failure> {
        let answer = self.in_time(self.ask(Method::GET, path, Bytes::new())).await?;
        let (client, path, body, is_cut) = (self.clone(), path.to_owned(), answer.into_body(), false);
        Ok(Events { client, path, body, is_cut, buffer: Vec::new(), searched: 0, event: PhantomData })
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, Failure> {
        let whole = async { self.read(self.ask(method.clone(), path, body).await?).await };
        let answer = self.in_time(whole).await?;
        serde_json::from_slice(&answer).map_err(|why| self.garbled(&format!("{method} {path}"), &answer, why))
    }

    async fn in_time<T>(&self, answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        timeout(self.answer_within, answer).await.unwrap_or_else(|_| {
            let limit = self.answer_within.as_secs_f32();
            Err(self.silent(&format!("it has not answered for {limit} s; `systemctl status deployer` may tell more")))
        })
    }

    /// The head of an answer; one that is not a success is read to its end.
    async fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, Failure> {
        let asked = format!("{method} {path}");
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let gone = |error: hyper::Error| self.broken(&asked, &error);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(gone)?;
        // What goes wrong on the connection also reaches who waits for the answer.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "deployer")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot write the request {asked}: {error}")))?;
        let answer = sender.send_request(request).await.map_err(gone)?;
        if answer.status().is_success() { Ok(answer) } else { Err(self.refused(&asked, answer).await) }
    }

    async fn read(&self, answer: Response<Incoming>) -> Result<Bytes, Failure> {
        let body = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| {
            if error.is::<LengthLimitError>() {
                return self.stranger(&format!("its answer is longer than {LONGEST_ANSWER} bytes"));
            }
            self.silent("it went away in the middle of its answer")
        })
    }

    /// What an answer that is not a success says.
    async fn refused(&self, asked: &str, answer: Response<Incoming>) -> Failure {
        let status = answer.status();
        let body = match self.read(answer).await {
            Ok(body) => body,
            Err(failure) => return failure,
        };
        match serde_json::from_slice::<ErrorBody>(&body) {
            // An error that exits with 0 would be taken for a success by every script.
            Ok(ErrorBody { error, exit: Exit::Done }) => Failure::new(Exit::Failed, error),
            Ok(ErrorBody { error, exit }) => Failure::new(exit, error),
            Err(_) if status == StatusCode::NOT_FOUND => self.stranger(&format!("it knows no {asked}")),
            Err(_) => self.stranger(&format!("to {asked} it answered {status}: {}", shown(&body))),
        }
    }

    fn unreachable(&self, error: &io::Error) -> Failure {
        let advice = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                format!("be root or in the group that owns the socket: `ls -l {}`", self.socket.display())
            }
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                "start the daemon with `deployer daemon --config FILE`, see `systemctl status deployer`, or name \
                 another socket with --socket"
                    .to_owned()
            }
            _ => "see `systemctl status deployer`, or name another socket with --socket".to_owned(),
        };
        let socket = self.socket.display();
        Failure::new(Exit::NoDaemon, format!("cannot reach the daemon at {socket}: {error}; {advice}"))
    }

    /// The exchange broke off.
    fn broken(&self, asked: &str, error: &hyper::Error) -> Failure {
        if error.is_parse() {
            return self.stranger(&format!("to {asked} it answered something that is not HTTP ({error})"));
        }
        self.silent("it went away before it had answered")
    }

    fn silent(&self, what: &str) -> Failure {
        let message =
            format!("the daemon at {}: {what}; how things stand is shown by `deployer status`", self.socket.display());
        Failure::new(Exit::NoDaemon, message)
    }

    fn stranger(&self, what: &str) -> Failure {
        let socket = self.socket.display();
        let message = format!("what listens at {socket} is not a daemon of this version of deployer: {what}");
        Failure::new(Exit::Failed, message)
    }

    fn garbled(&self, asked: &str, answer: &[u8], why: impl Display) -> Failure {
        self.stranger(&format!("its answer to {asked} is not understood ({why}): {}", shown(answer)))
    }
}

impl<T: DeserializeOwned> Events<T> {
    /// The next event; `None` where the daemon says no more. Nothing is lost where it is dropped before its end.
    pub(super) async fn next(&mut self) -> Option<Result<Received<T>, Failure>> {
        loop {
            if let Some(line) = self.line() {
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return Some(self.event(&line));
            }
            if self.buffer.len() > LONGEST_LINE {
                let start = std::mem::take(&mut self.buffer);
                return Some(Err(self.garbled(&start, "a line without an end")));
            }
            match self.body.frame().await? {
                Ok(frame) => self.buffer.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                Err(_) => {
                    self.is_cut = true;
                    return None;
                }
            }
        }
    }

    /// Takes a whole line out of the buffer. A line without its end has been cut off.
    fn line(&mut self) -> Option<Vec<u8>> {
        let found = self.buffer.get(self.searched..)?.iter().position(|byte| *byte == b'\n');
        let Some(end) = found else {
            self.searched = self.buffer.len();
            return None;
        };
        let rest = self.buffer.split_off(self.searched + end + 1);
        self.searched = 0;
        Some(std::mem::replace(&mut self.buffer, rest))
    }

    fn event(&self, line: &[u8]) -> Result<Received<T>, Failure> {
        let event = serde_json::from_slice(line).map_err(|why| self.garbled(line, why))?;
        Ok(Received { line: String::from_utf8_lossy(line).trim().to_owned(), event })
    }

    fn garbled(&self, line: &[u8], why: impl Display) -> Failure {
        self.client.garbled(&format!("GET {}", self.path), line, why)
    }
}

/// A segment of a path.
pub(super) fn encoded(name: &str) -> String {
    let mut segment = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') {
            segment.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(segment, "%{byte:02X}");
        }
    }
    segment
}

/// The start of an answer that is not understood.
fn shown(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    let start: String = text.chars().take(SHOWN).collect();
    let more = if start.len() < text.len() { "…" } else { "" };
    format!("`{}{more}`", out::clean(&start))
}
