//! What connections went through around a roll, by the version that the workers ran: `tally` adds figures up, `meter`
//! puts those of one service down, `file` is what is kept beside a roll's events.
//!
//! The kernel's counters only grow, and outlive the daemon. Once a second, and whenever a worker's process has ended or
//! a new one is about to be let in, the difference since the last look goes to the version that the worker runs. Where
//! the looks stand is written down with the figures, so that another daemon goes on without losing any.

mod file;
mod meter;
mod tally;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tracing::{info, warn};

use self::meter::Meter;
pub use self::{
    file::{Kept, ReadError},
    meter::SPAN,
    tally::Source,
};
use crate::{
    api::{Proof, Tally},
    journal::{disk::Disk, events::Shelf},
    roll::{record::unix_ms, run::version_before},
    service::{Service, Worker, registry::Services},
};

/// The figures of all services.
pub struct Meters {
    source: Arc<dyn Source>,
    /// Where reports outlive the daemon.
    shelf: Shelf,
    meters: Mutex<BTreeMap<String, Meter>>,
    /// Reports cannot be written, which has been said.
    torn: Arc<AtomicBool>,
}

/// A roll that a former daemon has left.
#[derive(Debug, Clone)]
pub struct Left {
    /// The roll.
    pub roll: String,
    /// Its service.
    pub service: String,
    /// Whether it goes on.
    pub runs: bool,
}

impl Meters {
    /// Of counters of which nothing has been seen yet.
    #[must_use]
    pub fn new(source: Arc<dyn Source>, shelf: Shelf) -> Self {
        Self { source, shelf, meters: Mutex::default(), torn: Arc::default() }
    }

    /// Begins to look: at `services`, and for what a former daemon had written of the rolls that it `left`, the youngest
    /// last. To be called before any of them goes on.
    pub fn start(&self, services: &Services, left: &[Left]) {
        let now = Instant::now();
        for (name, service) in services {
            let mut meter = Meter::new(now);
            if let Some(left) = left.iter().rev().find(|left| left.service == *name) {
                self.resume(&mut meter, service, left);
            }
            meter.tick(&*self.source, service, now);
            self.keep(&meter, false);
            self.meters().insert(name.clone(), meter);
        }
    }

    fn resume(&self, meter: &mut Meter, service: &Service, left: &Left) {
        let read = Kept::read(&self.shelf, &left.roll);
        let away = |kept: &Kept| unix_ms().saturating_sub(kept.saved_ms) as f64 / 1000.0;
        match read {
            Ok(mut kept) if left.runs => {
                // Killed between the two.
                kept.go_on();
                let away = away(&kept);
                meter.resume(kept, service, away);
            }
            Ok(kept) if Meter::is_live(&kept, away(&kept)) && kept.ended_ms.is_some() => {
                let away = away(&kept);
                meter.resume(kept, service, away);
            }
            // What is there can still be read, and nothing is added to it.
            Ok(_) => {}
            Err(error) if left.runs => {
                warn!(roll = left.roll, %error, "the roll's report goes on from here only");
                meter.open = Some(Kept::lost(&left.roll, &error.to_string()));
            }
            Err(_) => {}
        }
    }

    /// The thread that writes reports.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        self.shelf.disk()
    }

    /// Another second has passed.
    pub fn tick(&self, services: &Services) {
        let mut finished = Vec::new();
        {
            let mut meters = self.meters();
            meters.retain(|name, _| services.contains_key(name));
            for (name, service) in services {
                let now = Instant::now();
                let meter = meters.entry(name.clone()).or_insert_with(|| Meter::new(now));
                let is_complete = meter.tick(&*self.source, service, now);
                self.keep(meter, false);
                if is_complete {
                    finished.extend(meter.open.take());
                }
            }
        }
        finished.into_iter().for_each(|kept| self.write(kept, true));
    }

    /// A roll begins, of which nothing has been done yet.
    pub fn begin(&self, service: &Service, roll: &str) {
        let named = (roll, version_before(service).map(String::from));
        self.with(service, |meter| {
            let former = meter.begin(&*self.source, service, Instant::now(), named);
            former.into_iter().for_each(|former| self.write(former, false));
            self.keep(meter, false);
        });
    }

    /// A roll has ended.
    pub fn end(&self, service: &Service) {
        self.with(service, |meter| {
            meter.end(&*self.source, service, Instant::now(), unix_ms());
            self.keep(meter, false);
        });
    }

    /// A worker's process is gone, and no other has been started.
    pub fn stopped(&self, worker: &Worker) {
        if let Some(meter) = self.meters().get_mut(&worker.service) {
            meter.stopped(&*self.source, worker);
            self.keep(meter, false);
        }
    }

    /// A worker is warm, and nobody has been let in yet. What it runs is known.
    pub fn up(&self, worker: &Worker) {
        if let Some(meter) = self.meters().get_mut(&worker.service) {
            meter.up(&*self.source, worker);
            self.keep(meter, false);
        }
    }

    /// The report of a roll, as of now. Blocks: it may have to be read.
    ///
    /// # Errors
    /// [`ReadError`]
    pub fn report(&self, service: Option<&Service>, roll: &str) -> Result<Kept, ReadError> {
        if let Some(service) = service
            && let Some(meter) = self.meters().get_mut(&service.config.name)
            && meter.open.as_ref().is_some_and(|kept| kept.roll == roll)
        {
            // One that is complete from now on is kept by the next tick.
            meter.tick(&*self.source, service, Instant::now());
            if let Some(kept) = meter.open.clone() {
                return Ok(kept);
            }
        }
        // Nothing is added any more to one that is only read.
        Kept::read(&self.shelf, roll).map(|kept| Kept { complete: true, ..kept })
    }

    /// Connections established in the last so long, by the version that took them.
    #[must_use]
    pub fn recent(&self, service: &Service, span: Duration) -> BTreeMap<Option<String>, u64> {
        self.meters().get(&service.config.name).map(|meter| meter.recent(Instant::now(), span)).unwrap_or_default()
    }

    /// The proofs of a service since the kernel's tables were made.
    #[must_use]
    pub fn total(&self, service: &Service) -> Proof {
        let mut all = Tally::default();
        service.members().for_each(|worker| all.add(self.source.worker(worker.index)));
        Proof::of(&all, self.source.exhausted(service.index))
    }

    fn meters(&self) -> MutexGuard<'_, BTreeMap<String, Meter>> {
        // What a panic has left half done is a look that is made up for by the next.
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, service: &Service, act: impl FnOnce(&mut Meter)) {
        act(self.meters().entry(service.config.name.clone()).or_insert_with(|| Meter::new(Instant::now())));
    }

    fn keep(&self, meter: &Meter, durable: bool) {
        if let Some(kept) = meter.kept() {
            self.write(kept, durable);
        }
    }

    /// Hands it to the disk's thread. Of several that wait, the last is written.
    fn write(&self, kept: Kept, durable: bool) {
        let (shelf, torn) = (self.shelf.clone(), Arc::clone(&self.torn));
        self.disk().hand_over(&format!("report of {}", kept.roll), move || write(kept, durable, &shelf, &torn));
    }
}

fn write(kept: Kept, durable: bool, shelf: &Shelf, torn: &AtomicBool) {
    let roll = kept.roll.clone();
    let written = kept.write(shelf, unix_ms(), durable);
    let was_torn = torn.swap(written.is_err(), Ordering::Relaxed);
    match written {
        Err(error) if !was_torn => {
            let path = shelf.report_path(&roll);
            warn!(roll, path = %path.display(), %error, "the roll's report cannot be written; it is tried again");
        }
        Ok(()) if was_torn => info!(roll, "reports can be written again"),
        _ => {}
    }
}
