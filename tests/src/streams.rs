//! Clients of long-lived streams, WebSockets and server-sent events, that write down when theirs end.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::http::Request;
use crate::journal::monotonic_ns;
use crate::pace::patient;
use crate::sandbox::Sandbox;

/// A client that hears nothing for so long calls its stream lost.
const SILENCE_LIMIT: Duration = Duration::from_secs(20);

/// What goes over a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A text frame that the worker echoes, every so often.
    WebSocket,
    /// Events of the worker's, every so often.
    Events,
}

/// One stream's life.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Its kind.
    pub kind: Kind,
    /// The request's id.
    pub id: String,
    /// The worker at the other end; 0 until it has answered.
    pub port: u16,
    /// The worker's process.
    pub pid: u32,
    /// Messages received.
    pub messages: u64,
    /// CLOCK_MONOTONIC at the end, and how it came; `None`: it lives.
    pub end: Option<(u64, String)>,
}

/// Running streams. Dropping them ends them.
#[derive(Debug)]
pub struct Streams {
    all: Arc<Mutex<Vec<Stream>>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Result<()>>>>,
}

impl Streams {
    /// Opens `count` streams of each kind, through the load balancer at `target`; on each a message goes every `every`.
    /// Returns when all of them have had one.
    ///
    /// # Errors
    /// When they do not all begin within 20 s.
    pub fn open(sandbox: &Sandbox, target: SocketAddr, count: usize, every: Duration) -> Result<Self> {
        let new = |kind, n| Stream { kind, id: format!("{kind:?}-{n}"), port: 0, pid: 0, messages: 0, end: None };
        let kinds = [Kind::WebSocket, Kind::Events];
        let all: Vec<_> = kinds.into_iter().flat_map(|kind| (0..count).map(move |n| new(kind, n))).collect();
        let (all, stopping) = (Arc::new(Mutex::new(all)), Arc::new(AtomicBool::new(false)));
        let (theirs, told) = (Arc::clone(&all), Arc::clone(&stopping));
        let thread = sandbox.spawn_in_netns(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
            runtime.block_on(run(target, every, theirs, told))
        });
        let streams = Self { all, stopping, thread: Some(thread) };
        let deadline = std::time::Instant::now() + patient(SILENCE_LIMIT);
        while !streams.look().iter().all(|stream| stream.messages > 0 && stream.end.is_none()) {
            if std::time::Instant::now() > deadline {
                bail!("streams that did not begin: {:#?}", streams.look().iter().find(|stream| stream.messages == 0));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(streams)
    }

    /// As they are now.
    pub fn look(&self) -> Vec<Stream> {
        lock(&self.all).clone()
    }

    /// Ends them all; returns how they were just before.
    pub fn close(mut self) -> Result<Vec<Stream>> {
        let all = self.look();
        self.stopping.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result.flatten()?,
            Some(Err(panic)) => bail!("the streams' clients panicked: {panic:?}"),
            None => (),
        }
        Ok(all)
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

async fn run(
    target: SocketAddr,
    every: Duration,
    all: Arc<Mutex<Vec<Stream>>>,
    stopping: Arc<AtomicBool>,
) -> Result<()> {
    let mut clients = JoinSet::new();
    for index in 0..lock(&all).len() {
        let client = Client { all: Arc::clone(&all), index, every };
        clients.spawn(async move {
            let why = client.live(target).await.map_or_else(|error| format!("{error:#}"), |()| "ended".to_owned());
            client.note(|stream| stream.end = Some((monotonic_ns(), why)));
        });
    }
    while !stopping.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    clients.shutdown().await;
    Ok(())
}

struct Client {
    all: Arc<Mutex<Vec<Stream>>>,
    index: usize,
    every: Duration,
}

impl Client {
    fn note<T>(&self, what: impl FnOnce(&mut Stream) -> T) -> T {
        what(&mut lock(&self.all)[self.index])
    }

    async fn live(&self, target: SocketAddr) -> Result<()> {
        let (kind, id) = self.note(|stream| (stream.kind, stream.id.clone()));
        let mut stream = TcpStream::connect(target).await.context("connect")?;
        let path = format!("/events?every={}", self.every.as_secs_f64());
        let key = [
            ("X-Request-Id", id.as_str()),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="),
        ];
        let (request, connection) = match kind {
            Kind::WebSocket => (Request { headers: &key, ..Request::get("/socket") }, "Upgrade"),
            Kind::Events => (Request { headers: &key[..1], ..Request::get(&path) }, "keep-alive"),
        };
        stream.write_all(&request.encode_as(connection)).await.context("send")?;
        let mut rest = self.begin(&mut stream, kind).await?;
        loop {
            let limit = patient(SILENCE_LIMIT) + self.every;
            match kind {
                Kind::WebSocket => timeout(limit, echo(&mut stream, &mut rest)).await.context("silent")??,
                Kind::Events => timeout(limit, event(&mut stream, &mut rest)).await.context("silent")??,
            }
            self.note(|stream| stream.messages += 1);
            if kind == Kind::WebSocket {
                // Nothing may come meanwhile but the end.
                let spoken = timeout(self.every, more(&mut stream, &mut rest)).await;
                ensure!(spoken.is_err(), "{:?}", spoken.map(|end| end.map_err(|error| format!("{error:#}"))));
            }
        }
    }

    /// Reads the answer's head; returns what came after it.
    async fn begin(&self, stream: &mut TcpStream, kind: Kind) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            more(stream, &mut bytes).await?;
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let wanted = if kind == Kind::WebSocket { " 101 " } else { " 200 " };
        ensure!(head.lines().next().is_some_and(|line| line.contains(wanted)), "{head:?}");
        let number = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.trim().parse().ok()).with_context(|| format!("no {name} in {head:?}"))
        };
        let (port, pid): (u32, u32) = (number("X-Port:")?, number("X-Pid:")?);
        let port = u16::try_from(port).context("X-Port")?;
        self.note(|stream| (stream.port, stream.pid) = (port, pid));
        Ok(bytes.split_off(end + 4))
    }
}

/// Sends a text frame, and waits for the same text.
async fn echo(stream: &mut TcpStream, rest: &mut Vec<u8>) -> Result<()> {
    // A mask of zeros changes nothing.
    stream.write_all(b"\x81\x84\0\0\0\0ping").await.context("send a frame")?;
    while rest.len() < 6 {
        more(stream, rest).await?;
    }
    let frame: Vec<_> = rest.drain(..6).collect();
    ensure!(frame == b"\x81\x04ping", "not the echo of what was sent: {frame:?}");
    Ok(())
}

/// Waits for an event. Of the chunks that it comes in nothing else has two line feeds in a row.
async fn event(stream: &mut TcpStream, rest: &mut Vec<u8>) -> Result<()> {
    loop {
        if let Some(end) = rest.windows(2).position(|window| window == b"\n\n") {
            rest.drain(..end + 2);
            return Ok(());
        }
        more(stream, rest).await?;
    }
}

async fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<()> {
    if stream.read_buf(bytes).await.context("receive")? == 0 {
        bail!("closed");
    }
    Ok(())
}

fn lock(all: &Mutex<Vec<Stream>>) -> MutexGuard<'_, Vec<Stream>> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}
