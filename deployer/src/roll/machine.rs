//! A roll as a pure machine: it says what to do next and is told what came of it.

use crate::api::Exit;

/// What is fixed before a roll begins. Workers are named by their place in the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The workers, batch by batch; no batch is empty.
    pub batches: Vec<Vec<usize>>,
    /// Failed workers at which it stops, at least 1.
    pub max_failures: usize,
    /// Whether a failure is rolled back.
    pub rollback: bool,
    /// Whether a command puts the new version in place.
    pub switch: bool,
    /// Whether a command puts the former version back.
    pub unswitch: bool,
}

impl Plan {
    /// Cuts `workers` into batches.
    #[must_use]
    pub fn batches(workers: usize, batch: usize) -> Vec<Vec<usize>> {
        let all: Vec<_> = (0..workers).collect();
        all.chunks(batch.max(1)).map(<[usize]>::to_vec).collect()
    }
}

/// What came of one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Restarted, warm, and up.
    Changed,
    /// Out of rotation, and why.
    Failed(String),
    /// Back in rotation as it was, and why; the roll stops.
    Kept(String),
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Put the new version in place.
    Switch,
    /// Restart these; `nth` counts from 0.
    Batch {
        /// Which batch.
        nth: usize,
        /// Of how many.
        of: usize,
        /// Its workers.
        workers: Vec<usize>,
        /// Whether they are being rolled back.
        back: bool,
    },
    /// Put the former version back.
    Unswitch,
    /// It is over.
    Finish(End),
}

/// How a roll ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// In a code.
    pub result: Exit,
    /// In a sentence.
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    Switch,
    Forward(usize),
    Unswitch,
    Back(usize),
    Over(End),
}

/// A roll under way.
#[derive(Debug, Clone)]
pub struct Machine {
    plan: Plan,
    stage: Stage,
    stop: bool,
    changed: Vec<usize>,
    failed: Vec<(usize, String)>,
    back: Vec<Vec<usize>>,
    cause: String,
}

impl Machine {
    /// At the beginning.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        let stage = if plan.switch { Stage::Switch } else { Stage::Forward(0) };
        let mut machine = Self {
            plan,
            stage,
            stop: false,
            changed: Vec::new(),
            failed: Vec::new(),
            back: Vec::new(),
            cause: String::new(),
        };
        machine.settle();
        machine
    }

    /// What to do now; the same until its outcome is told.
    #[must_use]
    pub fn step(&self) -> Step {
        match &self.stage {
            Stage::Switch => Step::Switch,
            Stage::Forward(nth) => batch(&self.plan.batches, *nth, false),
            Stage::Unswitch => Step::Unswitch,
            Stage::Back(nth) => batch(&self.back, *nth, true),
            Stage::Over(end) => Step::Finish(end.clone()),
        }
    }

    /// Workers that are on the new version, or restarted.
    #[must_use]
    pub fn changed(&self) -> usize {
        self.changed.len()
    }

    /// Workers that failed and are out.
    pub fn failed(&self) -> impl Iterator<Item = usize> {
        self.failed.iter().map(|(worker, _)| *worker)
    }

    /// A stop after the batch in hand is asked for. A roll back goes on: half of it would be no state to be in.
    pub fn stop(&mut self) {
        self.stop = true;
        self.settle();
    }

    /// What came of [`Step::Switch`] or [`Step::Unswitch`].
    pub fn commanded(&mut self, result: Result<(), String>) {
        match (&self.stage, result) {
            (Stage::Switch, Ok(())) => self.stage = Stage::Forward(0),
            (Stage::Switch, Err(why)) => {
                self.over(Exit::Failed, format!("the switch command failed: {why}; no worker was touched"));
            }
            (Stage::Unswitch, Ok(())) => self.begin_back(),
            (Stage::Unswitch, Err(why)) => {
                let text = format!("{}; and the unswitch command failed: {why}; {}", self.cause, self.left());
                self.over(Exit::Failed, text);
            }
            _ => {}
        }
        self.settle();
    }

    /// What came of [`Step::Batch`], worker by worker.
    pub fn batch_done(&mut self, outcomes: Vec<(usize, Outcome)>) {
        let kept: Vec<_> = outcomes
            .iter()
            .filter_map(|(_, outcome)| if let Outcome::Kept(why) = outcome { Some(why.clone()) } else { None })
            .collect();
        match self.stage {
            Stage::Forward(nth) => self.forward_done(nth, outcomes, &kept),
            Stage::Back(nth) => self.back_done(nth, outcomes, &kept),
            _ => {}
        }
        self.settle();
    }

    fn forward_done(&mut self, nth: usize, outcomes: Vec<(usize, Outcome)>, kept: &[String]) {
        for (worker, outcome) in outcomes {
            match outcome {
                Outcome::Changed => self.changed.push(worker),
                Outcome::Failed(why) => self.failed.push((worker, why)),
                Outcome::Kept(_) => {}
            }
        }
        if self.failed.len() >= self.plan.max_failures {
            self.give_up();
        } else if let Some(why) = kept.first() {
            let text = format!("stopped: {why}; {}", self.left());
            self.over(Exit::Stopped, text);
        } else {
            self.stage = Stage::Forward(nth + 1);
        }
    }

    fn back_done(&mut self, nth: usize, outcomes: Vec<(usize, Outcome)>, kept: &[String]) {
        for (worker, outcome) in outcomes {
            match outcome {
                Outcome::Changed => self.changed.retain(|changed| *changed != worker),
                Outcome::Failed(why) => self.failed.push((worker, why)),
                Outcome::Kept(_) => {}
            }
        }
        if let Some(why) = kept.first() {
            let text = format!("{}; the roll back stopped: {why}; {}", self.cause, self.left());
            self.over(Exit::Failed, text);
        } else {
            self.stage = Stage::Back(nth + 1);
        }
    }

    fn give_up(&mut self) {
        self.cause = self.failures();
        if !self.plan.rollback {
            let text = format!("{}; {}", self.cause, self.left());
            self.over(Exit::Failed, text);
        } else if self.plan.unswitch {
            self.stage = Stage::Unswitch;
        } else {
            self.begin_back();
        }
    }

    /// The failed first: they are out and cost nobody anything.
    fn begin_back(&mut self) {
        let size = self.plan.batches.first().map_or(1, Vec::len);
        let failed: Vec<_> = self.failed.drain(..).map(|(worker, _)| worker).collect();
        let workers: Vec<_> = failed.into_iter().chain(self.changed.iter().copied()).collect();
        self.back = workers.chunks(size).map(<[usize]>::to_vec).collect();
        self.stage = Stage::Back(0);
    }

    /// Goes past stages in which there is nothing (more) to do.
    fn settle(&mut self) {
        match self.stage {
            Stage::Switch if self.stop => {
                self.over(Exit::Stopped, "stopped on request; no worker was touched".to_owned());
            }
            Stage::Forward(nth) if nth >= self.plan.batches.len() => self.end_forward(),
            Stage::Forward(_) if self.stop => {
                let text = format!("stopped on request; {}", self.left());
                self.over(Exit::Stopped, text);
            }
            Stage::Back(nth) if nth >= self.back.len() => self.end_back(),
            _ => {}
        }
    }

    fn end_forward(&mut self) {
        if self.failed.is_empty() {
            self.over(Exit::Done, format!("{} workers restarted", self.changed.len()));
        } else {
            let text = format!("{}; all others are restarted", self.failures());
            self.over(Exit::Failed, text);
        }
    }

    fn end_back(&mut self) {
        if self.failed.is_empty() {
            self.over(Exit::RolledBack, format!("{}; every worker that was changed has been rolled back", self.cause));
        } else {
            let text = format!("{}; rolling back, {}", self.cause, self.failures());
            self.over(Exit::Failed, text);
        }
    }

    fn over(&mut self, result: Exit, text: String) {
        self.stage = Stage::Over(End { result, text });
    }

    fn failures(&self) -> String {
        self.failed.iter().map(|(_, why)| why.as_str()).collect::<Vec<_>>().join("; ")
    }

    fn left(&self) -> String {
        let total: usize = self.plan.batches.iter().map(Vec::len).sum();
        format!("{} of {total} workers are changed, {} failed and are out", self.changed.len(), self.failed.len())
    }
}

fn batch(batches: &[Vec<usize>], nth: usize, back: bool) -> Step {
    let workers = batches.get(nth).cloned().unwrap_or_default();
    Step::Batch { nth, of: batches.len(), workers, back }
}

#[cfg(test)]
mod tests {
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
                        machine.stop();
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
            prop_assert!(matches!(steps.last(), Some(Step::Finish(End { result: Exit::Done, .. }))));
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
}
