//! A connection of the daemon's own to a worker, and the port by which the programs know it.

use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Deref,
    pin::Pin,
    task::{Context, Poll},
};

use socket2::Socket;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::kernel::own_ports::{self, OwnPort};

/// The ports that the kernel gives to outgoing connections of this network namespace.
const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// So many are enough for the warm-ups of a minute.
const ENOUGH: u16 = 4096;

/// The connection. It is closed before its port is given up.
#[derive(Debug)]
pub(crate) struct Stream {
    inner: TcpStream,
    _port: Option<OwnPort>,
}

impl Stream {
    pub(super) fn new(inner: TcpStream, port: Option<OwnPort>) -> Self {
        Self { inner, _port: port }
    }

    /// The daemon's end of it.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// Binds a socket that is to connect to `worker`, and tells the programs its port. `None`: no port is free that no other
/// socket uses, or there are few; the kernel may still find one for this worker, and the connection counts as a caller's.
pub(super) fn bind(socket: &Socket, worker: SocketAddr) -> Option<OwnPort> {
    if !has_ports_enough() {
        return None;
    }
    let any = match worker {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    socket.bind(&any.into()).ok()?;
    Some(own_ports::hold(socket.local_addr().ok()?.as_socket()?.port()))
}

/// Whether there are ports to spare. While a port that was bound is in TIME_WAIT (60 s), the kernel gives it to no connect()
/// of any process (`__inet_hash_connect()`, net/ipv4/inet_hashtables.c): of a small range warm-ups would use up all.
fn has_ports_enough() -> bool {
    fs::read_to_string(RANGE).ok().and_then(|text| ports_in(&text)).is_none_or(|ports| ports >= ENOUGH)
}

fn ports_in(text: &str) -> Option<u16> {
    let mut fields = text.split_whitespace();
    let (first, last): (u16, u16) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(last.saturating_sub(first).saturating_add(1))
}

impl Deref for Stream {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.inner
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, into)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_of_ports_is_read() {
        assert_eq!(ports_in("32768\t60999\n"), Some(28232));
        assert_eq!(ports_in("8000 8039"), Some(40));
        assert_eq!(ports_in("0 65535"), Some(u16::MAX));
        assert_eq!([ports_in("8000"), ports_in("x y"), ports_in("")], [None; 3]);
    }
}
