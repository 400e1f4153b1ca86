//! Which sockets are evidence that a worker is in use: those that its own listener has accepted or will accept, and the
//! callers' ends that lead there. A port alone says nothing: another process may use the same port at another address.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, BorrowedFd},
};

use deployer_common::layout::SockNote;

use super::{
    Socket,
    activity::{Attributes, REQ_STORAGE_MAP, REQ_STORAGES, STORAGES, attribute, sock_note},
    dump,
    gone::{self, Settled},
    open, request, socket, states, u32_at,
};

/// Where the owner's user id stands in `struct inet_diag_msg`.
const UID: usize = 64;

/// What the programs have noted of a socket; all of it unset where they have noted nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Note {
    /// It is a worker's end: index of the worker.
    pub accepted_for: Option<u32>,
    /// It is the end of a steered caller: index of the worker to which it leads.
    pub leads_to: Option<u32>,
    /// It is the end of a caller that is not steered.
    pub outsider: bool,
}

impl Note {
    fn of(note: &SockNote) -> Self {
        Self {
            accepted_for: note.counted.checked_sub(1),
            leads_to: u32::from(note.to).checked_sub(1),
            outsider: note.is_outsiders(),
        }
    }
}

/// The programs' notes on sockets, and the index of the worker that is looked at.
pub type Noted<'a> = (BorrowedFd<'a>, u32);

/// The sockets of a port that are evidence of a worker, and what is noted of them.
#[derive(Debug, Default)]
pub struct Evidence {
    /// The sockets at either end, in a state in which a request may be on its way or being served.
    pub sockets: Vec<Socket>,
    /// Those whose other end is gone: they are evidence of nothing.
    pub gone: Vec<Socket>,
    /// What the programs have noted of all of them, by cookie.
    pub notes: HashMap<u64, Note>,
    /// Where the worker is reached.
    pub doors: Doors,
}

impl Evidence {
    /// Looks at all sockets of the worker's port. `wildcard`: the worker has been seen to listen at a wildcard address.
    ///
    /// # Errors
    /// When netlink fails, or the answer is garbled.
    pub fn look(at: SocketAddr, wildcard: bool, noted: Option<Noted<'_>>) -> io::Result<Self> {
        let (mut listening, mut sockets, mut closing, mut notes) = (Vec::new(), Vec::new(), Vec::new(), HashMap::new());
        let states = states::ALIVE | states::LISTEN | states::HALF_CLOSED;
        each(at.port(), states, noted.map(|(notes, _)| notes), &mut |seen, uid, note| {
            if seen.is_in(states::HALF_CLOSED) {
                closing.push(seen);
            } else if !seen.is_in(states::LISTEN) {
                notes.extend(note.map(|note| (seen.cookie, note)));
                sockets.push(seen);
            } else if seen.local.port() == at.port() {
                listening.push((seen.local.ip(), uid));
            }
        })?;
        let (doors, index) = (Doors::of(&listening, at.ip(), wildcard), noted.map(|(_, index)| index));
        let note = |socket: &Socket| notes.get(&socket.cookie).copied().unwrap_or_default();
        sockets.retain(|socket| doors.holds(socket, at.port(), note(socket), index));
        let Settled { alive: sockets, gone } = gone::settle(sockets, &closing, at.port())?;
        Ok(Self { sockets, gone, notes, doors })
    }

    /// The sockets at the worker's end whose other end is not gone.
    pub fn accepted(&self, at: SocketAddr) -> impl Iterator<Item = &Socket> {
        self.accepted_among(&self.sockets, at)
    }

    /// The sockets at the worker's end whose other end is gone.
    pub fn left(&self, at: SocketAddr) -> impl Iterator<Item = &Socket> {
        self.accepted_among(&self.gone, at)
    }

    fn accepted_among<'a>(&'a self, sockets: &'a [Socket], at: SocketAddr) -> impl Iterator<Item = &'a Socket> {
        let note = |socket: &Socket| self.notes.get(&socket.cookie).is_some_and(|note| note.accepted_for.is_some());
        sockets.iter().filter(move |socket| self.doors.is_accepted(socket, at.port(), note(socket)))
    }
}

/// Callers' ends of a port that hold no drain any more, because the caller has closed its half: what the programs have noted
/// of each, by its address and its peer's.
///
/// # Errors
/// When netlink fails, or the answer is garbled.
pub fn half_closed(port: u16, notes: BorrowedFd<'_>) -> io::Result<HashMap<(SocketAddr, SocketAddr), Note>> {
    let mut found = HashMap::new();
    each(port, states::HALF_CLOSED, Some(notes), &mut |seen, _, note| {
        found.extend(note.map(|note| ((seen.local, seen.peer), note)));
    })?;
    Ok(found)
}

/// Hands over each socket of a port, the user id of its owner, and what is noted of it.
fn each(
    port: u16,
    states: u32,
    notes: Option<BorrowedFd<'_>>,
    take: &mut dyn FnMut(Socket, u32, Option<Note>),
) -> io::Result<()> {
    let storages =
        notes.map(|notes| attribute(REQ_STORAGES, &attribute(REQ_STORAGE_MAP, &notes.as_raw_fd().to_ne_bytes())));
    let request = request(states, Some(port), 0, &storages.unwrap_or_default());
    dump(&open()?, &request, &mut |message| {
        let storages = Attributes::of(message).find(|(kind, _)| *kind == STORAGES);
        let note = storages.and_then(|(_, value)| sock_note(value)).map(|note| Note::of(&note));
        take(socket(message), u32_at(message, UID), note);
    })
}

/// The addresses at which connections reach a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doors {
    /// Its own address.
    own: Option<IpAddr>,
    /// It has a listener of its own at the other spelling of that address ([`alias`]).
    alias: bool,
    /// It listens at a wildcard address: of IPv4, of IPv6.
    wildcard: [bool; 2],
    /// Where others listen, or another socket of the worker does: there no wildcard address reaches it.
    others: Vec<IpAddr>,
    /// Nothing listens at its port.
    closed: bool,
}

/// `localhost` stands for both: a worker at 127.0.0.1 may listen at ::1 as well.
fn alias(own: IpAddr) -> Option<IpAddr> {
    (own == Ipv4Addr::LOCALHOST).then_some(Ipv6Addr::LOCALHOST.into())
}

impl Doors {
    /// `listening`: the addresses and owners of the sockets that listen at the worker's port. `wildcard`: the worker has been
    /// seen to listen at a wildcard address.
    fn of(listening: &[(IpAddr, u32)], own: IpAddr, wildcard: bool) -> Self {
        let exact = listening.iter().any(|(ip, _)| *ip == own);
        // A wildcard address beside the worker's own belongs to another process: the kernel prefers the exact one.
        let serves = |ip: &IpAddr| *ip == own || !exact && ip.is_unspecified();
        let owners: Vec<u32> = listening.iter().filter(|(ip, _)| serves(ip)).map(|(_, uid)| *uid).collect();
        let alias = alias(own);
        let is_alias = |(ip, uid): &(IpAddr, u32)| Some(*ip) == alias && (owners.is_empty() || owners.contains(uid));
        let any = |wanted: IpAddr| !exact && listening.iter().any(|(ip, _)| *ip == wanted);
        let (any4, any6) = (any(Ipv4Addr::UNSPECIFIED.into()), any(Ipv6Addr::UNSPECIFIED.into()));
        let others = listening.iter().map(|(ip, _)| *ip).filter(|ip| *ip != own && !ip.is_unspecified());
        Self {
            own: Some(own),
            alias: listening.iter().any(is_alias),
            wildcard: [wildcard || any4 || any6, wildcard || any6],
            others: others.collect(),
            closed: listening.is_empty(),
        }
    }

    /// Whether a connection to this address, at the worker's port, reaches the worker. `accepted`: the programs have seen a
    /// listener of the worker accept it.
    #[must_use]
    pub fn take(&self, ip: IpAddr, accepted: bool) -> bool {
        let is_alias = self.own.and_then(alias) == Some(ip);
        Some(ip) == self.own
            || is_alias && self.alias
            || self.wildcard[usize::from(ip.is_ipv6())] && !self.others.contains(&ip)
            // It has closed its listener and serves what it has accepted.
            || self.closed && accepted
    }

    /// Whether it listens at a wildcard address, or has been seen to.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.wildcard.contains(&true)
    }

    fn is_accepted(&self, socket: &Socket, port: u16, accepted: bool) -> bool {
        // A socket that is still calling has not been accepted, whatever the port from which it calls.
        socket.local.port() == port
            && socket.local != socket.peer
            && !socket.is_in(states::SYN_SENT)
            && self.take(socket.local.ip(), accepted)
    }

    /// Whether a socket holds a drain of the worker with this index at this port.
    fn holds(&self, socket: &Socket, port: u16, note: Note, worker: Option<u32>) -> bool {
        // No listener accepts a socket that has dialled itself.
        if socket.local == socket.peer {
            return false;
        }
        let is = |noted: Option<u32>| worker.is_some() && noted == worker;
        self.is_accepted(socket, port, is(note.accepted_for))
            || socket.peer.port() == port && (self.take(socket.peer.ip(), false) || is(note.leads_to))
    }
}

#[cfg(test)]
mod tests;
