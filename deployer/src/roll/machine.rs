//! A roll as a pure machine: it says what to do next and is told what came of it.

mod parts;

use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use self::parts::{End, Outcome, Plan, Step};
use crate::api::Exit;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Stage {
    /// Retires the spares that were left running.
    Clear,
    Switch,
    Surge,
    Forward(usize),
    /// Retires the spares of this roll.
    Retire(Next),
    Unswitch,
    Back(usize),
    Over(End),
}

/// What comes when no spare is left running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Next {
    Back,
    Over(End),
}

/// A roll under way; the journal holds it between two steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    plan: Plan,
    stage: Stage,
    /// Why it is to stop after the batch in hand.
    stop: Option<String>,
    changed: Vec<usize>,
    failed: Vec<(usize, String)>,
    back: Vec<Vec<usize>>,
    cause: String,
    /// Spares that run, or may run, by this roll.
    #[serde(default)]
    surged: Vec<usize>,
    /// What came of the spares that could not be retired.
    #[serde(default)]
    left: Vec<Outcome>,
}

impl Machine {
    /// At the beginning.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        let mut machine = Self {
            plan,
            stage: Stage::Clear,
            stop: None,
            changed: Vec::new(),
            failed: Vec::new(),
            back: Vec::new(),
            cause: String::new(),
            surged: Vec::new(),
            left: Vec::new(),
        };
        machine.settle();
        machine
    }

    /// What to do now; the same until its outcome is told.
    #[must_use]
    pub fn step(&self) -> Step {
        match &self.stage {
            Stage::Clear => Step::Retire { spares: self.plan.leftover.clone() },
            Stage::Switch => Step::Switch,
            Stage::Surge => Step::Surge { spares: self.plan.surge.clone() },
            Stage::Retire(_) => Step::Retire { spares: self.surged.clone() },
            Stage::Forward(nth) => batch(&self.plan.batches, *nth, false),
            Stage::Unswitch => Step::Unswitch,
            Stage::Back(nth) => batch(&self.back, *nth, true),
            Stage::Over(end) => Step::Finish(end.clone()),
        }
    }

    /// What was fixed before it began.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How it ends where it cannot go on: `why` begins the text.
    #[must_use]
    pub fn abandoned(&self, why: &str) -> End {
        End { result: Exit::Stopped, text: format!("{why}; {}", self.left()) }
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

    /// A stop is asked for, after the batch in hand where one is. A roll back goes on: half of it would be no state to
    /// be in. `why` begins the text of the end ("stopped on request"); the first reason stays.
    pub fn stop(&mut self, why: &str, in_hand: bool) {
        self.stop.get_or_insert_with(|| why.to_owned());
        if !in_hand {
            self.settle();
        }
    }

    /// Whether its numbers fit each other and this many workers and spares: it may come from a file.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self, workers: usize, spares: usize) -> Result<(), String> {
        let batches = self.plan.batches.iter().chain(&self.back);
        let failed = self.failed.iter().map(|(worker, _)| worker);
        let stage = match self.stage {
            Stage::Forward(nth) => nth < self.plan.batches.len(),
            Stage::Back(nth) => nth < self.back.len(),
            _ => true,
        };
        if batches.clone().any(Vec::is_empty) || self.plan.max_failures == 0 || !stage {
            return Err("its plan makes no sense".to_owned());
        }
        let spare = self.plan.surge.iter().chain(&self.plan.leftover).chain(&self.surged);
        within(batches.flatten().chain(&self.changed).chain(failed), 0..workers, "workers")?;
        within(spare, workers..workers + spares, "spares")
    }

    /// What came of [`Step::Switch`] or [`Step::Unswitch`].
    pub fn commanded(&mut self, result: Result<(), String>) {
        match (&self.stage, result) {
            (Stage::Switch, Ok(())) => self.stage = Stage::Surge,
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

    /// What came of [`Step::Batch`], [`Step::Surge`] or [`Step::Retire`], worker by worker.
    pub fn batch_done(&mut self, outcomes: Vec<(usize, Outcome)>) {
        let kept: Vec<_> = outcomes
            .iter()
            .filter_map(|(_, outcome)| if let Outcome::Kept(why) = outcome { Some(why.clone()) } else { None })
            .collect();
        match self.stage {
            Stage::Clear => self.clear_done(&outcomes),
            Stage::Surge => self.surge_done(outcomes, &kept),
            Stage::Forward(nth) => self.forward_done(nth, outcomes, &kept),
            Stage::Retire(_) => {
                self.surged.clear();
                let outcomes = outcomes.into_iter().map(|(_, outcome)| outcome);
                self.left.extend(outcomes.filter(|outcome| outcome.trouble().is_some()));
            }
            Stage::Back(nth) => self.back_done(nth, outcomes, &kept),
            Stage::Switch | Stage::Unswitch | Stage::Over(_) => {}
        }
        self.settle();
    }

    fn clear_done(&mut self, outcomes: &[(usize, Outcome)]) {
        let bad = outcomes.iter().filter_map(|(_, outcome)| Some((outcome, outcome.trouble()?)));
        match bad.max_by_key(|(outcome, _)| matches!(outcome, Outcome::Failed(_))) {
            None => self.stage = Stage::Switch,
            Some((outcome, why)) => {
                let result = if matches!(outcome, Outcome::Kept(_)) { Exit::Stopped } else { Exit::Failed };
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
                Outcome::Kept(_) => {}
            }
        }
        if !failed.is_empty() {
            self.cause = format!("a spare did not come up: {}; no worker was touched", failed.join("; "));
            self.turn_back(self.cause.clone());
        } else if let Some(why) = kept.first() {
            self.over(Exit::Stopped, format!("stopped: {why}; no worker was touched"));
        } else {
            self.stage = Stage::Forward(0);
        }
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
        self.turn_back(format!("{}; {}", self.cause, self.left()));
    }

    /// Rolls back, if that is wanted; else it ends with `text`. The spares, which run the version that failed, go first.
    fn turn_back(&mut self, text: String) {
        if self.plan.rollback {
            self.stage = Stage::Retire(Next::Back);
        } else {
            self.over(Exit::Failed, text);
        }
    }

    /// The failed first: they are out and cost nobody anything.
    fn begin_back(&mut self) {
        let forward = self.plan.batches.first().map_or(1, Vec::len);
        let size = if self.plan.back > 0 { self.plan.back } else { forward };
        let failed: Vec<_> = self.failed.drain(..).map(|(worker, _)| worker).collect();
        let workers: Vec<_> = failed.into_iter().chain(self.changed.iter().copied()).collect();
        self.back = workers.chunks(size).map(<[usize]>::to_vec).collect();
        self.stage = Stage::Back(0);
    }

    /// Goes past stages in which there is nothing (more) to do.
    fn settle(&mut self) {
        loop {
            match &self.stage {
                Stage::Clear | Stage::Switch if self.stop.is_some() => {
                    let text = format!("{}; no worker was touched", self.why());
                    self.over(Exit::Stopped, text);
                }
                Stage::Clear if self.plan.leftover.is_empty() => self.stage = Stage::Switch,
                Stage::Switch if !self.plan.switch => self.stage = Stage::Surge,
                Stage::Surge if self.plan.surge.is_empty() => self.stage = Stage::Forward(0),
                Stage::Forward(nth) if *nth >= self.plan.batches.len() => self.end_forward(),
                Stage::Surge | Stage::Forward(_) if self.stop.is_some() => {
                    let text = format!("{}; {}", self.why(), self.left());
                    self.over(Exit::Stopped, text);
                }
                Stage::Retire(Next::Back) if self.surged.is_empty() => {
                    if self.plan.unswitch {
                        self.stage = Stage::Unswitch;
                    } else {
                        self.begin_back();
                    }
                }
                Stage::Retire(Next::Over(end)) if self.surged.is_empty() => {
                    self.stage = Stage::Over(self.with_left(end.clone()));
                }
                Stage::Back(nth) if *nth >= self.back.len() => self.end_back(),
                _ => return,
            }
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
        if self.back.is_empty() {
            self.over(Exit::RolledBack, self.cause.clone());
        } else if self.failed.is_empty() {
            self.over(Exit::RolledBack, format!("{}; every worker that was changed has been rolled back", self.cause));
        } else {
            let text = format!("{}; rolling back, {}", self.cause, self.failures());
            self.over(Exit::Failed, text);
        }
    }

    /// The end, once no spare is left running.
    fn over(&mut self, result: Exit, text: String) {
        self.stage = Stage::Retire(Next::Over(End { result, text }));
    }

    /// The end of a roll some of whose spares could not be retired.
    fn with_left(&self, End { result, text }: End) -> End {
        if self.left.is_empty() {
            return End { result, text };
        }
        let failed = self.left.iter().any(|outcome| matches!(outcome, Outcome::Failed(_)));
        let result = match result {
            Exit::Done if failed => Exit::Failed,
            Exit::Done => Exit::Stopped,
            Exit::RolledBack => Exit::Failed,
            other => other,
        };
        let whys: Vec<_> = self.left.iter().filter_map(Outcome::trouble).collect();
        End { result, text: format!("{text}; not retired: {}", whys.join("; ")) }
    }

    fn why(&self) -> &str {
        self.stop.as_deref().unwrap_or_default()
    }

    fn failures(&self) -> String {
        self.failed.iter().map(|(_, why)| why.as_str()).collect::<Vec<_>>().join("; ")
    }

    fn left(&self) -> String {
        let total: usize = self.plan.batches.iter().map(Vec::len).sum();
        format!("{} of {total} workers are changed, {} failed and are out", self.changed.len(), self.failed.len())
    }
}

/// Whether all of these numbers are in a range; `what` it counts.
fn within<'a>(mut numbers: impl Iterator<Item = &'a usize>, range: Range<usize>, what: &str) -> Result<(), String> {
    match numbers.find(|number| !range.contains(number)) {
        Some(number) => Err(format!("it has {} {what}, and names number {number}", range.len())),
        None => Ok(()),
    }
}

fn batch(batches: &[Vec<usize>], nth: usize, back: bool) -> Step {
    let workers = batches.get(nth).cloned().unwrap_or_default();
    Step::Batch { nth, of: batches.len(), workers, back }
}

#[cfg(test)]
mod tests;
