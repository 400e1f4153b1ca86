//! One worker: what is known of it, and what is done to it, one thing at a time.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tokio::sync::Notify;
use tracing::{Span, info, warn};

use super::{
    SpanOf,
    log::Log,
    place::Place,
    process::Process,
    spawn,
    trouble::{MANAGER, Trouble},
};
use crate::{
    config,
    service::blocking,
    workers::{ManagerError, ProcessPhase, ProcessStatus},
};

/// Ends in a row, each soon after the start, from which on a worker counts as failed.
const FAILED: u32 = 3;
pub(super) const CGROUP_HINT: &str =
    "Run the daemon as root, or write a directory of cgroup v2 that its user may change, `manager.cgroup`";

/// A worker. There is one of these in the process, however many managers name the worker.
pub(super) struct Worker {
    pub(super) service: String,
    pub(super) at: SocketAddr,
    pub(super) place: Place,
    /// The program that becomes a worker when run as `launch`.
    launcher: PathBuf,
    config: Mutex<Arc<config::Builtin>>,
    span_of: Mutex<Arc<SpanOf>>,
    /// Held while it is started or stopped.
    pub(super) turn: tokio::sync::Mutex<()>,
    view: Mutex<View>,
    /// Tells who tends it that it has changed.
    pub(super) changed: Arc<Notify>,
}

/// What is known of it.
pub(super) struct View {
    pub(super) state: State,
    doing: Option<ProcessPhase>,
    /// Ends in a row, or failures to start, none long after the start.
    pub(super) failures: u32,
    /// How it last ended, or why it did not start; or empty.
    pub(super) last: String,
    /// Length of the log when it was started.
    log_from: u64,
}

#[derive(Clone)]
pub(super) enum State {
    /// Nobody has looked yet.
    Unknown,
    /// Nobody wants it to run.
    Stopped,
    Running(Arc<Process>),
    /// To be started at this time.
    Waiting(Instant),
    /// To be started as soon as its address is free; the process that listens there, in words.
    Blocked(String),
    /// Was asked to start, and could not be started.
    Failed,
}

impl Worker {
    pub(super) fn new(
        service: &str,
        at: SocketAddr,
        place: Place,
        launcher: PathBuf,
        config: Arc<config::Builtin>,
        span_of: Arc<SpanOf>,
    ) -> Self {
        let view = View { state: State::Unknown, doing: None, failures: 0, last: String::new(), log_from: 0 };
        Self {
            service: service.to_owned(),
            at,
            place,
            launcher,
            config: Mutex::new(config),
            span_of: Mutex::new(span_of),
            turn: tokio::sync::Mutex::new(()),
            view: Mutex::new(view),
            changed: Arc::new(Notify::new()),
        }
    }

    /// "web/8003"
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.service, super::place::name(self.at))
    }

    pub(super) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn config(&self) -> Arc<config::Builtin> {
        Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What it is started with, from its next start on; and who knows the roll that has it in hand.
    pub(super) fn configure(&self, config: Arc<config::Builtin>, span_of: Arc<SpanOf>) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
        *self.span_of.lock().unwrap_or_else(PoisonError::into_inner) = span_of;
    }

    /// Of the roll that has it in hand now, for the log: who tends it outlives rolls, and is started by none.
    pub(super) fn span(&self) -> Span {
        // Not held while it is asked, which takes another lock.
        let span_of = Arc::clone(&self.span_of.lock().unwrap_or_else(PoisonError::into_inner));
        span_of(self.at)
    }

    pub(super) fn enter(&self, state: State) {
        self.view().state = state;
        self.changed.notify_one();
    }

    pub(super) fn log(&self) -> Result<Log, Trouble> {
        let config = self.config();
        let path = super::log_of(&config, &self.service, self.at);
        let owner = spawn::identity_of(&config)?;
        Ok(Log { path, size: config.log_size, keep: config.log_keep, owner })
    }

    /// Finds out what it does, unless that is known. To be called in turn.
    pub(super) fn look(&self) -> Result<(), Trouble> {
        if !matches!(self.view().state, State::Unknown) {
            return Ok(());
        }
        let main = self.place.main().map_err(|error| self.cgroup_trouble(error))?;
        let state = match main {
            Some(process) => {
                let _in = self.span().entered();
                info!(worker = self.name(), pid = process.pid, "found running");
                State::Running(Arc::new(process))
            }
            None if self.place.is_marked() || !self.place.exists() => State::Stopped,
            None => {
                "ended while no daemon ran".clone_into(&mut self.view().last);
                State::Waiting(Instant::now())
            }
        };
        self.enter(state);
        Ok(())
    }

    /// Begins with a worker: finds it if it runs, else has it started, unless it was stopped on request.
    pub(super) async fn adopt(&self) -> Result<(), ManagerError> {
        let _turn = self.turn.lock().await;
        self.look().map_err(|trouble| trouble.in_(&format!("find {}", self.name())))?;
        if matches!(self.view().state, State::Stopped) && !self.place.is_marked() {
            self.enter(State::Waiting(Instant::now()));
        }
        Ok(())
    }

    /// Finds out whether it runs. One that ended while no daemon ran is started; one that nobody has started is not.
    pub(super) async fn find(&self) -> Result<(), ManagerError> {
        let _turn = self.turn.lock().await;
        self.look().map_err(|trouble| trouble.in_(&format!("find {}", self.name())))
    }

    /// Starts it, unless it runs.
    pub(super) async fn start(&self) -> Result<(), ManagerError> {
        let tried = format!("start {}", self.name());
        let _turn = self.turn.lock().await;
        let in_ = |trouble: Trouble| trouble.in_(&tried);
        self.look().map_err(in_)?;
        let state = self.view().state.clone();
        if let State::Running(process) = &state
            && !process.fd.has_ended()
        {
            // Told to stop, and not yet at its end.
            if self.place.is_marked() {
                self.end(process, &tried).await?;
            } else {
                return Ok(());
            }
        }
        self.place.unmark().map_err(|error| in_(self.cgroup_trouble(error)))?;
        self.view().failures = 0;
        let result = self.launch().await;
        if let Err(trouble) = &result {
            self.view().last = trouble.to_string();
            self.enter(State::Failed);
        }
        result.map_err(in_)
    }

    /// Starts it in its cgroup, in which nothing may be left. To be called in turn.
    pub(super) async fn launch(&self) -> Result<(), Trouble> {
        let _doing = Doing::begin(self, ProcessPhase::Starting);
        let config = self.config();
        self.clear(config.kill).await?;
        self.place.make().map_err(|error| self.cgroup_trouble(error))?;
        let log = self.log()?;
        let path = log.path.clone();
        let length = blocking(move || log.prepare()).await;
        let length = length.map_err(|error| {
            Trouble::new(format!("making the log {}", path.display()), error, "See to `manager.log`")
        })?;
        self.view().log_from = length;
        let plan = spawn::plan(&config, &self.service, self.at, &self.place.cgroup, &path)?;
        let process = spawn::spawn(&self.launcher, &plan).await?;
        info!(worker = self.name(), pid = process.pid, "started");
        self.enter(State::Running(Arc::new(process)));
        Ok(())
    }

    /// Stops it, if it runs, with all its children.
    pub(super) async fn stop(&self) -> Result<(), ManagerError> {
        let tried = format!("stop {}", self.name());
        let _turn = self.turn.lock().await;
        let in_ = |trouble: Trouble| trouble.in_(&tried);
        self.look().map_err(in_)?;
        let _doing = Doing::begin(self, ProcessPhase::Stopping);
        // First: a daemon that dies here must leave it to the next that it is not wanted.
        self.place.mark().map_err(|error| in_(self.cgroup_trouble(error)))?;
        let state = self.view().state.clone();
        if let State::Running(process) = &state {
            self.end(process, &tried).await?;
        }
        let kill = self.config().kill;
        self.clear(kill).await.map_err(|trouble| in_(trouble).begun())?;
        if let Err(error) = self.place.remove().await {
            warn!(worker = self.name(), %error, "its cgroup {} stays", self.place.cgroup.display());
        }
        let mut view = self.view();
        (view.failures, view.last) = (0, String::new());
        drop(view);
        self.enter(State::Stopped);
        Ok(())
    }

    /// Has its process end: by the signal, or else by SIGKILL.
    async fn end(&self, process: &Process, tried: &str) -> Result<(), ManagerError> {
        let config = self.config();
        let refused = |error| Trouble::new(format!("sending a signal to process {}", process.pid), error, "");
        process.fd.signal(config.stop_signal).map_err(|error| refused(error).in_(tried))?;
        // A stopped process would not see it.
        process.fd.signal(Signal::CONT).map_err(|error| refused(error).in_(tried).begun())?;
        if tokio::time::timeout(config.stop_within, process.fd.ended()).await.is_ok() {
            return Ok(());
        }
        if config.kill {
            let within = config.stop_within.as_secs_f32();
            warn!(worker = self.name(), pid = process.pid, "has not ended within {within} s, and is killed");
            return self.place.kill().await.map_err(|error| self.cgroup_trouble(error).in_(tried).begun());
        }
        let (tried, within) = (tried.to_owned(), config.stop_within);
        let detail = format!("pid {}, which `manager.kill = false` spares", process.pid);
        Err(ManagerError::Late { manager: MANAGER, tried, within, phase: ProcessPhase::Stopping, detail })
    }

    /// Ends what its process has left behind.
    async fn clear(&self, kill: bool) -> Result<(), Trouble> {
        if !self.place.is_populated().map_err(|error| self.cgroup_trouble(error))? {
            return Ok(());
        }
        if kill {
            return self.place.kill().await.map_err(|error| self.cgroup_trouble(error));
        }
        let pids = self.place.pids().unwrap_or_default();
        let left = io::Error::other(format!("processes {pids:?} are left, which `manager.kill = false` spares"));
        Err(Trouble::new(format!("clearing {}", self.place.cgroup.display()), left, "End them"))
    }

    /// Its process has ended, and nobody wanted that. To be called in turn.
    pub(super) async fn crashed(&self, process: &Process) {
        let config = self.config();
        let how = process.how().await;
        let how = if how.is_empty() { "how is not known".to_owned() } else { how };
        let lived = process.since.elapsed();
        // A child that holds its listener would go on taking connections that nobody accepts.
        if let Err(trouble) = self.clear(config.kill).await {
            warn!(worker = self.name(), %trouble, "its process has ended, and left something behind");
        }
        let from = self.view().log_from;
        let log = self.log().ok();
        let line = blocking(move || Ok(log.map(|log| log.last_line(from)))).await;
        let line = line.ok().flatten().unwrap_or_default();
        let said = if line.is_empty() { String::new() } else { format!(": {line}") };
        let failures = if lived >= config.restart.most { 1 } else { self.view().failures + 1 };
        let last = format!("ended after {} ({how}){said}", shown(lived));
        warn!(worker = self.name(), pid = process.pid, "{last}");
        self.again(failures, last);
    }

    /// Has it started again after a while.
    pub(super) fn again(&self, failures: u32, last: String) {
        let wait = wait(self.config().restart, failures);
        let mut view = self.view();
        (view.failures, view.last) = (failures, last);
        view.state = State::Waiting(Instant::now() + wait);
        drop(view);
        self.changed.notify_one();
    }

    pub(super) async fn status(&self) -> Result<ProcessStatus, ManagerError> {
        if matches!(self.view().state, State::Unknown) {
            let _turn = self.turn.lock().await;
            self.look().map_err(|trouble| trouble.in_(&format!("look at {}", self.name())))?;
        }
        let view = self.view();
        let pid = match &view.state {
            State::Running(process) if !process.fd.has_ended() => Some(process.pid),
            _ => None,
        };
        let (phase, detail) = match &view.state {
            State::Running(_) if pid.is_some() && view.last.is_empty() => (ProcessPhase::Running, String::new()),
            State::Running(_) if pid.is_some() => (ProcessPhase::Running, format!("the one before: {}", view.last)),
            State::Running(_) => (ProcessPhase::Starting, "ended just now".to_owned()),
            State::Waiting(until) => {
                let phase = if view.failures < FAILED { ProcessPhase::Starting } else { ProcessPhase::Failed };
                let left = until.saturating_duration_since(Instant::now());
                let last = if view.last.is_empty() { String::new() } else { format!("{}; ", view.last) };
                (phase, format!("{last}start {} in {}", view.failures + 1, shown(left)))
            }
            State::Blocked(by) => {
                (ProcessPhase::Starting, format!("waits for {} to be free: {by} listens there", self.at))
            }
            State::Failed => (ProcessPhase::Failed, view.last.clone()),
            State::Stopped if self.place.is_marked() => (ProcessPhase::Stopped, "on request".to_owned()),
            State::Stopped | State::Unknown => (ProcessPhase::Stopped, view.last.clone()),
        };
        Ok(ProcessStatus { phase: view.doing.unwrap_or(phase), pid, detail })
    }

    /// Takes note that its address is not free; looked at again soon.
    pub(super) fn block(&self, by: String) {
        self.view().state = State::Blocked(by);
    }

    /// The process that keeps it from being started, since it listens at the worker's address, in words.
    pub(super) fn blocked_by(&self) -> Option<String> {
        match &self.view().state {
            State::Blocked(by) => Some(by.clone()),
            _ => None,
        }
    }

    fn cgroup_trouble(&self, error: io::Error) -> Trouble {
        Trouble::new(format!("cgroup {}", self.place.cgroup.display()), error, CGROUP_HINT)
    }
}

impl Drop for Worker {
    /// Who tends it sees that there is nothing left to tend.
    fn drop(&mut self) {
        self.changed.notify_one();
    }
}

/// Something that takes a while is done to it.
struct Doing<'a>(&'a Worker);

impl<'a> Doing<'a> {
    fn begin(worker: &'a Worker, phase: ProcessPhase) -> Self {
        worker.view().doing = Some(phase);
        Self(worker)
    }
}

impl Drop for Doing<'_> {
    fn drop(&mut self) {
        self.0.view().doing = None;
    }
}

/// Doubled with each failure.
fn wait(backoff: config::Backoff, failures: u32) -> Duration {
    let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    backoff.first.saturating_mul(factor).min(backoff.most)
}

fn shown(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f32())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let backoff = config::Backoff { first: Duration::from_secs(1), most: Duration::from_secs(60) };
        let waits: Vec<_> = [1, 2, 3, 6, 7, 32, 33, u32::MAX].map(|nth| wait(backoff, nth).as_secs()).into();
        assert_eq!(waits, [1, 2, 4, 32, 60, 60, 60, 60]);
    }
}
