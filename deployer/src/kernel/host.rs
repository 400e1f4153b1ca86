//! Small facts and services of the running kernel.
#![expect(unsafe_code, reason = "SO_NETNS_COOKIE has no safe wrapper")]

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd,
};

use rustix::{
    thread::{MembarrierCommand, membarrier},
    time::{ClockId, clock_gettime},
};

/// Milliseconds of `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`.
#[must_use]
pub fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

/// Waits until every program that was running when this was called has ended: `MEMBARRIER_CMD_GLOBAL` waits for an RCU
/// grace period (`kernel/sched/membarrier.c`), and programs run as RCU readers. Takes 8-24 ms; blocks the thread.
///
/// # Errors
/// When the kernel was built without membarrier, or runs with `nohz_full` processors, where it refuses.
pub fn grace_period() -> io::Result<()> {
    Ok(membarrier(MembarrierCommand::Global)?)
}

/// The cookie of this process's network namespace (Linux 5.14): never reused while the machine runs.
///
/// # Errors
/// On older kernels, `ENOPROTOOPT`.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the descriptor is open; `cookie` and `len` live through the call, and `len` says how large `cookie` is.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Reads a file of `/proc` or sysfs whose fields of interest are ASCII. What else stands in it (names of processes, mount
/// points) need not be UTF-8, and is replaced where it is not.
///
/// # Errors
/// When the file cannot be read.
pub fn text(path: impl AsRef<std::path::Path>) -> io::Result<String> {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}
