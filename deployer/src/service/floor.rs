//! The floor: so many workers of a service stay in rotation, whoever is drained. The kernel holds it in any case, by going
//! on to send callers to those that are draining; here is who may be drained, and stopped, without that.

use deployer_common::word::State;

use super::{Service, Worker};

/// Fewer are up than must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Short {
    /// Workers and spares that are up, without those in question.
    pub others: usize,
    /// So many must be.
    pub min_up: usize,
}

/// Says whether the floor allows something.
pub type Floor<'a> = dyn Fn() -> Result<(), Short> + Sync + 'a;

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.others {
            0 => write!(f, "no other worker is up, and min_up = {}", self.min_up),
            1 => write!(f, "1 other is up, and min_up = {}", self.min_up),
            others => write!(f, "{others} others are up, and min_up = {}", self.min_up),
        }
    }
}

impl Service {
    /// Whether the service can do without these workers (their places in the tables), which are taken out together.
    ///
    /// Whoever is in anybody's hand counts for nobody, up or not. So two who each want a worker out cannot count on each
    /// other's: who claims first is seen by the other, and claims by hand and rolls exclude each other.
    ///
    /// # Errors
    /// By how much it cannot.
    pub fn can_spare(&self, out: &[u32], state: impl Fn(&Worker) -> State) -> Result<(), Short> {
        self.floor(|other| !out.contains(&other.index) && other.control().is_watched() && state(other) == State::Up)
    }

    /// Whether enough are up, whosever hands they are in: what the kernel asks before it leaves out those that are draining.
    ///
    /// # Errors
    /// How few are. Then callers go on to those that are draining.
    pub fn is_served(&self, state: impl Fn(&Worker) -> State) -> Result<(), Short> {
        self.floor(|worker| state(worker) == State::Up)
    }

    fn floor(&self, counts: impl Fn(&Worker) -> bool) -> Result<(), Short> {
        let (others, min_up) = (self.members().filter(|worker| counts(worker)).count(), self.config.limits.min_up);
        if others < min_up { Err(Short { others, min_up }) } else { Ok(()) }
    }
}
