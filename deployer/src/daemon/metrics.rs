//! What the page of metrics tells, looked at when somebody asks for it.

use std::{
    fs, io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::net::TcpListener;
use tracing::debug;

use super::{Daemon, LAST_WORDS, lock};
use crate::{
    journal::{RollState, State},
    metrics::{Process, RollSample, ServiceSample, Sides, Snapshot, WorkerSample, render, server},
    roll::{Record, machine::Outcome},
    service::{Service, Worker, pools},
};

/// Where the page is served, if the port could be had.
pub(super) type Bound = (SocketAddr, io::Result<TcpListener>);

/// Names the work of writing down what is counted by version.
const LEDGER: &str = "figures by version";
/// How long is waited for that before it is tried again.
const SAVED_WITHIN: Duration = Duration::from_secs(10);
/// 1: runs of programs are counted.
const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl Daemon {
    /// Binds the port of the page, if it is asked for: who is told that the daemon is ready finds it.
    pub(super) async fn bind_metrics(&self) -> Option<Bound> {
        let listen = lock(&self.config).metrics.as_ref()?.listen;
        Some((listen, TcpListener::bind(listen).await))
    }

    /// Serves the page for ever, if it is asked for.
    pub(super) async fn serve_metrics(self: Arc<Self>, bound: Option<Bound>) {
        let Some((listen, bound)) = bound else { return };
        let (daemon, told) = (Arc::clone(&self), self);
        let make = Arc::new(move || {
            let begun = Instant::now();
            render(&daemon.snapshot(), begun)
        });
        let tell = Arc::new(move |trouble: Option<String>| *lock(&told.unserved) = trouble);
        server::run(listen, bound, make, tell).await;
    }

    /// Writes down for ever what is counted by version, soon after it has changed.
    pub(super) async fn keep_ledger(self: Arc<Self>) {
        loop {
            self.ledger.changed().await;
            let written = self.save_ledger();
            self.shelf.disk().is_done(written, SAVED_WITHIN).await;
        }
    }

    /// Has the disk's thread write it down; returns the number of that work.
    fn save_ledger(&self) -> u64 {
        let ledger = Arc::clone(&self.ledger);
        self.shelf.disk().hand_over(LEDGER, move || ledger.save())
    }

    /// The last look, written down.
    pub(super) async fn close_ledger(self: &Arc<Self>) {
        let daemon = Arc::clone(self);
        let looked = tokio::task::spawn_blocking(move || daemon.ledger.look(&daemon.registry.services()));
        // What has panicked has said so.
        let _ = looked.await;
        self.save_ledger();
        // A disk that hangs is not waited for.
        self.shelf.disk().flush(LAST_WORDS).await;
    }

    /// Everything on the page, as of now. Blocks for some milliseconds.
    fn snapshot(&self) -> Snapshot {
        let services = self.registry.services();
        self.ledger.look(&services);
        // What is shown must be found by the next daemon.
        self.save_ledger();
        self.shelf.disk().flush_blocking(LAST_WORDS);
        let squatters = self.registry.squatters().count();
        // Not in the expression below, to whose end it would be locked: trouble() locks it, too.
        let links_missing = lock(&self.lost).len();
        Snapshot {
            version: env!("CARGO_PKG_VERSION"),
            attached: self.attached(),
            bypassed: self.tables.bypassed(),
            links_lost: self.links_lost.load(Ordering::Relaxed),
            links_missing,
            trouble: self.trouble().len(),
            squatters,
            self_test: lock(&self.self_test).clone(),
            task_restarts: self.health.restarts(),
            journal_writable: self.journal.trouble().is_none(),
            process: Process::look(self.begun_ms),
            runs: self.runs(),
            services: services.values().map(|service| self.service_sample(service)).collect(),
            fleet: self.fleet_figures(),
        }
    }

    /// How long programs have run, and how often, if the kernel counts that.
    fn runs(&self) -> Option<Vec<(String, Duration, u64)>> {
        if fs::read_to_string(STATS).ok()?.trim() != "1" {
            return None;
        }
        // Detached, there are none.
        let runs = lock(&self.programs).as_ref().map_or_else(|| Ok(Vec::new()), |programs| programs.runs());
        runs.inspect_err(|error| debug!(error = format!("{error:#}"), "run times of programs are not known")).ok()
    }

    fn service_sample(&self, service: &Service) -> ServiceSample {
        let name = &service.config.name;
        let rolls: Vec<_> = self.rolls().iter().filter(|roll| roll.service == *name).cloned().collect();
        ServiceSample {
            name: name.clone(),
            mode: self.mode(service),
            min_up: service.config.limits.min_up,
            count: self.tables.counts().service(service.index),
            unsteered: self.unsteered_names(service),
            workers_unsteered: self.workers_unsteered(service),
            callers: self.caller_status(service).into_iter().map(|it| (it.caller, it.processes)).collect(),
            binds_refused: self.tables.counts().binds(service.index).refused,
            moved: service.moves().map(|moves| moves.so_far()).unwrap_or_default(),
            roll: rolls.iter().find(|roll| roll.result().is_none()).map(|roll| self.roll_sample(roll, service)),
            last_end_ms: rolls.iter().filter_map(|roll| roll.ended_ms()).max(),
            sides: service.config.deploy.as_ref().map(|_| self.sides(service)),
            workers: service.members().map(|worker| self.worker_sample(service, worker)).collect(),
        }
    }

    fn sides(&self, service: &Service) -> Sides {
        let bakes = self.running(&service.config.name).is_some_and(|running| {
            let has_flipped =
                |state: &State| Some(state.rolls.iter().find(|roll| roll.id == running.id)?.machine.has_flipped());
            self.journal.read(|state| has_flipped(state)).unwrap_or_default()
        });
        Sides { pools: self.pools(service), lanes: self.lanes(service), bakes }
    }

    /// Where a roll stands. One that has only just begun has nobody in hand.
    fn roll_sample(&self, roll: &Record, service: &Service) -> RollSample {
        let all = service.workers().len();
        let nobody = RollSample { waiting: all, ..RollSample::default() };
        self.journal
            .read(|state| state.rolls.iter().find(|known| known.id == roll.id).map_or(nobody, |roll| sum(roll, all)))
    }

    fn worker_sample(&self, service: &Service, worker: &Worker) -> WorkerSample {
        let counts = self.tables.counts();
        let (count, life) = (counts.worker(worker.index), counts.life(worker.index));
        let versions = self.ledger.versions(worker);
        let pool = service.pool_of(worker);
        let control = worker.control();
        WorkerSample {
            at: worker.at,
            pool: service.config.deploy.as_ref().map(|_| (pools::NAMES[pool as usize & 1], pool == service.current())),
            spare: service.is_spare(worker),
            phase: control.phase,
            for_seconds: control.entered.elapsed().as_secs_f64(),
            version: control.version.clone().map(String::from),
            open: count.open.saturating_add(self.tables.seed(worker.index)),
            pending: count.tickets,
            evidence: counts.evidence(worker.index),
            listeners: life.listeners,
            crashes: life.ended,
            closed_port: counts.end(worker.index).refused,
            restarts: control.restarts,
            drain_seconds: control.drained.as_secs_f64(),
            warm_up_seconds: control.warmed.as_secs_f64(),
            versions,
        }
    }
}

/// The workers of a roll, spares left out; of a deploy, those of the new pool. `all`: so many a pool has.
fn sum(roll: &RollState, all: usize) -> RollSample {
    let plan = roll.machine.plan();
    let spares = roll.workers.len()..roll.workers.len() + roll.spares.len();
    let (all, done) = match plan.deploy {
        Some(_) => (plan.surge.len(), roll.machine.started()),
        None => (all, roll.machine.changed()),
    };
    let counts = |nth: &usize| if plan.deploy.is_some() { plan.surge.contains(nth) } else { !spares.contains(nth) };
    let mut sum = RollSample {
        done,
        failed: roll.machine.failed().count(),
        left: roll.machine.left().count(),
        ..RollSample::default()
    };
    for hand in roll.hand.iter().filter(|(nth, _)| counts(nth)).map(|(_, hand)| hand) {
        match hand.outcome {
            None => sum.in_hand += 1,
            Some(Outcome::Changed) => sum.done += 1,
            Some(Outcome::Failed(_)) => sum.failed += 1,
            Some(Outcome::Left(_)) => sum.left += 1,
            // The roll stops.
            Some(Outcome::Kept(_)) => {}
        }
    }
    let touched = sum.done + sum.in_hand + sum.failed + sum.left;
    RollSample { waiting: all.saturating_sub(touched), ..sum }
}
