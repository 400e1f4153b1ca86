//! What the programs count, by worker and by service.

use super::MORE;
use crate::histogram::BUCKETS;

/// What the programs count for a worker. Written with atomic adds only.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerCount {
    /// Nothing, so far.
    #[cfg(feature = "next-layout")]
    pub more: [u64; MORE],
    /// Connections now open (established, not yet closed by either end), of those seen from their start.
    pub open: u64,
    /// `connect()` calls that passed the hook and whose SYN is not yet out.
    pub tickets: u64,
    /// Connections ever established, seen at the worker's end; without the daemon's own.
    pub established: u64,
    /// Connections that dialled this worker and were let through.
    pub direct: u64,
    /// Connections that dialled this worker and went to a sibling.
    pub away: u64,
    /// Connections that dialled another worker and were brought here.
    pub steered: u64,
    /// Connections to the service address brought here.
    pub picked: u64,
    /// Of all those: taken although it was draining, because nothing was up.
    pub fallback_draining: u64,
    /// Of all those: taken although it was cold, because nothing was up or draining.
    pub fallback_cold: u64,
    /// Connections that dialled this worker and were refused by policy.
    pub refused: u64,
}

/// What the programs count for a service.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServiceCount {
    /// Connections refused because no worker could take them.
    pub exhausted: u64,
    /// Connections of callers that are not steered.
    pub unsteered: u64,
    /// Connections to the service address.
    pub dialled: u64,
    /// In observe mode: decisions that would have changed the destination.
    pub would_change: u64,
}

/// When a service was used last in ways that work only while its connections are steered. Milliseconds of
/// `CLOCK_MONOTONIC`; 0: never. Each word is written by plain stores: of two at once either may stay.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServiceUse {
    /// A steered caller dialled the service address, or a lane.
    pub address_ms: u64,
    /// A steered caller dialled a worker of the pool that is not current, and was led to the current pool.
    pub moved_ms: u64,
}

/// How the pool was found, of connections of steered callers, by service; see [`crate::lanes::Way`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneCount {
    /// The lane that was dialled names it.
    pub lane: u64,
    /// The same, by callers that may preview it.
    pub preview: u64,
    /// The current one instead: the lane is retired, or was never given.
    pub stale: u64,
    /// The current one instead: the lane has not been current yet.
    pub unopened: u64,
    /// The current one instead: the worker that was dialled is of the other.
    pub moved: u64,
}

/// What becomes of a worker's process. Written by the programs with atomic adds only.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerLife {
    /// Sockets that listen at the worker's address now, in processes that are not being killed.
    pub listeners: u64,
    /// Sockets that have ever listened there; 0: none was seen, and `listeners` says nothing.
    pub listened: u64,
    /// How often the last of them was closed, or its process killed, of a worker that was up, draining or cold.
    pub ended: u64,
    /// Connections that were open in a process when it ended.
    pub cut: u64,
}

impl WorkerLife {
    /// Whether it is known that no socket listens: some have been seen, and none is left.
    #[must_use]
    pub const fn is_dead(&self) -> bool {
        self.listened > 0 && self.listeners == 0
    }
}

/// What proves a promise kept, by worker. `failed` is counted at the caller's end, of steered callers only. The programs
/// count the rest at the worker's end, for every peer, wherever it is, but for the daemon's own connections.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerProof {
    /// Connections established to it after its drain was published and every earlier `connect()` had ended.
    pub late: u64,
    /// Connections established to it while it was cold.
    pub cold: u64,
    /// Connections that it got although it was draining, because the pool would have gone below its floor.
    pub fallback_floor: u64,
    /// Connections to it that could not be established.
    pub failed: u64,
    /// Connections to it that its end reset instead of closing them.
    pub reset: u64,
    /// How long connections lasted, seen at the worker's end: [`crate::histogram::bucket`] of microseconds.
    pub lifetimes: [u64; BUCKETS],
}

/// What the programs count at the two ends of a worker's connections, to tell where its peers are. Written with atomic adds
/// only.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerEnd {
    /// SYNs that met its address while no socket listened there. Linux tells of these from 6.10 on.
    pub refused: u64,
    /// Connections established at a steered caller's end.
    pub steered: u64,
}

/// How long things took, by worker.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerTimes {
    /// Sum of what [`WorkerProof::lifetimes`] counts, microseconds.
    pub lifetime_us: u64,
    /// Sum of what `connects` counts, microseconds.
    pub connect_us: u64,
    /// From a steered caller's SYN to its connection's being established, seen at the caller's end:
    /// [`crate::histogram::bucket`] of microseconds.
    pub connects: [u64; BUCKETS],
}

/// What a drain must know beside the counters of open connections and tickets, by worker. The programs write it with atomic
/// adds, but for `unnoted_ns`; the daemon adds to `outsiders_cut`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerEvidence {
    /// Of [`WorkerCount::tickets`], those that callers hold which are not steered. A program raises it after `tickets` and
    /// lowers it before, so it is never more than there are such tickets.
    pub outsider_tickets: u64,
    /// Tickets that came back because `connect()` failed when its SYN was about to go out.
    pub returned: u64,
    /// `connect()` calls that went on without a ticket, because the kernel refused socket storage.
    pub unnoted: u64,
    /// When the last steered caller's call among them passed the hook, in nanoseconds of `CLOCK_MONOTONIC`; 0: never.
    pub unnoted_ns: u64,
    /// Workers' ends of connections that are not in [`WorkerCount::open`], because the kernel refused socket storage.
    pub uncounted: u64,
    /// Connections whose time to connect was not measured, because the kernel refused socket storage.
    pub unmeasured: u64,
    /// Listening sockets of which the end of their process is seen late or not at all: the kernel refused socket storage,
    /// or the table of listening sockets was full.
    pub unlisted: u64,
    /// Events that the daemon did not get, because the ring was full.
    pub untold: u64,
    /// Connections of callers that are not steered which a drain has cut at its deadline.
    pub outsiders_cut: u64,
}

const _: () = assert!(size_of::<WorkerCount>() == 8 * (MORE + 10));
const _: () = assert!(size_of::<ServiceCount>() == 32);
const _: () = assert!(size_of::<ServiceUse>() == 16);
const _: () = assert!(size_of::<LaneCount>() == 40);
const _: () = assert!(size_of::<WorkerLife>() == 32);
const _: () = assert!(size_of::<WorkerProof>() == 8 * (5 + BUCKETS));
const _: () = assert!(size_of::<WorkerTimes>() == 8 * (2 + BUCKETS));
const _: () = assert!(size_of::<WorkerEnd>() == 16);
const _: () = assert!(size_of::<WorkerEvidence>() == 72);
