//! Whether a worker may be taken out, and what becomes of a drain that has missed its deadline.

use deployer_common::word::State;

use super::Restart;
use crate::{
    api::Phase,
    config::OnDeadline,
    service::{drain::DrainError, floor::Short},
};

impl Restart {
    /// Whether enough siblings, or spares, serve that this batch does not hold. A service of one worker is rolled without a
    /// spare only where the configuration says that it may be (`on_deadline = "kill"`).
    pub(super) fn floor(&self) -> Result<(), Short> {
        let is_down = |spare| self.world.state(spare) == State::Down;
        if self.may_be_alone() && self.service.spares.iter().all(|spare| is_down(spare)) {
            return Ok(());
        }
        self.service.can_spare(&self.batch, |other| self.world.state(other))
    }

    fn kills(&self) -> bool {
        self.service.config.drain.on_deadline == OnDeadline::Kill
    }

    fn may_be_alone(&self) -> bool {
        self.service.workers.len() == 1 && self.kills()
    }

    /// It was not emptied, or others were missed, until the deadline. Where the configuration says so, its requests are cut;
    /// that says nothing about the floor, but in a service of one worker.
    pub(super) fn missed(&self, error: DrainError, before: Phase) -> Result<(), String> {
        let seconds = self.service.config.drain.deadline.as_secs_f32();
        // Who is out already is missed by nobody.
        let is_out = matches!(before, Phase::Failed | Phase::Down | Phase::Listening | Phase::Warming);
        let may_be_cut = before == Phase::Failed || self.kills();
        let why = match error {
            DrainError::Deadline(held) if may_be_cut && (is_out || self.floor().is_ok()) => {
                format!("at the deadline, with {held}")
            }
            DrainError::Floor(_) if self.may_be_alone() => "at the deadline, though no other worker is up".to_owned(),
            DrainError::Deadline(held) => return Err(format!("not empty after {seconds} s: {held}")),
            DrainError::Floor(short) => {
                return Err(format!(
                    "others were waited for for {seconds} s: {short}; have them up again, or lower min_up"
                ));
            }
            error @ DrainError::Kernel(_) => return Err(error.to_string()),
        };
        self.world.publish(&self.worker, State::Stopping);
        self.enter(Phase::Drained, &why);
        Ok(())
    }
}
