//! What the daemon before has left: rolls, operators' drains, what was known of the workers.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use deployer_common::lanes::FlipWord;
use tracing::{error, warn};

use crate::{
    api::{Event, What},
    config::{Config, OnStart},
    journal::{ByHand, Folder, Hand, History, Journal, RollState, State, WorkerState, events::Shelf, folder::boot_id},
    roll::{Record, barrier::Barriers, machine::End, record::unix_ms, run::Roll, world::World},
    service::{Service, Worker, registry::Services},
};

const HELD: &str = "held after a restart of the daemon; roll again to go on";
const REBOOTED: &str = "stopped: the host was rebooted in the middle";
const RECONFIGURED: &str = "stopped: after a restart of the daemon its service has other workers";
const LOST: &str = "stopped: the daemon ended in the middle, and its journal was lost";

/// What was read at the start.
pub(super) struct Former {
    /// Ours from now on.
    pub(super) journal: Arc<Journal>,
    /// Ours from now on.
    pub(super) shelf: Shelf,
    /// Ours from now on.
    pub(super) history: Arc<History>,
    /// What must not be overlooked.
    pub(super) warnings: Vec<String>,
    /// As it was read.
    pub(super) state: State,
    /// The id of this boot of the machine.
    pub(super) boot: String,
    /// The machine has been started anew since: words, cookies and processes are others.
    pub(super) rebooted: bool,
}

/// Where it all comes back to life.
pub(super) struct Scene<'a> {
    pub(super) services: &'a Services,
    pub(super) world: &'a Arc<dyn World>,
    pub(super) lease: Duration,
    pub(super) on_start: OnStart,
}

/// What goes on in the new daemon.
#[derive(Default)]
pub(super) struct Resumed {
    /// To be run.
    pub(super) rolls: Vec<Roll>,
    /// All rolls that are remembered, the youngest last.
    pub(super) records: Vec<Arc<Record>>,
    /// Operators' drains, to be held.
    pub(super) drains: Vec<(Arc<Worker>, ByHand)>,
    /// Workers in hand of rolls that cannot go on: by service and number.
    pub(super) orphans: BTreeMap<String, BTreeMap<usize, Hand>>,
}

impl Former {
    /// Takes hold of the state directory and reads it. Nothing else has been touched yet.
    pub(super) fn open(config: &Config) -> Result<Self> {
        let boot = boot_id().context("asking for the id of this boot (/proc/sys/kernel/random/boot_id)")?;
        let (folder, contents) = Folder::open(&config.daemon.state)?;
        contents.warnings.iter().for_each(|warning| error!("{warning}"));
        let state = contents.state.unwrap_or_else(|| State::new(&boot));
        let rebooted = state.boot != boot;
        let mut next = if rebooted { anew(&state, &boot) } else { state.clone() };
        next.written_by = crate::journal::state::version();
        let shelf = folder.events();
        let history = Arc::new(folder.history().context("starting the history's writer")?);
        history.suppose(&state);
        let journal = Arc::new(Journal::start(next, folder).context("starting the journal's writer")?);
        Ok(Self { journal, shelf, history, warnings: contents.warnings, state, boot, rebooted })
    }

    /// Which pools were current when that was last written down.
    pub(super) fn flips(&self) -> BTreeMap<String, FlipWord> {
        self.journal.read(|state| {
            let known = state.services.iter().filter_map(|(name, service)| Some((name, service.lanes.as_ref()?)));
            known.map(|(name, lanes)| (name.clone(), lanes.word(unix_ms()))).collect()
        })
    }

    /// The rolls that were under way, and those that had ended.
    pub(super) fn rolls(&self, scene: &Scene<'_>) -> Resumed {
        let mut logs = self.shelf.read();
        let mut resumed = Resumed::default();
        for roll in &self.state.rolls {
            let (events, len) = logs.remove(&roll.id).unwrap_or_default();
            let log = self.shelf.log(&roll.id, len);
            let (id, service, by) = (roll.id.clone(), roll.service.clone(), roll.by.clone());
            let record = Record::resumed(id, service, by, events, Some(log));
            let record = Arc::new(record.telling(&self.history, roll.before.clone().map(String::from)));
            self.take_up(roll, &record, scene, &mut resumed);
            resumed.records.push(record);
        }
        resumed.records.extend(logs.into_iter().map(|(id, (events, len))| self.remembered(id, events, len)));
        self.history.only_rolls(&resumed.records.iter().map(|record| record.id.as_str()).collect());
        resumed.records.sort_by_key(|record| (record.result().is_none(), record.begun_ms()));
        resumed
    }

    fn take_up(&self, roll: &RollState, record: &Arc<Record>, scene: &Scene<'_>, resumed: &mut Resumed) {
        let epoch = roll.machine.plan().epoch();
        let drop_it = |end: &End| self.journal.update(|state| state.roll_over(&roll.id, &roll.service, epoch, end));
        if let Some(What::Finished { result, text, .. }) = record.last() {
            // Killed between the two.
            drop_it(&End { result, text });
            return;
        }
        let service = scene.services.get(&roll.service).cloned();
        let are = |all: &[Arc<Worker>], were: &[SocketAddr]| all.iter().map(|worker| &worker.at).eq(were);
        let same = |service: &Arc<Service>| {
            let pools = are(service.pool(0), &roll.workers) && are(service.pool(1), &roll.second);
            pools && are(&service.spares, &roll.spares)
        };
        match service {
            Some(service) if !self.rebooted && same(&service) => {
                warn!(roll = roll.id, in_hand = roll.hand.len(), "a roll that a former daemon had begun goes on");
                resumed.rolls.push(self.going_on(roll, Arc::clone(record), service, scene));
            }
            service => {
                let end = roll.machine.abandoned(if self.rebooted { REBOOTED } else { RECONFIGURED });
                let failed = roll.machine.failed().filter_map(|nth| roll.members().nth(nth)).collect();
                let (result, text, changed) = (end.result, end.text.clone(), roll.machine.changed());
                record.add(What::Finished { result, text, changed, failed, seconds: 0.0 });
                record.settle();
                drop_it(&end);
                if roll.machine.may_have_flipped(unix_ms()) {
                    let (service, before) = (roll.service.clone(), roll.before.clone());
                    self.journal.update(|state| state.services.entry(service).or_default().former = before);
                }
                if let Some(moves) = service.as_ref().and_then(|service| service.moves()) {
                    moves.ended(result, roll.machine.plan().deploy.is_some());
                }
                if let Some(service) = service.filter(|_| !self.rebooted) {
                    resumed.orphans.insert(roll.service.clone(), moved(roll, &service));
                }
            }
        }
    }

    fn going_on(&self, roll: &RollState, record: Arc<Record>, service: Arc<Service>, scene: &Scene<'_>) -> Roll {
        let mut machine = roll.machine.clone();
        if scene.on_start == OnStart::Hold {
            machine.stop(HELD, !roll.hand.is_empty());
        }
        Roll {
            world: Arc::clone(scene.world),
            journal: Arc::clone(&self.journal),
            service,
            record,
            lease: scene.lease,
            to: roll.to.clone(),
            before: roll.before.clone(),
            machine,
            hand: roll.hand.iter().map(|(nth, hand)| (*nth, (hand.clone(), None))).collect(),
            barriers: Barriers::default(),
        }
    }

    /// A roll of which only the events are left.
    fn remembered(&self, id: String, events: Vec<Event>, len: u64) -> Arc<Record> {
        let (service, by) = match events.first().map(|event| &event.what) {
            Some(What::Begun { service, by, .. }) => (service.clone(), by.clone()),
            _ => (String::new(), String::new()),
        };
        let log = self.shelf.log(&id, len);
        let record = Record::resumed(id, service, by, events, Some(log)).telling(&self.history, None);
        if record.result().is_none() {
            let (result, text) = (crate::api::Exit::Stopped, LOST.to_owned());
            record.add(What::Finished { result, text, changed: 0, failed: Vec::new(), seconds: 0.0 });
        }
        Arc::new(record)
    }
}

/// What is kept over a restart of the machine: what operators have said, and which pool is current.
fn anew(state: &State, boot: &str) -> State {
    let mut next = State { rolls: Vec::new(), boot: boot.to_owned(), ..state.clone() };
    for service in next.services.values_mut() {
        service.workers.retain(|_, worker| worker.drained.is_some());
        service.workers.values_mut().for_each(|worker| worker.listeners.clear());
        service.lanes.iter_mut().for_each(|lanes| *lanes = lanes.alone(unix_ms()));
    }
    next
}

/// The workers in hand that the service still has, by their present numbers. Spares are left to the watch.
fn moved(roll: &RollState, service: &Service) -> BTreeMap<usize, Hand> {
    let at = |nth: &usize| roll.members().nth(*nth);
    let now = |nth: &usize| {
        let at = at(nth)?;
        service.members().position(|worker| worker.at == at && !service.is_spare(worker))
    };
    let hand = roll.hand.iter().filter(|(_, hand)| hand.outcome.is_none());
    hand.filter_map(|(nth, hand)| Some((now(nth)?, hand.clone()))).collect()
}

/// A worker as the journal knows it.
pub(super) fn known<'a>(state: &'a State, worker: &Worker) -> Option<&'a WorkerState> {
    state.services.get(&worker.service)?.workers.get(&worker.at)
}
