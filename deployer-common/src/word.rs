//! The words: all that user space publishes about a worker or a service, in one aligned `u64` each.
//!
//! A value of more than 8 bytes can be read half old and half new by a program (measured: 5,097 torn reads of 8.66
//! million), so whatever changes while programs run is one word, stored and compared-and-swapped whole through a mapping
//! of the table; what does not fit in a word stands in an immutable slot that the word names.

/// What a worker is for the steering decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// No worker: the table entry is free.
    Absent = 0,
    /// Serves.
    Up = 1,
    /// Takes no new connections until its lease runs out; then it counts as [`State::Up`] again.
    Draining = 2,
    /// Listens, but has not been warmed: the last resort, until its lease runs out; then it counts as [`State::Up`], since
    /// nobody has come to warm it.
    Cold = 3,
    /// Does not listen.
    Down = 4,
    /// About to be stopped, or stopped. Nothing overrides it: no lease, no fallback.
    Stopping = 5,
    /// Failed its start. Nothing overrides it.
    Failed = 6,
    /// A process that is not the worker listens at its address. Nothing overrides it.
    Stranger = 7,
}

impl State {
    /// From the low three bits.
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        match bits & 7 {
            1 => Self::Up,
            2 => Self::Draining,
            3 => Self::Cold,
            4 => Self::Down,
            5 => Self::Stopping,
            6 => Self::Failed,
            7 => Self::Stranger,
            _ => Self::Absent,
        }
    }
}

/// A worker's word: `zero:4 | sealed:1 | state:3 | lease:40 | serial:16`, from the top.
///
/// The lease is an instant in milliseconds of `CLOCK_MONOTONIC` (40 bits last 34 years of uptime); it means something
/// for [`State::Draining`] and [`State::Cold`] only. The serial changes with every store, so that a compare-and-swap by a
/// controller that slept cannot succeed on a word that only looks the same. A drain is sealed when every `connect()` has
/// ended that may have missed it: whoever arrives later is counted ([`crate::layout::WorkerProof::late`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct WorkerWord(pub u64);

/// Set in the word of a drain that is sealed.
const SEALED: u64 = 8 << 56;

/// The largest instant a lease can hold, in milliseconds.
pub const LEASE_MAX_MS: u64 = (1 << 40) - 1;

impl WorkerWord {
    /// Puts a word together. A lease beyond [`LEASE_MAX_MS`] is cut to it.
    #[inline(always)]
    #[must_use]
    pub const fn new(state: State, lease_ms: u64, serial: u16) -> Self {
        let lease = if lease_ms > LEASE_MAX_MS { LEASE_MAX_MS } else { lease_ms };
        Self((state as u64) << 56 | lease << 16 | serial as u64)
    }

    /// The state as stored; see [`WorkerWord::at`] for what it means now.
    #[inline(always)]
    #[must_use]
    pub const fn state(self) -> State {
        State::from_bits(self.0 >> 56)
    }

    /// The end of the lease, in milliseconds of `CLOCK_MONOTONIC`.
    #[inline(always)]
    #[must_use]
    pub const fn lease_ms(self) -> u64 {
        self.0 >> 16 & LEASE_MAX_MS
    }

    /// The serial.
    #[inline(always)]
    #[must_use]
    pub const fn serial(self) -> u16 {
        self.0 as u16
    }

    /// The word that follows this one: another state and lease, the next serial.
    #[inline(always)]
    #[must_use]
    pub const fn next(self, state: State, lease_ms: u64) -> Self {
        Self::new(state, lease_ms, self.serial().wrapping_add(1))
    }

    /// The word that follows this one: the same, sealed.
    #[must_use]
    pub const fn sealed(self) -> Self {
        Self(self.next(self.state(), self.lease_ms()).0 | SEALED)
    }

    /// Whether whoever is connected now came after the drain: it is sealed, and lasts.
    #[inline(always)]
    #[must_use]
    pub const fn is_sealed(self, now_ms: u64) -> bool {
        match self.at(now_ms) {
            State::Draining => self.0 & SEALED != 0,
            State::Stopping | State::Failed => true,
            _ => false,
        }
    }

    /// The state that counts at an instant: a drain, or a quarantine, whose lease has run out is none.
    #[inline(always)]
    #[must_use]
    pub const fn at(self, now_ms: u64) -> State {
        match self.state() {
            State::Draining | State::Cold if now_ms >= self.lease_ms() => State::Up,
            state => state,
        }
    }
}

/// What is done with a service's decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    /// No service, or bypassed: everything goes where it was dialled, uncounted.
    Bypass = 0,
    /// Decide and count, change nothing.
    Observe = 1,
    /// Decide and steer.
    Enforce = 2,
}

/// What becomes of a connection to a worker that is not up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Policy {
    /// A sibling gets it.
    Steer = 0,
    /// It gets `ECONNREFUSED`.
    Refuse = 1,
}

/// A service's word: `mode:8 | policy:8 | slot:16 | zero:31 | taken:1`, from the top. 0: the table entry is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct ServiceWord(pub u64);

impl ServiceWord {
    /// Puts a word together; `slot` names the pool.
    #[must_use]
    pub const fn new(mode: Mode, policy: Policy, slot: u16) -> Self {
        Self((mode as u64) << 56 | (policy as u64) << 48 | (slot as u64) << 32 | 1)
    }

    /// What is done with decisions.
    #[inline(always)]
    #[must_use]
    pub const fn mode(self) -> Mode {
        match self.0 >> 56 {
            1 => Mode::Observe,
            2 => Mode::Enforce,
            _ => Mode::Bypass,
        }
    }

    /// What becomes of connections to workers that are not up.
    #[inline(always)]
    #[must_use]
    pub const fn policy(self) -> Policy {
        if self.0 >> 48 & 0xff == Policy::Refuse as u64 { Policy::Refuse } else { Policy::Steer }
    }

    /// Index of the pool's slot.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self) -> u32 {
        (self.0 >> 32) as u32 & 0xffff
    }
}

/// What a service is held to, whatever a controller does: `zero:16 | min_up:16 | cold_limit:32`, from the top.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct LimitsWord(pub u64);

impl LimitsWord {
    /// Puts a word together. `min_up`: so many workers stay in rotation, whoever is drained. `cold_limit_ms`: so long a
    /// worker that has begun to listen is kept from its callers, if nobody warms it.
    #[must_use]
    pub const fn new(min_up: u16, cold_limit_ms: u32) -> Self {
        Self((min_up as u64) << 32 | cold_limit_ms as u64)
    }

    /// The least number of workers in rotation.
    #[inline(always)]
    #[must_use]
    pub const fn min_up(self) -> u64 {
        self.0 >> 32 & 0xffff
    }

    /// The quarantine of a worker that nobody warms, in milliseconds.
    #[inline(always)]
    #[must_use]
    pub const fn cold_limit_ms(self) -> u64 {
        self.0 & 0xffff_ffff
    }
}
