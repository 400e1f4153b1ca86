//! A roll as a pure machine: it says what to do next and is told what came of it.
//!
//! A worker that was *left* (not empty at its deadline, under `on_deadline = "leave"`) is remembered with what held it.
//! When all other batches are through, all of them are taken [again](Step::Again), once; who is still not empty then stays
//! as it is, and the roll is incomplete. A roll that ends, or turns back, earlier leaves them as they are: they run the
//! former version. Who is left on the way back is taken again at the end of that, and spoils it otherwise.

mod deploy;
mod done;
mod ends;
mod parts;

use std::{ops::Range, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::{
    deploy::{Baked, Deploy, FleetPart},
    parts::{End, Outcome, Plan, Step},
};
use crate::{api::Exit, deploy::health::Figures, kernel::Lasting};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Stage {
    /// Retires the spares that were left running.
    Clear,
    Switch,
    Surge,
    /// The next four are a deploy's.
    Gate,
    Hold,
    Flip,
    Bake,
    /// Flips back, and waits for the pages of the version that was turned back.
    Return,
    Linger,
    Forward(usize),
    /// Takes again who was left; on the way back, too.
    Again {
        back: bool,
    },
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
    #[serde(default, rename = "left")]
    unretired: Vec<Outcome>,
    /// Workers that were left, and what held them.
    #[serde(default)]
    behind: Vec<(usize, String)>,
    /// When those that were left were taken again, milliseconds since 1970.
    #[serde(default)]
    again_ms: Option<u64>,
    /// When a deploy has flipped last, or will, milliseconds since 1970.
    #[serde(default)]
    flip_at_ms: Option<u64>,
    /// What the new pool's counters stood at then.
    #[serde(default)]
    figures: Option<Figures>,
    /// When both pools have stood side by side for long enough since then; not known before it has flipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    side_by_side: Option<Lasting>,
    /// When the wait for those that were left is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    again: Option<Lasting>,
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
            unretired: Vec::new(),
            behind: Vec::new(),
            again_ms: None,
            flip_at_ms: None,
            figures: None,
            side_by_side: None,
            again: None,
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
            Stage::Surge => Step::Surge { spares: self.surging() },
            Stage::Gate => Step::Gate,
            Stage::Hold => Step::Hold,
            Stage::Flip => Step::Flip { at_ms: self.flip_at_ms.or(self.plan.deploy.as_ref().and_then(|it| it.at_ms)) },
            Stage::Bake => Step::Bake { until_ms: self.side_by_side_until() },
            Stage::Return => Step::Return { why: self.cause.clone() },
            Stage::Linger => Step::Linger { until_ms: self.side_by_side_until() },
            Stage::Retire(_) => Step::Retire { spares: self.surged.clone() },
            Stage::Forward(nth) => batch(&self.plan.batches, *nth, false),
            Stage::Again { back } => Step::Again { workers: self.left().collect(), back: *back },
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
        let so_far = match (&self.plan.deploy, self.flip_at_ms) {
            (None, _) => self.so_far(),
            (Some(_), None) => self.untouched().to_owned(),
            (Some(_), Some(_)) => {
                "its flip was armed, or had happened; deployer status shows which pool is current, and the next deploy \
                 retires the other"
                    .to_owned()
            }
        };
        End { result: Exit::Stopped, text: format!("{why}; {so_far}") }
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

    /// Workers that were left, and are to be taken again.
    pub fn left(&self) -> impl Iterator<Item = usize> {
        self.behind().map(|(worker, _)| worker)
    }

    /// The same, with what held them.
    pub fn behind(&self) -> impl Iterator<Item = (usize, &str)> {
        self.behind.iter().map(|(worker, why)| (*worker, why.as_str()))
    }

    /// Whether it is to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stop.is_some()
    }

    /// What is left of the wait for those that were left, which takes `most` in all. It begins the first time that this is
    /// asked. `now_ms`: milliseconds since 1970.
    pub fn again_left(&mut self, most: Duration, now_ms: u64) -> Duration {
        let since_ms = *self.again_ms.get_or_insert(now_ms);
        let until_ms = since_ms.saturating_add(u64::try_from(most.as_millis()).unwrap_or(u64::MAX));
        self.again.get_or_insert_with(|| Lasting::until(until_ms, now_ms, most)).left().min(most)
    }

    /// A stop is asked for, after the batch in hand where one is. A roll back goes on: half of it would be no state to
    /// be in. `why` begins the text of the end ("stopped on request"); the first reason stays.
    pub fn stop(&mut self, why: &str, in_hand: bool) {
        self.stop.get_or_insert_with(|| why.to_owned());
        if !in_hand {
            self.settle();
        }
    }

    /// Whether its numbers fit each other and this many workers of the first pool, spares and workers of the second: it may
    /// come from a file.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self, workers: usize, spares: usize, second: usize) -> Result<(), String> {
        let batches = self.plan.batches.iter().chain(&self.back);
        let failed = self.failed.iter().map(|(worker, _)| worker);
        let stage = match self.stage {
            Stage::Forward(nth) => nth < self.plan.batches.len(),
            Stage::Back(nth) => nth < self.back.len(),
            Stage::Again { .. } => !self.behind.is_empty(),
            _ => true,
        };
        let has_lane = self.fleet().is_none_or(|fleet| fleet.lane > 0);
        if batches.clone().any(Vec::is_empty) || self.plan.max_failures == 0 || !stage || !has_lane {
            return Err("its plan makes no sense".to_owned());
        }
        let spare = self.plan.surge.iter().chain(&self.plan.leftover).chain(&self.surged);
        let left = self.behind.iter().map(|(worker, _)| worker);
        let (all, first_spare) = (workers + spares + second, workers..workers + spares);
        let named = batches.flatten().chain(&self.changed).chain(failed).chain(left);
        let Some(deploy) = &self.plan.deploy else {
            let mut named = named.peekable();
            // A roll is of one pool.
            let is_first = named.peek().is_none_or(|nth| **nth < workers);
            within(named, if is_first { 0..workers } else { first_spare.end..all }, "workers")?;
            return within(spare, first_spare, "spares");
        };
        within(named.chain(spare).chain(&deploy.old), 0..all, "workers")
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
                Stage::Surge if self.surging().is_empty() && self.stop.is_none() => self.stage = self.after_surge(),
                Stage::Gate if self.plan.deploy.as_ref().is_some_and(|deploy| !deploy.gate) => self.stage = Stage::Hold,
                Stage::Hold
                    if self.plan.deploy.as_ref().is_some_and(|deploy| !deploy.hold && deploy.fleet.is_none()) =>
                {
                    self.stage = Stage::Flip
                }
                Stage::Gate | Stage::Hold if self.stop.is_some() => self.stop_before_flip(),
                Stage::Surge if self.stop.is_some() && self.plan.deploy.is_some() => self.stop_before_flip(),
                // One that is armed has to be taken back first.
                Stage::Flip if self.stop.is_some() && self.flip_at_ms.is_none() => self.stop_before_flip(),
                Stage::Forward(nth) if *nth >= self.plan.batches.len() => self.end_forward(),
                Stage::Surge | Stage::Forward(_) if self.stop.is_some() => {
                    let text = format!("{}; {}", self.why(), self.so_far());
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
                    self.stage = Stage::Over(self.with_unretired(end.clone()));
                }
                Stage::Again { back } if self.behind.is_empty() || self.stop.is_some() => self.end_again(*back),
                Stage::Back(nth) if *nth >= self.back.len() => self.end_back(),
                _ => return,
            }
        }
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
