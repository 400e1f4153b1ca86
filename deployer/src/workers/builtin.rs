//! The built-in process manager: the daemon starts the workers itself, each in a cgroup of its own.
//!
//! The daemon can go at any time, and the workers stay: they write to files, not to pipes of the daemon's, and the next
//! daemon finds them by their cgroups ([`place`]). Only what is in a worker's cgroup is ever sent a signal.
//!
//! A worker that ends unasked is started again, sooner or later ([`tend`]). One that was stopped on request stays
//! stopped until a start is asked for, or the machine has been started anew.

mod log;
mod place;
mod process;
mod spawn;
mod tend;
mod trouble;
mod worker;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tracing::{Instrument as _, Span, warn};

use self::{place::Place, trouble::Trouble, worker::Worker};
use super::{ManagerError, Mark, Pending, ProcessManager, ProcessPhase, ProcessStatus, Started};
use crate::{
    config,
    kernel::{self, users},
};

/// The workers of this process by their cgroups: a manager that takes the place of another, at a reload, goes on with
/// the same ones, and nobody is tended twice.
static TENDED: Mutex<Tended> = Mutex::new(BTreeMap::new());
type Tended = BTreeMap<PathBuf, Weak<Worker>>;

fn tended() -> MutexGuard<'static, Tended> {
    TENDED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The span of the roll that has a worker in hand now, or none. Asked for at each turn, since rolls come and go.
type SpanOf = dyn Fn(SocketAddr) -> Span + Send + Sync;

/// The manager of a service's workers.
pub struct Builtin {
    service: String,
    config: Arc<config::Builtin>,
    span_of: Arc<SpanOf>,
    launcher: PathBuf,
    workers: Mutex<HashMap<SocketAddr, Arc<Worker>>>,
}

impl Builtin {
    /// For a service. `launcher` is the program that has the verb `launch`, usually [`crate::launch::THIS_PROGRAM`]. Nothing is looked
    /// at yet.
    #[must_use]
    pub fn new(service: &str, config: config::Builtin, launcher: PathBuf) -> Self {
        let (config, span_of, workers) = (Arc::new(config), Arc::new(|_| Span::none()), Mutex::default());
        Self { service: service.to_owned(), config, span_of, launcher, workers }
    }

    /// Has what is logged of a worker bear the roll that has it in hand, also where no roll has asked for what is done.
    /// To be called before [`Self::succeeding`].
    #[must_use]
    pub fn logging_in(self, span_of: impl Fn(SocketAddr) -> Span + Send + Sync + 'static) -> Self {
        Self { span_of: Arc::new(span_of), ..self }
    }

    /// Goes on with those of these workers that this process tends already, by this configuration from their next start
    /// on. Others are found when they are first asked for.
    #[must_use]
    pub fn succeeding(self, workers: &[SocketAddr]) -> Self {
        if let Ok(above) = self.above() {
            let all = tended();
            let old = workers.iter().filter_map(|at| Some((*at, self.succeed(&all, &Place::new(&above, *at))?)));
            self.workers.lock().unwrap_or_else(PoisonError::into_inner).extend(old);
        }
        self
    }

    /// A worker that this process tends already.
    fn succeed(&self, all: &Tended, place: &Place) -> Option<Arc<Worker>> {
        let worker = all.get(&place.cgroup)?.upgrade()?;
        worker.configure(Arc::clone(&self.config), Arc::clone(&self.span_of));
        Some(worker)
    }

    /// The directory of the service's cgroups.
    fn above(&self) -> Result<PathBuf, Trouble> {
        let hint = "Mount cgroup v2: mount -t cgroup2 none /sys/fs/cgroup";
        let root = kernel::cgroup::root().map_err(|error| Trouble::new("looking for cgroup v2", error, hint))?;
        Ok(root.join(&self.config.cgroup).join(&self.service))
    }

    /// A worker, tended from now on.
    fn worker(&self, at: SocketAddr, tried: &str) -> Result<Arc<Worker>, ManagerError> {
        let mut known = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = known.get(&at) {
            return Ok(Arc::clone(worker));
        }
        let place = Place::new(&self.above().map_err(|trouble| trouble.in_(tried))?, at);
        let mut all = tended();
        let worker = self.succeed(&all, &place).unwrap_or_else(|| self.begin(&mut all, at, place));
        known.insert(at, Arc::clone(&worker));
        Ok(worker)
    }

    /// Begins with a worker that nobody tends.
    fn begin(&self, all: &mut Tended, at: SocketAddr, place: Place) -> Arc<Worker> {
        let (cgroup, launcher) = (place.cgroup.clone(), self.launcher.clone());
        let (config, span_of) = (Arc::clone(&self.config), Arc::clone(&self.span_of));
        let worker = Arc::new(Worker::new(&self.service, at, place, launcher, config, span_of));
        all.retain(|_, worker| worker.strong_count() > 0);
        all.insert(cgroup, Arc::downgrade(&worker));
        tokio::spawn(tend::tend(Arc::downgrade(&worker)));
        worker
    }

    /// Says which cgroups of the service run something that is none of these workers: former ones, most likely.
    fn name_strangers(&self, workers: &[SocketAddr]) {
        let names: Vec<_> = workers.iter().map(|at| place::name(*at)).collect();
        for name in self.above().map(|above| place::populated(&above)).unwrap_or_default() {
            if !names.contains(&name) {
                let (service, cgroup) = (&self.service, self.config.cgroup.display());
                warn!(service, "{cgroup}/{service}/{name} runs, and is not in the configuration: nobody tends it");
            }
        }
    }

    async fn check_all(&self, workers: &[SocketAddr]) -> Result<(), ManagerError> {
        let tried = "see to the workers";
        let check = || {
            let above = self.above()?;
            let made = fs::create_dir_all(&above).and_then(|()| {
                let procs = above.join("cgroup.procs");
                fs::OpenOptions::new().write(true).open(procs).map(drop)
            });
            made.map_err(|error| Trouble::new(format!("cgroup {}", above.display()), error, worker::CGROUP_HINT))?;
            spawn::check_accounts(&self.config)
        };
        check().map_err(|trouble| trouble.in_(tried))?;
        for at in workers {
            self.worker(*at, tried)?.status().await?;
        }
        Ok(())
    }

    async fn adopt_all(&self, workers: &[SocketAddr], spares: &[SocketAddr]) -> Result<(), ManagerError> {
        let mut result = Ok(());
        let all: Vec<_> = workers.iter().chain(spares).copied().collect();
        for (nth, at) in all.iter().enumerate() {
            let adopted = match self.worker(*at, "find the workers") {
                Ok(worker) if nth < workers.len() => worker.adopt().await,
                Ok(spare) => spare.find().await,
                Err(error) => Err(error),
            };
            result = result.and(adopted);
        }
        self.name_strangers(&all);
        result
    }
}

/// Where a worker's log is.
#[must_use]
pub fn log_of(config: &config::Builtin, service: &str, at: SocketAddr) -> PathBuf {
    super::filled(&config.log, service, at).into()
}

/// Whether the user and group that a configuration names are there.
///
/// # Errors
/// Which is not, and what to do.
pub fn check_accounts(config: &config::Builtin) -> Result<(), String> {
    spawn::check_accounts(config).map_err(|trouble| format!("{trouble}. {}", trouble.hint))
}

/// Does it to its end, whether or not the asker waits for it: half of it would be worse than either.
async fn whole(
    work: impl Future<Output = Result<(), ManagerError>> + Send + 'static,
    tried: String,
) -> Result<(), ManagerError> {
    tokio::spawn(work.in_current_span()).await.unwrap_or_else(|error| {
        let lost = std::io::Error::other(error);
        Err(Trouble::new("a bug of ours", lost, "Please report it").in_(&tried).begun())
    })
}

impl ProcessManager for Builtin {
    fn name(&self, worker: SocketAddr) -> String {
        format!("{}/{}", self.service, place::name(worker))
    }

    fn check<'a>(&'a self, workers: &'a [SocketAddr]) -> Pending<'a, Result<(), ManagerError>> {
        Box::pin(self.check_all(workers))
    }

    fn adopt<'a>(
        &'a self,
        workers: &'a [SocketAddr],
        spares: &'a [SocketAddr],
    ) -> Pending<'a, Result<(), ManagerError>> {
        Box::pin(self.adopt_all(workers, spares))
    }

    fn stop(&self, at: SocketAddr) -> Pending<'_, Result<(), ManagerError>> {
        Box::pin(async move {
            let tried = format!("stop {}", self.name(at));
            let worker = self.worker(at, &tried)?;
            whole(async move { worker.stop().await }, tried).await
        })
    }

    fn start(&self, at: SocketAddr) -> Pending<'_, Result<(), ManagerError>> {
        Box::pin(async move {
            let tried = format!("start {}", self.name(at));
            let worker = self.worker(at, &tried)?;
            whole(async move { worker.start().await }, tried).await
        })
    }

    fn cgroup(&self) -> Option<PathBuf> {
        self.above().ok()
    }

    fn status(&self, at: SocketAddr) -> Pending<'_, Result<ProcessStatus, ManagerError>> {
        Box::pin(async move { self.worker(at, &format!("look at {}", self.name(at)))?.status().await })
    }

    fn started(&self, at: SocketAddr) -> Pending<'_, Result<Started, ManagerError>> {
        Box::pin(async move {
            let worker = self.worker(at, &format!("look at {}", self.name(at)))?;
            let phase = worker.status().await?.phase;
            // What a worker leaves behind in its cgroup is still its own.
            let runs = phase != ProcessPhase::Stopped || worker.place.is_populated().unwrap_or(false);
            Ok(Started { runs, mark: Mark::Cgroup(worker.place.cgroup.clone()), user: self.user() })
        })
    }

    fn waits_for(&self, at: SocketAddr) -> Option<String> {
        let worker = self.workers.lock().unwrap_or_else(PoisonError::into_inner).get(&at).cloned()?;
        let by = worker.blocked_by()?;
        let name = self.name(at);
        Some(format!("the built-in manager starts {name} as soon as {at} is free, where {by} listens"))
    }

    fn user(&self) -> Option<u32> {
        users::number(self.config.user.as_deref()?)
    }
}
