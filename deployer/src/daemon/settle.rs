//! Intent against fact: every worker is judged at the start, and its word made what it must be, before services are
//! published and before anybody else acts on workers.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
};

use deployer_common::{lanes::FlipWord, word::State as Word};
use tracing::warn;

use super::former::{Former, Resumed, Scene, known};
use crate::{
    api::Phase,
    config,
    journal::{
        ByHand, Hand, State, WorkerState,
        recover::{Onward, Verdict, judge, onward},
    },
    kernel::{Tables, host},
    roll::{
        Record,
        barrier::Barriers,
        machine::{Machine, Outcome, Plan},
        record::unix_ms,
        run::{Roll, entry},
    },
    service::{
        Owner, Service, Worker,
        registry::{Registry, Services},
    },
};

const AS_LEFT: &str = "as the daemon before has left it";

impl Former {
    /// Whether a service was configured to steer the same callers. If not, or if nobody knows, the rules that an earlier
    /// daemon has left say nothing about who is to be steered now.
    pub(super) fn has_same_callers(&self, service: &config::Service) -> bool {
        let known = self.state.services.get(&service.name).and_then(|known| known.callers.as_ref());
        known == Some(&service.callers)
    }

    /// Bypasses what an operator had bypassed, unless the kernel has kept that (`inherited`): what it has is newer than
    /// what was written down of it.
    pub(super) fn bypass(&self, registry: &Registry, tables: &Tables, inherited: &BTreeSet<String>) {
        if self.state.bypassed && inherited.is_empty() {
            tables.bypass(true);
        }
        for (name, service) in registry.services() {
            let known = self.state.services.get(&name);
            if !inherited.contains(&name) && known.is_some_and(|known| known.bypassed) {
                registry.bypass(&service, true);
            }
        }
    }

    /// Judges all workers.
    ///
    /// # Errors
    /// When sock_diag fails.
    pub(super) async fn settle(&self, scene: &Scene<'_>) -> io::Result<Resumed> {
        let mut resumed = self.rolls(scene);
        for service in scene.services.values() {
            if !resumed.rolls.iter().any(|roll| Arc::ptr_eq(&roll.service, service)) {
                self.disarm(service, scene);
            }
            self.settle_service(service, scene, &mut resumed).await?;
        }
        Ok(resumed)
    }

    /// Takes back a flip that is still to come, of a deploy that cannot go on: nobody would look after it. The same with a lane
    /// that a fleet's has opened before its flip.
    fn disarm(&self, service: &Service, scene: &Scene<'_>) {
        let (word, now) = (scene.world.flip(service), host::now_ms());
        let (name, current) = (&service.config.name, word.current(now));
        if word.is_armed(now) {
            warn!(service = name, "a flip was armed by a deploy that cannot go on; it is taken back");
        } else if !self.is_open_early(name, word.lane(1 - current)) {
            return;
        }
        let open = [current == 0, current == 1];
        scene.world.publish_flip(service, FlipWord::new([word.lane(0), word.lane(1)], open, current));
        // It may have come just then.
        service.set_current(current);
        self.journal.update(|state| {
            if let Some(lanes) = state.services.get_mut(name).and_then(|known| known.lanes.as_mut()) {
                (lanes.from, lanes.to, lanes.at_ms, lanes.open) = (current, current, 0, open);
            }
        });
    }

    /// Whether a fleet's deploy was under way that has opened this lane before its flip.
    fn is_open_early(&self, service: &str, lane: u8) -> bool {
        let mut rolls = self.state.rolls.iter().filter(|roll| roll.service == service).map(|roll| &roll.machine);
        rolls.any(|machine| machine.is_open_early(unix_ms()) && machine.fleet().is_some_and(|fleet| fleet.lane == lane))
    }

    async fn settle_service(&self, service: &Arc<Service>, scene: &Scene<'_>, resumed: &mut Resumed) -> io::Result<()> {
        let mut orphans = resumed.orphans.remove(&service.config.name).unwrap_or_default();
        orphans.retain(|nth, _| service.numbers(service.current()).contains(nth));
        let roll = resumed.rolls.iter_mut().find(|roll| Arc::ptr_eq(&roll.service, service));
        let mut unheld = BTreeMap::new();
        let (hand, id) = match roll {
            Some(roll) => (&mut roll.hand, roll.record.id.clone()),
            None => (&mut unheld, String::new()),
        };
        for (nth, worker) in service.members().enumerate() {
            let now = scene.world.listeners(worker).await?;
            match hand.get_mut(&nth) {
                Some((Hand { outcome: Some(Outcome::Failed(why)), .. }, _)) => failed(scene, worker, why),
                Some((held, claim)) if held.outcome.is_none() => {
                    worker.seen().former(&held.serving);
                    *claim = worker.claim(Owner::Roll(id.clone())).ok();
                    take_in_hand(scene, worker, held, &now);
                }
                _ if orphans.contains_key(&nth) => {}
                _ => {
                    let lost = self.settle_worker(scene, worker, now, &mut resumed.drains);
                    match lost {
                        Some(lost) if service.numbers(service.current()).contains(&nth) => {
                            drop(orphans.insert(nth, lost))
                        }
                        // It is capacity that nobody counts on: what listens the watch warms, the next roll retires it.
                        Some(_) => down(scene, worker, Word::Down, "was in hand of a roll that cannot go on"),
                        None => {}
                    }
                }
            }
        }
        if !orphans.is_empty() {
            let roll = self.rescue(service, scene, orphans).await?;
            resumed.records.push(Arc::clone(&roll.record));
            resumed.rolls.push(roll);
        }
        Ok(())
    }

    /// A worker that no roll had in hand; returned is one that a roll must have had.
    fn settle_worker(
        &self,
        scene: &Scene<'_>,
        worker: &Arc<Worker>,
        now: BTreeSet<u64>,
        drains: &mut Vec<(Arc<Worker>, ByHand)>,
    ) -> Option<Hand> {
        let written = known(&self.state, worker);
        let valid = written.filter(|_| !self.rebooted);
        let verdict = judge(valid, scene.world.state(worker), &now);
        match &verdict {
            // Whatever the worker was: a stranger has its address. The watch looks at it again.
            Verdict::AsFound | Verdict::Up | Verdict::Cold | Verdict::Down
                if worker.control().phase == Phase::Stranger => {}
            Verdict::AsFound => {}
            Verdict::Up => {
                valid.into_iter().for_each(|known| worker.seen().former(&known.listeners));
                let mut control = worker.control();
                control.listeners = now;
                control.version = valid.and_then(|known| known.version.clone());
                drop(control);
                worker.enter(Phase::Up, "found serving");
            }
            // The watch finds it listening, and warms it.
            Verdict::Cold => {
                worker.seen().distrust();
                down(scene, worker, Word::Cold, "a process that no daemon has warmed");
            }
            Verdict::Down => down(scene, worker, Word::Down, "nothing listens"),
            Verdict::Failed(why) => {
                failed(scene, worker, why);
                return None;
            }
            Verdict::Rescue => {
                let (intent, before, was) = (Phase::Stopping, Phase::Up, String::new());
                return Some(Hand { intent, before, was, serving: now, outcome: None });
            }
        }
        let drained = written.and_then(|known| known.drained.clone());
        let drained = drained.filter(|it| it.left(unix_ms()).is_none_or(|left| !left.is_zero()));
        if let Some(drained) = drained {
            hold(scene, worker, valid);
            drains.push((Arc::clone(worker), drained));
        } else if worker.control().phase == Phase::Up && scene.world.state(worker) != Word::Up {
            // A drain that nobody renews.
            scene.world.publish(worker, Word::Up);
        }
        None
    }

    /// A roll of workers that were taken out by one that nobody can go on with: they are restarted.
    async fn rescue(
        &self,
        service: &Arc<Service>,
        scene: &Scene<'_>,
        orphans: BTreeMap<usize, Hand>,
    ) -> io::Result<Roll> {
        let name = &service.config.name;
        let (id, by) = (format!("{name}-{}", unix_ms()), "the daemon, for what the one before had in hand".to_owned());
        warn!(roll = id, workers = orphans.len(), "workers were in hand of a roll that cannot go on; restarting them");
        let record = Record::resumed(id.clone(), name.clone(), by, Vec::new(), Some(self.shelf.log(&id, 0)))
            .telling(&self.history, None);
        let batches = vec![orphans.keys().copied().collect()];
        let machine = Machine::new(Plan { batches, max_failures: orphans.len(), ..Plan::default() });
        let mut hand = BTreeMap::new();
        for (nth, held) in &orphans {
            let Some(worker) = service.member(*nth) else { continue };
            let now = scene.world.listeners(worker).await?;
            hand.insert(*nth, (held.clone(), worker.claim(Owner::Roll(id.clone())).ok()));
            take_in_hand(scene, worker, held, &now);
        }
        let mut state = entry(&record, service, None, &machine);
        state.hand = orphans;
        self.journal.update(|journal| journal.rolls.push(state));
        Ok(Roll {
            world: Arc::clone(scene.world),
            journal: Arc::clone(&self.journal),
            service: Arc::clone(service),
            record: Arc::new(record),
            lease: scene.lease,
            to: None,
            before: None,
            machine,
            hand,
            barriers: Barriers::default(),
        })
    }
}

/// Makes word and phase such that the roll can go on, and nobody is sent to a worker who should not be.
fn take_in_hand(scene: &Scene<'_>, worker: &Arc<Worker>, hand: &Hand, now: &BTreeSet<u64>) {
    match onward(hand, now) {
        Onward::Drain if now.is_disjoint(&hand.serving) => {
            let word = match worker.control().phase {
                Phase::Stranger => Word::Stranger,
                _ if now.is_empty() => Word::Down,
                _ => Word::Cold,
            };
            down(scene, worker, word, "its process has ended while no daemon ran");
        }
        Onward::Drain => {
            if hand.before == Phase::Failed {
                scene.world.publish(worker, Word::Failed);
            }
            worker.enter(hand.before, AS_LEFT);
        }
        Onward::Stop => {
            scene.world.publish(worker, Word::Stopping);
            worker.enter(Phase::Drained, AS_LEFT);
        }
        Onward::Start => {
            scene.world.publish(worker, Word::Stopping);
            worker.enter(Phase::Stopping, AS_LEFT);
        }
    }
}

/// Keeps a worker out that an operator has drained, until his drain is taken up again.
fn hold(scene: &Scene<'_>, worker: &Worker, valid: Option<&WorkerState>) {
    if let Some(known) = valid {
        worker.control().listeners.clone_from(&known.listeners);
    }
    if worker.control().phase == Phase::Up {
        scene.world.hold(worker, scene.lease);
    }
}

fn down(scene: &Scene<'_>, worker: &Worker, word: Word, why: &str) {
    scene.world.publish(worker, word);
    worker.control().listeners.clear();
    worker.enter(Phase::Down, why);
}

fn failed(scene: &Scene<'_>, worker: &Worker, why: &str) {
    scene.world.publish(worker, Word::Failed);
    worker.enter(Phase::Failed, why);
}

/// Notes what is known of the workers, for the next daemon.
pub(super) fn note(state: &mut State, services: &Services) {
    state.services.retain(|name, _| services.contains_key(name));
    for (name, service) in services {
        let entry = state.services.entry(name.clone()).or_default();
        entry.callers = Some(service.config.callers.clone());
        let before = std::mem::take(&mut entry.workers);
        for worker in service.members() {
            let control = worker.control();
            // A roll writes down by itself what it makes of a worker, and before it does it.
            if let Some(written) = before.get(&worker.at).filter(|_| control.roll().is_some()) {
                entry.workers.insert(worker.at, written.clone());
                continue;
            }
            let held = control.by_hand().and_then(|_| before.get(&worker.at)?.drained.clone());
            entry.workers.insert(worker.at, WorkerState { drained: held, ..control.known() });
        }
    }
}

#[cfg(test)]
mod tests;
