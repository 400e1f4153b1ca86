//! Deploys: what is asked of them, and what they are refused for.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Daemon, error::Refusal, lock, plan::no_hands};
use crate::{
    api::{DeployRequest, DeployStarted, Done, FlipRequest, Phase, RollbackStarted},
    config::{self, Manager},
    deploy::memory,
    fleet::{barrier::Wanted, coordinator::Coordinator},
    roll::{
        Record,
        machine::{Deploy, FleetPart, Machine, Plan},
        orders::Order,
        record::unix_ms,
    },
    service::{Service, blocking},
    version::Version,
};

/// How long a deploy that is superseded may take to make room, beyond what its workers' drains may.
const ROOM_WITHIN: Duration = Duration::from_secs(60);
/// A flip is armed at most so long beforehand.
const AHEAD_MS: u64 = 7 * 24 * 3600 * 1000;

impl Daemon {
    /// Begins a deploy.
    pub(super) async fn deploy(
        self: &Arc<Self>,
        name: &str,
        request: DeployRequest,
        by: String,
    ) -> Result<DeployStarted, Refusal> {
        if !request.force {
            self.not_the_fleets(
                name,
                &request.to,
                "--force deploys it here all the same, until the fleet brings this host back",
            )?;
        }
        self.deploy_for(name, request, None, by).await
    }

    /// The same, of this host's own, or for its fleet.
    pub(super) async fn deploy_for(
        self: &Arc<Self>,
        name: &str,
        request: DeployRequest,
        fleet: Option<FleetPart>,
        by: String,
    ) -> Result<DeployStarted, Refusal> {
        let _begins = self.reloads.begins(name);
        let service = self.service(name)?;
        let config = two_pools(&service)?.clone();
        is_sound(&service, &request)?;
        self.has_barriers(&wanted(&request))?;
        let workers: Vec<_> = service.members().map(|worker| worker.at).collect();
        let fit = service.manager.check(&workers).await;
        // Before room is made: the way back is given up with it.
        fit.map_err(|error| Refusal::failed(format!("{error}; no worker was touched")))?;
        self.must_steer(&service)?;
        let by = self.unless_forced(&service, "deploy", request.force, by).await?;
        if let Some(running) = self.running(name) {
            self.make_room(&service, &running, &request, &by).await?;
        }
        no_hands(&service)?;
        if !request.force {
            has_room(&service).await?;
        }
        let plan = plan(&service, &config, &request, fleet);
        let id = self.begin_roll(service, Some(request.to), plan, by).await?;
        Ok(DeployStarted { id })
    }

    /// Whether barriers can be waited for.
    pub(super) fn has_barriers(&self, wanted: &Wanted) -> Result<(), Refusal> {
        wanted.check(self.fleet.barrier_root.as_deref()).map_err(Refusal::usage)?;
        if wanted.is_empty() || self.coordinator().is_some() {
            return Ok(());
        }
        Err(Refusal::usage(
            "a barrier is a node in ZooKeeper, and this host has none: write [fleet] with connect = \"zk1:2181\" and a name \
             into the configuration, and restart the daemon",
        ))
    }

    /// Where barriers of others are.
    pub(super) fn coordinator(&self) -> Option<Arc<dyn Coordinator>> {
        (!self.fleet.is_alone).then(|| Arc::clone(&self.fleet.board.coordinator))
    }

    /// Ends the deploy that is under way, if that is asked for.
    async fn make_room(
        &self,
        service: &Service,
        running: &Arc<Record>,
        request: &DeployRequest,
        by: &str,
    ) -> Result<(), Refusal> {
        let (name, id) = (&service.config.name, &running.id);
        let is_deploy = self.machine_of(id).is_some_and(|machine| machine.plan().deploy.is_some());
        if !is_deploy || !request.supersede {
            let hint = if is_deploy { "; --supersede ends it first" } else { "" };
            return Err(Refusal::busy(format!("{id} of {name} is under way, begun by {}{hint}", running.by)));
        }
        if !request.force {
            self.is_our_own(running)?;
        }
        let mut has_flipped = self.machine_of(id).is_some_and(|machine| machine.has_flipped());
        if has_flipped {
            running.order(Order::Supersede { by: by.to_owned() }, "supersede", by);
        } else {
            running.ask_stop(by);
        }
        let within = ROOM_WITHIN + service.config.drain.deadline + service.config.warm.within;
        let until = Instant::now() + within;
        while running.result().is_none() {
            // It may have flipped just then.
            if !has_flipped && self.machine_of(id).is_some_and(|machine| machine.has_flipped()) {
                running.order(Order::Supersede { by: by.to_owned() }, "supersede", by);
                has_flipped = true;
            }
            if Instant::now() >= until {
                let seconds = within.as_secs();
                return Err(Refusal::busy(format!(
                    "{id} was asked to make room {seconds} s ago, and has not ended yet"
                )));
            }
            let _ = tokio::time::timeout(Duration::from_millis(500), running.over()).await;
        }
        Ok(())
    }

    /// Refuses what is asked of a deploy that is the fleet's.
    fn is_our_own(&self, roll: &Record) -> Result<(), Refusal> {
        let fleet = self.machine_of(&roll.id).and_then(|machine| machine.fleet());
        fleet.map_or(Ok(()), |FleetPart { epoch, .. }| {
            let (id, service) = (&roll.id, &roll.service);
            Err(Refusal::busy(format!(
                "{id} of {service} is the fleet's (epoch {epoch}): deployer fleet abort {service} ends it before the flip, \
                 deployer rollback {service} --fleet turns it back after it"
            )))
        })
    }

    /// Where a roll stands, as last written down.
    pub(super) fn machine_of(&self, id: &str) -> Option<Machine> {
        self.journal.read(|state| state.rolls.iter().find(|roll| roll.id == id).map(|roll| roll.machine.clone()))
    }

    /// Has a deploy flip that holds.
    pub(super) fn flip(&self, name: &str, request: &FlipRequest, by: &str) -> Result<Done, Refusal> {
        let service = self.service(name)?;
        two_pools(&service)?;
        is_ahead(request.at_ms)?;
        // Not by its last event: a worker may have ended since it holds, and come up again.
        let holds = |roll: &Arc<Record>| self.machine_of(&roll.id).is_some_and(|machine| machine.is_holding());
        let Some(running) = self.running(name).filter(holds) else {
            return Err(Refusal::failed(format!(
                "no deploy of {name} holds its flip; deployer deploy {name} --to VERSION --hold begins one"
            )));
        };
        self.is_our_own(&running)?;
        running.order(Order::Flip { at_ms: request.at_ms }, "flip", by);
        Ok(Done { done: format!("{} flips", running.id) })
    }

    /// Has the former version current again.
    pub(super) async fn rollback(self: &Arc<Self>, name: &str, by: String) -> Result<RollbackStarted, Refusal> {
        let service = self.service(name)?;
        two_pools(&service)?;
        if let Some(running) = self.running(name) {
            self.is_our_own(&running)?;
            let machine = self.machine_of(&running.id);
            let Some(machine) = machine.filter(Machine::is_baking) else {
                return Err(Refusal::busy(format!(
                    "{} of {name} is under way, and there is nothing to turn back: it has not flipped (Ctrl-C stops it), has \
                     been turned back, or retires the former version (wait for its end, and roll back then); deployer \
                     status shows which",
                    running.id
                )));
            };
            let old = machine.plan().deploy.as_ref().and_then(|deploy| service.member(*deploy.old.first()?));
            let to = old.and_then(|worker| worker.control().version.clone());
            let old_pool = service.pool(1 - service.current());
            if !old_pool.iter().any(|worker| worker.control().phase == Phase::Up) {
                return Err(Refusal::failed(format!(
                    "nobody of the former version of {name} is up, so that it cannot serve; deploy it again: deployer deploy \
                     {name} --to VERSION --supersede"
                )));
            }
            running.order(Order::Rollback { by: by.clone() }, "rollback", &by);
            return Ok(RollbackStarted { id: running.id.clone(), to: to.map(String::from), is_deploy: false });
        }
        let former = self.journal.read(|state| state.services.get(name)?.former.clone());
        let Some(to) = former else {
            return Err(Refusal::failed(format!(
                "nobody knows what {name} ran before; deploy a version by name: deployer deploy {name} --to VERSION"
            )));
        };
        let request = DeployRequest::new(to.clone());
        let started = self.deploy(name, request, by).await?;
        Ok(RollbackStarted { id: started.id, to: Some(to.into()), is_deploy: true })
    }

    /// Whether a roll may be stopped.
    pub(super) fn may_stop(&self, roll: &Record) -> Result<(), Refusal> {
        if roll.result().is_none() {
            self.is_our_own(roll)?;
        }
        match self.machine_of(&roll.id) {
            Some(machine) if machine.has_flipped() => Err(Refusal::failed(format!(
                "{} has flipped, and is not stopped any more: deployer rollback {} has the former version serve again; \
                 left alone, it ends by itself",
                roll.id, roll.service
            ))),
            _ => Ok(()),
        }
    }
}

pub(super) fn two_pools(service: &Service) -> Result<&config::Deploy, Refusal> {
    service.config.deploy.as_ref().ok_or_else(|| {
        Refusal::usage(format!(
            "{0} has one pool: give it a second, deploy = {{ second = \"next\" }} in [service.{0}], and reload; or roll it: \
             deployer roll {0}",
            service.config.name
        ))
    })
}

fn wanted(request: &DeployRequest) -> Wanted {
    Wanted { plain: request.barrier.clone(), double: request.double_barrier.clone() }
}

fn is_sound(service: &Service, request: &DeployRequest) -> Result<(), Refusal> {
    let name = &service.config.name;
    super::plan::can_ask_versions(service)?;
    if request.hold && request.at_ms.is_some() {
        return Err(Refusal::usage("--hold and --at exclude each other: deployer flip takes --at, too"));
    }
    is_ahead(request.at_ms)?;
    let seven_days = 7 * 24 * 3600 * 1000;
    if request.bake_ms.is_some_and(|bake| !(1000..=seven_days).contains(&bake)) {
        return Err(Refusal::usage(format!("--bake of {name} is 1 s to 7 days")));
    }
    Ok(())
}

fn is_ahead(at_ms: Option<u64>) -> Result<(), Refusal> {
    let now = unix_ms();
    match at_ms {
        Some(at) if at < now => Err(Refusal::usage("--at is in the past")),
        Some(at) if at > now + AHEAD_MS => Err(Refusal::usage("--at is more than 7 days ahead")),
        _ => Ok(()),
    }
}

async fn has_room(service: &Arc<Service>) -> Result<(), Refusal> {
    let running: Vec<_> = service.workers().iter().map(|worker| worker.at).collect();
    let wanted = service.pool(1 - service.current()).len();
    let cgroup = match &service.config.manager {
        Manager::Builtin(builtin) => crate::kernel::cgroup::root().ok().map(|root| root.join(&builtin.cgroup)),
        _ => None,
    };
    let looked = blocking(move || {
        let cgroup = cgroup.filter(|cgroup| cgroup.exists());
        Ok(memory::check(&memory::used_by(&running)?, running.len(), wanted, &memory::room(cgroup.as_deref())?))
    });
    let looked = looked.await.unwrap_or_else(|error| {
        Err(format!("memory for two pools cannot be measured: {error}; --force goes on regardless"))
    });
    looked.map_err(|why| Refusal::failed(format!("{why}; no worker was touched")))
}

fn plan(service: &Service, config: &config::Deploy, request: &DeployRequest, fleet: Option<FleetPart>) -> Plan {
    let (old, new) = (service.current(), 1 - service.current());
    let surge: Vec<_> = service.numbers(new).collect();
    let runs = |nth: &usize| service.member(*nth).is_some_and(|worker| worker.control().phase != Phase::Down);
    Plan {
        leftover: surge.iter().copied().filter(runs).collect(),
        max_failures: 1,
        switch: config.prepare.is_some(),
        deploy: Some(Deploy {
            old: service.numbers(old).collect(),
            batch: config.batch.count(surge.len()).clamp(1, surge.len().max(1)),
            gate: config.gate.is_some(),
            hold: request.hold,
            at_ms: request.at_ms,
            bake_ms: request.bake_ms.unwrap_or(config.bake.as_millis() as u64),
            fleet,
        }),
        surge,
        barriers: wanted(request),
        ..Plan::default()
    }
}

/// What the workers of a pool say they run, if they all say the same.
pub(super) fn version(service: &Service, pool: u32) -> Option<Version> {
    let mut said = service.pool(pool).iter().filter_map(|worker| worker.control().version.clone());
    let first = said.next()?;
    said.all(|other| other == first).then_some(first)
}

/// Keeps the gate closed for whoever would touch the service meanwhile.
pub(super) fn is_as_it_was(daemon: &Daemon, service: &Arc<Service>) -> Result<(), Refusal> {
    if Arc::ptr_eq(service, &daemon.service(&service.config.name)?) {
        Ok(())
    } else {
        Err(Refusal::busy("the configuration was read again just now; try again"))
    }
}

impl Daemon {
    /// Enters a roll, and begins it as soon as it is written down; its id.
    pub(super) async fn begin_roll(
        self: &Arc<Self>,
        service: Arc<Service>,
        to: Option<Version>,
        plan: Plan,
        by: String,
    ) -> Result<String, Refusal> {
        let gate = lock(&self.gate);
        is_as_it_was(self, &service)?;
        self.must_steer(&service)?;
        no_hands(&service)?;
        let record = self.begin(&service, by)?;
        let id = record.id.clone();
        let roll = self.prepared(service, record, to, Machine::new(plan));
        let entry = crate::roll::run::entry(&roll.record, &roll.service, roll.to.clone(), &roll.machine);
        // A task of its own: it must come to its end even if the client does not wait for it.
        let daemon = Arc::clone(self);
        let written = tokio::spawn(async move { daemon.write_down(roll, entry).await });
        drop(gate);
        written.await.unwrap_or_else(|error| Err(Refusal::failed(error.to_string())))?;
        Ok(id)
    }
}
