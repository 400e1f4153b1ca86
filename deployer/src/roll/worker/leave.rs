//! A worker that is left, and one to which the roll comes back.

use std::time::{Duration, Instant};

use deployer_common::word::State;

use super::{Missed, Restart, Taken, Wait};
use crate::{
    api::{Phase, What},
    roll::machine::Outcome,
    service::{Claim, Owner},
};

/// Between two looks whether the floor allows a worker to be taken.
const LOOK: Duration = Duration::from_millis(50);

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
            return self.worker.claim(Owner::Roll(self.record.id.clone())).map_err(Outcome::Kept);
        };
        loop {
            if let Some(claim) = self.left.give(self.nth).await {
                return Ok(claim);
            }
            let claimed = self.left.claim(&self.worker, || self.floor());
            if let Some(claim) = claimed.map_err(Outcome::Kept)? {
                return Ok(claim);
            }
            let is_late = Instant::now() >= wait.until;
            tokio::select! {
                () = wait.is_over() => return Err(Outcome::Left(wait.why.clone())),
                () = tokio::time::sleep(LOOK), if !is_late => {}
                else => return Err(Outcome::Left(wait.why.clone())),
            }
        }
    }

    /// It is not empty. It is put back and the roll stops, or it is left: then it goes on draining while others can do
    /// without it. Who was left already is put back as it was.
    pub(super) async fn missed_by(&self, taken: &Taken, missed: Missed) -> Outcome {
        let Missed { why, is_left } = missed;
        if !is_left {
            return self.put_back(taken, &why).await;
        }
        let why = if self.wait.as_ref().is_some_and(|wait| wait.why == why) { why } else { self.named(&why) };
        if self.wait.is_none() {
            self.record.add(What::Left { worker: self.worker.at, why: why.clone() });
            if self.may_stay_out(taken) && self.goes_on(taken, &why).await {
                return Outcome::Left(why);
            }
        }
        match self.put_back(taken, &why).await {
            Outcome::Kept(_) => Outcome::Left(why),
            other => other,
        }
    }

    fn named(&self, why: &str) -> String {
        format!("{}: {why}", self.worker.at)
    }

    fn may_stay_out(&self, taken: &Taken) -> bool {
        let served = matches!(taken.before, Phase::Up | Phase::Draining);
        served && self.world.state(&self.worker) == State::Draining && self.floor().is_ok()
    }

    /// Hands it over, draining.
    async fn goes_on(&self, taken: &Taken, why: &str) -> bool {
        let Some(claim) = self.disowned() else { return false };
        self.worker.control().listeners.clone_from(&taken.serving);
        self.worker.enter(Phase::Draining, &format!("left: {why}"));
        self.left.take(self.nth, &self.worker, claim).await;
        true
    }
}
