//! Kept-alive connections of workers that are drained: a service's connections are watched from the beginning of a roll
//! ([`crate::framing`]), and those to a worker that drains are closed, by the kernel and from the caller's side, where that
//! loses nothing ([`Reaper`]). Everything else holds the drain.

mod closer;
mod ground;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing::{info, warn};

use self::closer::Closer;
use crate::{
    framing::FramingWatch,
    kernel::{Pair, Reaper, diag::is_end},
    service::{Service, Worker},
};

/// Why a connection holds a drain where there is no reaper.
const CLOSES_NOTHING: &str = "nothing is closed on this host";

/// What closes kept-alive connections, or why nothing does.
pub struct Keepalive {
    closer: Result<Arc<Closer>, String>,
    watched: Mutex<BTreeMap<String, Watched>>,
}

/// How many connections have been closed, by the ground for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Closed {
    /// Their last answer was complete.
    pub complete: u64,
    /// Nothing had passed on them for long enough.
    pub quiet: u64,
}

/// A service that is watched.
struct Watched {
    /// Or why it could not be begun.
    watch: Result<Arc<FramingWatch>, String>,
    workers: Vec<SocketAddr>,
    /// Rolls and operators' drains that have asked for it.
    users: usize,
}

/// A worker whose kept-alive connections are being closed, for as long as this lives.
#[must_use]
pub struct Closing {
    closer: Option<Arc<Closer>>,
    worker: SocketAddr,
}

impl Closing {
    /// Closes nothing.
    #[cfg(test)]
    pub const fn nothing(worker: SocketAddr) -> Self {
        Self { closer: None, worker }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        if let Some(closer) = &self.closer {
            closer.end(self.worker);
        }
    }
}

/// A service that is watched, and a worker of it whose connections are closed at times, for as long as this lives.
#[must_use]
pub struct Begun<'a> {
    keepalive: &'a Keepalive,
    worker: &'a Worker,
    quiet_after: Option<Duration>,
    closing: Option<Closing>,
}

impl Begun<'_> {
    /// Begins to close, or pauses. The watch goes on: what it knows of streams would be lost.
    pub fn close(&mut self, is_wanted: bool) {
        match is_wanted {
            true if self.closing.is_none() => {
                self.closing = Some(self.keepalive.closing(self.worker, self.quiet_after));
            }
            true => {}
            false => self.closing = None,
        }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.closing = None;
        self.keepalive.end(&self.worker.service);
    }
}

impl Keepalive {
    /// Loads the reaper. Where this kernel has none, kept-alive connections hold drains, and the log says why.
    #[must_use]
    pub fn load() -> Self {
        let closer = Reaper::load().map_err(|error| format!("{error:#}")).and_then(|reaper| {
            Closer::start(reaper)
                .map(Arc::new)
                .map_err(|error| format!("cannot start the thread that closes connections: {error}"))
        });
        if let Err(why) = &closer {
            info!(why, "kept-alive connections are not closed here: drains wait for them");
        }
        Self { closer, watched: Mutex::default() }
    }

    /// Services that are to be watched, and are not.
    #[must_use]
    pub fn trouble(&self) -> Vec<String> {
        let blind = |(service, known): (&String, &Watched)| {
            let why = known.watch.as_ref().err()?;
            Some(format!("{service}: connections cannot be watched, so kept-alive ones hold drains: {why}"))
        };
        self.watched().iter().filter_map(blind).collect()
    }

    /// Begins to watch a service's connections, if nobody has yet. As often as this is called, [`Self::end`] must be.
    pub fn begin(&self, service: &Service) {
        let workers: Vec<_> = service.members().map(|worker| worker.at).collect();
        let mut watched = self.watched();
        let name = &service.config.name;
        let known = watched.entry(name.clone()).or_insert_with(|| {
            let watch = Err("it has not begun".to_owned());
            Watched { watch, workers: workers.clone(), users: 0 }
        });
        known.users += 1;
        if known.watch.is_err() {
            known.watch = self.start(&workers).map(Arc::new).map_err(|error| error.to_string());
            if let Err(why) = &known.watch {
                warn!(service = name, why, "connections cannot be watched: kept-alive ones hold drains");
            }
        }
    }

    /// What it says is of use without a reaper, too: status shows what holds a drain.
    fn start(&self, workers: &[SocketAddr]) -> io::Result<FramingWatch> {
        let aim = self.closer.as_ref().ok().map(|closer| closer.aim());
        FramingWatch::start(workers, move |pair, framing| {
            if let Some(aim) = &aim {
                aim.change(pair, framing);
            }
        })
    }

    /// Ends the watch when the last who asked for it has called this.
    pub fn end(&self, service: &str) {
        let mut watched = self.watched();
        let Some(known) = watched.get_mut(service) else { return };
        known.users -= 1;
        if known.users == 0 {
            let last = watched.remove(service);
            drop(watched);
            // It waits for its thread, which nobody here should.
            thread::spawn(move || drop(last));
        }
    }

    /// Closes kept-alive connections to a worker, whose drain has been published, until the result is dropped.
    pub fn closing(&self, worker: &Worker, quiet_after: Option<Duration>) -> Closing {
        self.close(worker, quiet_after, false)
    }

    /// The same for those that are there now, of a worker that goes on serving: others than those were made knowing it.
    pub fn closing_former(&self, worker: &Worker, quiet_after: Option<Duration>) -> Closing {
        self.close(worker, quiet_after, true)
    }

    /// Of those, how many are left; `None`: nobody closes them.
    #[must_use]
    pub fn former(&self, worker: SocketAddr) -> Option<usize> {
        self.closer.as_ref().ok()?.former(worker)
    }

    fn close(&self, worker: &Worker, quiet_after: Option<Duration>, former: bool) -> Closing {
        let watch = self.watched().get(&worker.service).and_then(|known| known.watch.clone().ok());
        let closer = self.closer.as_ref().ok().zip(watch).map(|(closer, watch)| {
            closer.begin(worker.at, watch, quiet_after, former);
            Arc::clone(closer)
        });
        Closing { closer, worker: worker.at }
    }

    /// The same for a worker of a service that nobody may be watching; nothing is closed yet.
    pub fn begun<'a>(&'a self, worker: &'a Worker, service: &Service) -> Begun<'a> {
        self.begin(service);
        Begun { keepalive: self, worker, quiet_after: service.config.drain.quiet_after, closing: None }
    }

    /// Why a connection holds the drain of a worker that is watched, as far as is known.
    #[must_use]
    pub fn why(&self, pair: &Pair) -> Option<String> {
        let is_to = |known: &&Watched| known.workers.iter().any(|at| is_end(pair.worker, pair.caller, *at));
        let watch = self.watched().values().find(is_to).and_then(|known| known.watch.clone().ok())?;
        let why = |closer: &Arc<Closer>| ground::why(&watch.framing(pair), closer.answer(pair));
        Some(self.closer.as_ref().map_or_else(|_| format!("{}; {CLOSES_NOTHING}", watch.framing(pair).framing), why))
    }

    /// How many connections to a worker have been closed since the daemon was started.
    #[must_use]
    pub fn closed(&self, worker: SocketAddr) -> Closed {
        self.closer.as_ref().map_or_else(|_| Closed::default(), |closer| closer.closed(worker))
    }

    fn watched(&self) -> MutexGuard<'_, BTreeMap<String, Watched>> {
        // A panic elsewhere leaves it as good as it was.
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
