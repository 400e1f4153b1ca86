//! The self-test's caller: a process of its own, so that it can be put where callers are.

use std::{
    io::{self, BufRead, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::api::Exit;

/// Both ends are sockets of this host: what takes longer hangs.
const WITHIN: Duration = Duration::from_secs(3);

/// What is to be dialled.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// To be steered.
    pub(super) steered: SocketAddr,
    /// To be refused.
    pub(super) refused: SocketAddr,
}

/// What the caller saw.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) steered: Dialled,
    pub(super) refused: Dialled,
}

/// How a `connect()` ended, as its caller sees it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Dialled {
    /// Connected.
    To {
        /// `getsockname()`
        local: SocketAddr,
        /// `getpeername()`
        peer: SocketAddr,
    },
    /// ECONNREFUSED.
    Refused,
    /// Anything else, in words.
    Failed(String),
}

/// The hidden verb: reads an [`Order`] from standard input, says what it [`Seen`], and holds its connections until
/// standard input ends.
pub fn main() -> Exit {
    match run() {
        Ok(()) => Exit::Done,
        Err(_) => Exit::Failed,
    }
}

fn run() -> io::Result<()> {
    let mut input = io::stdin().lock();
    let mut line = String::new();
    input.read_line(&mut line)?;
    let order: Order = serde_json::from_str(&line)?;
    let (steered, refused) = (dial(order.steered), dial(order.refused));
    let seen = Seen { steered: told(&steered), refused: told(&refused) };
    let mut output = io::stdout().lock();
    serde_json::to_writer(&mut output, &seen)?;
    writeln!(output)?;
    output.flush()?;
    line.clear();
    input.read_line(&mut line)?;
    Ok(())
}

fn dial(at: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&at, WITHIN)
}

fn told(result: &io::Result<TcpStream>) -> Dialled {
    let ends = |stream: &TcpStream| Ok::<_, io::Error>((stream.local_addr()?, stream.peer_addr()?));
    match result {
        Ok(stream) => match ends(stream) {
            Ok((local, peer)) => Dialled::To { local, peer },
            Err(error) => Dialled::Failed(error.to_string()),
        },
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Dialled::Refused,
        Err(error) => Dialled::Failed(error.to_string()),
    }
}
