//! Rolls played with arbitrary outcomes.

use proptest::prelude::*;

use super::*;

fn plan() -> impl Strategy<Value = Plan> {
    (1..60_usize, 1..10_usize, 1..5_usize, any::<[bool; 3]>()).prop_map(
        |(workers, batch, max_failures, [rollback, switch, unswitch])| Plan {
            batches: Plan::batches(workers, batch),
            max_failures,
            rollback,
            switch,
            unswitch,
        },
    )
}

/// Plays a roll with outcomes drawn from a list; returns the steps taken.
fn play(plan: Plan, draws: &[u8]) -> (Machine, Vec<Step>) {
    let mut machine = Machine::new(plan);
    let mut draws = draws.iter().copied().cycle();
    let mut steps = Vec::new();
    // Forward and back through 60 workers, two commands, the end.
    for _ in 0..130 {
        let step = machine.step();
        steps.push(step.clone());
        match step {
            Step::Finish(_) => break,
            Step::Switch | Step::Unswitch => {
                let result = if draws.next() == Some(0) { Err("no".to_owned()) } else { Ok(()) };
                machine.commanded(result);
            }
            Step::Batch { workers, .. } => {
                if draws.next() == Some(1) {
                    machine.stop("stopped on request", false);
                }
                let outcome = |draw: Option<u8>| match draw {
                    Some(0) => Outcome::Failed("broken".to_owned()),
                    Some(1) => Outcome::Kept("late".to_owned()),
                    _ => Outcome::Changed,
                };
                let outcomes = workers.iter().map(|worker| (*worker, outcome(draws.next()))).collect();
                machine.batch_done(outcomes);
            }
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

fn four(max_failures: usize, rollback: bool) -> Plan {
    Plan { batches: Plan::batches(4, 1), max_failures, rollback, switch: true, unswitch: true }
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
