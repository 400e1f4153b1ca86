//! The workers that a roll has left: they go on draining, so that nothing new goes to them, until the roll comes back to
//! them, or is over. Their leases are renewed here.
//!
//! Where too few others are up, for the floor or for a batch, the first of them go back into rotation. They count as left
//! all the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
    time::Duration,
};

use deployer_common::word::State;
use tokio::{sync::Mutex, task::JoinSet};
use tracing::Instrument as _;

use super::{record::Record, world::World};
use crate::{
    api::{Phase, What},
    keepalive::Closing,
    service::{Claim, Owner, Service, Worker, alive::Renewal, answers, floor::Short},
};

/// Between two looks at the floor, and at the leases.
const TICK: Duration = Duration::from_millis(100);
/// Between two looks at the processes, in ticks: an end that the kernel has told is in the word.
const LOOK: usize = 10;

/// Workers by number.
type Held = BTreeMap<usize, Out>;

/// A worker that is draining.
struct Out {
    worker: Arc<Worker>,
    /// The right to change it.
    claim: Claim,
    /// Closes its kept-alive connections.
    closing: Option<Closing>,
}

/// Workers that were left and are draining.
pub(super) struct Left {
    world: Arc<dyn World>,
    service: Arc<Service>,
    record: Arc<Record>,
    lease: Duration,
    /// Locked until who is taken from it is somebody else's.
    held: Mutex<Held>,
    /// Held while the floor is asked and a worker claimed after that, so that no two count on each other.
    gate: std::sync::Mutex<()>,
}

/// What held a worker, without the worker that `why` may begin with.
pub(super) fn plain<'a>(worker: &Worker, why: &'a str) -> &'a str {
    why.strip_prefix(&format!("{}: ", worker.at)).unwrap_or(why)
}

impl Left {
    /// Nobody yet; leases are renewed until the task is dropped.
    pub(super) fn new(
        world: &Arc<dyn World>,
        service: &Arc<Service>,
        record: &Arc<Record>,
        lease: Duration,
    ) -> (Arc<Self>, JoinSet<()>) {
        let (world, service, record) = (Arc::clone(world), Arc::clone(service), Arc::clone(record));
        let (held, gate) = (Mutex::default(), std::sync::Mutex::default());
        let left = Arc::new(Self { world, service, record, lease, held, gate });
        let mut task = JoinSet::new();
        task.spawn(Arc::clone(&left).keep().in_current_span());
        (left, task)
    }

    /// A worker, draining, with who had it in hand.
    pub(super) async fn take(&self, nth: usize, worker: &Arc<Worker>, claim: Claim) {
        let closing = self.world.closing(worker, self.service.config.drain.quiet_after);
        self.held.lock().await.insert(nth, Out { worker: Arc::clone(worker), claim, closing: Some(closing) });
    }

    /// Goes on with what a former daemon had left, as far as the floor allows it.
    pub(super) async fn take_again(&self, nth: usize, why: &str) {
        let Some(worker) = self.service.member(nth) else { return };
        if worker.control().phase != Phase::Up {
            return;
        }
        let spared = || self.service.can_spare(&[worker.index], |other| self.world.state(other));
        let Ok(Some(claim)) = self.claim(worker, spared) else { return };
        if self.world.stay(worker, self.lease) == State::Draining {
            self.enter(worker, Phase::Draining, &format!("left: {}", plain(worker, why)));
            self.take(nth, worker, claim).await;
        }
    }

    /// Claims a worker for the roll where the floor allows it; `None`: it does not.
    ///
    /// # Errors
    /// Who has the worker, in words.
    pub(super) fn claim(
        &self,
        worker: &Arc<Worker>,
        spared: impl FnOnce() -> Result<(), Short>,
    ) -> Result<Option<Claim>, String> {
        let _gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if spared().is_err() { Ok(None) } else { worker.claim(Owner::Roll(self.record.id.clone())).map(Some) }
    }

    /// Hands a worker over, still draining.
    pub(super) async fn give(&self, nth: usize) -> Option<Claim> {
        self.held.lock().await.remove(&nth).map(|out| out.claim)
    }

    /// Puts back into rotation all but these.
    pub(super) async fn only(&self, left: &BTreeSet<usize>, why: &str) {
        let mut held = self.held.lock().await;
        let gone: Vec<_> = held.keys().filter(|nth| !left.contains(nth)).copied().collect();
        for nth in gone {
            self.put_back(&mut held, nth, why).await;
        }
    }

    async fn keep(self: Arc<Self>) {
        let renewal = Renewal::begin();
        for tick in 1_usize.. {
            tokio::time::sleep(TICK).await;
            renewal.beat();
            let mut held = self.held.lock().await;
            let nths: Vec<_> = held.keys().copied().collect();
            for nth in nths {
                self.renew(&mut held, nth, tick.is_multiple_of(LOOK)).await;
            }
            self.make_room(&mut held, &[]).await;
        }
    }

    /// Puts back as many as it takes for these, by their places in the tables, to be taken out.
    pub(super) async fn spare(&self, batch: &[u32]) {
        self.make_room(&mut *self.held.lock().await, batch).await;
    }

    async fn make_room(&self, held: &mut Held, batch: &[u32]) {
        while let Err(short) = self.service.can_spare(batch, |worker| self.world.state(worker))
            && let Some(first) = held.keys().next().copied()
        {
            self.put_back(held, first, &format!("left, and needed: {short}")).await;
        }
    }

    /// Keeps a worker out. One whose process has ended is the watch's, which warms what comes after it.
    async fn renew(&self, held: &mut Held, nth: usize, look: bool) {
        let Some(Out { worker, .. }) = held.get(&nth) else { return };
        let is_draining = self.world.stay(worker, self.lease) == State::Draining;
        if !is_draining || look && !self.same_process(worker).await {
            self.put_back(held, nth, "left").await;
        }
    }

    /// Whether it is the process still that was left. Where the kernel does not say, it is taken to be.
    async fn same_process(&self, worker: &Worker) -> bool {
        let now = self.world.listeners(worker).await;
        now.map_or(true, |now| !now.is_disjoint(&worker.control().listeners))
    }

    /// Whether a worker answers. All that were left go on draining while it is asked.
    async fn answers(&self, held: &Held, worker: &Worker) -> Result<(), String> {
        let mut asked = self.world.answers(&self.service, worker);
        loop {
            tokio::select! {
                biased;
                answered = &mut asked => return answered,
                () = tokio::time::sleep(TICK) => {
                    for Out { worker, .. } in held.values() {
                        let _ = self.world.stay(worker, self.lease);
                    }
                }
            }
        }
    }

    async fn put_back(&self, held: &mut Held, nth: usize, why: &str) {
        let Some(worker) = held.get(&nth).map(|out| Arc::clone(&out.worker)) else { return };
        let is_same = self.same_process(&worker).await;
        let answers = if is_same { self.answers(held, &worker).await } else { Ok(()) };
        // A worker that is up has none of its connections closed.
        held.entry(nth).and_modify(|out| out.closing = None);
        let worker = &worker;
        if let Err(silent) = answers {
            let silent = answers::stays_out(&silent);
            let listeners = worker.control().listeners.clone();
            answers::keep_out(worker, listeners, &silent);
            self.world.publish(worker, State::Cold);
            self.enter(worker, Phase::Listening, &format!("{why}; and {silent}"));
        } else if is_same {
            self.world.publish(worker, State::Up);
            self.enter(worker, Phase::Up, why);
        } else {
            self.world.publish(worker, State::Down);
            self.enter(worker, Phase::Down, "its process has ended after it was left");
        }
        held.remove(&nth);
    }

    fn enter(&self, worker: &Worker, phase: Phase, reason: &str) {
        let was = worker.enter(phase, reason);
        let (spare, reason) = (self.service.is_spare(worker), reason.to_owned());
        self.record.add(What::Phase { worker: worker.at, spare, phase, was, reason });
    }
}
