//! Connects to a manager's unix socket, and makes sure that the process at the other end may be trusted with workers.

use std::{
    io::{self, Error},
    os::{linux::net::SocketAddrExt, unix::net},
    path::Path,
};

use rustix::process::geteuid;
use tokio::net::UnixStream;

use crate::trust;

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum PeerError {
    /// The system's reason.
    Connect(Error),
    /// Another user may be at the other end.
    Stranger(Error),
}

/// What to do about a [`PeerError::Stranger`].
pub(super) const HINT: &str =
    "Run the manager as root or as the daemon's user, with its socket in a folder that no other user may write";

/// Connects to a socket in a folder that not every user may write, where root or the daemon's user listens.
pub(super) async fn connect(socket: &Path) -> Result<UnixStream, PeerError> {
    if let Some(folder) = trust::open_to_all(socket) {
        let folder = folder.display();
        return Err(stranger(format!(
            "every user may put a socket there, since {folder} is writable by all (chmod o-w {folder})"
        )));
    }
    trusted(UnixStream::connect(socket).await.map_err(PeerError::Connect)?)
}

/// The same for a socket with an abstract name (unix(7)), which every user may take.
pub(super) fn connect_abstract(name: &str) -> Result<UnixStream, PeerError> {
    let stream = || -> io::Result<UnixStream> {
        let stream = net::UnixStream::connect_addr(&net::SocketAddr::from_abstract_name(name)?)?;
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    };
    trusted(stream().map_err(PeerError::Connect)?)
}

fn trusted(stream: UnixStream) -> Result<UnixStream, PeerError> {
    let peer = stream.peer_cred().map_err(PeerError::Connect)?;
    let (uid, own) = (peer.uid(), geteuid().as_raw());
    if uid == 0 || uid == own {
        return Ok(stream);
    }
    let pid = peer.pid().map_or_else(String::new, |pid| format!(" (pid {pid})"));
    Err(stranger(format!(
        "a process of user {uid}{pid} listens there, and not one of root or of the daemon's user ({own})"
    )))
}

fn stranger(said: String) -> PeerError {
    PeerError::Stranger(Error::new(io::ErrorKind::PermissionDenied, said))
}
