//! When loops that matter last came round: what feeds systemd's watchdog asks.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// When a loop last came round.
#[derive(Debug)]
pub struct Beat(Mutex<Instant>);

impl Default for Beat {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Beat {
    /// The loop comes round.
    pub fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How long ago that was.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// The loops that renew leases just now, by number, and when each last came round.
static RENEWALS: Mutex<BTreeMap<u64, Instant>> = Mutex::new(BTreeMap::new());

fn renewals() -> MutexGuard<'static, BTreeMap<u64, Instant>> {
    RENEWALS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A loop that renews a lease, until this is dropped.
#[derive(Debug)]
pub struct Renewal(u64);

impl Renewal {
    /// The loop begins.
    #[must_use]
    pub fn begin() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        renewals().insert(number, Instant::now());
        Self(number)
    }

    /// The loop comes round.
    pub fn beat(&self) {
        renewals().insert(self.0, Instant::now());
    }

    /// How long ago the loop came round that is latest; zero: no lease is renewed just now.
    #[must_use]
    pub fn latest() -> Duration {
        renewals().values().map(Instant::elapsed).max().unwrap_or_default()
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        renewals().remove(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_stands_still_is_late() {
        let beat = Beat::default();
        std::thread::sleep(Duration::from_millis(20));
        assert!(beat.age() >= Duration::from_millis(20));
        beat.beat();
        assert!(beat.age() < Duration::from_secs(5));
        let renewal = Renewal::begin();
        std::thread::sleep(Duration::from_millis(20));
        assert!(Renewal::latest() >= Duration::from_millis(20));
        let other = Renewal::begin();
        other.beat();
        renewal.beat();
        drop((renewal, other));
    }
}
