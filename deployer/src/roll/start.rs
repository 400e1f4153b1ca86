//! From a stopped worker to a warm one: start, listen, warm, and its word on its version.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::world::World;
use crate::{
    kernel::{diag, ports, procs},
    service::{Service, Worker, blocking, identity::seen::Listens},
    version::Version,
    warm::{self, WarmError},
    workers::{ProcessPhase, ProcessStatus},
};

/// Between two looks at the port.
const LOOK: Duration = Duration::from_millis(20);
/// Between two questions to the manager.
const ASK: Duration = Duration::from_millis(200);
/// Processes that have come and gone before the start is called a crash loop.
const CRASHES: usize = 3;

/// Why a port that nobody should hold can still be held: a child that inherited the listener, or somebody else.
///
/// # Errors
/// Says who listens there.
pub(super) async fn nobody_listens(at: SocketAddr, still: io::Result<BTreeSet<u64>>) -> Result<(), String> {
    let still = still.map_err(|error| format!("{at}: sock_diag: {error}"))?;
    if still.is_empty() {
        return Ok(());
    }
    let holders = blocking(move || {
        let who = diag::sockets(diag::states::LISTEN, Some(at.port()))?;
        Ok(procs::holding(&who.iter().map(|socket| socket.inode).collect()))
    });
    let holders = holders.await.unwrap_or_default();
    let who = holders.values().next().map_or_else(|| "nobody's process".to_owned(), ToString::to_string);
    Err(format!("{at}: stopped, but its port is still listened on by {who}; end that process, then roll again"))
}

/// Why a worker has not come up.
pub(crate) enum NotUp {
    /// Its process did something else; in words.
    Failed(String),
    /// A stranger has its address; its process and user, and what to do, in words.
    Stranger(String),
}

impl From<String> for NotUp {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

impl NotUp {
    /// In words.
    pub(crate) fn why(self) -> String {
        let (Self::Failed(why) | Self::Stranger(why)) = self;
        why
    }
}

/// What listens where the worker should, if it is the worker.
///
/// # Errors
/// When it is a stranger, or cannot be looked at.
pub(super) async fn own(world: &dyn World, service: &Service, worker: &Worker) -> Result<Listens, NotUp> {
    let at = worker.at;
    match world.listens(service, worker).await {
        Ok(Listens::Stranger(who)) => Err(NotUp::Stranger(format!("{at}: {who}"))),
        Ok(listens) => Ok(listens),
        Err(error) => Err(NotUp::Failed(format!("{at}: sock_diag: {error}"))),
    }
}

/// Asks for the start and waits until the worker listens.
///
/// # Errors
/// What the process did instead, or which process listens there.
pub(crate) async fn start(
    world: &dyn World,
    service: &Service,
    worker: &Worker,
    until: Instant,
) -> Result<BTreeSet<u64>, NotUp> {
    let at = worker.at;
    service.manager.start(at).await.map_err(|error| format!("{at}: {error}"))?;
    let mut asked = Instant::now();
    let (mut pids, mut words) = (BTreeSet::new(), String::new());
    loop {
        let other = match own(world, service, worker).await? {
            Listens::Worker(found) => return Ok(found),
            Listens::Doubtful(who) => Some(format!("{at}: {who}")),
            Listens::Unknown(Some(why)) => Some(format!("{at}: whether the worker listens cannot be asked: {why}")),
            Listens::Unknown(None) | Listens::Nothing | Listens::Stranger(_) => None,
        };
        let late = Instant::now() >= until;
        if late || asked.elapsed() >= ASK {
            asked = Instant::now();
            let mut status = service.manager.status(at).await.map_err(|error| format!("{at}: {error}"))?;
            pids.extend(status.pid);
            // Supervisord says why the last process ended, but not while it starts the next.
            if status.detail.is_empty() {
                status.detail.clone_from(&words);
            }
            words.clone_from(&status.detail);
            let judged = judge(service, at, &status, pids.len(), late).await;
            // The worker is on its way down since its address is taken.
            judged.map_err(|why| other.map_or(why.clone(), |other| format!("{why}; {other}")))?;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn judge(
    service: &Service,
    at: SocketAddr,
    status: &ProcessStatus,
    pids: usize,
    late: bool,
) -> Result<(), String> {
    let name = service.manager.name(at);
    let said = if status.detail.is_empty() { String::new() } else { format!(" ({})", status.detail) };
    if status.phase == ProcessPhase::Failed {
        return Err(format!("{at}: {name} does not start{said}; see its log{}", taken(at).await));
    }
    if pids >= CRASHES {
        let taken = taken(at).await;
        return Err(format!("{at}: {name} crashes at start: {pids} processes so far{said}; see its log{taken}"));
    }
    if !late {
        return Ok(());
    }
    let within = service.config.warm.within.as_secs_f32();
    let elsewhere = match status.pid {
        Some(pid) => blocking(move || elsewhere(pid)).await.unwrap_or_default(),
        None => String::new(),
    };
    let (phase, taken) = (status.phase, taken(at).await);
    Err(format!("{at}: nothing listened within {within} s of the start; {name} is {phase}{said}{elsewhere}{taken}"))
}

/// Whose outgoing connection is in the worker's way, if one is.
async fn taken(at: SocketAddr) -> String {
    match blocking(move || ports::taken_by(at)).await {
        Ok(Some(who)) => format!(". Its port is taken: {who}; `deployer check` says how to reserve the workers' ports"),
        // The process's own failure has been told.
        Ok(None) | Err(_) => String::new(),
    }
}

/// What else a process listens on: a worker on the wrong port is worth naming.
fn elsewhere(pid: u32) -> io::Result<String> {
    let held = procs::sockets_of(pid)?;
    let listening = diag::sockets(diag::states::LISTEN, None)?;
    let ports: Vec<_> =
        listening.iter().filter(|socket| held.contains(&socket.inode)).map(|socket| socket.local.to_string()).collect();
    let said = format!(", and pid {pid} listens on {} instead", ports.join(", "));
    Ok(if ports.is_empty() { String::new() } else { said })
}

/// Sends the warm-up requests and asks for the version.
///
/// # Errors
/// Which request failed, or which version it said, in words.
pub(super) async fn warm_up(
    service: &Service,
    worker: &Worker,
    to: Option<&Version>,
    until: Instant,
) -> Result<Option<Version>, String> {
    let left = until.saturating_duration_since(Instant::now());
    warm::warm(worker.at, &service.config.warm, left).await.map_err(|error| error.to_string())?;
    let Some(ask) = &service.config.version else { return Ok(None) };
    let left = until.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
    let asked = warm::version(worker.at, ask, left).await;
    worker.control().invalid_version = invalid(&asked);
    let version = match asked {
        Ok(version) => version,
        // It is restarted as it is: there is no version that it must say.
        Err(WarmError::InvalidVersion { .. }) if to.is_none() => return Ok(None),
        Err(error) => return Err(format!("{error}{}", to.map_or_else(String::new, |to| format!(", not {to}")))),
    };
    match to {
        Some(to) if *to != version => Err(format!("{}: says it runs {version}, not {to}", worker.at)),
        _ => Ok(Some(version)),
    }
}

/// What a worker has said instead of a valid version.
fn invalid(asked: &Result<Version, WarmError>) -> Option<String> {
    match asked {
        Err(WarmError::InvalidVersion { shown, .. }) => Some(shown.clone()),
        _ => None,
    }
}
