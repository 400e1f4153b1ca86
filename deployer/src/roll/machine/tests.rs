//! Rolls played with arbitrary outcomes.

mod deploy;
mod left;

use proptest::prelude::*;

use super::*;

fn plan() -> impl Strategy<Value = Plan> {
    (1..60_usize, 1..10_usize, 0..6_usize, 0..3_usize, 1..5_usize, any::<[bool; 3]>()).prop_map(
        |(workers, batch, surge, leftover, max_failures, [rollback, switch, unswitch])| Plan {
            batches: Plan::batches(workers, batch),
            max_failures,
            rollback,
            switch,
            unswitch,
            surge: (workers..workers + surge).collect(),
            leftover: (workers..workers + leftover).collect(),
            back: 1,
            ..Plan::default()
        },
    )
}

fn outcome(draw: Option<u8>) -> Outcome {
    match draw {
        Some(0) => Outcome::Failed("broken".to_owned()),
        Some(1) => Outcome::Kept("late".to_owned()),
        Some(2) => Outcome::Left("busy".to_owned()),
        _ => Outcome::Changed,
    }
}

/// Plays a roll with outcomes drawn from a list; returns the steps taken.
fn play(plan: Plan, draws: &[u8]) -> (Machine, Vec<Step>) {
    let mut machine = Machine::new(plan);
    let mut draws = draws.iter().copied().cycle();
    let mut steps = Vec::new();
    // Forward and back through 60 workers, two commands, spares up and down, the end.
    for _ in 0..140 {
        let step = machine.step();
        steps.push(step.clone());
        match step {
            Step::Finish(_) => break,
            Step::Switch | Step::Unswitch => {
                let result = if draws.next() == Some(0) { Err("no".to_owned()) } else { Ok(()) };
                machine.commanded(result);
            }
            Step::Batch { workers, .. }
            | Step::Again { workers, .. }
            | Step::Surge { spares: workers }
            | Step::Retire { spares: workers } => {
                if draws.next() == Some(1) {
                    machine.stop("stopped on request", true);
                }
                machine.batch_done(workers.iter().map(|worker| (*worker, outcome(draws.next()))).collect());
            }
            step => panic!("{step:?} is a deploy's"),
        }
    }
    (machine, steps)
}

proptest! {
    #[test]
    fn every_roll_ends(plan in plan(), draws in prop::collection::vec(0..20_u8, 1..100)) {
        let (_, steps) = play(plan, &draws);
        prop_assert!(matches!(steps.last(), Some(Step::Finish(_))));
    }

    #[test]
    fn no_worker_is_restarted_twice_forward(plan in plan(), draws in prop::collection::vec(0..20_u8, 1..100)) {
        let (_, steps) = play(plan, &draws);
        let mut seen = std::collections::BTreeSet::new();
        for step in steps {
            if let Step::Batch { workers, back: false, .. } = step {
                for worker in workers {
                    prop_assert!(seen.insert(worker));
                }
            }
        }
    }

    #[test]
    fn without_faults_all_are_changed(plan in plan()) {
        let total: usize = plan.batches.iter().map(Vec::len).sum();
        let (machine, steps) = play(plan, &[7]);
        prop_assert_eq!(machine.changed(), total);
        prop_assert!(machine.surged.is_empty() && machine.unretired.is_empty());
        let done = matches!(steps.last(), Some(Step::Finish(End { result: Exit::Done, .. })));
        prop_assert!(done);
    }

    #[test]
    fn rolled_back_means_nothing_is_left_changed(plan in plan(), draws in prop::collection::vec(0..20_u8, 1..100)) {
        let (machine, steps) = play(plan, &draws);
        if let Some(Step::Finish(End { result: Exit::RolledBack, .. })) = steps.last() {
            prop_assert_eq!(machine.changed(), 0);
            prop_assert_eq!(machine.failed().count(), 0);
        }
    }
}

proptest! {
    #[test]
    fn spares_that_were_started_are_retired_before_the_end(
        plan in plan(),
        draws in prop::collection::vec(0..20_u8, 1..100),
    ) {
        let (machine, steps) = play(plan, &draws);
        let at = |is: &dyn Fn(&Step) -> bool| steps.iter().rposition(is);
        let surged = at(&|step| matches!(step, Step::Surge { .. }));
        let retired = at(&|step| matches!(step, Step::Retire { .. }));
        let batch = steps.iter().position(|step| matches!(step, Step::Batch { .. }));
        if let Some(surged) = surged {
            // None of them came up, and none was touched: then there is nothing to retire.
            let untouched = retired.is_none_or(|retired| retired < surged);
            prop_assert!(!untouched || (batch.is_none() && machine.unretired.is_empty()));
            prop_assert!(batch.is_none_or(|batch| surged < batch));
        }
        prop_assert!(machine.surged.is_empty());
    }

    #[test]
    fn no_batch_before_all_spares_are_up(plan in plan(), draws in prop::collection::vec(0..20_u8, 1..100)) {
        let mut machine = Machine::new(plan.clone());
        let mut draws = draws.iter().copied().cycle();
        let mut up = std::collections::BTreeSet::new();
        for _ in 0..140 {
            match machine.step() {
                Step::Finish(_) => break,
                Step::Switch | Step::Unswitch => machine.commanded(Ok(())),
                Step::Surge { spares } => {
                    let outcomes: Vec<_> = spares.iter().map(|spare| (*spare, outcome(draws.next()))).collect();
                    up = outcomes.iter().filter(|(_, it)| *it == Outcome::Changed).map(|(spare, _)| *spare).collect();
                    machine.batch_done(outcomes);
                }
                Step::Retire { spares } => {
                    up.retain(|spare| !spares.contains(spare));
                    machine.batch_done(spares.iter().map(|spare| (*spare, Outcome::Changed)).collect());
                }
                Step::Batch { workers, back, .. } | Step::Again { workers, back } => {
                    // On the way back there are none: they run what failed.
                    let all = if back { Default::default() } else { plan.surge.iter().copied().collect() };
                    prop_assert_eq!(&up, &all);
                    machine.batch_done(workers.iter().map(|worker| (*worker, outcome(draws.next()))).collect());
                }
                step => panic!("{step:?} is a deploy's"),
            }
        }
        prop_assert!(up.is_empty());
    }

    #[test]
    fn a_roll_in_a_file_is_the_same(plan in plan(), draws in prop::collection::vec(0..20_u8, 1..100)) {
        let workers: usize = plan.batches.iter().map(Vec::len).sum();
        let (machine, _) = play(plan, &draws);
        let text = serde_json::to_string(&machine).unwrap();
        let read: Machine = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&read, &machine);
        prop_assert_eq!(read.check(workers, 6, 0), Ok(()));
    }
}

fn four(max_failures: usize, rollback: bool) -> Plan {
    Plan { batches: Plan::batches(4, 1), max_failures, rollback, switch: true, unswitch: true, ..Plan::default() }
}

/// The same with two spares.
fn surging(rollback: bool) -> Machine {
    let mut machine = Machine::new(Plan { surge: vec![4, 5], ..four(1, rollback) });
    machine.commanded(Ok(()));
    assert_eq!(machine.step(), Step::Surge { spares: vec![4, 5] });
    machine
}

fn all(workers: &[usize], outcome: &Outcome) -> Vec<(usize, Outcome)> {
    workers.iter().map(|worker| (*worker, outcome.clone())).collect()
}

fn end(machine: &Machine) -> (Exit, String) {
    let Step::Finish(End { result, text }) = machine.step() else { panic!("{:?}", machine.step()) };
    (result, text)
}

#[test]
fn a_spare_that_does_not_come_up_ends_it() {
    for rollback in [false, true] {
        let mut machine = surging(rollback);
        machine.batch_done(vec![(4, Outcome::Changed), (5, Outcome::Failed("5 broke".to_owned()))]);
        assert_eq!(machine.step(), Step::Retire { spares: vec![4, 5] });
        machine.batch_done(all(&[4, 5], &Outcome::Changed));
        if rollback {
            assert_eq!(machine.step(), Step::Unswitch);
            machine.commanded(Ok(()));
        }
        let result = if rollback { Exit::RolledBack } else { Exit::Failed };
        assert_eq!(end(&machine), (result, "a spare did not come up: 5 broke; no worker was touched".to_owned()));
    }
}

#[test]
fn spares_are_retired_before_the_way_back() {
    let mut machine = surging(true);
    machine.batch_done(all(&[4, 5], &Outcome::Changed));
    fail(&mut machine, 0);
    assert_eq!(machine.step(), Step::Retire { spares: vec![4, 5] });
    machine.batch_done(vec![(4, Outcome::Changed), (5, Outcome::Kept("5 is busy".to_owned()))]);
    assert_eq!(machine.step(), Step::Unswitch);
    machine.commanded(Ok(()));
    machine.batch_done(vec![(0, Outcome::Changed)]);
    // One serves the version that failed: that is no roll back.
    let (result, text) = end(&machine);
    assert_eq!(result, Exit::Failed);
    assert!(text.contains("has been rolled back") && text.ends_with("; not retired: 5 is busy"), "{text}");
}

#[test]
fn a_spare_that_stays_is_told() {
    for (outcome, result) in [
        (Outcome::Kept("4 is busy".to_owned()), Exit::Stopped),
        (Outcome::Failed("4 may yet stop".to_owned()), Exit::Failed),
    ] {
        let mut machine = surging(false);
        machine.batch_done(all(&[4, 5], &Outcome::Changed));
        for worker in 0..4 {
            machine.batch_done(vec![(worker, Outcome::Changed)]);
        }
        assert_eq!(machine.step(), Step::Retire { spares: vec![4, 5] });
        machine.batch_done(vec![(4, outcome), (5, Outcome::Changed)]);
        let (now, text) = end(&machine);
        assert_eq!(now, result);
        assert!(text.starts_with("4 workers restarted; not retired: 4 "), "{text}");
    }
}

#[test]
fn a_stop_retires_what_was_started() {
    let mut machine = surging(false);
    machine.stop("stopped on request", true);
    machine.batch_done(all(&[4, 5], &Outcome::Changed));
    assert_eq!(machine.step(), Step::Retire { spares: vec![4, 5] });
    machine.batch_done(all(&[4, 5], &Outcome::Changed));
    assert_eq!(end(&machine).0, Exit::Stopped);
    // Nothing has been started yet.
    let mut machine = surging(false);
    machine.stop("stopped on request", false);
    assert_eq!(end(&machine).0, Exit::Stopped);
}

#[test]
fn what_was_left_running_goes_first() {
    let plan = Plan { leftover: vec![5], surge: vec![4], ..four(1, false) };
    let mut machine = Machine::new(plan.clone());
    assert_eq!(machine.step(), Step::Retire { spares: vec![5] });
    machine.batch_done(all(&[5], &Outcome::Changed));
    assert_eq!(machine.step(), Step::Switch);
    let mut machine = Machine::new(plan);
    machine.batch_done(all(&[5], &Outcome::Kept("5 is busy".to_owned())));
    let (result, text) = end(&machine);
    assert_eq!(result, Exit::Stopped);
    assert_eq!(text, "a spare that was left running cannot be retired: 5 is busy; no worker was touched");
}

#[test]
fn spares_and_workers_are_not_mixed_up() {
    let machine = surging(false);
    assert_eq!(machine.check(4, 2, 0), Ok(()));
    assert!(machine.check(3, 3, 0).is_err(), "a worker's number is a spare's");
    assert!(machine.check(5, 1, 0).is_err(), "a spare's number is a worker's");
    assert!(machine.check(4, 1, 0).is_err());
}

fn fail(machine: &mut Machine, worker: usize) {
    machine.batch_done(vec![(worker, Outcome::Failed(format!("worker {worker} broke")))]);
}

#[test]
fn the_first_failure_too_many_stops_it() {
    let mut machine = Machine::new(four(1, false));
    machine.commanded(Ok(()));
    machine.batch_done(vec![(0, Outcome::Changed)]);
    fail(&mut machine, 1);
    let Step::Finish(end) = machine.step() else { panic!("{:?}", machine.step()) };
    assert_eq!(end.result, Exit::Failed);
    assert_eq!(end.text, "worker 1 broke; 1 of 4 workers are changed, 1 failed and are out");
}

#[test]
fn a_failure_is_rolled_back() {
    let mut machine = Machine::new(four(1, true));
    machine.commanded(Ok(()));
    machine.batch_done(vec![(0, Outcome::Changed)]);
    fail(&mut machine, 1);
    assert_eq!(machine.step(), Step::Unswitch);
    machine.commanded(Ok(()));
    for worker in [1, 0] {
        let Step::Batch { workers, back: true, .. } = machine.step() else { panic!("{:?}", machine.step()) };
        assert_eq!(workers, [worker]);
        machine.batch_done(vec![(worker, Outcome::Changed)]);
    }
    assert!(matches!(machine.step(), Step::Finish(End { result: Exit::RolledBack, .. })));
}

#[test]
fn a_failed_switch_touches_nobody() {
    let mut machine = Machine::new(four(1, true));
    machine.commanded(Err("exit status 1".to_owned()));
    assert!(matches!(machine.step(), Step::Finish(End { result: Exit::Failed, .. })));
}
