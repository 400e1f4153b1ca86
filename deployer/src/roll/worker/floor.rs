//! Whether a worker may be taken out.

use deployer_common::word::State;

use super::Restart;
use crate::{config::OnDeadline, service::floor::Short};

impl Restart {
    /// Whether enough siblings, or spares, serve that this batch does not hold. A service of one worker is rolled without a
    /// spare only where the configuration says that it may be (`on_deadline = "kill"`).
    pub(super) fn floor(&self) -> Result<(), Short> {
        // A stranger at a spare's address must not stop a roll.
        let is_down = |spare| matches!(self.world.state(spare), State::Down | State::Stranger);
        if self.may_be_alone() && self.service.spares.iter().all(|spare| is_down(spare)) {
            return Ok(());
        }
        self.service.can_spare(&self.batch, |other| self.world.state(other))
    }

    pub(super) fn kills(&self) -> bool {
        self.service.config.drain.on_deadline == OnDeadline::Kill
    }

    pub(super) fn may_be_alone(&self) -> bool {
        self.service.workers().len() == 1 && self.kills()
    }
}
