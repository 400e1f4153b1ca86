//! The packets between callers and workers, as they arrive over the loopback device: a packet socket (packet(7)) with a
//! filter, so that nobody else's is ever queued.
#![expect(unsafe_code, reason = "the addresses and options of packet sockets have no safe interface")]

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvFlags, recv, sockopt::set_socket_recv_buffer_size_force},
};
use socket2::Socket;

mod filter;

/// The loopback device has this index in every network namespace (`LOOPBACK_IFINDEX`, net/core/dev.c).
const LOOPBACK: i32 = 1;
/// What may wait to be read; the kernel doubles it and counts about 800 bytes for a packet of few, 64 KiB and some for
/// one of 64 KiB. That is seconds of 5,000 small requests a second, or 200 ms of those with answers of 64 KiB. Nothing is
/// set aside: the bytes are those that are in the connections' own queues.
const QUEUE: usize = 32 * 1024 * 1024;
/// The longest packets that a device may be told to make (`GSO_MAX_SIZE`, linux/netdevice.h), and then some.
const LONGEST: usize = 8 * 65_536;

/// TCP packets from and to some ports over the loopback device of the network namespace in which it was opened.
/// Those that carry nothing but an acknowledgement are left out.
pub struct Packets {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Packets {
    /// Begins to receive.
    ///
    /// # Errors
    /// Without CAP_NET_RAW and CAP_NET_ADMIN; before Linux 4.20.
    pub fn open(ports: &[u16]) -> io::Result<Self> {
        // Network headers first. With no protocol nothing is received until it is bound to one, when the filter is there.
        // SAFETY: takes no pointers; the result is looked at.
        let socket =
            unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
        if socket < 0 {
            return Err(failed("open a packet socket (CAP_NET_RAW)", &io::Error::last_os_error()));
        }
        // SAFETY: it has just been opened, and nobody else has it.
        let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(socket) });
        socket.attach_filter(&filter::program(ports)).map_err(|error| failed("filter packets", &error))?;
        // Each packet passes the device twice, out and in.
        set(&socket, libc::PACKET_IGNORE_OUTGOING, 1).map_err(|error| failed("ignore outgoing packets", &error))?;
        set_socket_recv_buffer_size_force(&socket, QUEUE)
            .map_err(|error| failed("set the length of the packet queue (CAP_NET_ADMIN)", &error.into()))?;
        bind(&socket).map_err(|error| failed("receive the loopback device's packets", &error))?;
        Ok(Self { socket: socket.into(), buffer: vec![0; LONGEST] })
    }

    /// Waits until there is a packet; `false`: none has come in time.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&limit)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The next packet from its network header on, and how long it was where it is longer than that; `None`: no packet is
    /// there.
    ///
    /// # Errors
    /// `ENETDOWN` once when the device has gone down; goes on when it is up again.
    pub fn read(&mut self) -> io::Result<Option<(&[u8], usize)>> {
        match recv(&self.socket, &mut *self.buffer, RecvFlags::TRUNC) {
            Ok((received, len)) => Ok(Some((&self.buffer[..received], len))),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// How many packets were missed for want of room since this was last asked.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn missed(&self) -> io::Result<u32> {
        let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut len = mem::size_of_val(&stats) as libc::socklen_t;
        // SAFETY: `stats` is what the option's result is laid out as, and `len` its length; both outlive the call.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut len,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(stats.tp_drops) }
    }
}

fn failed(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what}: {error}"))
}

/// Sets a number among the options of packet sockets.
fn set(socket: &Socket, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = mem::size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` is a number of the length that is given, and outlives the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw const value).cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// To all protocols of the loopback device: taps of one protocol are served later.
fn bind(socket: &Socket) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: LOOPBACK,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: `address` is a whole address of the socket's family, of the length that is given, and outlives the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
