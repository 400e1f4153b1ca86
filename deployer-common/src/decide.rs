//! The steering decision: where does this `connect()` go?
//!
//! A pure function over [`Tables`]. It is compiled into the connect hooks and run on the host by property tests.
//! Everything is inlined and free of calls that the BPF target lacks; loops are bounded by constants.

use core::hint::black_box;

use crate::{
    layout::{Frontend, MAX_MEMBERS, MAX_WORKERS, NO_WORKER},
    word::{Policy, ServiceWord, State, WorkerWord},
};

/// How the decision reads the tables.
pub trait Tables {
    /// Number of members in a pool's slot.
    fn members(&self) -> u32;
    /// Worker index of a member, `nth < members()`.
    fn member(&self, nth: u32) -> u32;
    /// A worker's word.
    fn word(&self, worker: u32) -> WorkerWord;
    /// A worker's open connections, those older than the programs included.
    fn open(&self, worker: u32) -> u64;
    /// So many members stay in rotation, whoever is drained; below 2^62.
    fn min_up(&self) -> u64;
    /// Milliseconds of `CLOCK_MONOTONIC`.
    fn now_ms(&self) -> u64;
    /// 32 random bits.
    fn random(&self) -> u32;
}

/// How well a worker can take a connection; lower is better. The order of fallbacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Rank {
    /// Serves.
    Up = 0,
    /// Is being drained: nothing is up, or too few are ([`Verdict::floor`]).
    Draining = 1,
    /// Was never warmed: nothing is up or draining.
    Cold = 2,
    /// Cannot take it.
    None = 3,
}

/// Where a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The worker; [`NO_WORKER`]: refuse.
    pub worker: u32,
    /// How well that worker can take it. For a refusal by policy, the rank of the siblings that make it safe:
    /// [`Rank::None`] says that there was nobody at all.
    pub rank: Rank,
    /// The worker is draining, and gets it because fewer members are up than must be, though not none.
    pub floor: bool,
}

impl Verdict {
    /// Nobody can take it.
    pub const EXHAUSTED: Self = Self { worker: NO_WORKER, rank: Rank::None, floor: false };
}

/// Two bits a [`State`]: the rank of a worker in that state.
const RANKS: u64 = 0b11_11_11_11_10_01_00_11;
/// One bit a state: whether a lease that has run out makes it [`State::Up`].
const LEASED: u64 = 1 << State::Draining as u64 | 1 << State::Cold as u64;

/// Ranks a worker at an instant, as [`WorkerWord::at`] says, but without a branch: the verifier follows every branch of
/// every member of a pool, and gives up at a million instructions.
#[inline(always)]
#[must_use]
pub fn rank_bits(word: WorkerWord, now_ms: u64) -> u64 {
    let state = word.0 >> 56 & 7;
    let expired = is_less(word.lease_ms(), now_ms + 1);
    // The black box as in `is_less`: LLVM takes a mask of one bit for a choice.
    let lapsed = black_box(LEASED >> state & expired & 1);
    (RANKS >> (2 * state) & 3) & lapsed.wrapping_sub(1)
}

/// [`rank_bits`] as a [`Rank`].
#[inline(always)]
#[must_use]
pub fn rank(word: WorkerWord, now_ms: u64) -> Rank {
    match rank_bits(word, now_ms) {
        0 => Rank::Up,
        1 => Rank::Draining,
        2 => Rank::Cold,
        _ => Rank::None,
    }
}

/// 1 if `a < b`, else 0, without a branch; both below 2^62. The black box keeps LLVM from making one of it.
#[inline(always)]
fn is_less(a: u64, b: u64) -> u64 {
    black_box(a.wrapping_sub(b) >> 63)
}

/// The smaller and the larger of two numbers below 2^62, without a branch.
#[inline(always)]
fn sort(a: u64, b: u64) -> (u64, u64) {
    let swap = a.wrapping_sub(b) & is_less(a, b).wrapping_neg();
    (b.wrapping_add(swap), a.wrapping_sub(swap))
}

/// Decides for a connection to a frontend of a service that is not bypassed.
///
/// - The worker that was dialled keeps it while no sibling is better placed: an *up* worker always does.
/// - Otherwise, by policy: a sibling of the best rank gets it, or it is refused so that the load balancer asks another.
/// - A service address goes to a worker of the best rank.
/// - While some are up, but fewer than must be (the floor), those that are draining count as if they were up.
/// - Nobody left: refused.
#[inline(always)]
pub fn decide(frontend: Frontend, service: ServiceWord, tables: &impl Tables) -> Verdict {
    let now_ms = tables.now_ms();
    let own = if frontend.worker == NO_WORKER { Rank::None } else { rank(tables.word(frontend.worker), now_ms) };
    if own == Rank::Up {
        return Verdict { worker: frontend.worker, rank: Rank::Up, floor: false };
    }
    let (best, is_short) = choose(tables, now_ms);
    if best.rank == Rank::None {
        return Verdict::EXHAUSTED;
    }
    let is_held = is_short && own == Rank::Draining;
    if is_held || own as u8 == best.rank as u8 {
        return Verdict { worker: frontend.worker, rank: own, floor: is_held };
    }
    if frontend.worker != NO_WORKER && service.policy() == Policy::Refuse {
        return Verdict { worker: NO_WORKER, rank: best.rank, floor: false };
    }
    best
}

const RANK_SHIFT: u32 = 48;
const LOTTERY_SHIFT: u32 = 16;
/// Set in the lot of a worker that is draining, below its number.
const DRAINING_SHIFT: u32 = 15;
const WORKER_MASK: u32 = (1 << DRAINING_SHIFT) - 1;
const NO_LOT: u64 = (Rank::None as u64) << RANK_SHIFT;

const _: () = assert!(MAX_WORKERS <= WORKER_MASK as usize);

/// The two lowest lots so far.
#[derive(Clone, Copy)]
struct Lots(u64, u64);

impl Lots {
    const NONE: Self = Self(NO_LOT, NO_LOT);

    /// With one more lot drawn.
    #[inline(always)]
    fn with(self, lot: u64) -> Self {
        let (first, loser) = sort(lot, self.0);
        Self(first, sort(loser, self.1).0)
    }
}

/// Of the members with the best rank, two at random; of those, the one with fewer open connections. And whether the
/// floor holds those that are draining in rotation.
///
/// Each member draws a lottery number headed by its rank, and the two lowest win: one pass without branches on what was
/// seen before, or on anything else, which is what the verifier can follow. The order of the two is as random as their
/// choice, so ties need no coin. How many are up is known after the pass only, so that the lottery is held twice, with
/// the same numbers: as the ranks are, and with those that are draining among those that are up.
#[inline(always)]
fn choose(tables: &impl Tables, now_ms: u64) -> (Verdict, bool) {
    let len = tables.members();
    let (mut plain, mut held, mut ups) = (Lots::NONE, Lots::NONE, 0);
    let mut random = tables.random() | 1;
    let mut nth = 0;
    while nth < MAX_MEMBERS as u32 {
        if nth >= len {
            break;
        }
        let worker = tables.member(nth);
        random = xorshift(random);
        let rank = rank_bits(tables.word(worker), now_ms);
        let is_draining = rank & 1 & !(rank >> 1);
        let lot = u64::from(random) << LOTTERY_SHIFT | is_draining << DRAINING_SHIFT | u64::from(worker & WORKER_MASK);
        ups += is_less(rank, 1);
        plain = plain.with(rank << RANK_SHIFT | lot);
        held = held.with((rank - is_draining) << RANK_SHIFT | lot);
        nth += 1;
    }
    let is_short = is_less(0, ups) & is_less(ups, tables.min_up()) != 0;
    (draw(if is_short { held } else { plain }, is_short, tables), is_short)
}

/// The winner of a lottery.
#[inline(always)]
fn draw(Lots(first, second): Lots, is_short: bool, tables: &impl Tables) -> Verdict {
    let rank_of = |lot: u64| (lot >> RANK_SHIFT) as u32;
    let (one, other) = (first as u32 & WORKER_MASK, second as u32 & WORKER_MASK);
    let is_rival = rank_of(first) == rank_of(second) && tables.open(other) < tables.open(one);
    let lot = if is_rival { second } else { first };
    let floor = is_short && lot >> DRAINING_SHIFT & 1 != 0;
    let rank = match rank_of(lot) {
        _ if floor => Rank::Draining,
        0 => Rank::Up,
        1 => Rank::Draining,
        2 => Rank::Cold,
        _ => return Verdict::EXHAUSTED,
    };
    Verdict { worker: lot as u32 & WORKER_MASK, rank, floor }
}

/// One step of Marsaglia's 32-bit xorshift ("Xorshift RNGs", 2003): never 0 from a start that is not 0.
#[inline(always)]
const fn xorshift(mut x: u32) -> u32 {
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    x
}
