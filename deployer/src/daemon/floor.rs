//! The floor, as the daemon tells of it.

use deployer_common::word::State;
use tracing::{info, warn};

use super::{Daemon, error::Refusal};
use crate::{
    journal::history::About,
    kernel::host,
    service::{Service, Worker, floor::Short},
};

impl Daemon {
    fn state(&self, worker: &Worker) -> State {
        self.tables.word(worker.index).at(host::now_ms())
    }

    /// Whether a worker may be drained by hand.
    pub(super) fn may_drain(&self, service: &Service, worker: &Worker) -> Result<(), Refusal> {
        let allowed = service.can_spare(&[worker.index], |other| self.state(other));
        allowed.map_err(|short| {
            let (at, name, port) = (worker.at, &service.config.name, service.name_of(worker));
            Refusal::failed(format!(
                "{at} cannot be drained: {short}. Have others up first, or lower min_up; deployer drain {name} {port} \
                 --force drains it all the same, and connections go on to it until enough are up"
            ))
        })
    }

    /// That connections go on to a worker although it is drained, and why.
    pub(super) fn let_in(&self, service: &Service, worker: &Worker) -> Option<Short> {
        if self.state(worker) != State::Draining {
            return None;
        }
        service.is_served(|other| self.state(other)).err()
    }

    /// Logs, when it changes, that connections go on to a worker that is drained by hand; returns whether they do.
    pub(super) fn tell_of_floor(&self, worker: &Worker, was: bool) -> bool {
        let short = self.registry.service(&worker.service).and_then(|service| self.let_in(&service, worker));
        let (service, worker) = (&worker.service, worker.at);
        let words = short.map(|short| short.to_string());
        self.history.let_in(About::worker(service, worker), words.as_deref());
        match short {
            Some(short) if !was => {
                warn!(service, %worker, why = %short, "drained, but connections go on to it: the floor");
            }
            None if was => info!(service, %worker, "no more connections go to it: enough others are up"),
            _ => {}
        }
        short.is_some()
    }
}
