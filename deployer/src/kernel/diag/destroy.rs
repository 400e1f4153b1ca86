//! Closing another process's connection (`SOCK_DESTROY` of `linux/sock_diag.h`).

use std::{io, net::IpAddr};

use rustix::net::{RecvFlags, SendFlags, netlink, recv, sendto};

use super::{HEADER, Socket, garbled, open, parse};

const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST_ACK: u16 = 0x1 | 0x4;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// Length of `struct inet_diag_req_v2`.
const REQUEST: usize = 56;

/// Closes a connection at this end. The kernel sends a reset to the other end; the process that holds the socket finds the
/// error ECONNABORTED on it. The socket is told by its cookie: one that has taken its place is left alone.
///
/// # Errors
/// `NotFound`: it is closed already. EOPNOTSUPP: the kernel was built without CONFIG_INET_DIAG_DESTROY. EPERM: this takes
/// CAP_NET_ADMIN.
pub fn destroy(socket: &Socket) -> io::Result<()> {
    let netlink = open()?;
    sendto(&netlink, &request(socket), SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))?;
    let mut buffer = [0_u8; 4096];
    let (len, _) = recv(&netlink, &mut buffer[..], RecvFlags::empty())?;
    let answer = buffer.get(..len).ok_or_else(|| garbled("a datagram that is too long"))?;
    match parse(answer, &mut |_| ()) {
        // An acknowledgement is an error message with the number 0.
        Err(error) if error.raw_os_error() == Some(0) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(garbled("no acknowledgement")),
    }
}

/// `nlmsghdr` and `inet_diag_req_v2`.
fn request(socket: &Socket) -> Vec<u8> {
    let family = if socket.local.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut request = Vec::with_capacity(HEADER + REQUEST);
    request.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    request.extend(SOCK_DESTROY.to_ne_bytes());
    request.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([family, IPPROTO_TCP, 0, 0]);
    // All states: the cookie says which socket.
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(socket.local.port().to_be_bytes());
    request.extend(socket.peer.port().to_be_bytes());
    for ip in [socket.local.ip(), socket.peer.ip()] {
        match ip {
            IpAddr::V4(ip) => {
                request.extend(ip.octets());
                request.extend([0; 12]);
            }
            IpAddr::V6(ip) => request.extend(ip.octets()),
        }
    }
    request.extend([0; 4]);
    request.extend((socket.cookie as u32).to_ne_bytes());
    request.extend(((socket.cookie >> 32) as u32).to_ne_bytes());
    request
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::kernel::diag::{sockets, states};

    #[test]
    fn a_connection_is_closed_at_one_end() -> io::Result<()> {
        for at in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(at)?;
            let port = listener.local_addr()?.port();
            let to = if at == "[::1]:0" { format!("[::1]:{port}") } else { format!("127.0.0.1:{port}") };
            let mut caller = TcpStream::connect(to)?;
            let kept = listener.accept()?;
            let ends = sockets(states::ESTABLISHED, Some(port))?;
            let end = ends.iter().find(|end| end.local.port() == port).ok_or_else(|| io::Error::other("no end"))?;
            match destroy(end) {
                // A kernel without it, or a test without the capability.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EPERM)) => return Ok(()),
                result => result?,
            }
            let error = caller.read(&mut [0; 1]).map_err(|error| error.kind());
            assert_eq!(error, Err(io::ErrorKind::ConnectionReset), "{at}");
            assert_eq!(destroy(end).map_err(|error| error.kind()), Err(io::ErrorKind::NotFound), "{at}");
            drop(kept);
        }
        Ok(())
    }
}
