//! What a restart reaches the world through, besides the process manager: a test has a world of its own, which can end
//! at any moment.

use std::{
    collections::BTreeSet,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use deployer_common::{
    lanes::FlipWord,
    word::{Mode, State},
};

use super::start;
use crate::{
    api::Exit,
    deploy::health::{self, Figures},
    keepalive::{Closing, Keepalive},
    kernel::{Tables, host},
    metrics::Ledger,
    report::Meters,
    service::{
        Service, Worker, answers, closes,
        drain::{Drain, DrainError},
        floor::Floor,
        holds::Held,
        identity::{self, seen::Listens},
        listeners,
        outsiders::Cut,
    },
    version::Version,
    workers::Pending,
};

/// How long a report is waited for; one that is written later costs nothing while the daemon lives.
const SETTLED_WITHIN: Duration = Duration::from_secs(1);

/// The kernel, and the workers' own ports.
pub trait World: Send + Sync {
    /// How often steering has been interrupted so far (the callers' cgroup was made anew, say), if a service's
    /// connections are steered just now.
    ///
    /// # Errors
    /// What is missing, in words.
    fn steering(&self, service: &Service) -> Result<u64, String>;

    /// What a worker counts as now.
    fn state(&self, worker: &Worker) -> State;

    /// Puts a worker into a state other than a drain. One that is cold is in quarantine.
    fn publish(&self, worker: &Worker, state: State);

    /// Drains a worker for the length of a lease.
    fn hold(&self, worker: &Worker, lease: Duration);

    /// Drains a worker for the length of another lease. One whose process has ended, or begun anew, stays what the kernel has
    /// made of it. Returns what it counts as.
    fn stay(&self, worker: &Worker, lease: Duration) -> State;

    /// Has kept-alive connections to a worker that is draining closed, until the result is dropped.
    fn closing(&self, worker: &Worker, quiet_after: Option<Duration>) -> Closing;

    /// Drains a worker, once enough others serve, until nothing selects it and it is empty; see [`Drain`].
    fn drain<'a>(&'a self, worker: &'a Worker, how: How<'a>) -> Pending<'a, Result<(), DrainError>>;

    /// The same for a worker that is out already.
    fn empty<'a>(&'a self, worker: &'a Worker, how: How<'a>) -> Pending<'a, Result<(), DrainError>>;

    /// Cookies of the sockets that listen where the worker should.
    fn listeners<'a>(&'a self, worker: &'a Worker) -> Pending<'a, io::Result<BTreeSet<u64>>>;

    /// What listens where the worker should: the worker, or a stranger.
    fn listens<'a>(&'a self, service: &'a Service, worker: &'a Worker) -> Pending<'a, io::Result<Listens>>;

    /// Asks a worker whether it still answers; see [`answers`](crate::service::answers).
    ///
    /// # Errors
    /// What it did instead, in words.
    fn answers<'a>(&'a self, service: &'a Service, worker: &'a Worker) -> Pending<'a, Result<(), String>>;

    /// Warms a worker, and asks what it runs.
    fn warm_up<'a>(
        &'a self,
        service: &'a Service,
        worker: &'a Worker,
        to: Option<&'a Version>,
        until: Instant,
    ) -> Pending<'a, Result<Option<Version>, String>>;

    /// Which pool of a service is current, and the lanes.
    fn flip(&self, service: &Service) -> FlipWord;

    /// Says it, in one write.
    fn publish_flip(&self, service: &Service, word: FlipWord);

    /// Has the kept-alive connections to a worker closed that there are now, until the result is dropped.
    fn closing_former(&self, worker: &Worker, quiet_after: Option<Duration>) -> Closing;

    /// What tells whether a pool is well.
    fn figures(&self, service: &Service, pool: u32) -> Figures;

    /// Has what was counted so far put down for the roll's report.
    fn mark(&self, moment: Moment<'_>);

    /// Waits until what was put down is in its file; not for a disk that hangs.
    fn settled(&self) -> Pending<'_, ()> {
        Box::pin(async {})
    }
}

/// From when on connections count for another part of a report.
#[derive(Clone, Copy)]
pub enum Moment<'a> {
    /// A roll begins; nothing has been done yet.
    Begun(&'a Service, &'a str),
    /// A roll of a former daemon goes on.
    Resumed(&'a Service),
    /// A worker's process is gone, and no other has been started.
    Stopped(&'a Worker),
    /// A worker is warm, and nobody has been let in yet.
    Up(&'a Worker),
    /// The service's roll, or deploy, has ended, and how.
    Ended {
        /// The service.
        service: &'a Service,
        /// How.
        result: Exit,
        /// It was a deploy.
        is_deploy: bool,
    },
}

/// How a worker is drained.
pub struct How<'a> {
    /// How long the drain outlives the daemon.
    pub lease: Duration,
    /// Until when it is waited for.
    pub deadline: Instant,
    /// Hears what holds it.
    pub on_held: &'a (dyn Fn(&Held) + Sync),
    /// Is told when nothing new goes to the worker.
    pub on_published: &'a (dyn Fn() + Sync),
    /// Hears which connections of callers that are not steered were cut at the deadline; `None`: they hold it like any other.
    pub on_cut: Option<&'a (dyn Fn(&Cut) + Sync)>,
    /// Whether enough others serve.
    pub floor: &'a Floor<'a>,
    /// After how long of silence a connection is closed that is not plain HTTP/1.
    pub quiet_after: Option<Duration>,
}

/// The real one.
pub struct Host {
    /// The kernel's tables.
    pub tables: Arc<Tables>,
    /// What is counted for reports.
    pub meters: Arc<Meters>,
    /// What is counted by version.
    pub ledger: Arc<Ledger>,
    /// What closes kept-alive connections.
    pub keepalive: Arc<Keepalive>,
}

impl World for Host {
    fn steering(&self, service: &Service) -> Result<u64, String> {
        if self.tables.bypassed() {
            return Err("every service is bypassed".to_owned());
        }
        match self.tables.service_word(service.index).mode() {
            Mode::Enforce => self.tables.steering(),
            mode => Err(format!("{} is in mode {mode:?}", service.config.name).to_lowercase()),
        }
    }

    fn state(&self, worker: &Worker) -> State {
        self.tables.word(worker.index).at(host::now_ms())
    }

    fn publish(&self, worker: &Worker, state: State) {
        let lease = if state == State::Cold { worker.quarantine(&self.tables) } else { 0 };
        self.tables.publish(worker.index, state, lease);
    }

    fn hold(&self, worker: &Worker, lease: Duration) {
        self.tables.publish(worker.index, State::Draining, host::now_ms() + lease.as_millis() as u64);
    }

    fn stay(&self, worker: &Worker, lease: Duration) -> State {
        let (old, now) = (self.tables.word(worker.index), host::now_ms());
        let end = now + lease.as_millis() as u64;
        if !old.is_sealed(now) {
            return self.tables.drain(worker.index, end).state();
        }
        // Whoever comes in spite of it goes on to be counted. If the word has changed meanwhile, the next look is soon.
        let kept = self.tables.replace(worker.index, old, old.next(State::Draining, end).sealed());
        kept.unwrap_or_else(|found| found).state()
    }

    fn closing(&self, worker: &Worker, quiet_after: Option<Duration>) -> Closing {
        self.keepalive.closing(worker, quiet_after)
    }

    fn drain<'a>(&'a self, worker: &'a Worker, how: How<'a>) -> Pending<'a, Result<(), DrainError>> {
        Box::pin(async move {
            let drain = Drain::new(&self.tables, worker, how.lease, how.deadline, how.on_held);
            let mut drain = drain.above(how.floor).cutting(how.on_cut);
            drain.allowed().await?;
            drain.publish();
            (how.on_published)();
            let _closing = self.closing(worker, how.quiet_after);
            failpoint(worker).await;
            drain.empty().await?;
            drain.missed_by_nobody().await?;
            drain.stopping().await
        })
    }

    fn empty<'a>(&'a self, worker: &'a Worker, how: How<'a>) -> Pending<'a, Result<(), DrainError>> {
        Box::pin(async move {
            let _closing = self.closing(worker, how.quiet_after);
            let drain = Drain::new(&self.tables, worker, how.lease, how.deadline, how.on_held);
            drain.cutting(how.on_cut).stopping_at_once().await
        })
    }

    fn listeners<'a>(&'a self, worker: &'a Worker) -> Pending<'a, io::Result<BTreeSet<u64>>> {
        Box::pin(listeners(worker.at))
    }

    fn listens<'a>(&'a self, service: &'a Service, worker: &'a Worker) -> Pending<'a, io::Result<Listens>> {
        Box::pin(identity::look(service, worker))
    }

    fn answers<'a>(&'a self, service: &'a Service, worker: &'a Worker) -> Pending<'a, Result<(), String>> {
        Box::pin(answers::answers(service, worker.at))
    }

    fn warm_up<'a>(
        &'a self,
        service: &'a Service,
        worker: &'a Worker,
        to: Option<&'a Version>,
        until: Instant,
    ) -> Pending<'a, Result<Option<Version>, String>> {
        Box::pin(async move {
            let warmed = start::warm_up(service, worker, to, until).await;
            if warmed.is_ok() {
                closes(&self.tables, worker).await;
            }
            warmed
        })
    }

    fn flip(&self, service: &Service) -> FlipWord {
        self.tables.flip(service.index)
    }

    fn publish_flip(&self, service: &Service, word: FlipWord) {
        self.tables.publish_flip(service.index, word);
    }

    fn closing_former(&self, worker: &Worker, quiet_after: Option<Duration>) -> Closing {
        self.keepalive.closing_former(worker, quiet_after)
    }

    fn figures(&self, service: &Service, pool: u32) -> Figures {
        let workers: Vec<_> = service.pool(pool).iter().map(|worker| worker.index).collect();
        health::figures(&self.tables, &workers)
    }

    fn mark(&self, moment: Moment<'_>) {
        match moment {
            Moment::Begun(service, roll) => {
                self.meters.begin(service, roll);
                self.keepalive.begin(service);
            }
            Moment::Resumed(service) => self.keepalive.begin(service),
            Moment::Stopped(worker) => {
                self.meters.stopped(worker);
                self.ledger.stopped(worker);
            }
            Moment::Up(worker) => {
                self.meters.up(worker);
                self.ledger.up(worker);
            }
            Moment::Ended { service, result, is_deploy } => {
                self.meters.end(service);
                service.moves().into_iter().for_each(|moves| moves.ended(result, is_deploy));
                self.keepalive.end(&service.config.name);
            }
        }
    }

    fn settled(&self) -> Pending<'_, ()> {
        Box::pin(async {
            self.meters.disk().flush(SETTLED_WITHIN).await;
        })
    }
}

async fn failpoint(worker: &Worker) {
    crate::failpoint::reach(crate::failpoint::Point::DrainingPublished, Some(worker.at)).await;
}
