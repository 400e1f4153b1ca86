//! Figures that are added up, and taken from each other.

use std::collections::BTreeMap;

use deployer_common::histogram::{self, BUCKETS};

use crate::{
    api::{Latency, Proof, Tally, Window},
    kernel::Tables,
};

/// Where figures come from.
pub trait Source: Send + Sync {
    /// All that was ever counted for a worker.
    fn worker(&self, index: u32) -> Tally;

    /// All connections of a service that were ever refused because no worker could take them.
    fn exhausted(&self, index: u32) -> u64;
}

impl Source for Tables {
    fn worker(&self, index: u32) -> Tally {
        let (count, life, proof) = (self.counts().worker(index), self.counts().life(index), self.counts().proof(index));
        let lifetimes = proof.lifetimes.iter().enumerate().filter(|(_, count)| **count > 0);
        Tally {
            version: None,
            connections: count.established,
            failed: proof.failed,
            reset: proof.reset,
            closed_port: self.counts().end(index).refused,
            cut: life.cut + self.counts().evidence(index).outsiders_cut,
            refused: count.refused,
            late: proof.late,
            to_cold: proof.cold,
            fallback_draining: count.fallback_draining,
            fallback_cold: count.fallback_cold,
            fallback_floor: proof.fallback_floor,
            lifetimes: lifetimes.map(|(bucket, count)| (histogram::floor(bucket), *count)).collect(),
            latency: None,
        }
    }

    fn exhausted(&self, index: u32) -> u64 {
        self.counts().service(index).exhausted
    }
}

impl Tally {
    /// The counters, each in its place.
    fn counters(&mut self) -> [&mut u64; 11] {
        let Self { connections, failed, reset, closed_port, cut, refused, late, to_cold, .. } = self;
        let Self { fallback_draining, fallback_cold, fallback_floor, .. } = self;
        let fallbacks = [fallback_draining, fallback_cold, fallback_floor];
        let [draining, cold, floor] = fallbacks;
        [connections, failed, reset, closed_port, cut, refused, late, to_cold, draining, cold, floor]
    }

    /// Adds another's figures.
    pub(crate) fn add(&mut self, mut other: Self) {
        for (mine, theirs) in self.counters().into_iter().zip(other.counters()) {
            *mine = mine.saturating_add(*theirs);
        }
        for (floor, count) in other.lifetimes {
            let mine = self.lifetimes.entry(floor).or_default();
            *mine = mine.saturating_add(count);
        }
    }

    /// What has been added since it was `before`. A counter that is less than it was has begun anew.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let (mut since, mut before) = (self.clone(), before.clone());
        for (now, then) in since.counters().into_iter().zip(before.counters()) {
            *now = now.checked_sub(*then).unwrap_or(*now);
        }
        for (floor, now) in &mut since.lifetimes {
            let then = before.lifetimes.get(floor).copied().unwrap_or(0);
            *now = now.checked_sub(then).unwrap_or(*now);
        }
        since.lifetimes.retain(|_, count| *count > 0);
        since
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.clone().counters().iter().all(|counter| **counter == 0) && self.lifetimes.is_empty()
    }

    /// The largest of its numbers.
    pub(super) fn largest(&self) -> u64 {
        let mut copy = self.clone();
        let lifetimes = self.lifetimes.values().copied().max().unwrap_or(0);
        copy.counters().iter().map(|counter| **counter).max().unwrap_or(0).max(lifetimes)
    }

    /// Sums its lifetimes up.
    pub(super) fn sum_up(&mut self) {
        let mut counts = [0_u64; BUCKETS];
        for (floor, count) in &self.lifetimes {
            let bucket = &mut counts[histogram::bucket(*floor)];
            *bucket = bucket.saturating_add(*count);
        }
        let at = |share| histogram::percentile(&counts, share);
        self.latency = match (at(0.5), at(0.99), at(1.0)) {
            (Some(p50_us), Some(p99_us), Some(max_us)) => Some(Latency { p50_us, p99_us, max_us }),
            _ => None,
        };
    }
}

impl Window {
    /// Adds what was counted for workers of one version.
    pub(crate) fn count(&mut self, tally: Tally) {
        if tally.is_empty() {
            return;
        }
        match self.versions.iter_mut().find(|mine| mine.version == tally.version) {
            Some(mine) => mine.add(tally),
            None => self.versions.push(tally),
        }
    }

    /// Adds another span of time.
    pub(crate) fn add(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.exhausted = self.exhausted.saturating_add(other.exhausted);
        other.versions.into_iter().for_each(|tally| self.count(tally));
    }

    /// For who reads it: lifetimes summed up, the version of before first, and the unknown last.
    pub(crate) fn shown(mut self, from: Option<&str>) -> Self {
        self.versions.iter_mut().for_each(Tally::sum_up);
        self.versions.sort_by_cached_key(|tally| {
            let version = tally.version.clone();
            (version.is_none(), version.as_deref() != from, version)
        });
        self
    }

    /// Its proofs, over all versions.
    #[must_use]
    pub fn proof(&self) -> Proof {
        let mut all = Tally::default();
        self.versions.iter().for_each(|tally| all.add(Tally { lifetimes: BTreeMap::new(), ..tally.clone() }));
        Proof::of(&all, self.exhausted)
    }
}

impl Proof {
    /// The proofs among all figures.
    #[must_use]
    pub fn of(tally: &Tally, exhausted: u64) -> Self {
        Self {
            late: tally.late,
            to_cold: tally.to_cold,
            fallback_draining: tally.fallback_draining,
            fallback_cold: tally.fallback_cold,
            fallback_floor: tally.fallback_floor,
            exhausted,
            refused: tally.refused,
            closed_port: tally.closed_port,
        }
    }
}
