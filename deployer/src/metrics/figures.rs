//! What is counted of a worker's connections, as the page tells it by version.

use deployer_common::{
    histogram::{self, BUCKETS},
    layout::{WorkerCount, WorkerLife, WorkerProof, WorkerTimes},
};

use crate::{keepalive::Closed, kernel::Tables};

/// Upper bounds of how long connections last and take to be established, in microseconds and as they are written, in
/// seconds. Each is a bound of the kernel's own buckets, so that nothing is guessed between two.
pub(super) type Bounds = [(u64, &'static str); BOUNDS];
const BOUNDS: usize = 11;

/// From a millisecond to a quarter of an hour.
pub(super) const LIFETIMES: Bounds = [
    (1 << 10, "0.001024"),
    (1 << 12, "0.004096"),
    (1 << 14, "0.016384"),
    (1 << 16, "0.065536"),
    (1 << 18, "0.262144"),
    (1 << 20, "1.048576"),
    (1 << 22, "4.194304"),
    (1 << 24, "16.777216"),
    (1 << 26, "67.108864"),
    (1 << 28, "268.435456"),
    (1 << 30, "1073.741824"),
];

/// From 32 microseconds, less than which no connection over the loopback device takes, to beyond a SYN that was sent
/// three times.
pub(super) const CONNECTS: Bounds = [
    (1 << 5, "0.000032"),
    (1 << 6, "0.000064"),
    (1 << 7, "0.000128"),
    (1 << 8, "0.000256"),
    (1 << 10, "0.001024"),
    (1 << 12, "0.004096"),
    (1 << 14, "0.016384"),
    (1 << 16, "0.065536"),
    (1 << 18, "0.262144"),
    (1 << 20, "1.048576"),
    (1 << 22, "4.194304"),
];

/// What is counted, each by its place in [`Figures`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Count {
    Direct,
    Steered,
    Picked,
    Away,
    Refused,
    FallbackDraining,
    FallbackCold,
    FallbackFloor,
    Established,
    Failed,
    Reset,
    Cut,
    Late,
    ToCold,
    ReapedComplete,
    ReapedQuiet,
}

impl Count {
    /// What the daemon counts itself, from its start on; the kernel knows nothing of it.
    pub(super) const OWN: [Self; 2] = [Self::ReapedComplete, Self::ReapedQuiet];
}

const COUNTS: usize = Count::ReapedQuiet as usize + 1;
/// The sum, and what is below each bound or below none.
const TIMES: usize = 1 + BOUNDS + 1;
/// Numbers in all.
pub(super) const LEN: usize = COUNTS + 2 * TIMES;

/// The figures of a worker, or of one version of it. They only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures(pub(super) [u64; LEN]);

/// How long something took: microseconds added up, and how often it took less than each bound, but not less than the one
/// before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times<'a> {
    pub(super) sum_us: u64,
    pub(super) counts: &'a [u64],
}

impl Default for Figures {
    fn default() -> Self {
        Self([0; LEN])
    }
}

impl Figures {
    /// All that was ever counted at a worker's place in the tables, and what the daemon itself has `closed` there.
    #[must_use]
    pub fn read(tables: &Tables, worker: u32, closed: Closed) -> Self {
        let counts = tables.counts();
        let (count, life, proof) = (counts.worker(worker), counts.life(worker), counts.proof(worker));
        Self::of(&count, &life, &proof, &counts.times(worker), closed)
    }

    fn of(count: &WorkerCount, life: &WorkerLife, proof: &WorkerProof, times: &WorkerTimes, closed: Closed) -> Self {
        let mut all = Self::default();
        let counts = [
            (Count::Direct, count.direct),
            (Count::Steered, count.steered),
            (Count::Picked, count.picked),
            (Count::Away, count.away),
            (Count::Refused, count.refused),
            (Count::FallbackDraining, count.fallback_draining),
            (Count::FallbackCold, count.fallback_cold),
            (Count::FallbackFloor, proof.fallback_floor),
            (Count::Established, count.established),
            (Count::Failed, proof.failed),
            (Count::Reset, proof.reset),
            (Count::Cut, life.cut),
            (Count::Late, proof.late),
            (Count::ToCold, proof.cold),
            (Count::ReapedComplete, closed.complete),
            (Count::ReapedQuiet, closed.quiet),
        ];
        counts.iter().for_each(|(which, value)| all.0[*which as usize] = *value);
        let (lifetimes, connects) = all.0[COUNTS..].split_at_mut(TIMES);
        gather(lifetimes, times.lifetime_us, &proof.lifetimes, &LIFETIMES);
        gather(connects, times.connect_us, &times.connects, &CONNECTS);
        all
    }

    pub(super) fn get(&self, which: Count) -> u64 {
        self.0[which as usize]
    }

    /// How long connections lasted, seen at the worker's end.
    pub(super) fn lifetimes(&self) -> Times<'_> {
        Times::of(&self.0[COUNTS..COUNTS + TIMES])
    }

    /// How long they took to be established, seen at the caller's end.
    pub(super) fn connects(&self) -> Times<'_> {
        Times::of(&self.0[COUNTS + TIMES..])
    }

    /// Connections that are over, seen at the worker's end.
    pub(super) fn closed(&self) -> u64 {
        self.lifetimes().counts.iter().fold(0, |total, count| total.saturating_add(*count))
    }

    pub(super) fn set(&mut self, which: Count, value: u64) {
        self.0[which as usize] = value;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|number| *number == 0)
    }

    /// Adds another's.
    pub(super) fn add(&mut self, more: &Self) {
        for (mine, more) in self.0.iter_mut().zip(more.0) {
            *mine = mine.saturating_add(more);
        }
    }

    /// What has been added since it was `before`; `None`: some number is less than it was.
    pub(super) fn since(&self, before: &Self) -> Option<Self> {
        let mut since = *self;
        for (now, then) in since.0.iter_mut().zip(before.0) {
            *now = now.checked_sub(then)?;
        }
        Some(since)
    }
}

impl<'a> Times<'a> {
    fn of(part: &'a [u64]) -> Self {
        Self { sum_us: part[0], counts: &part[1..] }
    }
}

/// Puts the kernel's buckets together between bounds.
fn gather(into: &mut [u64], sum_us: u64, buckets: &[u64; BUCKETS], bounds: &Bounds) {
    into[0] = sum_us;
    for (nth, count) in buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
        let floor = histogram::floor(nth);
        let place = bounds.iter().position(|(bound, _)| floor < *bound).unwrap_or(BOUNDS);
        into[1 + place] = into[1 + place].saturating_add(*count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_the_kernels_own() {
        for (bound, text) in LIFETIMES.iter().chain(&CONNECTS) {
            assert_eq!(histogram::floor(histogram::bucket(*bound)), *bound);
            assert_eq!(*text, (*bound as f64 / 1e6).to_string());
        }
        for bounds in [LIFETIMES, CONNECTS] {
            assert!(bounds.windows(2).all(|pair| pair[0].0 < pair[1].0));
        }
    }

    #[test]
    fn what_is_at_a_bound_is_above_it() {
        let mut buckets = [0; BUCKETS];
        for value in [0, 1023, 1024, 4095, 1 << 30, u64::MAX] {
            buckets[histogram::bucket(value)] += 1;
        }
        let mut into = [0; TIMES];
        gather(&mut into, 7, &buckets, &LIFETIMES);
        assert_eq!(into, [7, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn every_count_has_its_place() {
        let count = WorkerCount { direct: 1, steered: 2, picked: 3, away: 4, established: 9, ..WorkerCount::default() };
        let life = WorkerLife { cut: 12, ..WorkerLife::default() };
        let mut lifetimes = [0; BUCKETS];
        lifetimes[histogram::bucket(5_000)] = 8;
        let proof = WorkerProof { late: 13, cold: 14, fallback_floor: 8, failed: 10, reset: 11, lifetimes };
        let times = WorkerTimes { lifetime_us: 40_000, connect_us: 70, connects: [1; BUCKETS] };
        let all = Figures::of(&count, &life, &proof, &times, Closed { complete: 15, quiet: 16 });
        let wanted = [1, 2, 3, 4, 0, 0, 0, 8, 9, 10, 11, 12, 13, 14, 15, 16];
        assert_eq!(all.0[..COUNTS], wanted);
        assert_eq!((all.lifetimes().sum_us, all.closed()), (40_000, 8));
        assert_eq!((all.connects().sum_us, all.connects().counts.iter().sum::<u64>()), (70, BUCKETS as u64));
        let mut twice = all;
        twice.add(&all);
        assert_eq!((twice.since(&all), all.since(&twice)), (Some(all), None));
        assert_eq!((twice.closed(), twice.lifetimes().sum_us, twice.connects().sum_us), (16, 80_000, 140));
    }
}
