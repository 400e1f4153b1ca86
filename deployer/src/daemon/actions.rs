//! What clients ask for: rolls, bypass, detach.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use deployer_common::word;

use super::{
    Daemon,
    error::Refusal,
    lock,
    plan::{no_hands, plan},
};
use crate::{
    api::{RollRequest, RollStarted},
    config::Mode,
    journal::RollState,
    roll::{
        Record,
        barrier::Barriers,
        machine::{Machine, Plan},
        record::unix_ms,
        run::{Roll, version_before},
    },
    service::Service,
    version::Version,
};

impl Daemon {
    /// A service by name.
    pub(super) fn service(&self, name: &str) -> Result<Arc<Service>, Refusal> {
        self.registry.service(name).ok_or_else(|| {
            let names: Vec<_> = self.registry.services().into_keys().collect();
            Refusal::usage(format!("there is no service `{name}`; there is {}", names.join(", ")))
        })
    }

    /// Plans a roll and, unless it is dry, begins it.
    pub(super) async fn roll(
        self: &Arc<Self>,
        service: Arc<Service>,
        request: RollRequest,
        by: String,
    ) -> Result<RollStarted, Refusal> {
        if let Some(to) = request.to.as_ref().filter(|_| !request.dry_run) {
            self.not_the_fleets(&service.config.name, to, "without --to it restarts its workers as they are")?;
        }
        self.roll_for(service, request, None, by).await
    }

    /// The same, of this host's own, or for an epoch of its fleet.
    pub(super) async fn roll_for(
        self: &Arc<Self>,
        service: Arc<Service>,
        request: RollRequest,
        epoch: Option<u64>,
        by: String,
    ) -> Result<RollStarted, Refusal> {
        let _begins = self.reloads.begins(&service.config.name);
        let plan = Plan { fleet: epoch, ..plan(&service, &request)? };
        self.has_barriers(&plan.barriers)?;
        let addresses = |batch: &Vec<usize>| -> Vec<_> {
            batch.iter().filter_map(|nth| service.member(*nth)).map(|worker| worker.at).collect()
        };
        let mut started = RollStarted {
            id: String::new(),
            batches: plan.batches.iter().map(addresses).collect(),
            to: request.to.clone().map(String::from),
            spares: addresses(&plan.surge),
            switch: if plan.switch { service.config.roll.switch.as_ref().map(|it| it.argv.clone()) } else { None },
        };
        if request.dry_run {
            return Ok(started);
        }
        self.must_steer(&service)?;
        let by = self.unless_forced(&service, "roll", request.force, by).await?;
        no_hands(&service)?;
        is_manager_fit(&service, &plan).await?;
        started.id = self.begin_roll(service, request.to, plan, by).await?;
        Ok(started)
    }

    /// Whether connections of workers would be lost that cannot be steered; by force that is written down, and no more.
    /// Returns who asks, as the events are to have it.
    pub(super) async fn unless_forced(
        &self,
        service: &Arc<Service>,
        verb: &str,
        force: bool,
        by: String,
    ) -> Result<String, Refusal> {
        match self.peers_are_steered(service, verb).await {
            Ok(()) => Ok(by),
            Err(refusal) if force => {
                tracing::warn!(by, "forced: {}", refusal.message());
                Ok(format!("{by}, forced although most connections of workers are not steered"))
            }
            Err(refusal) => Err(refusal),
        }
    }

    pub(super) fn prepared(
        &self,
        service: Arc<Service>,
        record: Arc<Record>,
        to: Option<Version>,
        machine: Machine,
    ) -> Roll {
        let before = version_before(&service);
        let lease = lock(&self.config).kernel.lease;
        let (world, journal) = (Arc::clone(&self.world), Arc::clone(&self.journal));
        Roll {
            world,
            journal,
            service,
            record,
            lease,
            to,
            before,
            machine,
            hand: BTreeMap::new(),
            barriers: Barriers::of(self.coordinator()),
        }
    }

    /// Begins a roll that is entered, as soon as the journal has it.
    pub(super) async fn write_down(self: &Arc<Self>, roll: Roll, entry: RollState) -> Result<(), Refusal> {
        match self.journal.commit(|state| state.rolls.push(entry)).await {
            Ok(()) => {
                self.run_roll(roll);
                Ok(())
            }
            Err(why) => {
                let id = &roll.record.id;
                self.journal.update(|state| state.rolls.retain(|other| other.id != *id));
                self.rolls().retain(|record| record.id != *id);
                roll.record.park();
                Err(Refusal::failed(format!(
                    "{why}; a roll that is not written down would not outlive the daemon, so none begins"
                )))
            }
        }
    }

    /// Enters a roll of a service, unless one runs.
    pub(super) fn begin(&self, service: &Service, by: String) -> Result<Arc<Record>, Refusal> {
        let (before, service) = (version_before(service), &service.config.name);
        let record = {
            let mut rolls = self.rolls();
            if self.closing.load(Ordering::SeqCst) {
                return Err(Refusal::busy("the daemon has been asked to stop, and begins nothing any more"));
            }
            if let Some(roll) = rolls.iter().find(|roll| roll.service == *service && roll.result().is_none()) {
                return Err(Refusal::busy(format!(
                    "roll {} of {service} runs already, begun by {}; deployer status shows it",
                    roll.id, roll.by
                )));
            }
            let id = format!("{service}-{}", unix_ms());
            let log = self.shelf.log(&id, 0);
            let record = Record::resumed(id, service.clone(), by, Vec::new(), Some(log));
            let record = Arc::new(record.telling(&self.history, before.map(String::from)));
            rolls.push(Arc::clone(&record));
            record
        };
        self.forget();
        Ok(record)
    }

    /// A roll or drain means something only where connections are steered.
    pub(super) fn must_steer(&self, service: &Service) -> Result<(), Refusal> {
        let name = &service.config.name;
        if !self.attached() {
            return Err(Refusal::failed(format!(
                "the programs are detached, so {name} cannot be drained; restart the daemon to attach them"
            )));
        }
        let mode = self.tables.service_word(service.index).mode();
        if self.tables.bypassed() || mode == word::Mode::Bypass {
            return Err(Refusal::failed(format!(
                "{name} is bypassed, so its workers cannot be drained; go back to steering: deployer bypass {name} --off"
            )));
        }
        if service.config.mode == Mode::Observe {
            return Err(Refusal::failed(format!(
                "{name} is in observe mode, so its workers cannot be drained; set mode = \"enforce\" and reload"
            )));
        }
        Ok(())
    }
}

/// Whether the process manager answers, and knows the workers and the spares that are to be started or stopped.
async fn is_manager_fit(service: &Service, plan: &Plan) -> Result<(), Refusal> {
    let workers: Vec<_> = service.workers().iter().map(|worker| worker.at).collect();
    let checked = service.manager.check(&workers).await;
    checked.map_err(|error| Refusal::failed(format!("{error}; no worker was touched")))?;
    let spares = plan.surge.iter().chain(&plan.leftover).filter_map(|nth| service.member(*nth));
    let spares: Vec<_> = spares.map(|spare| spare.at).collect();
    if spares.is_empty() {
        return Ok(());
    }
    service.manager.check(&spares).await.map_err(|error| {
        Refusal::failed(format!(
            "{error}; it must be able to start the spares, too, or roll.surge be 0; no worker was touched"
        ))
    })
}
