//! What came of a step.

use super::{Exit, Machine, Next, Outcome, Stage, deploy::UNTOUCHED};

impl Machine {
    /// What came of [`Step::Switch`] or [`Step::Unswitch`].
    pub fn commanded(&mut self, result: Result<(), String>) {
        match (&self.stage, result) {
            (Stage::Switch, Ok(())) => self.stage = Stage::Surge,
            (Stage::Switch, Err(why)) => {
                let which = if self.plan.deploy.is_some() { "prepare" } else { "switch" };
                self.over(Exit::Failed, format!("the {which} command failed: {why}; no worker was touched"));
            }
            (Stage::Unswitch, Ok(())) => self.begin_back(),
            (Stage::Unswitch, Err(why)) => {
                let text = format!("{}; and the unswitch command failed: {why}; {}", self.cause, self.so_far());
                self.over(Exit::Failed, text);
            }
            _ => {}
        }
        self.settle();
    }

    /// What came of [`Step::Batch`], [`Step::Again`], [`Step::Surge`] or [`Step::Retire`], worker by worker.
    pub fn batch_done(&mut self, outcomes: Vec<(usize, Outcome)>) {
        let has_spares = matches!(self.stage, Stage::Clear | Stage::Surge | Stage::Retire(_));
        let kept: Vec<_> = outcomes
            .iter()
            .filter_map(|(_, outcome)| match outcome {
                Outcome::Kept(why) => Some(why.clone()),
                // Nobody comes back to a spare.
                Outcome::Left(why) if has_spares => Some(why.clone()),
                _ => None,
            })
            .collect();
        match self.stage {
            Stage::Clear => self.clear_done(&outcomes),
            Stage::Surge => self.surge_done(outcomes, &kept),
            Stage::Forward(nth) => self.forward_done(nth, outcomes, &kept),
            Stage::Again { back } => self.again_done(back, outcomes),
            Stage::Retire(_) => {
                self.surged.clear();
                let outcomes = outcomes.into_iter().map(|(_, outcome)| outcome);
                self.unretired.extend(outcomes.filter(|outcome| outcome.trouble().is_some()));
            }
            Stage::Back(nth) => self.back_done(nth, outcomes, &kept),
            Stage::Switch | Stage::Unswitch | Stage::Over(_) => {}
            Stage::Gate | Stage::Hold | Stage::Flip | Stage::Bake | Stage::Return | Stage::Linger => {}
        }
        self.settle();
    }

    fn clear_done(&mut self, outcomes: &[(usize, Outcome)]) {
        let bad = outcomes.iter().filter_map(|(_, outcome)| Some((outcome, outcome.trouble()?)));
        match bad.max_by_key(|(outcome, _)| matches!(outcome, Outcome::Failed(_))) {
            None => self.stage = Stage::Switch,
            Some((outcome, why)) => {
                let result = if matches!(outcome, Outcome::Failed(_)) { Exit::Failed } else { Exit::Stopped };
                self.over(
                    result,
                    format!("a spare that was left running cannot be retired: {why}; no worker was touched"),
                );
            }
        }
    }

    /// All spares, or none: a roll with fewer would dip.
    fn surge_done(&mut self, outcomes: Vec<(usize, Outcome)>, kept: &[String]) {
        let mut failed = Vec::new();
        for (spare, outcome) in outcomes {
            match outcome {
                Outcome::Changed => self.surged.push(spare),
                Outcome::Failed(why) => {
                    self.surged.push(spare);
                    failed.push(why);
                }
                Outcome::Kept(_) | Outcome::Left(_) => {}
            }
        }
        if !failed.is_empty() {
            let (who, rest) = match self.plan.deploy {
                None => ("a spare", "no worker was touched"),
                Some(_) => ("a worker of the new pool", UNTOUCHED),
            };
            self.cause = format!("{who} did not come up: {}; {rest}", failed.join("; "));
            self.turn_back(self.cause.clone());
        } else if let Some(why) = kept.first() {
            let rest = if self.plan.deploy.is_some() { UNTOUCHED } else { "no worker was touched" };
            self.over(Exit::Stopped, format!("stopped: {why}; {rest}"));
        } else if self.surging().is_empty() {
            self.stage = self.after_surge();
        }
    }

    fn forward_done(&mut self, nth: usize, outcomes: Vec<(usize, Outcome)>, kept: &[String]) {
        outcomes.into_iter().for_each(|(worker, outcome)| self.note(false, worker, outcome));
        if self.failed.len() >= self.plan.max_failures {
            self.give_up();
        } else if let Some(why) = kept.first() {
            let text = format!("stopped: {why}; {}", self.so_far());
            self.over(Exit::Stopped, text);
        } else {
            self.stage = Stage::Forward(nth + 1);
        }
    }

    /// What came of one worker.
    fn note(&mut self, back: bool, worker: usize, outcome: Outcome) {
        self.behind.retain(|(left, _)| *left != worker);
        match outcome {
            Outcome::Changed if back => self.changed.retain(|changed| *changed != worker),
            Outcome::Changed => self.changed.push(worker),
            Outcome::Failed(why) => self.failed.push((worker, why)),
            Outcome::Left(why) => self.behind.push((worker, why)),
            Outcome::Kept(_) => {}
        }
    }

    /// Whether the wait for those that were left is over for all of them, given what has come of some.
    #[must_use]
    pub fn ends_wait(&self, outcomes: &[(usize, Outcome)]) -> bool {
        let failed = outcomes.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_))).count();
        let is_too_many = failed > 0 && !self.is_back() && self.failed.len() + failed >= self.plan.max_failures;
        is_too_many || outcomes.iter().any(|(_, outcome)| matches!(outcome, Outcome::Kept(_)))
    }

    /// What has come so far of [`Step::Again`], which another daemon goes on with: who is still left stays so.
    pub fn partly_done(&mut self, outcomes: Vec<(usize, Outcome)>) {
        if self.ends_wait(&outcomes) {
            return self.batch_done(outcomes);
        }
        let back = self.is_back();
        outcomes.into_iter().for_each(|(worker, outcome)| self.note(back, worker, outcome));
        self.settle();
    }

    fn is_back(&self) -> bool {
        matches!(self.stage, Stage::Back(_) | Stage::Again { back: true })
    }

    fn again_done(&mut self, back: bool, outcomes: Vec<(usize, Outcome)>) {
        let kept = outcomes.iter().find_map(|(_, outcome)| match outcome {
            Outcome::Kept(why) => Some(why.clone()),
            _ => None,
        });
        outcomes.into_iter().for_each(|(worker, outcome)| self.note(back, worker, outcome));
        match kept {
            _ if !back && self.failed.len() >= self.plan.max_failures => self.give_up(),
            Some(why) if back => self.back_stopped(&why),
            Some(why) => self.over(Exit::Stopped, format!("stopped: {why}; {}", self.so_far())),
            None => self.end_again(back),
        }
    }

    fn back_done(&mut self, nth: usize, outcomes: Vec<(usize, Outcome)>, kept: &[String]) {
        outcomes.into_iter().for_each(|(worker, outcome)| self.note(true, worker, outcome));
        if let Some(why) = kept.first() {
            self.back_stopped(why);
        } else {
            self.stage = Stage::Back(nth + 1);
        }
    }

    fn back_stopped(&mut self, why: &str) {
        let text = format!("{}; the roll back stopped: {why}; {}", self.cause, self.so_far());
        self.over(Exit::Failed, text);
    }

    fn give_up(&mut self) {
        self.cause = self.failures();
        self.turn_back(format!("{}; {}", self.cause, self.so_far()));
    }

    /// Rolls back, if that is wanted; else it ends with `text`. The spares, which run the version that failed, go first.
    fn turn_back(&mut self, text: String) {
        if self.plan.rollback {
            // Who was left runs the former version.
            self.behind.clear();
            self.stage = Stage::Retire(Next::Back);
        } else {
            self.over(Exit::Failed, text);
        }
    }

    /// The failed first: they are out and cost nobody anything.
    pub(super) fn begin_back(&mut self) {
        self.again_ms = None;
        let forward = self.plan.batches.first().map_or(1, Vec::len);
        let size = if self.plan.back > 0 { self.plan.back } else { forward };
        let failed: Vec<_> = self.failed.drain(..).map(|(worker, _)| worker).collect();
        let workers: Vec<_> = failed.into_iter().chain(self.changed.iter().copied()).collect();
        self.back = workers.chunks(size).map(<[usize]>::to_vec).collect();
        self.stage = Stage::Back(0);
    }
}
