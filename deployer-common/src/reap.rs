//! What the reaper is aimed at and what it says of it: the entries of its table, and the records that its iterator writes.

/// Most connections that the reaper is aimed at, at a time.
pub const MAX_TARGETS: usize = 65536;

/// A connection by its two ends as the caller's socket has them: the key of the table of targets. IPv4 addresses are in
/// mapped form, in network byte order; ports in host byte order.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Ends {
    /// The caller's address.
    pub caller: [u32; 4],
    /// The worker's address.
    pub worker: [u32; 4],
    /// The caller's port.
    pub caller_port: u32,
    /// The worker's port.
    pub worker_port: u32,
}

/// On what ground a connection may be closed.
///
/// The kernel uses the memory of an entry again as soon as it is replaced or removed, also under a program that reads it.
/// So an entry is sealed, together with its key: what was read in two halves, or is another connection's, opens with
/// nothing.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// [`GROUND_COMPLETE`]: the sequence number at which the last request ends, and above it that at which its answer
    /// ends. [`GROUND_QUIET`]: milliseconds.
    pub word: u64,
    /// [`GROUND_COMPLETE`] and so on.
    pub kind: u32,
    /// See above.
    pub seal: u32,
}

/// The last answer is complete, by its framing, and nothing was asked since.
pub const GROUND_COMPLETE: u32 = 1;
/// Nothing was sent or received for a while.
pub const GROUND_QUIET: u32 = 2;
/// As before, and the last that was sent is the worker's.
pub const GROUND_ANSWERED: u32 = 3;
/// None: it is not closed, but told how its owner waits for it (see [`Record::detail`]).
pub const GROUND_LEARN: u32 = 4;

impl Target {
    /// A target in the table, under its key.
    #[must_use]
    pub fn new(ends: &Ends, kind: u32, word: u64) -> Self {
        Self { word, kind, seal: seal(ends, kind, word) }
    }

    /// [`GROUND_COMPLETE`].
    #[must_use]
    pub fn complete(ends: &Ends, asked: u32, answered: u32) -> Self {
        Self::new(ends, GROUND_COMPLETE, u64::from(answered) << 32 | u64::from(asked))
    }

    /// Whether it was written whole, and for this connection.
    #[inline(always)]
    #[must_use]
    pub fn is_of(&self, ends: &Ends) -> bool {
        self.seal == seal(ends, self.kind, self.word)
    }

    /// [`GROUND_COMPLETE`]: where the last request ends.
    #[inline(always)]
    #[must_use]
    pub const fn asked(&self) -> u32 {
        self.word as u32
    }

    /// [`GROUND_COMPLETE`]: where its answer ends.
    #[inline(always)]
    #[must_use]
    pub const fn answered(&self) -> u32 {
        (self.word >> 32) as u32
    }
}

/// Mixes all words; multiplicative hashing (Knuth, TAOCP 6.4) with 2^64 divided by the golden ratio.
#[inline(always)]
fn seal(ends: &Ends, kind: u32, word: u64) -> u32 {
    const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
    let pair = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
    let words = [
        pair(ends.caller[0], ends.caller[1]),
        pair(ends.caller[2], ends.caller[3]),
        pair(ends.worker[0], ends.worker[1]),
        pair(ends.worker[2], ends.worker[3]),
        pair(ends.caller_port, ends.worker_port),
        word,
        u64::from(kind),
    ];
    let mut mixed = 0_u64;
    for word in words {
        mixed = (mixed ^ word).wrapping_mul(MIX);
        mixed ^= mixed >> 32;
    }
    mixed as u32
}

/// What the iterator writes of a target that it has met; of several about one target, the last counts.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Record {
    /// The connection.
    pub ends: Ends,
    /// [`CLOSED`] and so on.
    pub outcome: u32,
    /// Always 0.
    pub zero: u32,
    /// [`LEARNT`]: the function that the kernel calls to wake whoever waits for the socket. Otherwise 0.
    pub detail: u64,
}

/// It has been closed.
pub const CLOSED: u32 = 1;
/// The entry was being written just then.
pub const UNREADABLE: u32 = 2;
/// It is not in state ESTABLISHED.
pub const NOT_ESTABLISHED: u32 = 3;
/// It belongs to a connection of Multipath TCP.
pub const MULTIPATH: u32 = 4;
/// An error is pending on it already.
pub const FAILING: u32 = 5;
/// What the caller has written is not acknowledged yet.
pub const UNACKNOWLEDGED: u32 = 6;
/// The caller has not read everything that has come.
pub const UNREAD: u32 = 7;
/// Something has come, and what precedes it is missing.
pub const OUT_OF_ORDER: u32 = 8;
/// More has been asked or answered than the ground knows of.
pub const MOVED_ON: u32 = 9;
/// Something was sent or received too recently.
pub const NOT_QUIET: u32 = 10;
/// The last that was sent is the caller's.
pub const UNANSWERED: u32 = 11;
/// Somebody else has the socket open: another process, or a second descriptor.
pub const SHARED: u32 = 12;
/// Nobody waits for it in `epoll_wait`, or not for input, or several do.
pub const NOT_POLLED: u32 = 13;
/// The owner is awake, or has something to see.
pub const AWAKE: u32 = 14;
/// The owner has several threads.
pub const THREADS: u32 = 15;
/// The kernel has refused to close it.
pub const REFUSED: u32 = 16;
/// Something else in the kernel uses its caller's socket: it is in the table of another program (sockmap), say. What is sent
/// on it may bypass TCP.
pub const REDIRECTED: u32 = 18;
/// [`GROUND_LEARN`]: nothing was done.
pub const LEARNT: u32 = 17;

/// In place of the number of a helper: the call of `bpf_sock_destroy`, for the loader to fill in. No helper has a number
/// that high.
pub const MARK_DESTROY: u32 = 0x7000_0001;
/// The same of `bpf_preempt_disable` (6.10), which may be left out.
pub const MARK_HOLD: u32 = 0x7000_0002;
/// The same of `bpf_preempt_enable`.
pub const MARK_RELEASE: u32 = 0x7000_0003;

const _: () = assert!(size_of::<Ends>() == 40);
const _: () = assert!(size_of::<Target>() == 16);
const _: () = assert!(size_of::<Record>() == 56);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ends() -> impl Strategy<Value = Ends> {
        (any::<[u32; 4]>(), any::<[u32; 4]>(), any::<u16>(), any::<u16>()).prop_map(|(caller, worker, from, to)| Ends {
            caller,
            worker,
            caller_port: from.into(),
            worker_port: to.into(),
        })
    }

    proptest! {
        #[test]
        fn halves_of_two_targets_are_no_target(ends in ends(), other in ends(), word: u64, next: u64, kind in 1_u32..5) {
            let target = Target::new(&ends, kind, word);
            prop_assert!(target.is_of(&ends));
            prop_assert_eq!(target.is_of(&other), ends == other);
            let torn = Target { word: next, ..target };
            prop_assert_eq!(torn.is_of(&ends), word == next);
            let torn = Target { kind: kind % 4 + 1, ..target };
            prop_assert!(!torn.is_of(&ends));
        }

        #[test]
        fn both_numbers_are_kept(ends in ends(), asked: u32, answered: u32) {
            let target = Target::complete(&ends, asked, answered);
            prop_assert_eq!((target.asked(), target.answered()), (asked, answered));
        }
    }
}
