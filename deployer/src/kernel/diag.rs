//! sock_diag: which sockets there are, as `ss` sees them (`linux/inet_diag.h`, `linux/sock_diag.h`).

mod activity;
mod destroy;
mod evidence;
mod gone;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

pub use self::{
    activity::{Activity, activity},
    destroy::destroy,
    evidence::{Doors, Evidence, Note, Noted, half_closed},
    gone::is_of_this_host,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, sendto, socket_with};

/// `TCPDIAG_GETSOCK`, which asks for both families at once; `SOCK_DIAG_BY_FAMILY` would go over all sockets once for each.
const GET_SOCKETS: u16 = 18;
const NLM_F_REQUEST_DUMP: u16 = 0x1 | 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQ_BYTECODE: u16 = 1;
const AF_INET6: u8 = 10;
const HEADER: usize = 16;
const MESSAGE: usize = 72;
/// Attributes of an answer (`linux/inet_diag.h`): whether an IPv6 socket takes IPv6 alone, and its cgroup (Linux 5.9).
const SKV6ONLY: u16 = 11;
const CGROUP_ID: u16 = 21;

/// Operations of the filter that runs in the kernel (`linux/inet_diag.h`).
const BC_JMP: u8 = 1;
const BC_S_EQ: u8 = 11;
const BC_D_EQ: u8 = 12;

/// TCP states of `include/net/tcp_states.h`, as bits of a request.
pub mod states {
    /// The caller's SYN is out; behind a full accept queue it stays so for seconds.
    pub const SYN_SENT: u32 = 1 << 2;
    /// The kernel has answered; nobody was told yet.
    pub const SYN_RECV: u32 = 1 << 3 | 1 << 12;
    /// Established, accepted or still in the accept queue.
    pub const ESTABLISHED: u32 = 1 << 1;
    /// The peer has ended its half; the worker may still be answering.
    pub const CLOSE_WAIT: u32 = 1 << 8;
    /// Listening.
    pub const LISTEN: u32 = 1 << 10;
    /// Every state in which a request may be on its way, or being served. Not LISTEN, TIME_WAIT, or the FIN states, in
    /// which the kernel alone finishes what has been written.
    pub const ALIVE: u32 = SYN_SENT | SYN_RECV | ESTABLISHED | CLOSE_WAIT;
    /// The socket's own half is closed, its peer's may not be.
    pub const HALF_CLOSED: u32 = 1 << 4 | 1 << 5;
    /// Both halves are closed, and the port is kept for a minute.
    pub const TIME_WAIT: u32 = 1 << 6;
    /// Every state but LISTEN: whatever may still have its port.
    pub const CONNECTED: u32 = ALIVE | HALF_CLOSED | TIME_WAIT | 1 << 9 | 1 << 11;
}

/// A socket as sock_diag reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Number of its TCP state.
    pub state: u8,
    /// Its own end; IPv4-mapped addresses are shown as IPv4.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// `SO_COOKIE`.
    pub cookie: u64,
    /// Inode in `/proc/PID/fd`; 0: no process holds it (yet).
    pub inode: u32,
    /// The process that made it, as far as the kernel tells.
    pub origin: Origin,
}

/// What made a socket, as the kernel noted it when the socket was made. A process without privileges cannot change it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Origin {
    /// The user, by number.
    pub uid: u32,
    /// Id of the cgroup v2 of the process: the inode of the cgroup's directory. `None` before Linux 5.9.
    pub cgroup: Option<u64>,
    /// It is an IPv6 socket that takes IPv6 alone (`IPV6_V6ONLY`).
    pub v6only: bool,
}

impl Socket {
    /// Whether its state is one of `states` (bits of [`states`]).
    #[must_use]
    pub fn is_in(&self, states: u32) -> bool {
        1_u32.checked_shl(self.state.into()).is_some_and(|state| state & states != 0)
    }

    /// The state's name as `ss` writes it.
    #[must_use]
    pub fn state_name(&self) -> &'static str {
        match self.state {
            1 => "established",
            2 => "syn-sent",
            3 | 12 => "syn-recv",
            8 => "close-wait",
            10 => "listen",
            _ => "closing",
        }
    }
}

/// All TCP sockets, IPv4 and IPv6, of this network namespace in any of `states` (bits of [`states`]); with a port, those
/// only that have it at either end (sorted out by the kernel).
///
/// # Errors
/// When netlink fails, or the answer is garbled.
pub fn sockets(states: u32, port: Option<u16>) -> io::Result<Vec<Socket>> {
    let netlink = open()?;
    let mut found = Vec::new();
    dump(&netlink, &request(states, port, 0, &[]), &mut |message| found.push(socket(message)))?;
    Ok(found)
}

/// The sockets that hold a drain of `worker`: every one, at either end, in which a request may be on its way or being
/// served. The callers' ends count too: behind a full accept queue they wait in SYN_SENT, and nothing shows at the
/// worker's end. Only connections count that the worker's own listener has accepted or will accept; see [`Doors`].
/// `wildcard`: the worker has been seen to listen on every address; then callers on other hosts count as well.
///
/// # Errors
/// As [`sockets`].
pub fn holders(worker: SocketAddr, wildcard: bool) -> io::Result<Vec<Socket>> {
    Ok(Evidence::look(worker, wildcard, None)?.sockets)
}

/// Whether the worker listens at a wildcard address: something does, and nothing listens at the worker's own.
///
/// # Errors
/// As [`sockets`].
pub fn listens_on_all(worker: SocketAddr) -> io::Result<bool> {
    let found = sockets(states::LISTEN, Some(worker.port()))?;
    let mut at = found.iter().filter(|socket| socket.local.port() == worker.port()).map(|socket| socket.local.ip());
    Ok(at.clone().all(|ip| ip != worker.ip()) && at.any(|ip| ip.is_unspecified()))
}

/// Whether `end` of a connection is the worker's: its port, at its own address, at any loopback address (a worker on a
/// wildcard address has them all), or at an address of this host (a connection to one has it at both ends).
#[must_use]
pub fn is_end(end: SocketAddr, other: SocketAddr, worker: SocketAddr) -> bool {
    end.port() == worker.port() && (end.ip() == worker.ip() || end.ip().is_loopback() || end.ip() == other.ip())
}

fn open() -> io::Result<OwnedFd> {
    let kind = Some(netlink::SOCK_DIAG);
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, kind)?)
}

/// Hands each socket's message over, which is at least [`MESSAGE`] long.
fn dump(netlink: &OwnedFd, request: &[u8], each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    sendto(netlink, request, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))?;
    let mut buffer = vec![0_u8; 64 * 1024];
    loop {
        let (_, len) = recv(netlink, &mut *buffer, RecvFlags::TRUNC)?;
        let datagram = buffer.get(..len).ok_or_else(|| garbled("a datagram of more than 64 KiB"))?;
        if parse(datagram, each)? {
            return Ok(());
        }
    }
}

fn garbled(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("sock_diag answered with {what}"))
}

/// `nlmsghdr`, `inet_diag_req`, and the filter as an attribute, with `more` attributes after it. `extensions`: what each
/// answer is to hold beside the socket.
fn request(states: u32, port: Option<u16>, extensions: u8, more: &[u8]) -> Vec<u8> {
    let filter = port.map(filter).unwrap_or_default();
    let attribute = if filter.is_empty() { 0 } else { 4 + filter.len() };
    let len = HEADER + 60 + attribute + more.len();
    let mut request = Vec::with_capacity(len);
    request.extend((len as u32).to_ne_bytes());
    request.extend(GET_SOCKETS.to_ne_bytes());
    request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.extend([0; 8]);
    // Family and lengths of prefixes, which nobody reads; the ends of one socket, which is not asked for.
    request.extend([0, 0, 0, extensions]);
    request.extend([0; 48]);
    request.extend(states.to_ne_bytes());
    request.extend([0; 4]);
    if attribute > 0 {
        request.extend((attribute as u16).to_ne_bytes());
        request.extend(REQ_BYTECODE.to_ne_bytes());
        request.extend(filter);
    }
    request.extend(more);
    request
}

/// Source port == port, or destination port == port. Each operation is `code, yes, no`: how far to go on when it is true
/// or false; arriving at the end accepts, beyond it rejects. The port stands in the `no` of the operation that follows.
fn filter(port: u16) -> Vec<u8> {
    let operation = |code: u8, yes: u8, no: u16| [[code, yes], no.to_ne_bytes()].concat();
    [
        operation(BC_S_EQ, 8, 12),
        operation(0, 0, port),
        operation(BC_JMP, 4, 12),
        operation(BC_D_EQ, 8, 12),
        operation(0, 0, port),
    ]
    .concat()
}

/// Reads one datagram of messages; `true`: the dump is complete.
fn parse(mut datagram: &[u8], each: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
    while datagram.len() >= HEADER {
        let len = u32_at(datagram, 0) as usize;
        let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
        let message = datagram.get(HEADER..len).ok_or_else(|| garbled("a truncated message"))?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR if message.len() >= 4 => {
                let errno = u32_at(message, 0).cast_signed();
                return Err(io::Error::from_raw_os_error(errno.wrapping_neg()));
            }
            GET_SOCKETS if message.len() >= MESSAGE => each(message),
            _ => return Err(garbled("a message of another kind")),
        }
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// `inet_diag_msg`; `message` is at least [`MESSAGE`] long.
fn socket(message: &[u8]) -> Socket {
    let family = message[0];
    let id = &message[4..52];
    let end = |port: usize, addr: usize| {
        SocketAddr::new(ip(family, &id[addr..addr + 16]), u16::from_be_bytes([id[port], id[port + 1]]))
    };
    Socket {
        state: message[1],
        local: end(0, 4),
        peer: end(2, 20),
        cookie: u64::from(u32_at(id, 40)) | u64::from(u32_at(id, 44)) << 32,
        inode: u32_at(message, 68),
        origin: origin(message),
    }
}

/// The user from `inet_diag_msg`, the rest from the attributes behind it; those that are absent or cut short are left out.
fn origin(message: &[u8]) -> Origin {
    let mut origin = Origin { uid: u32_at(message, 64), ..Origin::default() };
    let mut rest = message.get(MESSAGE..).unwrap_or_default();
    while let [len_low, len_high, kind_low, kind_high, ..] = *rest {
        let len = usize::from(u16::from_ne_bytes([len_low, len_high]));
        let Some(value) = rest.get(4..len) else { break };
        match u16::from_ne_bytes([kind_low, kind_high]) {
            SKV6ONLY => origin.v6only = value.first().is_some_and(|flag| *flag != 0),
            CGROUP_ID => origin.cgroup = value.try_into().ok().map(u64::from_ne_bytes),
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    origin
}

fn ip(family: u8, bytes: &[u8]) -> IpAddr {
    if family == AF_INET6 {
        let mut addr = [0; 16];
        addr.copy_from_slice(&bytes[..16]);
        return Ipv6Addr::from(addr).to_canonical();
    }
    IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use proptest::prelude::*;

    use super::*;

    /// Both ends of a connection are found, wherever the listener is bound; after both are closed, none.
    #[test]
    fn finds_both_ends() -> io::Result<()> {
        for at in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(at)?;
            let port = listener.local_addr()?.port();
            let worker = SocketAddr::new(
                if at == "[::1]:0" { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() },
                port,
            );
            let caller = TcpStream::connect(worker)?;
            assert_eq!(holders(worker, false)?.len(), 2, "in the accept queue of {at}");
            let (accepted, _) = listener.accept()?;
            let found = holders(worker, false)?;
            assert_eq!(found.len(), 2, "{at}: {found:?}");
            assert!(found.iter().all(|socket| socket.state_name() == "established"));
            drop(caller);
            drop(accepted);
            assert_eq!(holders(worker, false)?, vec![], "after the close, {at}");
            let listening = sockets(states::LISTEN, None)?;
            assert!(listening.iter().any(|socket| socket.local.port() == port));
        }
        Ok(())
    }

    /// Outgoing connections that have been given a worker's port, as `net.ipv4.ip_local_port_range` may have it.
    #[test]
    fn strangers_from_the_same_port_do_not_hold() -> io::Result<()> {
        let (listener, other) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        let worker = listener.local_addr()?;
        let from = |ip: &str, to: &TcpListener| -> io::Result<(TcpStream, TcpStream)> {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            let ip: Ipv4Addr = ip.parse().map_err(io::Error::other)?;
            socket.bind(&SocketAddr::from((ip, worker.port())).into())?;
            socket.connect(&to.local_addr()?.into())?;
            Ok((socket.into(), to.accept()?.0))
        };
        let stranger = from("127.0.0.2", &other)?;
        assert_eq!(holders(worker, false)?, vec![], "a stranger's connection from 127.0.0.2");
        // The twin: with a caller of the worker's from such a port.
        let caller = from("127.0.0.3", &listener)?;
        assert_eq!(holders(worker, false)?.len(), 2);
        drop((caller, stranger));
        Ok(())
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_or_nothing(datagram: Vec<u8>) {
            let _ = parse(&datagram, &mut |message| _ = socket(message));
            }
    }
}
