//! Two versions side by side: which of a service's two pools takes a connection.
//!
//! A pool is 0 or 1. One of them is current, and takes what is dialled at a service's address or a worker's own; each is
//! named on the wire by its *lane* (1-255), so that what belongs to a page reaches the version that rendered the page,
//! current or not. A *flip* makes the other pool current at an instant that stands in the word: it needs nobody to happen.

use core::hint::black_box;

use crate::endpoint::{Endpoint, MAPPED};

/// The first two bytes of every lane address, `127.77.B.L`: L is the lane, 0 for whatever is current, B a bucket of the
/// user, of which nothing is made yet.
pub const LANE_NET: [u8; 2] = [127, 77];

/// The net of lane addresses under which they are frontends, `127.77.0.0`, in network byte order.
const LANE_KEY: u32 = u32::from_ne_bytes([LANE_NET[0], LANE_NET[1], 0, 0]);
const LANE_MASK: u32 = u32::from_ne_bytes([0xff, 0xff, 0, 0]);

/// Which pool is current, or will be, and how the pools are named:
/// `lane of pool 0:8 | lane of pool 1:8 | open 0:1 | open 1:1 | from:1 | to:1 | zero:4 | at:40`, from the top.
///
/// Until `at` (milliseconds of `CLOCK_MONOTONIC`) pool `from` is current, then pool `to`. A pool is *open* if its lane may
/// be dialled by everybody: it is, or has been, current. 0: one pool, no lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct FlipWord(pub u64);

/// The latest instant of a flip, in milliseconds of `CLOCK_MONOTONIC` (34 years of uptime).
pub const FLIP_MAX_MS: u64 = (1 << 40) - 1;

const OPEN: u32 = 46;
const FROM: u32 = 45;
const TO: u32 = 44;

impl FlipWord {
    /// Puts a word together in which pool `current` is current. Pools without a lane have 0.
    #[must_use]
    pub const fn new(lanes: [u8; 2], open: [bool; 2], current: u32) -> Self {
        let current = (current & 1) as u64;
        let open = (open[0] as u64) << 1 | open[1] as u64;
        Self((lanes[0] as u64) << 56 | (lanes[1] as u64) << 48 | open << OPEN | current << FROM | current << TO)
    }

    /// The same, but from `at_ms` on pool `to` is current, and open. A later instant than [`FLIP_MAX_MS`] is cut to it.
    #[must_use]
    pub const fn flipping(self, to: u32, at_ms: u64) -> Self {
        let at = if at_ms > FLIP_MAX_MS { FLIP_MAX_MS } else { at_ms };
        Self(self.0 & !(1 << TO | FLIP_MAX_MS) | ((to & 1) as u64) << TO | at)
    }

    /// The same, once the instant has passed: the current pool is that for good, and open.
    #[must_use]
    pub const fn settled(self, now_ms: u64) -> Self {
        let current = self.current(now_ms);
        let open = [self.is_open(0, now_ms), self.is_open(1, now_ms)];
        Self::new([self.lane(0), self.lane(1)], open, current)
    }

    /// The pool that is current at an instant.
    #[inline(always)]
    #[must_use]
    pub const fn current(self, now_ms: u64) -> u32 {
        let bit = if now_ms >= self.at_ms() { TO } else { FROM };
        (self.0 >> bit) as u32 & 1
    }

    /// The lane of a pool; 0: it has none.
    #[inline(always)]
    #[must_use]
    pub const fn lane(self, pool: u32) -> u8 {
        (self.0 >> (56 - 8 * (pool & 1))) as u8
    }

    /// Whether everybody may dial a pool's lane at an instant.
    #[inline(always)]
    #[must_use]
    pub const fn is_open(self, pool: u32, now_ms: u64) -> bool {
        self.0 >> (OPEN + 1 - (pool & 1)) & 1 != 0 || self.current(now_ms) == pool & 1
    }

    /// The instant of the flip, in milliseconds of `CLOCK_MONOTONIC`; 0: none is to come.
    #[inline(always)]
    #[must_use]
    pub const fn at_ms(self) -> u64 {
        self.0 & FLIP_MAX_MS
    }

    /// Whether a flip is still to come.
    #[must_use]
    pub const fn is_armed(self, now_ms: u64) -> bool {
        now_ms < self.at_ms() && (self.0 >> FROM ^ self.0 >> TO) & 1 != 0
    }

    /// 0, of which the verifier knows nothing but that it has four bits.
    #[inline(always)]
    #[must_use]
    pub const fn unknown_zero(self) -> u64 {
        self.0 >> 40 & 15
    }
}

/// What was dialled, as far as pools go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialled {
    /// The own address of a worker of this pool.
    Worker(u32),
    /// The service's address, or lane 0.
    Current,
    /// A lane other than 0.
    Lane(u8),
}

/// How the pool was found; each is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The current one, as was dialled.
    Current,
    /// The one that the lane names.
    Lane,
    /// The same, which has not been current yet: the caller may look at it all the same.
    Preview,
    /// The current one: the lane is retired, or was never given.
    Stale,
    /// The current one: the lane has not been current yet, and the caller may not look at it.
    Unopened,
    /// The current one: the worker that was dialled is of the other.
    Moved,
}

/// The pool that takes a connection.
#[inline(always)]
#[must_use]
pub fn choose(dialled: Dialled, word: FlipWord, now_ms: u64, may_preview: impl Fn() -> bool) -> (u32, Way) {
    let current = word.current(now_ms);
    match dialled {
        Dialled::Current => (current, Way::Current),
        Dialled::Worker(pool) if pool == current => (current, Way::Current),
        Dialled::Worker(pool) if !word.is_open(pool, now_ms) && may_preview() => (pool, Way::Preview),
        Dialled::Worker(_) => (current, Way::Moved),
        Dialled::Lane(lane) => {
            let pool = match () {
                () if lane == word.lane(0) => 0,
                () if lane == word.lane(1) => 1,
                () => return (current, Way::Stale),
            };
            match () {
                () if word.is_open(pool, now_ms) => (pool, Way::Lane),
                () if may_preview() => (pool, Way::Preview),
                () => (current, Way::Unopened),
            }
        }
    }
}

/// The key of an address among the frontends: all lane addresses of one port are one. Without a branch, since the verifier
/// would follow both sides of it through the decision; the black box keeps LLVM from making one of it.
#[inline(always)]
#[must_use]
pub fn frontend_key(dialled: &Endpoint) -> Endpoint {
    let [a, b, c, d] = dialled.addr;
    // 0 for a lane address alone.
    let other = u64::from(a | b | (c ^ MAPPED) | ((d & LANE_MASK) ^ LANE_KEY));
    let is_lane = black_box((0_u64.wrapping_sub(other) >> 63) as u32).wrapping_sub(1);
    Endpoint::v6(dialled.netns, [a, b, c, d & !(is_lane & !LANE_MASK)], dialled.port)
}

/// The lane that a lane address names; 0: none.
#[inline(always)]
#[must_use]
pub const fn lane_of(dialled: &Endpoint) -> u8 {
    u32::from_be(dialled.addr[3]) as u8
}
