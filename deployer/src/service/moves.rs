//! What a service has gone through since the daemon was started: how long its workers took to be emptied and to be warmed,
//! from the phases that they have left, and how its rolls have ended.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::api::{Exit, Phase};

/// Upper bounds, in milliseconds and as they are written, in seconds.
pub(crate) const BOUNDS: [(u128, &str); 11] = [
    (50, "0.05"),
    (100, "0.1"),
    (250, "0.25"),
    (500, "0.5"),
    (1_000, "1"),
    (2_500, "2.5"),
    (5_000, "5"),
    (10_000, "10"),
    (30_000, "30"),
    (60_000, "60"),
    (300_000, "300"),
];

/// How often something took how long.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Durations {
    /// All of it, in seconds.
    pub(crate) sum: f64,
    /// What took no longer than each bound and longer than the one before, and at last what took longer than all.
    pub(crate) counts: [u64; BOUNDS.len() + 1],
}

impl Durations {
    fn add(&mut self, took: Duration) {
        let place = BOUNDS.iter().position(|(bound, _)| took.as_millis() <= *bound).unwrap_or(BOUNDS.len());
        self.counts[place] += 1;
        self.sum += took.as_secs_f64();
    }
}

/// How a roll can end.
pub(crate) const RESULTS: [(Exit, &str); 5] = [
    (Exit::Done, "done"),
    (Exit::Failed, "failed"),
    (Exit::Stopped, "stopped"),
    (Exit::RolledBack, "rolled-back"),
    (Exit::Incomplete, "incomplete"),
];

/// What a service has gone through.
#[derive(Debug, Default)]
pub struct Moves(Mutex<Moved>);

/// The same, as of one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Moved {
    /// Drains that have ended, however they did.
    pub(crate) drains: Durations,
    /// Warm-ups that were passed.
    pub(crate) warm_ups: Durations,
    /// Rolls that have ended, by their place in [`RESULTS`].
    pub(crate) rolls: [u64; RESULTS.len()],
    /// The same of deploys.
    pub(crate) deploys: [u64; RESULTS.len()],
    /// Flips to the new pool of a deploy.
    pub(crate) flips: u64,
    /// Flips back to the old one.
    pub(crate) rollbacks: u64,
}

impl Moves {
    /// A worker has left a phase, in which it was for so long, for another.
    pub fn left(&self, was: Phase, took: Duration, is: Phase) {
        let mut moved = self.moved();
        match (was, is) {
            (Phase::Draining, _) => moved.drains.add(took),
            (Phase::Warming, Phase::Up) => moved.warm_ups.add(took),
            _ => {}
        }
    }

    /// A roll has ended, or a deploy.
    pub fn ended(&self, result: Exit, is_deploy: bool) {
        if let Some(place) = RESULTS.iter().position(|(known, _)| *known == result) {
            let mut moved = self.moved();
            let ended = if is_deploy { &mut moved.deploys } else { &mut moved.rolls };
            ended[place] += 1;
        }
    }

    /// A deploy has flipped, or has flipped back.
    pub fn flipped(&self, back: bool) {
        let mut moved = self.moved();
        let flips = if back { &mut moved.rollbacks } else { &mut moved.flips };
        *flips += 1;
    }

    /// As of now.
    #[must_use]
    pub fn so_far(&self) -> Moved {
        *self.moved()
    }

    fn moved(&self) -> MutexGuard<'_, Moved> {
        // A panic elsewhere leaves it as good as it was.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drains_and_passed_warm_ups_are_counted() {
        let moves = Moves::default();
        moves.left(Phase::Draining, Duration::from_millis(33), Phase::Drained);
        moves.left(Phase::Draining, Duration::from_mins(10), Phase::Up);
        moves.left(Phase::Warming, Duration::from_millis(50), Phase::Up);
        moves.left(Phase::Warming, Duration::from_secs(20), Phase::Failed);
        moves.left(Phase::Up, Duration::from_secs(20), Phase::Draining);
        let Moved { drains, warm_ups, .. } = moves.so_far();
        assert_eq!((drains.counts[0], drains.counts[BOUNDS.len()], drains.sum), (1, 1, 600.033));
        assert_eq!((warm_ups.counts.iter().sum::<u64>(), warm_ups.counts[0], warm_ups.sum), (1, 1, 0.05));
    }

    #[test]
    fn what_is_written_is_what_it_is_called() {
        for (bound, text) in BOUNDS {
            assert_eq!((bound as f64 / 1000.0).to_string(), text);
        }
        let moves = Moves::default();
        for (result, text) in RESULTS {
            moves.ended(result, false);
            moves.ended(result, true);
            assert_eq!(serde_json::to_value(result).unwrap(), text);
        }
        moves.ended(Exit::Usage, false);
        moves.flipped(false);
        let Moved { rolls, deploys, flips, rollbacks, .. } = moves.so_far();
        assert_eq!((rolls, deploys), ([1; RESULTS.len()], [1; RESULTS.len()]));
        assert_eq!((flips, rollbacks), (1, 0));
    }
}
