//! What the reaper says of a connection.

use std::fmt;

use deployer_common::reap::{self, Ends, Record};

/// What a strike made of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It is closed.
    Closed,
    /// It was not met, perhaps passed over: the next strike says.
    Missing,
    /// It was not met twice in a row: there is no such connection, or its caller is on another host or in another network
    /// namespace.
    Gone,
    /// What it was aimed at on was being changed just then.
    Changing,
    /// It is not established: connecting, or being closed.
    NotEstablished,
    /// It belongs to a connection of Multipath TCP.
    Multipath,
    /// An error is pending on it, of which its owner does not know yet.
    Failing,
    /// What the caller has written is not acknowledged yet.
    Unacknowledged,
    /// The caller has not read everything that has come.
    Unread,
    /// Something has come, and what precedes it is missing.
    OutOfOrder,
    /// More has been sent or received than the ground knows of.
    MovedOn,
    /// Something was sent or received too recently.
    NotQuiet,
    /// What was sent last is the caller's.
    Unanswered,
    /// Not one process alone has it open, under one descriptor.
    Shared,
    /// Its owner does not wait for it in `epoll_wait`, or not for input, or not alone.
    NotPolled,
    /// Its owner is awake, or has something to see.
    Awake,
    /// Its owner has several threads.
    Threads,
    /// The kernel refuses to close it.
    Refused,
    /// It is in another program's sockmap, or something else in the kernel uses its caller's socket.
    Redirected,
}

impl Answer {
    pub(super) const fn of(outcome: u32) -> Self {
        match outcome {
            reap::CLOSED => Self::Closed,
            reap::NOT_ESTABLISHED => Self::NotEstablished,
            reap::MULTIPATH => Self::Multipath,
            reap::FAILING => Self::Failing,
            reap::UNACKNOWLEDGED => Self::Unacknowledged,
            reap::UNREAD => Self::Unread,
            reap::OUT_OF_ORDER => Self::OutOfOrder,
            reap::MOVED_ON => Self::MovedOn,
            reap::NOT_QUIET => Self::NotQuiet,
            reap::UNANSWERED => Self::Unanswered,
            reap::SHARED => Self::Shared,
            reap::NOT_POLLED => Self::NotPolled,
            reap::AWAKE => Self::Awake,
            reap::THREADS => Self::Threads,
            reap::REFUSED => Self::Refused,
            reap::REDIRECTED => Self::Redirected,
            // UNREADABLE, and nothing else as long as the program is of this build.
            _ => Self::Changing,
        }
    }

    /// Whether it will not change by waiting alone: the owner is of a kind that is left alone.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Multipath | Self::Shared | Self::Threads | Self::Refused | Self::Redirected)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Missing => "not met by the last look",
            Self::Gone => "its caller is not on this host, or it is closed",
            Self::Changing => "just being aimed at",
            Self::NotEstablished => "not established",
            Self::Multipath => "Multipath TCP",
            Self::Failing => "its caller has an error to read",
            Self::Unacknowledged => "what its caller has sent is not acknowledged",
            Self::Unread => "its caller has not read everything",
            Self::OutOfOrder => "data is missing on the way",
            Self::MovedOn => "in use",
            Self::NotQuiet => "used just now",
            Self::Unanswered => "its caller waits for an answer",
            Self::Shared => "several descriptors or processes hold its caller's socket",
            Self::NotPolled => "its caller does not wait for it in epoll_wait",
            Self::Awake => "its caller is busy",
            Self::Threads => "its caller has several threads",
            Self::Refused => "the kernel refuses to close it",
            Self::Redirected => "another program redirects what its caller sends (sockmap)",
        })
    }
}

/// What the iterator's program has written; half a record at the end is none.
pub(super) fn records(written: &[u8]) -> Vec<Record> {
    written.chunks_exact(size_of::<Record>()).map(record).collect()
}

fn record(bytes: &[u8]) -> Record {
    let short = |at: usize| u32::from_ne_bytes(std::array::from_fn(|nth| bytes[at + nth]));
    let address = |at: usize| std::array::from_fn(|nth| short(at + 4 * nth));
    Record {
        ends: Ends { caller: address(0), worker: address(16), caller_port: short(32), worker_port: short(36) },
        outcome: short(40),
        zero: short(44),
        detail: u64::from_ne_bytes(std::array::from_fn(|nth| bytes[48 + nth])),
    }
}
