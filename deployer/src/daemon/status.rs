//! Everything there is to know, as of now.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use deployer_common::{layout::LaneCount, word};

use super::{Daemon, history, holds::Held, lock};
use crate::{
    api::{LaneCounts, Phase, PoolStatus, ServiceStatus, Status, WorkerStatus},
    kernel::host,
    roll::record::unix_ms,
    service::{Service, Worker, pools},
};

/// New connections of so long are shared out.
const RECENT: Duration = Duration::from_secs(10);

impl Daemon {
    pub(super) async fn status(&self) -> Status {
        let held = self.holds().await;
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            attached: self.attached(),
            bypassed: self.tables.bypassed(),
            callers: self.attachment.callers.display().to_string(),
            trouble: self.trouble(),
            self_test: lock(&self.self_test).clone(),
            deferred: self.reloads.deferred(),
            services: self.registry.services().values().map(|service| self.service_status(service, &held)).collect(),
        }
    }

    /// What must not be overlooked.
    pub(super) fn trouble(&self) -> Vec<String> {
        let lost: Vec<_> = lock(&self.lost).iter().cloned().collect();
        let own = lost.into_iter().chain(self.journal.trouble()).chain(self.keepalive.trouble());
        let own = own.chain(lock(&self.losses).trouble());
        let own = own.chain(lock(&self.unserved).clone()).chain(self.history.unwritten());
        let own = own.chain(self.registry.squatters().told());
        let own = own.chain(self.caller_trouble()).chain(self.reloads.trouble());
        let own = own.chain(lock(&self.refused_binds).values().cloned().collect::<Vec<_>>());
        let own = own.chain(self.shelf.disk().trouble()).chain(self.health.trouble());
        let all = own.chain(self.fleet.troubles()).chain(self.warnings.iter().cloned());
        // A disk that hangs is told by each that writes to it.
        let mut told = BTreeSet::new();
        all.filter(|text| told.insert(text.clone())).collect()
    }

    fn service_status(&self, service: &Service, held: &Held) -> ServiceStatus {
        let count = self.tables.counts().service(service.index);
        let policy = history::policy(service.config.drain.policy);
        let workers = service.workers().iter().map(|worker| self.worker_status(service, worker, held));
        let others = service.spares.iter().chain(service.pool(1 - service.current()));
        let spares = others.filter(|other| other.control().phase != Phase::Down);
        let spares = spares.map(|spare| self.worker_status(service, spare, held));
        ServiceStatus {
            name: service.config.name.clone(),
            mode: self.mode(service).to_owned(),
            policy: policy.to_owned(),
            min_up: service.config.limits.min_up,
            address: service.config.address,
            roll: self.running(&service.config.name).map(|roll| roll.id.clone()),
            pools: self.pools(service),
            lanes: service.config.deploy.as_ref().map(|_| self.lanes(service)),
            workers: workers.chain(spares).collect(),
            exhausted: count.exhausted,
            unsteered: count.unsteered,
            dialled: count.dialled,
            would_change: count.would_change,
            callers: self.caller_status(service),
            unsteered_callers: self.unsteered_callers(service),
            protected: service.config.protect,
            binds_refused: self.tables.counts().binds(service.index).refused,
        }
    }

    /// What is done with decisions for a service.
    pub(super) fn mode(&self, service: &Service) -> &'static str {
        let is_bypassed = self.tables.service_word(service.index).mode() == word::Mode::Bypass;
        match service.config.mode {
            _ if is_bypassed => "bypass",
            configured => history::mode(configured),
        }
    }

    fn worker_status(&self, service: &Service, worker: &Worker, held: &Held) -> WorkerStatus {
        let let_in = self.let_in(service, worker).map(|short| format!("connections go on to it: {short}"));
        let counts = self.tables.counts();
        let (count, life, proof) = (counts.worker(worker.index), counts.life(worker.index), counts.proof(worker.index));
        let evidence = counts.evidence(worker.index);
        let holds = held.get(&worker.at).cloned().unwrap_or_default();
        let closed = self.keepalive.closed(worker.at);
        let control = worker.control();
        let reasons = [&control.reason].into_iter().chain(&let_in).filter(|why| !why.is_empty());
        let reasons: Vec<_> = reasons.cloned().collect();
        WorkerStatus {
            at: worker.at,
            pool: service.config.deploy.as_ref().map(|_| pools::NAMES[service.pool_of(worker) as usize].to_owned()),
            spare: service.is_spare(worker),
            phase: control.phase,
            reason: reasons.join("; "),
            for_s: control.since.elapsed().as_secs_f64(),
            version: control.version.clone().map(String::from),
            invalid_version: control.invalid_version.clone(),
            open: count.open.saturating_add(self.tables.seed(worker.index)),
            tickets: count.tickets,
            established: count.established,
            direct: count.direct,
            away: count.away,
            steered: count.steered,
            picked: count.picked,
            refused: count.refused,
            fallback_draining: count.fallback_draining,
            fallback_cold: count.fallback_cold,
            fallback_floor: proof.fallback_floor,
            closed_port: counts.end(worker.index).refused,
            late: proof.late,
            to_cold: proof.cold,
            failed: proof.failed,
            reset: proof.reset,
            crashes: life.ended,
            cut: life.cut,
            closed: closed.complete + closed.quiet,
            holds: holds.listed,
            more_holds: holds.more,
            gone: holds.gone,
            ticket_holds: holds.tickets,
            outsider_tickets: evidence.outsider_tickets,
            outsiders_cut: evidence.outsiders_cut,
            unnoted: evidence.unnoted + evidence.uncounted,
        }
    }
}

impl Daemon {
    /// The pools of a service that has two.
    pub(super) fn pools(&self, service: &Service) -> Vec<PoolStatus> {
        if service.config.deploy.is_none() {
            return Vec::new();
        }
        let recent = self.meters.recent(service, RECENT);
        let all: u64 = recent.values().sum();
        [0, 1].map(|pool| self.pool(service, pool, &recent, all)).into()
    }

    fn pool(&self, service: &Service, pool: u32, recent: &BTreeMap<Option<String>, u64>, all: u64) -> PoolStatus {
        let (word, now) = (self.tables.flip(service.index), host::now_ms());
        let workers = service.pool(pool);
        let opened = |worker: &Arc<Worker>| {
            self.tables.counts().worker(worker.index).open.saturating_add(self.tables.seed(worker.index))
        };
        let version = super::deploy::version(service, pool).map(String::from);
        let mine = recent.get(&version).copied().unwrap_or_default();
        let former: Vec<_> = workers.iter().filter_map(|worker| self.keepalive.former(worker.at)).collect();
        let since = workers.iter().map(|worker| worker.control().entered.elapsed()).min().unwrap_or_default();
        let flips = word.is_armed(now) && word.current(word.at_ms()) == pool;
        PoolStatus {
            pool: pools::NAMES[pool as usize & 1].to_owned(),
            lane: word.lane(pool),
            current: word.current(now) == pool,
            open_lane: word.lane(pool) != 0 && word.is_open(pool, now),
            version,
            up: workers.iter().filter(|worker| worker.control().phase == Phase::Up).count(),
            workers: workers.len(),
            open: workers.iter().map(opened).sum(),
            share: (all > 0).then(|| mine as f64 / all as f64),
            age_s: since.as_secs_f64(),
            former: (!former.is_empty()).then(|| former.iter().sum()),
            flips_at_ms: flips.then(|| unix_ms().saturating_add(word.at_ms().saturating_sub(now))),
        }
    }

    pub(super) fn lanes(&self, service: &Service) -> LaneCounts {
        let LaneCount { lane, preview, stale, unopened, moved } = self.tables.counts().lanes(service.index);
        LaneCounts { lane, preview, stale, unopened, moved }
    }
}
