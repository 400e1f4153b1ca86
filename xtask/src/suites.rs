//! The suites, and how they share the machine. Most tests wait more than they work, so that several run at a
//! time, and suites beside each other.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// The suite of what needs no servers and no kernel: format, lints, unit tests.
pub(crate) const UNIT: &str = "unit";

/// An integration test of the package deployer-tests, or the unit tests of all packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Suite {
    /// Its name.
    pub(crate) name: &'static str,
    /// How many of its tests run at a time: more than one where they wait more than they work, and assert nothing narrow
    /// about how long things take.
    pub(crate) threads: &'static str,
    /// Nothing runs beside it.
    pub(crate) is_alone: bool,
}

const fn beside(name: &'static str, threads: &'static str) -> Suite {
    Suite { name, threads, is_alone: false }
}

const fn alone(name: &'static str, threads: &'static str) -> Suite {
    Suite { name, threads, is_alone: true }
}

/// All of them; those that take longest come first, so that none is left over at the end.
pub(crate) const ALL: &[Suite] = &[
    // Five hosts each.
    beside("fleet", "2"),
    beside("versions", "6"),
    // Those of the managers of workers wait for processes.
    beside(UNIT, "4"),
    beside("faults", "6"),
    beside("roll", "3"),
    beside("kept-alive", "6"),
    beside("journal", "6"),
    beside("metrics", "6"),
    beside("hostile", "6"),
    beside("managers", "8"),
    beside("matrix", "3"),
    beside("steer", "4"),
    beside("crash", "3"),
    beside("coordinator", "6"),
    beside("report", "3"),
    beside("outlive", "4"),
    beside("cli", "4"),
    beside("harness", "3"),
    beside("systemd", "4"),
    beside("selftest", "4"),
    // They make as many races as the machine can, or count its work.
    alone("races", "3"),
    alone("reaper", "2"),
    // It tells threads by their names.
    alone("framing", "1"),
];

/// How many suites run at a time: one keeps two processors busy.
pub(crate) fn lanes() -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    (processors / 2).clamp(1, 4)
}

/// Runs suites, `lanes` of them at a time, and then those that run alone. `run` gets a suite; `done` what came of it, with
/// the time that it took, as soon as it has ended.
pub(crate) fn each<T: Send>(
    suites: &[Suite],
    lanes: usize,
    run: impl Fn(Suite) -> T + Sync,
    mut done: impl FnMut(Suite, Duration, T),
) {
    let (alone, beside): (Vec<_>, Vec<_>) = suites.iter().copied().partition(|suite| suite.is_alone);
    for (some, lanes) in [(beside, lanes), (alone, 1)] {
        let queue = Mutex::new(VecDeque::from(some));
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        thread::scope(|scope| {
            let (ended, results) = mpsc::channel();
            for _ in 0..lanes {
                let ended = ended.clone();
                let (next, run) = (&next, &run);
                scope.spawn(move || {
                    while let Some(suite) = next() {
                        let start = Instant::now();
                        let result = run(suite);
                        // The other end waits for all of them.
                        let _ = ended.send((suite, start.elapsed(), result));
                    }
                });
            }
            drop(ended);
            results.iter().for_each(|(suite, time, result)| done(suite, time, result));
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_suite_runs_once_and_those_alone_run_last() {
        let suites = [alone("x", "1"), beside("a", "1"), beside("b", "1"), beside("c", "1"), alone("y", "1")];
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let mut order = Vec::new();
        let run = |suite: Suite| {
            let running = now.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(running, Ordering::SeqCst);
            assert!(!suite.is_alone || running == 1, "{suite:?} beside another");
            thread::sleep(Duration::from_millis(20));
            now.fetch_sub(1, Ordering::SeqCst);
            suite.name.len()
        };
        each(&suites, 2, run, |suite, time, length| {
            assert!(length == 1 && time >= Duration::from_millis(20));
            order.push(suite.name);
        });
        assert_eq!(most.into_inner(), 2);
        order[..3].sort_unstable();
        assert_eq!(order, ["a", "b", "c", "x", "y"]);
    }

    #[test]
    fn each_suite_is_listed_once() {
        let mut names: Vec<_> = ALL.iter().map(|suite| suite.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
