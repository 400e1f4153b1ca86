//! A worker that is left, and one to which the roll comes back.

use std::time::{Duration, Instant};

use deployer_common::word::State;

use super::{Missed, Restart, Taken, Task, Wait};
use crate::{
    api::{Phase, What},
    roll::{left, machine::Outcome},
    service::{Claim, Owner},
};

/// Between two looks whether the floor allows a worker to be taken.
const LOOK: Duration = Duration::from_millis(50);
/// How much longer than its warm-up a client's `enable` of a worker may take: its manager starts it first.
const ENABLED_WITHIN: Duration = Duration::from_secs(30);
/// How long the end of an operator's drain may take.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(5);

impl Wait {
    /// Comes when the wait is over before its time.
    pub(super) async fn is_over(&self) {
        let mut over = self.over.clone();
        // Who said so may be gone: then nobody waits.
        let _ = over.wait_for(|is_over| *is_over).await;
    }
}

impl Restart {
    /// The right to change the worker. One that was left has it from there, or waits until the floor allows that it is taken.
    ///
    /// # Errors
    /// What came of the worker instead.
    pub(super) async fn turn(&self) -> Result<Claim, Outcome> {
        let Some(wait) = &self.wait else {
            if self.task == Task::Retire {
                self.take_over().await;
            }
            self.enabled_first(Instant::now() + ENABLED_WITHIN + self.service.config.warm.within).await;
            return self.worker.claim(Owner::Roll(self.record.id.clone())).map_err(Outcome::Kept);
        };
        self.enabled_first(wait.until).await;
        loop {
            if let Some(claim) = self.left.give(self.nth).await {
                return Ok(claim);
            }
            let claimed = self.left.claim(&self.worker, || self.floor());
            if let Some(claim) = claimed.map_err(Outcome::Kept)? {
                return Ok(claim);
            }
            let is_over = tokio::select! {
                () = wait.is_over() => true,
                () = tokio::time::sleep(LOOK) => Instant::now() >= wait.until,
            };
            if is_over {
                return Err(Outcome::Left(wait.why.clone()));
            }
        }
    }

    /// Waits until no client has the worker started and warmed any more (`deployer enable`): the roll then takes it over.
    async fn enabled_first(&self, until: Instant) {
        while self.worker.control().is_being_enabled() && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends an operator's drain of a worker that is to be retired: it is emptied, and stopped, in either case.
    async fn take_over(&self) {
        let until = Instant::now() + TAKEN_OVER_WITHIN;
        while Instant::now() < until {
            let Some(end) = self.worker.control().by_hand() else { return };
            self.worker.control().ended_by(&format!("roll {}", self.record.id));
            end.notify_one();
            tokio::time::sleep(LOOK).await;
        }
    }

    /// It is not empty. It is put back and the roll stops, or it is left: then it goes on draining while others can do
    /// without it. Who was left already is put back as it was.
    pub(super) async fn missed_by(&self, taken: &Taken, missed: Missed) -> Outcome {
        let Missed { why, is_left } = missed;
        if !is_left {
            return self.put_back(taken, &why).await;
        }
        // What held it before the wait was over names it already.
        let plain = left::plain(&self.worker, &why);
        let why = format!("{}: {plain}", self.worker.at);
        if self.wait.is_none() {
            self.record.add(What::Left { worker: self.worker.at, why: why.clone() });
            if self.may_stay_out(taken) && self.goes_on(taken, &why).await {
                return Outcome::Left(why);
            }
        }
        match self.put_back(taken, left::plain(&self.worker, &why)).await {
            Outcome::Kept(_) => Outcome::Left(why),
            other => other,
        }
    }

    fn may_stay_out(&self, taken: &Taken) -> bool {
        let served = matches!(taken.before, Phase::Up | Phase::Draining);
        served && self.world.state(&self.worker) == State::Draining && self.floor().is_ok()
    }

    /// Hands it over, draining.
    async fn goes_on(&self, taken: &Taken, why: &str) -> bool {
        let Some(claim) = self.disowned() else { return false };
        self.worker.control().listeners.clone_from(&taken.serving);
        self.worker.enter(Phase::Draining, &format!("left: {}", left::plain(&self.worker, why)));
        self.left.take(self.nth, &self.worker, claim).await;
        true
    }
}
