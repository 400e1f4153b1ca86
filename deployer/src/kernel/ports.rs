//! Ports that cannot be bound, and who has them: a worker that is restarted may find its own given to somebody's
//! outgoing connection (`net.ipv4.ip_local_port_range`).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    diag::{self, states},
    procs,
};

/// Whether something is in the way of a listener there. Binds, without listening: nobody can connect to that, and it is
/// gone at once.
#[must_use]
pub fn is_taken(address: SocketAddr) -> bool {
    let bind = || -> io::Result<()> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // Then what is left of a listener's own connections is not in the way.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())
    };
    bind().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// Whose outgoing connection is in the way of a listener at `address`, or at its port of every address, in words.
///
/// # Errors
/// When sock_diag fails.
pub fn taken_by(address: SocketAddr) -> io::Result<Option<String>> {
    let all: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    if !is_taken(address) && !is_taken(SocketAddr::new(all, address.port())) {
        return Ok(None);
    }
    let mut found = diag::sockets(states::CONNECTED | states::LISTEN, Some(address.port()))?;
    found.retain(|socket| socket.local.port() == address.port());
    // Then it is the listener that is in the way, and connections here are its own.
    if found.iter().any(|socket| socket.is_in(states::LISTEN)) {
        return Ok(None);
    }
    // Those that a process holds first: others go by themselves.
    let Some(socket) = found.iter().max_by_key(|socket| (socket.inode != 0, socket.local == address)) else {
        return Ok(None);
    };
    let (local, peer) = (socket.local, socket.peer);
    let Some(process) = procs::holding(&[socket.inode].into()).remove(&socket.inode) else {
        return Ok(Some(format!("a connection to {peer} that has ended has {local} for up to a minute")));
    };
    Ok(Some(format!("{process} has {local} as its end of a connection to {peer}")))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn an_outgoing_connection_is_named() -> io::Result<()> {
        let other = TcpListener::bind("127.0.0.1:0")?;
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        socket.connect(&other.local_addr()?.into())?;
        let taken = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("no address"))?;
        let (pid, to) = (std::process::id(), other.local_addr()?);
        let said = taken_by(taken)?.unwrap_or_default();
        assert!(said.contains(&format!("(pid {pid}) has {taken} as its end of a connection to {to}")), "{said}");
        // Who listens on every address is kept from it, too.
        assert!(taken_by(SocketAddr::from(([127, 0, 0, 9], taken.port())))?.is_some());
        Ok(())
    }

    #[test]
    fn a_port_that_is_free_or_listened_on_is_not() -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let at = listener.local_addr()?;
        let caller = std::net::TcpStream::connect(at)?;
        assert!(is_taken(at));
        assert_eq!(taken_by(at)?, None);
        drop((caller, listener));
        assert!(!is_taken(at));
        assert_eq!(taken_by(at)?, None);
        Ok(())
    }
}
