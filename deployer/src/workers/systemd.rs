//! systemd as a process manager: template units, over D-Bus.
//!
//! A job that systemd has taken on ends with the signal `JobRemoved`, which is listened for *before* the job is asked
//! for. A signal can get lost (systemd executes itself anew, the queue of a busy bus overflows), so the unit is looked
//! at as well while the signal is waited for; and what counts in the end is the unit, not the job's result.

mod bus;
mod job;
mod unit;

use std::{net::SocketAddr, time::Duration};

use tokio::time::{Instant, sleep};

use self::{
    bus::{Asked, Bus, Link},
    job::End,
    unit::Unit,
};
use super::{ManagerError, Mark, Pending, ProcessManager, ProcessStatus, Started, filled};
use crate::kernel::{cgroup, users};

const MANAGER: &str = "systemd";
/// Between two looks at a unit whose job is waited for.
const LOOK: Duration = Duration::from_millis(25);
/// Most units given in a message.
const NAMED: usize = 20;

/// A systemd, reached over a message bus.
pub struct Systemd {
    link: Link,
    unit: String,
    stop_within: Duration,
}

impl Systemd {
    /// From the fields of [`crate::config::Manager::Systemd`]. Nothing is opened yet.
    #[must_use]
    pub fn new(unit: String, bus: Option<String>, stop_within: Duration) -> Self {
        Self { link: Link::new(bus), unit, stop_within }
    }

    async fn check_all(&self, workers: &[SocketAddr]) -> Result<(), ManagerError> {
        let tried = "find the workers' units";
        let names: Vec<_> = workers.iter().map(|&worker| self.name(worker)).collect();
        let bus = self.link.open(tried).await?;
        let mut wrong = Vec::new();
        for unit in bus.units(&names, tried).await? {
            if !unit.is_loaded() {
                wrong.push(bus.refusal_of(&unit, tried).await?);
            }
        }
        let more = wrong.len().saturating_sub(NAMED);
        let Some((first, rest)) = wrong.split_first() else { return Ok(()) };
        let mut said = first.said.clone();
        rest.iter().take(NAMED - 1).for_each(|other| said = format!("{said}; {}", other.said));
        if more > 0 {
            said = format!("{said}; and {more} more");
        }
        Err(ManagerError::Refused { manager: MANAGER, tried: tried.to_owned(), said, hint: first.hint })
    }

    async fn stop_named(&self, name: &str) -> Result<(), ManagerError> {
        let tried = format!("stop {name}");
        let until = Instant::now() + self.stop_within;
        let bus = self.link.open(&tried).await?;
        let mut unit = bus.unit(name, &tried).await?;
        let mut asked = false;
        while !unit.is_gone() || (unit.has_job() && !asked) {
            let stopped = self.stop_once(&bus, &unit, &tried, until).await;
            // What fails from now on fails after a stop was asked for.
            let (now, end) = if asked { stopped.map_err(ManagerError::begun)? } else { stopped? };
            asked = true;
            if let (End::Not(said), false) = (end, now.is_gone()) {
                let hint = "A stop has been asked for and has not come about: systemctl status and systemctl list-jobs \
                            show what holds it";
                return Err(ManagerError::Refused { manager: MANAGER, tried, said, hint }.begun());
            }
            // It is back although its stop was done: somebody has started it again meanwhile.
            unit = now;
        }
        if asked && unit.is_failed() {
            // One that had to be killed counts as failed with systemd; that it was to end is what matters. A no changes
            // nothing: it is gone.
            let _ = bus.forget_failures(&unit, &tried).await;
        }
        Ok(())
    }

    /// Asks for a stop and waits for its end. An error after the question is one that says that it may come yet.
    async fn stop_once(
        &self,
        bus: &Bus<'_>,
        unit: &Unit,
        tried: &str,
        until: Instant,
    ) -> Result<(Unit, End), ManagerError> {
        let mut job = match bus.ask("StopUnit", unit, tried).await? {
            Asked::Job(job) => job,
            // It was unloaded at this very moment, which happens only to what does not run.
            Asked::Unknown(_) => return Ok((bus.unit(&unit.id, tried).await?, End::Done)),
        };
        match job.end(tried, until, Unit::is_gone).await.map_err(ManagerError::begun)? {
            (now, End::Late) => Err(self.late(bus, &now, tried).await),
            ended => Ok(ended),
        }
    }

    async fn start_named(&self, name: &str) -> Result<(), ManagerError> {
        let tried = format!("start {name}");
        let until = Instant::now() + self.stop_within;
        let bus = self.link.open(&tried).await?;
        let unit = self.settled(&bus, name, &tried, until).await?;
        if unit.is_begun() {
            return Ok(());
        }
        if !unit.is_loaded() {
            return Err(bus.refusal_of(&unit, &tried).await?.into_error(&tried));
        }
        bus.forget_failures(&unit, &tried).await?;
        let mut job = match bus.ask("StartUnit", &unit, &tried).await? {
            Asked::Job(job) => job,
            Asked::Unknown(error) => return Err(error),
        };
        let (unit, mut said) = match job.end(&tried, until, Unit::is_begun).await? {
            (_, End::Done) => return Ok(()),
            (now, End::Late) => return Err(self.late(&bus, &now, &tried).await),
            (now, End::Not(said)) => (now, said),
        };
        if let Ok(process) = bus.process(&unit, &tried).await {
            said = format!("{said}; {}", unit.detail(&process));
        }
        let hint = "Its log says why: journalctl -u UNIT; what it needs first: systemctl list-dependencies UNIT";
        Err(ManagerError::Refused { manager: MANAGER, tried, said, hint })
    }

    /// The unit, once it is not on its way down: a start then would cancel that stop's job.
    async fn settled(&self, bus: &Bus<'_>, name: &str, tried: &str, until: Instant) -> Result<Unit, ManagerError> {
        loop {
            let unit = bus.unit(name, tried).await?;
            if !unit.is_stopping() {
                return Ok(unit);
            }
            if Instant::now() >= until {
                return Err(self.late(bus, &unit, tried).await);
            }
            sleep(LOOK).await;
        }
    }

    async fn late(&self, bus: &Bus<'_>, unit: &Unit, tried: &str) -> ManagerError {
        let process = bus.process(unit, tried).await.unwrap_or_default();
        let (tried, detail) = (tried.to_owned(), unit.detail(&process));
        ManagerError::Late { manager: MANAGER, tried, within: self.stop_within, phase: unit.phase(), detail }
    }

    async fn status_named(&self, name: &str) -> Result<ProcessStatus, ManagerError> {
        let tried = format!("look at {name}");
        let bus = self.link.open(&tried).await?;
        let unit = bus.unit(name, &tried).await?;
        if unit.is_gone() && !unit.is_loaded() {
            return Err(bus.refusal_of(&unit, &tried).await?.into_error(&tried));
        }
        let process = bus.process(&unit, &tried).await?;
        Ok(ProcessStatus { phase: unit.phase(), pid: process.pid(), detail: unit.detail(&process) })
    }
}

impl Systemd {
    async fn started_named(&self, name: &str) -> Result<Started, ManagerError> {
        let tried = format!("look at {name}");
        let bus = self.link.open(&tried).await?;
        let unit = bus.unit(name, &tried).await?;
        // That a unit is not there, or is wrong, says nothing of what it would have started.
        if unit.is_gone() && !unit.is_loaded() {
            return Err(bus.refusal_of(&unit, &tried).await?.into_error(&tried));
        }
        let (process, place) = (bus.process(&unit, &tried).await?, bus.place(&unit, &tried).await?);
        let below = place.cgroup.trim_start_matches('/');
        // Seen from a systemd of another cgroup namespace, the path means nothing here.
        let group = cgroup::root().ok().map(|root| root.join(below)).filter(|path| !below.is_empty() && path.is_dir());
        let user = if place.user.is_empty() { None } else { users::number(&place.user) };
        let runs = !unit.is_gone() || group.is_some();
        let by_process = process.pid().map_or(Mark::Nothing, Mark::Process);
        Ok(Started { runs, mark: group.map_or(by_process, Mark::Cgroup), user })
    }
}

impl ProcessManager for Systemd {
    fn name(&self, worker: SocketAddr) -> String {
        filled(&self.unit, "", worker)
    }

    fn check<'a>(&'a self, workers: &'a [SocketAddr]) -> Pending<'a, Result<(), ManagerError>> {
        Box::pin(self.check_all(workers))
    }

    fn stop(&self, worker: SocketAddr) -> Pending<'_, Result<(), ManagerError>> {
        Box::pin(async move { self.stop_named(&self.name(worker)).await })
    }

    fn start(&self, worker: SocketAddr) -> Pending<'_, Result<(), ManagerError>> {
        Box::pin(async move { self.start_named(&self.name(worker)).await })
    }

    fn status(&self, worker: SocketAddr) -> Pending<'_, Result<ProcessStatus, ManagerError>> {
        Box::pin(async move { self.status_named(&self.name(worker)).await })
    }

    fn started(&self, worker: SocketAddr) -> Pending<'_, Result<Started, ManagerError>> {
        Box::pin(async move { self.started_named(&self.name(worker)).await })
    }
}
