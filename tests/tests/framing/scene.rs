//! A server, connections to it, and the watch.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use deployer::framing::{Framing, FramingWatch};
use deployer::kernel::Pair;
use deployer_tests::dial::PYTHON;
use deployer_tests::process::Process;
use deployer_tests::sandbox::{Place, Sandbox};

pub(crate) const WORKER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8000);
/// What is waited for on a slow machine.
const LIMIT: Duration = Duration::from_secs(20);

/// A complete exchange, whatever its numbers.
pub(crate) const COMPLETE: Framing = Framing::Complete { asked: 0, answered: 0 };

/// Runs `test` in the network namespace of a sandbox in which the server listens.
pub(crate) fn with_server(label: &str, test: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    let sandbox = Sandbox::new(label)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("app/framing.py");
    let mut command = sandbox.command(Place::Workers, PYTHON);
    command.args(["-s", "-S"]).arg(script).args([WORKER.ip().to_string(), WORKER.port().to_string()]);
    let mut server = Process::start("framing.py", command, &sandbox.dir().join("server.log"))?;
    server.wait_ready(LIMIT, || sandbox.in_netns(|| TcpStream::connect(WORKER).is_ok()).unwrap_or_default())?;
    let result = sandbox.in_netns(test)?;
    result.with_context(|| fs::read_to_string(sandbox.dir().join("server.log")).unwrap_or_default())
}

/// A watch that tells of every change of the worker's connections.
pub(crate) struct Watch {
    pub(crate) framing: FramingWatch,
    changes: Receiver<(Pair, Framing)>,
}

impl Watch {
    pub(crate) fn start() -> Result<Self> {
        let (sender, changes) = channel();
        let framing = FramingWatch::start(&[WORKER], move |pair, framing| {
            let _ = sender.send((pair, framing));
        })?;
        framing.set_draining(WORKER, true);
        Ok(Self { framing, changes })
    }

    /// Everything that has been told of a connection, up to this, which is waited for. Numbers are left out, as in
    /// [`COMPLETE`].
    pub(crate) fn told(&self, talk: &Talk, last: Framing) -> Result<Vec<Framing>> {
        let deadline = Instant::now() + LIMIT;
        let mut told = Vec::new();
        while told.last() != Some(&last) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok((pair, framing)) = self.changes.recv_timeout(left) else {
                bail!("{last:?} was not told; {told:?} was, and now it is {:?}", self.framing.framing(&talk.pair));
            };
            if pair == talk.pair {
                told.push(plain(framing));
            }
        }
        Ok(told)
    }

    /// Waits until a connection stands so.
    pub(crate) fn until(&self, talk: &Talk, wanted: Framing) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let seen = self.framing.framing(&talk.pair);
            if plain(seen.framing) == wanted {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "it is {seen:?}, not {wanted:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn now(&self, talk: &Talk) -> Framing {
        plain(self.framing.framing(&talk.pair).framing)
    }
}

fn plain(framing: Framing) -> Framing {
    match framing {
        Framing::Complete { .. } => COMPLETE,
        Framing::Unused { .. } => Framing::Unused { asked: 0, answered: 0 },
        framing => framing,
    }
}

/// A caller's connection.
pub(crate) struct Talk {
    stream: TcpStream,
    pub(crate) pair: Pair,
}

impl Talk {
    pub(crate) fn begin() -> Result<Self> {
        let stream = TcpStream::connect(WORKER).context("connect")?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        let pair = Pair { caller: stream.local_addr()?, worker: WORKER };
        Ok(Self { stream, pair })
    }

    pub(crate) fn send(&mut self, text: &str) -> Result<()> {
        self.stream.write_all(text.as_bytes()).context("send")
    }

    /// Reads until the text ends so.
    pub(crate) fn read_to(&mut self, end: &str) -> Result<String> {
        let mut text = Vec::new();
        let mut bytes = vec![0; 65_536];
        while !text.ends_with(end.as_bytes()) {
            // Byte by byte, so that nothing is taken that comes after; what is long has nothing after it.
            let most = if end.len() < bytes.len() { 1 } else { bytes.len() };
            let got = self.stream.read(&mut bytes[..most]).context("receive")?;
            ensure!(got > 0, "closed after {:?}", String::from_utf8_lossy(&text));
            text.extend(&bytes[..got]);
        }
        String::from_utf8(text).context("not text")
    }

    pub(crate) fn read_all(&mut self) -> Result<String> {
        let mut text = String::new();
        self.stream.read_to_string(&mut text).context("receive")?;
        Ok(text)
    }

    /// A request for what has ten bytes, and the answer.
    pub(crate) fn exchange(&mut self) -> Result<()> {
        self.send(&get("/length"))?;
        self.read_to("xxxxxxxxxx").map(drop)
    }
}

pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: web\r\n\r\n")
}
