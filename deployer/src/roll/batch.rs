//! Several workers at a time: a batch, and those that were left.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinSet};
use tracing::Instrument as _;

use super::{
    journaled::commit,
    left::Left,
    machine::Outcome,
    record::unix_ms,
    run::Roll,
    worker::{Restart, Task, Wait},
};
use crate::{
    api::What,
    failpoint::{Point, reach},
    journal::Hand,
};

/// Between two looks whether those that were left are still to be waited for.
const LOOK: Duration = Duration::from_millis(50);

/// Restarts under way: worker by number, and what came of it.
type Restarts = JoinSet<(usize, Outcome)>;

impl Roll {
    /// Does it to all of these, and tells the machine.
    pub(super) async fn together(&mut self, left: &Arc<Left>, workers: &[usize], task: Task) {
        reach(Point::Batch, None).await;
        let outcomes = self.batch(left, workers, &task).await;
        reach(Point::BatchDone, None).await;
        self.machine.batch_done(outcomes.into_iter().map(|(nth, outcome)| (nth, self.explained(outcome))).collect());
        // Where this fails, so does the next worker's intent, and the roll ends there.
        let _ = self.save().await;
        reach(Point::BatchJournaled, None).await;
    }

    /// A worker that was kept when the roll was stopped by something else than a request was kept because of that.
    fn explained(&self, outcome: Outcome) -> Outcome {
        match (outcome, self.record.stop_why()) {
            (Outcome::Kept(kept), Some(why)) => Outcome::Kept(format!("{why}; {kept}")),
            (outcome, _) => outcome,
        }
    }

    async fn batch(&mut self, left: &Arc<Left>, workers: &[usize], task: &Task) -> Vec<(usize, Outcome)> {
        let (mut restarts, mut outcomes) = (JoinSet::new(), Vec::with_capacity(workers.len()));
        let batch: Arc<[u32]> = workers.iter().filter_map(|nth| self.service.member(*nth)).map(|it| it.index).collect();
        left.spare(&batch).await;
        for nth in workers.iter().copied() {
            outcomes.extend(self.begin(&mut restarts, left, nth, &batch, task, None));
        }
        while let Some(result) = restarts.join_next().await {
            outcomes.extend(told(result));
        }
        with_lost(outcomes, workers)
    }

    /// Takes those that were left again, each as the floor allows it, and tells the machine. The wait for them is over
    /// after `leave_max`, at a stop, or when the roll cannot go on; who is not empty then is back in rotation.
    pub(super) async fn again(&mut self, left: &Arc<Left>, workers: &[usize], back: bool) {
        let rest = self.machine.again_left(self.service.config.drain.leave_max, unix_ms());
        // From here on the wait does not begin anew, whatever becomes of this daemon.
        let noted = self.save_in_hand().await;
        self.record.add(What::Again { workers: self.addresses(workers), back, seconds: rest.as_secs_f64() });
        reach(Point::Batch, None).await;
        let (end, over) = watch::channel(noted.is_err());
        let whys: BTreeMap<_, _> = self.machine.behind().map(|(nth, why)| (nth, why.to_owned())).collect();
        let task = Task::Restart { to: if back { self.before.clone() } else { self.to.clone() } };
        let (mut restarts, mut outcomes) = (JoinSet::new(), Vec::with_capacity(workers.len()));
        for nth in workers.iter().copied() {
            let Some(worker) = self.service.member(nth) else { continue };
            let batch: Arc<[u32]> = [worker.index].into();
            let why = whys.get(&nth).cloned().unwrap_or_default();
            let wait = Wait { until: Instant::now() + rest, over: over.clone(), why };
            outcomes.extend(self.begin(&mut restarts, left, nth, &batch, &task, Some(wait)));
        }
        self.await_left(&mut restarts, &mut outcomes, &end).await;
        reach(Point::BatchDone, None).await;
        self.tell_again(with_lost(outcomes, workers));
        let _ = self.save().await;
        reach(Point::BatchJournaled, None).await;
    }

    /// Until all are through, or given up.
    async fn await_left(
        &self,
        restarts: &mut Restarts,
        outcomes: &mut Vec<(usize, Outcome)>,
        end: &watch::Sender<bool>,
    ) {
        loop {
            let is_over = self.machine.is_stopping()
                || self.record.stop_asked()
                || self.record.is_suspended()
                || self.machine.ends_wait(outcomes);
            if is_over {
                end.send_replace(true);
            }
            tokio::select! {
                result = restarts.join_next() => match result {
                    Some(result) => outcomes.extend(told(result)),
                    None => return,
                },
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Where the next daemon is to go on, those that are still left go on to be waited for by that.
    fn tell_again(&mut self, outcomes: Vec<(usize, Outcome)>) {
        if self.record.stop_asked() {
            self.machine.stop(&self.record.stop_text(), true);
        } else if self.record.is_suspended() && !self.machine.is_stopping() {
            return self.machine.partly_done(outcomes);
        }
        self.machine.batch_done(outcomes);
    }

    /// Writes down where it stands; who is in hand stays there.
    pub(super) async fn save_in_hand(&self) -> Result<(), String> {
        let committed = commit(&self.journal, &self.record, |state| {
            if let Some(roll) = state.roll(&self.record.id) {
                roll.machine = self.machine.clone();
            }
        });
        committed.await
    }

    /// Begins with a worker, or goes on where a former daemon had it in hand; what came of it, if that is known already.
    fn begin(
        &mut self,
        restarts: &mut Restarts,
        left: &Arc<Left>,
        nth: usize,
        batch: &Arc<[u32]>,
        task: &Task,
        wait: Option<Wait>,
    ) -> Option<(usize, Outcome)> {
        let worker = Arc::clone(self.service.member(nth)?);
        let hand = match self.hand.remove(&nth) {
            Some((Hand { outcome: Some(outcome), .. }, _)) => return Some((nth, outcome)),
            Some((hand, Some(claim))) => Some((hand, claim)),
            _ => None,
        };
        let restart = Restart {
            world: Arc::clone(&self.world),
            journal: Arc::clone(&self.journal),
            service: Arc::clone(&self.service),
            worker,
            nth,
            batch: Arc::clone(batch),
            record: Arc::clone(&self.record),
            lease: self.lease,
            task: task.clone(),
            left: Arc::clone(left),
            wait,
            claim: std::sync::Mutex::default(),
        };
        restarts.spawn(async move { (nth, restart.run(hand).await) }.in_current_span());
        None
    }
}

fn told(result: Result<(usize, Outcome), tokio::task::JoinError>) -> Option<(usize, Outcome)> {
    // A bug of ours: which worker it was is told by its absence.
    result.inspect_err(|error| tracing::error!(%error, "a restart has panicked")).ok()
}

/// All of them, also those whose restart has panicked.
fn with_lost(mut outcomes: Vec<(usize, Outcome)>, workers: &[usize]) -> Vec<(usize, Outcome)> {
    for nth in workers {
        if !outcomes.iter().any(|(done, _)| done == nth) {
            outcomes.push((*nth, Outcome::Kept("its restart was lost by a bug".to_owned())));
        }
    }
    outcomes
}
