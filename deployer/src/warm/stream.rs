//! A connection of the daemon's own to a worker, and the port by which the programs know it.

use std::{
    io,
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
}

/// Binds a socket that is to connect to `worker`, and tells the programs its port. `None`: no port is free that no other
/// socket uses; the kernel may still find one for this worker, and the connection counts as a caller's.
pub(super) fn bind(socket: &Socket, worker: SocketAddr) -> Option<OwnPort> {
    let any = match worker {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    socket.bind(&any.into()).ok()?;
    Some(own_ports::hold(socket.local_addr().ok()?.as_socket()?.port()))
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
