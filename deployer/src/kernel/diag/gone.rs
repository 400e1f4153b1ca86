//! Connections whose other end is gone. Nothing can be lost on them, so they hold no drain.
//!
//! A socket whose process has closed it lives on as an orphan of the kernel, without an inode: first in FIN_WAIT1, until its
//! peer has acknowledged all that was written, then in FIN_WAIT2, until its peer closes too, or for
//! `net.ipv4.tcp_fin_timeout` (60 s). After that it does not exist any more, and its peer stays in CLOSE_WAIT for as long as
//! its process likes. A process that has closed one half only (`shutdown(2)`) still waits for the answer: its socket is in
//! the same states, but has an inode.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use super::{Socket, sockets, states};

/// A socket's own address and its peer's.
type Ends = (SocketAddr, SocketAddr);

/// What was found of the sockets of one port.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// Those that may still carry a request or an answer.
    pub(super) alive: Vec<Socket>,
    /// Those whose other end is gone.
    pub(super) gone: Vec<Socket>,
}

/// What is known of the other end of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    /// A process has it, or will accept it.
    Alive,
    /// Its process has closed it, or has ended.
    Orphan,
    /// It is not among the sockets of this network namespace.
    Absent,
}

/// Sorts sockets of the port `port`. `closing`: the sockets of that port that have closed their half.
///
/// # Errors
/// When the sockets of this network namespace cannot be read.
pub(super) fn settle(all: Vec<Socket>, closing: &[Socket], port: u16) -> io::Result<Settled> {
    let mut settled = Settled::default();
    let others: HashMap<_, _> = closing.iter().chain(&all).map(|other| ((other.local, other.peer), other)).collect();
    let other = |socket: &Socket| others.get(&(socket.peer, socket.local)).map_or(Other::Absent, |other| found(other));
    let known: Vec<_> = all.iter().map(other).collect();
    let missing = all.iter().zip(&known).filter(|(socket, other)| is_left(socket, **other));
    let missing: HashSet<Ends> = missing.map(|(socket, _)| (socket.peer, socket.local)).collect();
    // Few connections are like that, as a rule none: only then is it worth a look at all sockets.
    let elsewhere = if missing.is_empty() { HashSet::new() } else { elsewhere(&missing, port)? };
    for (socket, other) in all.into_iter().zip(known) {
        let may_live = || elsewhere.contains(&(socket.peer, socket.local));
        let is_gone = other == Other::Orphan || is_left(&socket, other) && !may_live();
        (if is_gone { &mut settled.gone } else { &mut settled.alive }).push(socket);
    }
    Ok(settled)
}

fn found(other: &Socket) -> Other {
    if other.inode == 0 && other.is_in(states::HALF_CLOSED) { Other::Orphan } else { Other::Alive }
}

/// Whether the other end of a socket has ended its half, and is not there any more.
fn is_left(socket: &Socket, other: Other) -> bool {
    other == Other::Absent && socket.is_in(states::CLOSE_WAIT)
}

/// Those of the missing sockets that may be alive although no socket of the port has shown them: on another host, in another
/// network namespace, or behind an address translation, which has a socket of this host call by another name.
fn elsewhere(missing: &HashSet<Ends>, port: u16) -> io::Result<HashSet<Ends>> {
    let all = sockets(states::CONNECTED & !states::TIME_WAIT, None)?;
    let mut here: HashMap<IpAddr, bool> = HashMap::new();
    let mut is_here = |ip: IpAddr| *here.entry(ip).or_insert_with(|| is_of_this_host(ip));
    Ok(may_live(missing, &all, port, &mut is_here))
}

/// The same, of all sockets of this network namespace.
fn may_live(
    missing: &HashSet<Ends>,
    all: &[Socket],
    port: u16,
    is_here: &mut dyn FnMut(IpAddr) -> bool,
) -> HashSet<Ends> {
    let pairs: HashSet<Ends> = all.iter().map(|socket| (socket.local, socket.peer)).collect();
    let locals: HashSet<_> = missing.iter().map(|(local, _)| *local).collect();
    let alive = all.iter().filter(|socket| locals.contains(&socket.local) && found(socket) == Other::Alive);
    let (mut overlooked, mut translated) = (HashSet::new(), HashSet::new());
    for socket in alive {
        overlooked.insert((socket.local, socket.peer));
        // What a worker has accepted is never behind a translation: a caller has dialled that very address.
        if socket.local.port() != port && !pairs.contains(&(socket.peer, socket.local)) {
            translated.insert(socket.local);
        }
    }
    let may_live = |ends: &&Ends| overlooked.contains(*ends) || translated.contains(&ends.0) || !is_here(ends.0.ip());
    missing.iter().filter(may_live).copied().collect()
}

/// Whether an address is of this network namespace: only then can a socket be bound to it.
#[must_use]
pub fn is_of_this_host(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests;
