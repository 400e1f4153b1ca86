//! A roll as a pure machine: it says what to do next and is told what came of it.

use serde::{Deserialize, Serialize};

use crate::api::Exit;

/// What is fixed before a roll begins. Workers are named by their place in the service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// In a code.
    pub result: Exit,
    /// In a sentence.
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Stage {
    Switch,
    Forward(usize),
    Unswitch,
    Back(usize),
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
}

impl Machine {
    /// At the beginning.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        let stage = if plan.switch { Stage::Switch } else { Stage::Forward(0) };
        let mut machine = Self {
            plan,
            stage,
            stop: None,
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

    /// Whether its numbers fit each other and this many workers: it may come from a file.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self, workers: usize) -> Result<(), String> {
        let batches = self.plan.batches.iter().chain(&self.back);
        let failed = self.failed.iter().map(|(worker, _)| worker);
        let stage = match self.stage {
            Stage::Forward(nth) => nth < self.plan.batches.len(),
            Stage::Back(nth) => nth < self.back.len(),
            Stage::Switch | Stage::Unswitch | Stage::Over(_) => true,
        };
        if batches.clone().any(Vec::is_empty) || self.plan.max_failures == 0 || !stage {
            return Err("its plan makes no sense".to_owned());
        }
        match batches.flatten().chain(&self.changed).chain(failed).find(|worker| **worker >= workers) {
            Some(worker) => Err(format!("it has {workers} workers, and names number {worker}")),
            None => Ok(()),
        }
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
            Stage::Switch if self.stop.is_some() => {
                let text = format!("{}; no worker was touched", self.why());
                self.over(Exit::Stopped, text);
            }
            Stage::Forward(nth) if nth >= self.plan.batches.len() => self.end_forward(),
            Stage::Forward(_) if self.stop.is_some() => {
                let text = format!("{}; {}", self.why(), self.left());
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

fn batch(batches: &[Vec<usize>], nth: usize, back: bool) -> Step {
    let workers = batches.get(nth).cloned().unwrap_or_default();
    Step::Batch { nth, of: batches.len(), workers, back }
}

#[cfg(test)]
mod tests;
