//! One worker's restart: drain, stop, start, warm, enable. Each step is in the journal before it is done.

mod back;
mod empty;
mod floor;
mod leave;
mod notes;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use deployer_common::word::State;
use tokio::sync::watch;

use self::empty::Missed;
use super::{
    left::Left,
    machine::Outcome,
    record::Record,
    start::{self, NotUp},
    world::{Moment, World},
};
use crate::{
    api::Phase,
    failpoint::Point,
    journal::{
        Hand, Journal, WorkerState,
        recover::{Onward, onward},
    },
    service::{Claim, Service, Worker, identity::seen::Listens},
    version::Version,
    warm,
};

/// How long a link that was lost is waited for.
const REPAIRED_WITHIN: Duration = Duration::from_secs(5);

/// A restart with all it needs.
pub(super) struct Restart {
    pub(super) world: Arc<dyn World>,
    pub(super) journal: Arc<Journal>,
    pub(super) service: Arc<Service>,
    pub(super) worker: Arc<Worker>,
    /// Its number in the roll.
    pub(super) nth: usize,
    /// Places in the tables of all that are taken out together with it, itself included.
    pub(super) batch: Arc<[u32]>,
    pub(super) record: Arc<Record>,
    pub(super) lease: Duration,
    pub(super) task: Task,
    /// Where it goes if it is left.
    pub(super) left: Arc<Left>,
    /// It was left before, and the roll has come back to it.
    pub(super) wait: Option<Wait>,
    /// The right to do all this.
    pub(super) claim: Mutex<Option<Claim>>,
}

/// How a worker that was left is waited for.
#[derive(Clone)]
pub(super) struct Wait {
    /// At the longest.
    pub(super) until: Instant,
    /// Says when it is over before that.
    pub(super) over: watch::Receiver<bool>,
    /// What has held it so far.
    pub(super) why: String,
}

/// What is done to a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Task {
    /// It is drained, stopped, started, warmed and enabled; a spare that is down as well.
    Restart {
        /// The version it must say afterwards.
        to: Option<Version>,
    },
    /// It is drained and stopped: a spare that is no longer needed.
    Retire,
}

/// What a restart began with: where it goes back to, if it comes to that.
struct Taken {
    before: Phase,
    was: String,
    serving: BTreeSet<u64>,
}

impl Restart {
    /// Does it all, or what is left of it where a former daemon had the worker in `hand`.
    pub(super) async fn run(self, hand: Option<(Hand, Claim)>) -> Outcome {
        let outcome = match hand {
            Some((hand, claim)) => {
                self.owned(claim);
                self.resume(hand).await
            }
            None => match self.turn().await {
                Ok(claim) => {
                    self.owned(claim);
                    self.begin().await
                }
                Err(outcome) => return outcome,
            },
        };
        // A failure is written down before it takes effect.
        if !matches!(outcome, Outcome::Failed(_)) {
            self.settle(&outcome, self.known()).await;
        }
        outcome
    }

    fn owned(&self, claim: Claim) {
        *self.claim.lock().unwrap_or_else(PoisonError::into_inner) = Some(claim);
    }

    fn disowned(&self) -> Option<Claim> {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn begin(&self) -> Outcome {
        let serving = match self.serving().await {
            Ok(serving) => serving,
            Err(NotUp::Stranger(who)) => return self.fail_at_stranger(who).await,
            Err(NotUp::Failed(why)) => return Outcome::Kept(why),
        };
        let taken = {
            let control = self.worker.control();
            // Another process than the one that was warmed: it is as good as down, and is not put back as up.
            let served = matches!(control.phase, Phase::Up | Phase::Draining);
            let is_other = served && control.listeners.is_disjoint(&serving);
            let before = if is_other { Phase::Down } else { control.phase };
            Taken { before, was: control.reason.clone(), serving }
        };
        self.drain_and_on(&taken).await
    }

    /// The sockets that listen where the worker should, unless they are a stranger's. What the manager cannot be asked about
    /// counts: it may have requests in hand.
    async fn serving(&self) -> Result<BTreeSet<u64>, NotUp> {
        match start::own(&*self.world, &self.service, &self.worker).await? {
            Listens::Worker(serving) => Ok(serving),
            _ => {
                let all = self.world.listeners(&self.worker).await;
                all.map_err(|error| NotUp::Failed(format!("{}: sock_diag: {error}", self.worker.at)))
            }
        }
    }

    async fn resume(&self, hand: Hand) -> Outcome {
        let now = match self.serving().await {
            Ok(now) => now,
            Err(not_up) => return self.not_up(not_up).await,
        };
        let onward = onward(&hand, &now);
        let (same, is_gone) = (!now.is_disjoint(&hand.serving), now.is_empty());
        // Another process than the one that was drained has been seen by nobody: it is as good as down.
        let before = if same || hand.before == Phase::Failed { hand.before } else { Phase::Down };
        let taken = Taken { before, was: hand.was, serving: if same { hand.serving } else { now } };
        match onward {
            Onward::Drain => self.drain_and_on(&taken).await,
            Onward::Stop => self.stop_again(is_gone).await,
            Onward::Start if self.task == Task::Retire => self.stop_again(is_gone).await,
            Onward::Start => self.start_and_on().await,
        }
    }

    async fn drain_and_on(&self, taken: &Taken) -> Outcome {
        self.reach(Point::DrainingBefore).await;
        if let Err(why) = self.intend(Phase::Draining, Some(taken)).await {
            return Outcome::Kept(format!("{}: nothing was done to it: {why}", self.worker.at));
        }
        self.reach(Point::DrainingJournaled).await;
        let steered = match self.steering().await {
            Ok(steered) => steered,
            Err(why) => return self.put_back(taken, &why).await,
        };
        if let Err(missed) = self.empty(taken.before).await {
            return self.missed_by(taken, missed).await;
        }
        self.reach(Point::Drained).await;
        if let Err(why) = self.intend(Phase::Stopping, Some(taken)).await {
            return self.put_back(taken, &format!("it was not stopped: {why}")).await;
        }
        self.reach(Point::StoppingJournaled).await;
        // `steered`: as it was when the drain began.
        if let Err(missed) = self.still_empty(Some(steered)).await {
            return self.missed_by(taken, missed).await;
        }
        self.enter(Phase::Stopping, "");
        match self.service.manager.stop(self.worker.at).await {
            Ok(()) => self.stopped_and_on().await,
            // A worker that is being stopped, or may be stopped yet, must not be given any requests.
            Err(error) if error.may_come_yet() => {
                self.fail(format!("{}: {error}; it may yet be stopped, so it stays out", self.worker.at)).await
            }
            Err(error) => self.not_stopped(taken, &error.to_string()).await,
        }
    }

    /// A former daemon has emptied it, and may have asked for its stop: it is never put back as it was. The intent is
    /// written down already.
    async fn stop_again(&self, is_gone: bool) -> Outcome {
        let at = self.worker.at;
        let stays_out = |why: String| format!("{at}: {why}; its stop may have been asked for, so it stays out");
        // Nothing can have slipped into a process that is not there.
        if !is_gone && let Err(missed) = self.still_empty(None).await {
            return self.fail(stays_out(missed.why)).await;
        }
        self.reach(Point::StoppingJournaled).await;
        self.enter(Phase::Stopping, "");
        match self.service.manager.stop(at).await {
            Ok(()) => self.stopped_and_on().await,
            Err(error) => self.fail(stays_out(error.to_string())).await,
        }
    }

    async fn stopped_and_on(&self) -> Outcome {
        self.reach(Point::Stopped).await;
        match start::own(&*self.world, &self.service, &self.worker).await {
            // Whatever it is: it keeps the worker from its address.
            Ok(Listens::Doubtful(who)) => return self.fail_at_stranger(format!("{}: {who}", self.worker.at)).await,
            Ok(_) => {}
            Err(not_up) => return self.not_up(not_up).await,
        }
        let still = self.world.listeners(&self.worker).await;
        if let Err(why) = start::nobody_listens(self.worker.at, still).await {
            return self.fail(why).await;
        }
        self.world.mark(Moment::Stopped(&self.worker));
        self.world.settled().await;
        match self.task {
            Task::Restart { .. } => self.start_and_on().await,
            Task::Retire => self.retired(),
        }
    }

    /// It is gone. From here on the watch has it, should it come back.
    fn retired(&self) -> Outcome {
        {
            let mut control = self.worker.control();
            control.listeners.clear();
            (control.version, control.invalid_version) = (None, None);
        }
        self.world.publish(&self.worker, State::Down);
        self.enter(Phase::Down, "");
        Outcome::Changed
    }

    async fn start_and_on(&self) -> Outcome {
        match self.bring_up().await {
            Ok(version) => {
                let invalid = self.worker.control().invalid_version.as_deref().map(warm::reports_invalid);
                self.enter(Phase::Up, &version.map_or(invalid.unwrap_or_default(), String::from));
                self.reach(Point::Up).await;
                Outcome::Changed
            }
            Err(not_up) => self.not_up(not_up).await,
        }
    }

    /// How often steering has been interrupted, once it is there: what is lost is put right within a second, as a rule.
    async fn steering(&self) -> Result<u64, String> {
        let until = Instant::now() + REPAIRED_WITHIN;
        loop {
            match self.world.steering(&self.service) {
                Ok(interruptions) => return Ok(interruptions),
                Err(why) if Instant::now() >= until => return Err(format!("connections are not steered: {why}")),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Starts and warms it, and publishes it as up if it is still the process that was warmed. From here on the journal
    /// may fail: a worker that is down is brought up all the same.
    async fn bring_up(&self) -> Result<Option<Version>, NotUp> {
        let (at, world) = (self.worker.at, &*self.world);
        let until = Instant::now() + self.service.config.warm.within;
        let _ = self.intend(Phase::Starting, None).await;
        self.reach(Point::StartingJournaled).await;
        self.enter(Phase::Starting, "");
        let serving = start::start(world, &self.service, &self.worker, until).await?;
        self.reach(Point::Listening).await;
        let _ = self.intend(Phase::Warming, None).await;
        self.reach(Point::WarmingJournaled).await;
        world.publish(&self.worker, State::Cold);
        self.enter(Phase::Listening, "");
        self.enter(Phase::Warming, "");
        self.reach(Point::Warming).await;
        let to = if let Task::Restart { to } = &self.task { to.as_ref() } else { None };
        let version = world.warm_up(&self.service, &self.worker, to, until).await?;
        let now = match start::own(world, &self.service, &self.worker).await? {
            Listens::Worker(now) if !now.is_disjoint(&serving) => now,
            _ => {
                let why = "its process has ended, or was restarted, while it was being warmed; see its log";
                return Err(NotUp::Failed(format!("{at}: {why}")));
            }
        };
        self.reach(Point::Warm).await;
        {
            let mut control = self.worker.control();
            (control.listeners, control.version) = (now, version.clone());
        }
        world.mark(Moment::Up(&self.worker));
        world.settled().await;
        world.publish(&self.worker, State::Up);
        Ok(version)
    }

    async fn fail(&self, why: String) -> Outcome {
        self.fail_as(Phase::Failed, State::Failed, why).await
    }

    /// A stranger has its address. The roll counts it as failed; the watch brings it back when the stranger has gone and
    /// the manager has started it.
    async fn fail_at_stranger(&self, who: String) -> Outcome {
        self.fail_as(Phase::Stranger, State::Stranger, who).await
    }

    async fn not_up(&self, not_up: NotUp) -> Outcome {
        match not_up {
            NotUp::Failed(why) => self.fail(why).await,
            NotUp::Stranger(who) => self.fail_at_stranger(who).await,
        }
    }

    async fn fail_as(&self, phase: Phase, state: State, why: String) -> Outcome {
        self.reach(Point::FailingBefore).await;
        let outcome = Outcome::Failed(why.clone());
        // A stranger outlives no reboot: what is written down then is that the worker is down.
        let written = if phase == Phase::Failed { Phase::Failed } else { Phase::Down };
        self.settle(&outcome, WorkerState { phase: written, reason: why.clone(), ..self.known() }).await;
        self.reach(Point::FailingJournaled).await;
        self.world.publish(&self.worker, state);
        if phase == Phase::Stranger {
            // What the watch finds there next is a process that has started by itself.
            self.worker.control().listeners.clear();
        }
        self.enter(phase, &why);
        self.reach(Point::Failed).await;
        outcome
    }
}
