//! Emptying a worker, and what becomes of a drain that has missed its deadline.

use std::time::Instant;

use deployer_common::word::State;

use super::Restart;
use crate::{
    api::Phase,
    config::{OnDeadline, Outsiders},
    roll::world::How,
    service::{drain::DrainError, outsiders::Cut},
};

/// Why a worker is not emptied.
pub(super) struct Missed {
    /// In words, without the worker.
    pub(super) why: String,
    /// The roll is to go on without it.
    pub(super) is_left: bool,
}

impl From<String> for Missed {
    fn from(why: String) -> Self {
        Self { why, is_left: false }
    }
}

impl Restart {
    /// Empties the worker, and makes that final.
    pub(super) async fn empty(&self, before: Phase) -> Result<(), Missed> {
        let is_cut = self.service.config.drain.outsiders == Outsiders::Cut;
        let on_cut: &(dyn Fn(&Cut) + Sync) = &|cut| self.cut(cut);
        let how = How {
            lease: self.lease,
            deadline: self.deadline(),
            on_held: &|held| self.held(held),
            on_published: &|| self.enter(Phase::Draining, ""),
            on_cut: is_cut.then_some(on_cut),
            floor: &|| self.floor(),
            quiet_after: self.service.config.drain.quiet_after,
        };
        let result = match before {
            // Nobody is sent there, or only for want of anybody else. A lease would make it up when it runs out.
            Phase::Failed | Phase::Down | Phase::Listening | Phase::Warming => {
                self.world.empty(&self.worker, how).await
            }
            _ => self.drained(how).await?.inspect(|()| self.enter(Phase::Drained, "")),
        };
        result.or_else(|error| self.missed(error, before))
    }

    /// It was empty, and nothing has come to it since if connections were steered all the while. If not, it is emptied
    /// again of what has slipped in.
    pub(super) async fn still_empty(&self, mut steered: Option<u64>) -> Result<(), Missed> {
        loop {
            let now = self.steering().await?;
            if steered == Some(now) {
                return Ok(());
            }
            self.empty(Phase::Down).await?;
            steered = Some(now);
        }
    }

    /// It was not emptied, or others were missed, until the deadline. Where the configuration says so, its requests are cut;
    /// that says nothing about the floor, but in a service of one worker.
    fn missed(&self, error: DrainError, before: Phase) -> Result<(), Missed> {
        let drain = &self.service.config.drain;
        let waited = match self.wait {
            None => format!("{} s", drain.deadline.as_secs_f32()),
            Some(_) => format!("{} s more", drain.leave_max.as_secs_f32()),
        };
        // Who is out already is missed by nobody.
        let is_out = matches!(before, Phase::Failed | Phase::Down | Phase::Listening | Phase::Warming);
        let may_be_cut = before == Phase::Failed || self.kills();
        let why = match error {
            DrainError::Deadline(held) if may_be_cut && (is_out || self.floor().is_ok()) => {
                format!("at the deadline, with {held}")
            }
            DrainError::Floor(_) if self.may_be_alone() => "at the deadline, though no other worker is up".to_owned(),
            DrainError::Deadline(held) => {
                return Err(Missed { why: format!("not empty after {waited}: {held}"), is_left: self.leaves() });
            }
            DrainError::Floor(short) => {
                let why = format!("others were waited for for {waited}: {short}; have them up again, or lower min_up");
                return Err(Missed { why, is_left: self.wait.is_some() });
            }
            error @ DrainError::Kernel(_) => return Err(error.to_string().into()),
        };
        self.world.publish(&self.worker, State::Stopping);
        self.enter(Phase::Drained, &why);
        Ok(())
    }

    /// Drains it, unless the wait for it is over before that. Then the drain is still published, and nothing is lost by
    /// giving it up.
    async fn drained(&self, how: How<'_>) -> Result<Result<(), DrainError>, Missed> {
        let drained = self.world.drain(&self.worker, how);
        let Some(wait) = &self.wait else { return Ok(drained.await) };
        tokio::select! {
            biased;
            drained = drained => Ok(drained),
            () = wait.is_over() => Err(Missed { why: wait.why.clone(), is_left: true }),
        }
    }

    /// Until when it is waited for.
    fn deadline(&self) -> Instant {
        self.wait.as_ref().map_or_else(|| Instant::now() + self.service.config.drain.deadline, |wait| wait.until)
    }

    /// Whether a worker that is not empty is left. A spare is not: it goes on serving, and the next roll has it.
    fn leaves(&self) -> bool {
        self.service.config.drain.on_deadline == OnDeadline::Leave && !self.service.is_spare(&self.worker)
    }
}
