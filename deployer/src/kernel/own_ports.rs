//! The local ports of the daemon's own connections to workers, told to the programs: at a worker's end nothing else tells
//! these connections from a caller's, since a socket's mark stays at its own end.
//!
//! The table belongs to the programs that are attached, and is empty when they are: a daemon that dies between binding a
//! port and closing it leaves nothing behind for the next.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering::SeqCst},
};

use super::mapping::Mapping;

/// One for the process: a connection is made far from the tables, and there is one set of programs.
static OWN: Mutex<Own> = Mutex::new(Own { table: None, held: BTreeMap::new(), unheld: BTreeMap::new() });

struct Own {
    table: Option<Mapping>,
    /// How many connections use a port: more than one, at addresses of different families.
    held: BTreeMap<u16, u32>,
    /// Connections to a worker so far whose ports the programs were not told.
    unheld: BTreeMap<SocketAddr, u64>,
}

/// A port that the programs take for the daemon's, until this is dropped.
#[derive(Debug)]
pub struct OwnPort(u16);

/// Has the programs know of the ports that are held, and of those to come.
pub(super) fn publish(table: Mapping) {
    let mut own = lock();
    own.held.keys().for_each(|port| set(&table, *port, true));
    own.table = Some(table);
}

/// Tells the programs that a port is the daemon's. To be called before the socket that is bound to it connects.
#[must_use]
pub fn hold(port: u16) -> OwnPort {
    let mut own = lock();
    let held = own.held.entry(port).or_default();
    *held = held.saturating_add(1);
    if let Some(table) = &own.table {
        set(table, port, true);
    }
    OwnPort(port)
}

/// Counts a connection to a worker whose port the programs were not told: they take it for a caller's.
pub fn count_unheld(worker: SocketAddr) {
    let mut own = lock();
    let unheld = own.unheld.entry(worker).or_default();
    *unheld = unheld.saturating_add(1);
}

/// How many connections to a worker this process has made so far that the programs take for a caller's.
#[must_use]
pub fn unheld(worker: SocketAddr) -> u64 {
    lock().unheld.get(&worker).copied().unwrap_or(0)
}

impl Drop for OwnPort {
    fn drop(&mut self) {
        let mut own = lock();
        let left = own.held.get(&self.0).map_or(0, |held| held.saturating_sub(1));
        if left > 0 {
            own.held.insert(self.0, left);
            return;
        }
        own.held.remove(&self.0);
        if let Some(table) = &own.table {
            set(table, self.0, false);
        }
    }
}

fn lock() -> MutexGuard<'static, Own> {
    // A panic elsewhere leaves it as good as it was.
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set(table: &Mapping, port: u16, on: bool) {
    let (word, bit) = (&table.words()[usize::from(port >> 6)], 1_u64 << (port & 63));
    if on {
        word.fetch_or(bit, SeqCst);
    } else {
        word.fetch_and(!bit, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_held_as_often_as_it_is_used() {
        let count = || lock().held.get(&1).copied();
        let (one, other) = (hold(1), hold(1));
        assert_eq!(count(), Some(2));
        drop(one);
        assert_eq!(count(), Some(1));
        drop(other);
        assert_eq!(count(), None);
    }
}
