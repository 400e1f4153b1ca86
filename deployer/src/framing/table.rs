//! All connections to the watched workers, as their packets tell of them.

use std::{collections::HashMap, net::SocketAddr, time::Instant};

use super::{
    connection::{Connection, From},
    packet::Segment,
    verdict::{Framing, Seen, Why},
};
use crate::kernel::{Pair, diag};

/// The most connections that are known at a time, of about 400 bytes each. Those that come when the table is full are
/// not entered: that they are unwatched is said as of their last packet.
const MOST_CONNECTIONS: usize = 65_536;
/// The most that is kept of half-sent heads and packets out of order, of all connections together.
const MOST_KEPT: usize = 64 * 1024 * 1024;

/// What is known of each connection.
pub(super) struct Table {
    workers: HashMap<u16, Vec<SocketAddr>>,
    connections: HashMap<Pair, Entry>,
    /// Bytes that the connections keep.
    kept: usize,
    since: Instant,
}

struct Entry {
    connection: Connection,
    framing: Framing,
    last: Instant,
}

impl Table {
    /// An empty one for connections to these workers.
    pub(super) fn new(workers: &[SocketAddr], now: Instant) -> Self {
        let mut by_port: HashMap<u16, Vec<SocketAddr>> = HashMap::new();
        for worker in workers {
            by_port.entry(worker.port()).or_default().push(*worker);
        }
        Self { workers: by_port, connections: HashMap::new(), kept: 0, since: now }
    }

    /// Takes a segment. Says how its connection stands, if that has changed.
    pub(super) fn take(&mut self, segment: &Segment<'_>, now: Instant) -> Option<(Pair, Framing)> {
        let (pair, from) = self.ends(segment, now)?;
        if segment.is_rst() {
            return self.remove(&pair);
        }
        if !self.connections.contains_key(&pair) && !self.enter(pair, segment, now) {
            return None;
        }
        let entry = self.connections.get_mut(&pair)?;
        let before = entry.connection.kept();
        entry.last = now;
        entry.connection.take(from, segment);
        self.kept = (self.kept + entry.connection.kept()).saturating_sub(before);
        if self.kept > MOST_KEPT {
            self.kept = self.kept.saturating_sub(entry.connection.kept());
            entry.connection.forget();
        }
        let framing = entry.connection.framing();
        let changed = framing != entry.framing;
        entry.framing = framing;
        if entry.connection.is_over() {
            self.remove(&pair);
        }
        changed.then_some((pair, framing))
    }

    /// How a connection stands.
    pub(super) fn seen(&self, pair: &Pair) -> Seen {
        let (framing, last) = match self.connections.get(pair) {
            Some(entry) => (entry.framing, Some(entry.last)),
            None => (Framing::Unwatched, None),
        };
        Seen { framing, last, since: self.since }
    }

    /// All connections to a worker of which something has been seen.
    pub(super) fn all(&self, worker: SocketAddr) -> Vec<(Pair, Seen)> {
        let to = self.connections.keys().filter(|pair| diag::is_end(pair.worker, pair.caller, worker));
        to.map(|pair| (*pair, self.seen(pair))).collect()
    }

    /// Packets were missed, nobody knows of which connections.
    pub(super) fn miss(&mut self, now: Instant) {
        self.since = now;
        self.kept = 0;
        for entry in self.connections.values_mut() {
            entry.connection.miss();
            entry.framing = entry.connection.framing();
            self.kept += entry.connection.kept();
        }
    }

    fn remove(&mut self, pair: &Pair) -> Option<(Pair, Framing)> {
        let entry = self.connections.remove(pair)?;
        self.kept = self.kept.saturating_sub(entry.connection.kept());
        None
    }

    /// Enters a connection, unless it has just ended, or there is no room.
    fn enter(&mut self, pair: Pair, segment: &Segment<'_>, now: Instant) -> bool {
        if segment.is_fin() {
            return false;
        }
        if self.connections.len() >= MOST_CONNECTIONS {
            self.since = now;
            return false;
        }
        let connection = Connection::older(Why::Older);
        let framing = Framing::Unwatched;
        self.connections.insert(pair, Entry { connection, framing, last: now });
        true
    }

    /// Whose connection it is, and who has sent it. `None`: no watched worker's.
    fn ends(&mut self, segment: &Segment<'_>, now: Instant) -> Option<(Pair, From)> {
        let (from, to) = (segment.from, segment.to);
        let asked = (Pair { caller: from, worker: to }, From::Caller);
        let answered = (Pair { caller: to, worker: from }, From::Worker);
        match (self.is_worker(to, from), self.is_worker(from, to)) {
            (true, false) => Some(asked),
            (false, true) => Some(answered),
            (false, false) => None,
            // One worker calls another, from a port that is a worker's at another address: the hello tells.
            (true, true) if segment.is_syn() => Some(asked),
            (true, true) if segment.is_syn_ack() || self.connections.contains_key(&answered.0) => Some(answered),
            (true, true) if self.connections.contains_key(&asked.0) => Some(asked),
            (true, true) => {
                self.since = now;
                None
            }
        }
    }

    fn is_worker(&self, end: SocketAddr, other: SocketAddr) -> bool {
        let workers = self.workers.get(&end.port());
        workers.is_some_and(|workers| workers.iter().any(|worker| diag::is_end(end, other, *worker)))
    }
}

#[cfg(test)]
mod tests;
