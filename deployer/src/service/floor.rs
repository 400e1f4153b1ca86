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
        let members = self.workers().iter().chain(&self.spares);
        let (others, min_up) = (members.filter(|worker| counts(worker)).count(), self.config.limits.min_up);
        if others < min_up { Err(Short { others, min_up }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;
    use crate::{
        config::Config,
        service::{Owner, manager},
    };

    /// Four workers, one spare, `min_up = 3`; places in the tables 0 to 4.
    fn service() -> Service {
        let text = "[service.web]\nworkers = \"127.0.0.1:8000-8003\"\nspare = \"127.0.0.1:8040\"\nmin_up = 3\n\
                    manager = { start = [\"a\", \"{port}\"], stop = [\"b\", \"{port}\"], status = [\"c\", \"{port}\"] }\n";
        let config = Config::parse(Path::new("f"), text).unwrap().services.remove("web").unwrap();
        let members = config.members().enumerate();
        let mut workers: Vec<_> = members.map(|(nth, at)| Arc::new(Worker::new(nth as u32, at, "web", 0))).collect();
        let spares = workers.split_off(4);
        let manager = manager(&config, &[]);
        Service { index: 0, config, pools: [workers, Vec::new()], current: Arc::default(), spares, manager }
    }

    fn up(places: &'static [u32]) -> impl Fn(&Worker) -> State {
        |worker| if places.contains(&worker.index) { State::Up } else { State::Down }
    }

    #[test]
    fn others_must_be_up() {
        let service = service();
        assert_eq!(service.can_spare(&[0], up(&[0, 1, 2, 3])), Ok(()));
        assert_eq!(service.can_spare(&[0, 1], up(&[0, 1, 2, 3])), Err(Short { others: 2, min_up: 3 }));
        assert_eq!(service.can_spare(&[0, 1], up(&[0, 1, 2, 3, 4])), Ok(()), "a spare that is up counts");
        let short = service.can_spare(&[0], up(&[0, 3])).unwrap_err();
        assert_eq!(short.to_string(), "1 other is up, and min_up = 3");
        assert_eq!(service.can_spare(&[0], up(&[0])).unwrap_err().to_string(), "no other worker is up, and min_up = 3");
    }

    #[test]
    fn who_is_in_a_hand_counts_for_nobody() {
        let service = service();
        let all = || up(&[0, 1, 2, 3]);
        let claim = service.workers()[0].claim(Owner::Roll("web-1".to_owned())).unwrap();
        assert_eq!(service.can_spare(&[1], all()), Err(Short { others: 2, min_up: 3 }));
        // The kernel, which knows no hands, sees four that are up.
        assert_eq!(service.is_served(all()), Ok(()));
        drop(claim);
        assert_eq!(service.can_spare(&[1], all()), Ok(()));
    }
}
