//! How much of what reaches workers was not steered: figures of the last minutes, and what follows from them.

mod open;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use deployer_common::layout::UnsteeredKey;

pub use self::open::{Open, Peer, look};
pub use crate::kernel::diag::is_of_this_host;

/// What is judged is so young.
pub const SPAN: Duration = Duration::from_secs(300);
/// Between two samples.
pub const EVERY: Duration = Duration::from_secs(3);
/// So many connections in [`SPAN`] are no health check, which asks every five seconds at most.
const MANY: u64 = 60;
/// Nor are so many in [`BURST_SPAN`].
const BURST: u64 = 20;
const BURST_SPAN: Duration = Duration::from_secs(10);
/// So many that are open are more than one client that an operator has at hand.
const MANY_OPEN: usize = 4;

/// What was counted of a worker's connections at their two ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ends {
    /// Established at the worker's end, without the daemon's own.
    pub established: u64,
    /// Established at a steered caller's end.
    pub steered: u64,
}

/// What was counted of a service at one instant.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// By place in the tables.
    pub workers: BTreeMap<u32, Ends>,
    /// Connections of callers that were not steered.
    pub callers: HashMap<UnsteeredKey, u64>,
}

/// The samples of the last minutes, the oldest first.
#[derive(Debug, Default)]
pub struct Ring(VecDeque<(Instant, Sample)>);

/// A worker's connections in the last minutes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recent {
    /// All.
    pub all: u64,
    /// Those that no steered caller has made.
    pub unsteered: u64,
    /// The most of those in some seconds.
    burst: u64,
}

impl Ring {
    /// Adds what was counted now.
    pub fn add(&mut self, now: Instant, sample: Sample) {
        self.0.push_back((now, sample));
        // The last that is too old is where the span begins.
        while self.0.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= SPAN) {
            self.0.pop_front();
        }
    }

    /// Forgets all: what comes from before is not to be judged.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// A worker's connections since the span began, or since it was first seen.
    #[must_use]
    pub fn worker(&self, index: u32, now: Ends) -> Recent {
        let mut seen: Vec<_> =
            self.0.iter().filter_map(|(at, sample)| Some((*at, *sample.workers.get(&index)?))).collect();
        let Some((_, first)) = seen.first().copied() else { return Recent::default() };
        seen.push((Instant::now(), now));
        let bursts = seen.iter().enumerate().map(|(nth, (at, from))| {
            let within = seen[nth..].iter().take_while(|(later, _)| later.saturating_duration_since(*at) <= BURST_SPAN);
            within.last().map_or(0, |(_, to)| unsteered(from, to))
        });
        let burst = bursts.max().unwrap_or(0);
        Recent { all: now.established.saturating_sub(first.established), unsteered: unsteered(&first, &now), burst }
    }

    /// Connections of a caller since the span began.
    #[must_use]
    pub fn caller(&self, key: &UnsteeredKey, now: u64) -> u64 {
        let first = self.0.front().and_then(|(_, sample)| sample.callers.get(key)).copied().unwrap_or(0);
        // One that was forgotten in between has been counted from 0 again.
        now.checked_sub(first).unwrap_or(now)
    }
}

fn unsteered(from: &Ends, to: &Ends) -> u64 {
    let established = to.established.saturating_sub(from.established);
    established.saturating_sub(to.steered.saturating_sub(from.steered))
}

impl Recent {
    /// Whether most of them, and too many for health checks, were not steered.
    #[must_use]
    pub fn is_mostly_unsteered(&self) -> bool {
        self.unsteered.saturating_mul(2) > self.all && (self.unsteered > MANY || self.burst >= BURST)
    }
}

/// Whether most of what is open at a worker, and too much for an operator's own, was not steered.
#[must_use]
pub fn is_mostly_unsteered(unsteered: usize, all: usize) -> bool {
    unsteered.saturating_mul(2) > all && unsteered >= MANY_OPEN
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring(samples: &[(u64, Ends)]) -> Ring {
        let (mut ring, begun) = (Ring::default(), Instant::now());
        for (seconds, ends) in samples {
            let sample = Sample { workers: [(0, *ends)].into(), ..Sample::default() };
            ring.add(begun + Duration::from_secs(*seconds), sample);
        }
        ring
    }

    fn ends(established: u64, steered: u64) -> Ends {
        Ends { established, steered }
    }

    #[test]
    fn a_load_balancer_elsewhere_is_seen() {
        let ring = ring(&[(0, ends(1000, 900))]);
        let recent = ring.worker(0, ends(1200, 980));
        assert_eq!((recent.all, recent.unsteered), (200, 120));
        assert!(recent.is_mostly_unsteered());
        assert!(!ring.worker(0, ends(1300, 1150)).is_mostly_unsteered(), "most are steered");
    }

    #[test]
    fn a_quick_load_is_seen_soon_and_a_health_check_never() {
        let quick = ring(&[(0, ends(0, 0)), (3, ends(12, 0)), (6, ends(24, 0))]);
        assert!(quick.worker(0, ends(24, 0)).is_mostly_unsteered());
        // Every five seconds, for longer than the span.
        let checks: Vec<_> = (0..400).map(|nth| (nth * 3, ends(nth * 3 / 5, 0))).collect();
        let ring = ring(&checks);
        let last = checks.last().unwrap().1;
        let recent = ring.worker(0, last);
        assert!(recent.unsteered > 50 && !recent.is_mostly_unsteered(), "{recent:?}");
    }

    #[test]
    fn what_is_not_known_is_not_judged() {
        assert_eq!(Ring::default().worker(0, ends(1000, 0)), Recent::default());
        assert_eq!(ring(&[(0, ends(5, 5))]).worker(1, ends(1000, 0)), Recent::default());
        let mut ring = ring(&[(0, ends(0, 0))]);
        ring.clear();
        assert_eq!(ring.worker(0, ends(1000, 0)), Recent::default());
    }

    #[test]
    fn callers_count_from_where_the_span_begins() {
        let key = UnsteeredKey { service: 1, ..UnsteeredKey::default() };
        let mut ring = Ring::default();
        ring.add(Instant::now(), Sample { callers: [(key, 10)].into(), ..Sample::default() });
        assert_eq!((ring.caller(&key, 15), ring.caller(&key, 3)), (5, 3));
        assert_eq!(ring.caller(&UnsteeredKey::default(), 4), 4);
    }

    #[test]
    fn what_an_operator_holds_open_is_let_be() {
        assert!(!is_mostly_unsteered(3, 3) && is_mostly_unsteered(4, 4));
        assert!(!is_mostly_unsteered(10, 20) && is_mostly_unsteered(11, 20));
    }

    proptest! {
        #[test]
        fn steered_callers_never_stand_in_the_way(
            steps in prop::collection::vec((0..20_u64, 0..500_u64, 0..3_u64), 1..100),
        ) {
            // The caller's end is established a moment before the worker's.
            let (mut ring, begun, mut at, mut steered) = (Ring::default(), Instant::now(), 0, 0);
            for (seconds, more, ahead) in steps {
                at += seconds;
                steered += more;
                let now = ends(steered - ahead.min(more), steered);
                ring.add(begun + Duration::from_secs(at), Sample { workers: [(0, now)].into(), ..Sample::default() });
                prop_assert!(!ring.worker(0, ends(steered, steered)).is_mostly_unsteered());
            }
        }

        #[test]
        fn no_figure_is_more_than_all(
            samples in prop::collection::vec((0..10_u64, 0..100_u64, 0..100_u64), 1..150),
        ) {
            let (mut ring, begun, mut at, mut now) = (Ring::default(), Instant::now(), 0, Ends::default());
            for (seconds, established, steered) in samples {
                at += seconds;
                now = ends(now.established + established, now.steered + steered);
                ring.add(begun + Duration::from_secs(at), Sample { workers: [(0, now)].into(), ..Sample::default() });
                let recent = ring.worker(0, now);
                prop_assert!(recent.unsteered <= recent.all);
            }
            let age = |ring: &Ring| ring.0.get(1).map(|(first, _)| ring.0.back().unwrap().0 - *first);
            prop_assert!(age(&ring).is_none_or(|age| age < SPAN));
        }
    }
}
