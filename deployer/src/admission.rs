//! Which connections a server keeps when more are open than it has room for: one peer's crowd must not keep others out.
//!
//! A connection waits first (its request has not come), then it is busy (an answer is being made), then its answer is sent.
//! One that waits costs its peer nothing, so it gives way to a newer one; one that is busy never does.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// How many connections there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// In all.
    pub(crate) total: usize,
    /// Of one peer that is not privileged.
    pub(crate) per_peer: usize,
    /// Of `total`: kept free for privileged peers.
    pub(crate) reserved: usize,
}

impl Limits {
    /// These, or fewer where a process may have so few descriptors that they would take more than `share` (1/n) of them.
    pub(crate) fn within(self, descriptors: u64, share: u64) -> Self {
        let total = self.total.min(usize::try_from(descriptors / share.max(1)).unwrap_or(usize::MAX)).max(4);
        Self { total, per_peer: self.per_peer.min(total / 2), reserved: self.reserved.min(total / 4) }
    }
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Busy,
    Sending,
}

/// A connection as the decision sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Open<K> {
    peer: K,
    is_privileged: bool,
    phase: Phase,
}

/// Why there is no room for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// Its peer has so many, and all of them are busy.
    Peer(usize),
    /// There are so many in all, and all of them are busy.
    Total(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Admit,
    /// The connection at this place gives way.
    Instead(usize),
    Refuse(Full),
}

/// What becomes of a new connection; those that are `open` come oldest first.
fn decide<K: Ord + Copy>(open: &[Open<K>], peer: K, is_privileged: bool, limits: &Limits) -> Verdict {
    let count = |wanted: &dyn Fn(&Open<K>) -> bool| open.iter().filter(|one| wanted(one)).count();
    let give_way = |full: Full, wanted: &dyn Fn(&Open<K>) -> bool| {
        let oldest = |phase| open.iter().position(|one| one.phase == phase && wanted(one));
        oldest(Phase::Waiting).or_else(|| oldest(Phase::Sending)).map_or(Verdict::Refuse(full), Verdict::Instead)
    };
    if is_privileged {
        return if open.len() < limits.total { Verdict::Admit } else { give_way(Full::Total(open.len()), &|_| true) };
    }
    let own = count(&|one| one.peer == peer && !one.is_privileged);
    if own >= limits.per_peer {
        return give_way(Full::Peer(own), &|one| one.peer == peer && !one.is_privileged);
    }
    let all = count(&|one| !one.is_privileged);
    if all < limits.total - limits.reserved && open.len() < limits.total {
        return Verdict::Admit;
    }
    // The peer that has the most loses one.
    let mut crowds: BTreeMap<K, usize> = BTreeMap::new();
    for one in open.iter().filter(|one| !one.is_privileged && one.phase != Phase::Busy) {
        *crowds.entry(one.peer).or_default() += 1;
    }
    let largest = crowds.into_iter().max_by_key(|(_, size)| *size).map(|(peer, _)| peer);
    give_way(Full::Total(open.len()), &|one| !one.is_privileged && Some(one.peer) == largest)
}

struct Entry<K> {
    open: Open<K>,
    leave: Arc<Notify>,
}

struct Entries<K> {
    /// By number: the oldest first.
    open: BTreeMap<u64, Entry<K>>,
    next: u64,
}

/// The connections of a server.
pub(crate) struct Admission<K> {
    limits: Limits,
    entries: Mutex<Entries<K>>,
}

impl<K: Ord + Copy> Admission<K> {
    /// No connections yet.
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, entries: Mutex::new(Entries { open: BTreeMap::new(), next: 0 }) })
    }

    /// Enters a new connection; another may have to give way to it.
    ///
    /// # Errors
    /// When there is no room, and no connection that may give way.
    pub(crate) fn admit(self: &Arc<Self>, peer: K, is_privileged: bool) -> Result<Place<K>, Full> {
        let mut entries = self.entries();
        let open: Vec<_> = entries.open.values().map(|entry| entry.open).collect();
        match decide(&open, peer, is_privileged, &self.limits) {
            Verdict::Admit => {}
            Verdict::Refuse(full) => return Err(full),
            Verdict::Instead(nth) => {
                let number = entries.open.keys().nth(nth).copied();
                if let Some(left) = number.and_then(|number| entries.open.remove(&number)) {
                    left.leave.notify_one();
                }
            }
        }
        let (number, leave) = (entries.next, Arc::new(Notify::new()));
        entries.next += 1;
        let open = Open { peer, is_privileged, phase: Phase::Waiting };
        entries.open.insert(number, Entry { open, leave: Arc::clone(&leave) });
        Ok(Place { admission: Arc::clone(self), number, leave })
    }

    fn entries(&self) -> MutexGuard<'_, Entries<K>> {
        // A panic elsewhere leaves the entries whole.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place; given up when dropped.
pub(crate) struct Place<K: Ord + Copy> {
    admission: Arc<Admission<K>>,
    number: u64,
    leave: Arc<Notify>,
}

impl<K: Ord + Copy> Place<K> {
    /// Its request has come: it does not give way any more.
    pub(crate) fn busy(&self) {
        self.enter(Phase::Busy);
    }

    /// Its answer is made: it gives way where no connection waits.
    pub(crate) fn sending(&self) {
        self.enter(Phase::Sending);
    }

    /// Returns when this connection is to give way.
    pub(crate) async fn gives_way(&self) {
        self.leave.notified().await;
    }

    fn enter(&self, phase: Phase) {
        if let Some(entry) = self.admission.entries().open.get_mut(&self.number) {
            entry.open.phase = phase;
        }
    }
}

impl<K: Ord + Copy> Drop for Place<K> {
    fn drop(&mut self) {
        self.admission.entries().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests;
