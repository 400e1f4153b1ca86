//! A door to the new pool, for the gate's command.
//!
//! The command's own connections are those of an ordinary caller: whichever worker it dialled, the kernel would lead it to
//! the current pool. So it is given an address at which the daemon listens, and each connection to it is passed on by one
//! of the daemon's own, which steering lets by.
//!
//! The door is at 127.0.0.1: only processes of this host, in the daemon's network namespace, reach it, but every one of
//! them does, whatever its user. It is there as long as the command runs. Its port is one of the ephemeral ones, like
//! those of outgoing connections; what `deployer check` says of those that are workers' ports goes for it, too.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};
use tracing::{Instrument as _, debug};

use crate::warm;

/// Connections that are open at the same time; others wait until one has ended.
const MOST: usize = 64;
/// Longest wait for a worker to accept.
const CONNECT: Duration = Duration::from_secs(10);
/// Between two tries when the system is short of something.
const PAUSE: Duration = Duration::from_millis(50);

/// Passes connections on to a pool until it is dropped; those that are open then are ended.
pub struct Door {
    at: SocketAddr,
    _task: JoinSet<()>,
}

impl Door {
    /// Opens a door to these workers. Each connection goes to the next of them; one that its worker does not take is
    /// reset, as the worker would have done.
    ///
    /// # Errors
    /// When there is no worker, or the system has no port for it.
    pub async fn open(workers: &[SocketAddr]) -> io::Result<Self> {
        if workers.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the pool has no workers"));
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let at = listener.local_addr()?;
        let mut task = JoinSet::new();
        task.spawn(keep(listener, workers.to_vec()).in_current_span());
        Ok(Self { at, _task: task })
    }

    /// Where it listens: 127.0.0.1 and a port.
    #[must_use]
    pub fn at(&self) -> SocketAddr {
        self.at
    }

    /// The same as `http://127.0.0.1:PORT`, or `https` where the workers speak TLS: bytes are passed on as they are.
    #[must_use]
    pub fn url(&self, is_tls: bool) -> String {
        format!("{}://{}", if is_tls { "https" } else { "http" }, self.at)
    }
}

/// Accepts for ever; ended with it, the relays end.
async fn keep(listener: TcpListener, workers: Vec<SocketAddr>) {
    let mut relays = JoinSet::new();
    let mut next = workers.iter().cycle().copied();
    loop {
        tokio::select! {
            Some(_) = relays.join_next(), if !relays.is_empty() => {}
            accepted = listener.accept(), if relays.len() < MOST => match (accepted, next.next()) {
                (Ok((caller, _)), Some(worker)) => {
                    relays.spawn(relay(caller, worker).in_current_span());
                }
                (Err(error), _) => {
                    debug!(%error, "the door to the new pool cannot accept");
                    sleep(PAUSE).await;
                }
                // A cycle over workers, of which there are some, has no end.
                (Ok(_), None) => return,
            }
        }
    }
}

/// Both ways until both ends are through. What breaks at one end is broken, and not ended, at the other.
async fn relay(mut caller: TcpStream, worker: SocketAddr) {
    let mut inner = match warm::connect(worker, CONNECT).await {
        Ok(inner) => inner,
        Err(why) => {
            debug!(%worker, why, "the door to the new pool finds a worker closed");
            return reset(&caller);
        }
    };
    // Slower without, no more.
    let _ = caller.set_nodelay(true);
    if let Err(error) = copy_bidirectional(&mut caller, &mut inner).await {
        debug!(%worker, %error, "a connection through the door to the new pool broke");
        reset(&caller);
        reset(&inner);
    }
}

/// Has it end with a reset when it is dropped; where that fails, with an ordinary end.
fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::{Instant, timeout},
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    /// Says its name, and then what it hears.
    fn worker(listener: TcpListener, name: &'static str) -> JoinSet<()> {
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut peers = JoinSet::new();
            while let Ok((mut peer, _)) = listener.accept().await {
                peers.spawn(async move {
                    let (mut from, mut to) = peer.split();
                    to.write_all(name.as_bytes()).await?;
                    tokio::io::copy(&mut from, &mut to).await?;
                    to.shutdown().await
                });
            }
        });
        task
    }

    async fn workers() -> (Vec<SocketAddr>, Vec<JoinSet<()>>) {
        let (mut at, mut tasks) = (Vec::new(), Vec::new());
        for name in ["a", "b"] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            at.push(listener.local_addr().unwrap());
            tasks.push(worker(listener, name));
        }
        (at, tasks)
    }

    async fn told(door: &Door, words: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(door.at()).await?;
        stream.write_all(words.as_bytes()).await?;
        stream.shutdown().await?;
        let mut text = String::new();
        timeout(LONG, stream.read_to_string(&mut text)).await??;
        Ok(text)
    }

    #[tokio::test]
    async fn each_connection_goes_to_the_next_worker() {
        let (at, _tasks) = workers().await;
        let door = Door::open(&at).await.unwrap();
        assert!(door.at().ip() == Ipv4Addr::LOCALHOST && door.url(false) == format!("http://{}", door.at()));
        assert_eq!(door.url(true), format!("https://{}", door.at()));
        for expected in ["a, hello", "b, hello", "a, hello"] {
            assert_eq!(told(&door, ", hello").await.unwrap(), expected);
        }
        let much = "x".repeat(1 << 20);
        assert_eq!(told(&door, &much).await.unwrap().len(), 1 + much.len());
    }

    #[tokio::test]
    async fn a_worker_that_is_closed_is_not_hidden() {
        let nobody = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let (at, _tasks) = workers().await;
        let door = Door::open(&[nobody, at[0]]).await.unwrap();
        assert_eq!(told(&door, "x").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(told(&door, "x").await.unwrap(), "ax");
    }

    #[tokio::test]
    async fn more_than_it_holds_wait() {
        let (at, _tasks) = workers().await;
        let door = Door::open(&at).await.unwrap();
        let mut open = Vec::new();
        for _ in 0..MOST {
            let mut stream = TcpStream::connect(door.at()).await.unwrap();
            timeout(LONG, stream.read_u8()).await.unwrap().unwrap();
            open.push(stream);
        }
        let mut late = TcpStream::connect(door.at()).await.unwrap();
        timeout(Duration::from_millis(200), late.read_u8()).await.unwrap_err();
        open.pop();
        timeout(LONG, late.read_u8()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn dropped_it_ends_everything() {
        let (at, _tasks) = workers().await;
        let door = Door::open(&at).await.unwrap();
        let mut stream = TcpStream::connect(door.at()).await.unwrap();
        assert_eq!(timeout(LONG, stream.read_u8()).await.unwrap().unwrap(), b'a');
        let (begun, at) = (Instant::now(), door.at());
        drop(door);
        assert!(timeout(LONG, stream.read_u8()).await.unwrap().is_err(), "the connection that was open has ended");
        while TcpStream::connect(at).await.is_ok() {
            assert!(begun.elapsed() < LONG, "nobody listens any more");
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn no_workers_no_door() {
        assert!(Door::open(&[]).await.is_err());
    }
}
