//! The suites, and how they share the machine. Most tests wait more than they work, so that several run at a
//! time, and suites beside each other.

use std::collections::VecDeque;
use std::iter;
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
    weight: Weight,
}

/// What may run beside a suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weight {
    /// Nothing: it makes as many races as the machine can, or counts its work.
    Alone,
    /// Light ones: it keeps two processors busy, or nearly.
    Heavy,
    /// Anything: it mostly waits.
    Light,
}

const fn suite(name: &'static str, threads: &'static str, weight: Weight) -> Suite {
    Suite { name, threads, weight }
}

/// All of them. Those beside which there is most room come first among the heavy ones.
pub(crate) const ALL: &[Suite] = &[
    // Five hosts each.
    suite("fleet", "2", Weight::Heavy),
    suite("versions", "6", Weight::Heavy),
    suite("faults", "6", Weight::Heavy),
    suite("roll", "3", Weight::Heavy),
    suite("kept-alive", "6", Weight::Heavy),
    suite("journal", "6", Weight::Heavy),
    suite("metrics", "6", Weight::Heavy),
    suite("hostile", "6", Weight::Heavy),
    suite("managers", "8", Weight::Heavy),
    suite("matrix", "3", Weight::Heavy),
    suite("steer", "4", Weight::Heavy),
    suite("crash", "3", Weight::Heavy),
    suite("report", "3", Weight::Heavy),
    // Those of the managers of workers wait for processes.
    suite(UNIT, "4", Weight::Light),
    suite("coordinator", "4", Weight::Light),
    suite("systemd", "4", Weight::Light),
    suite("outlive", "3", Weight::Light),
    suite("cli", "3", Weight::Light),
    suite("harness", "3", Weight::Light),
    suite("selftest", "4", Weight::Light),
    suite("races", "3", Weight::Alone),
    suite("reaper", "2", Weight::Alone),
    // It tells threads by their names.
    suite("framing", "1", Weight::Alone),
];

/// How many heavy suites run at a time: one keeps two processors busy.
pub(crate) fn heavy_lanes() -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    (processors / 2).clamp(1, 4)
}

/// Runs suites: heavy ones, `heavy` at a time, beside light ones, one at a time, and then those that run alone. `run` gets a
/// suite; `done` what came of it, with the time that it took, as soon as it has ended.
pub(crate) fn each<T: Send>(
    suites: &[Suite],
    heavy: usize,
    run: impl Fn(Suite) -> T + Sync,
    mut done: impl FnMut(Suite, Duration, T),
) {
    let queue = |weight| {
        let some = suites.iter().copied().filter(|suite| suite.weight == weight);
        Mutex::new(some.collect::<VecDeque<_>>())
    };
    let [heavy_ones, light_ones, alone] = [Weight::Heavy, Weight::Light, Weight::Alone].map(queue);
    let beside: Vec<_> = iter::repeat_n(&heavy_ones, heavy).chain([&light_ones]).collect();
    for lanes in [beside, vec![&alone]] {
        thread::scope(|scope| {
            let (ended, results) = mpsc::channel();
            for lane in lanes {
                let (ended, run) = (ended.clone(), &run);
                scope.spawn(move || {
                    let next = || lane.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
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
        let some = |weight: Weight, names: [&'static str; 2]| names.map(|name| suite(name, "1", weight));
        let alone = some(Weight::Alone, ["x", "y"]);
        let suites = [alone, some(Weight::Heavy, ["a", "b"]), some(Weight::Light, ["c", "d"])].concat();
        let [now, heavy, most] = [const { AtomicUsize::new(0) }; 3];
        let mut order = Vec::new();
        let run = |suite: Suite| {
            let running = now.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(running, Ordering::SeqCst);
            assert!(suite.weight != Weight::Alone || running == 1, "{suite:?} beside another");
            let is_heavy = usize::from(suite.weight == Weight::Heavy);
            assert!(heavy.fetch_add(is_heavy, Ordering::SeqCst) + is_heavy <= 1, "two heavy ones at a time");
            thread::sleep(Duration::from_millis(20));
            heavy.fetch_sub(is_heavy, Ordering::SeqCst);
            now.fetch_sub(1, Ordering::SeqCst);
            suite.name.len()
        };
        each(&suites, 1, run, |suite, time, length| {
            assert!(length == 1 && time >= Duration::from_millis(20));
            order.push(suite.name);
        });
        assert_eq!(most.into_inner(), 2);
        order[..4].sort_unstable();
        assert_eq!(order, ["a", "b", "c", "d", "x", "y"]);
    }

    #[test]
    fn each_suite_is_listed_once() {
        let mut names: Vec<_> = ALL.iter().map(|suite| suite.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
