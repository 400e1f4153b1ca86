//! What happened on this host: a line a change, in `events.ndjson` of the state directory. Numbers go on over restarts of
//! the daemon, so that whoever follows misses nothing and is told nothing twice.
//!
//! `known` is what the lines add up to: it says whether something is a change, and what was before. It is read from the
//! lines of former daemons, and kept by the same function. `files` are the lines on the disk, `reader` hands them out.
//!
//! Telling never waits for the disk, and takes no other lock: a thread writes. What it could not write is lost after a
//! while, and counted. Nobody reads what has not been tried to be written, so that a number that was read is not used again
//! by the next daemon.

mod files;
mod known;
mod lines;
mod reader;
#[cfg(test)]
mod tests;
mod text;

use std::{
    collections::BTreeSet,
    fmt, io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tracing::{info, warn};

pub use self::reader::Reader;
use self::{
    files::{Appender, Files},
    known::Known,
    lines::Lines,
    text::{cap, capped},
};
use super::{State, disk};
use crate::{
    api::{Change, Configured, Entry, Phase, TestResult},
    roll::record::unix_ms,
};

/// The youngest lines are in memory, up to so many bytes.
const RING: usize = 1 << 20;
/// Lines that wait for the disk, in bytes.
const BACKLOG: usize = 256 << 10;
/// Between two tries to write.
const AGAIN: Duration = Duration::from_secs(1);

/// Who has done it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By<'a> {
    /// The watch over crashes and restarts.
    Watch,
    /// What the kernel has seen.
    Kernel,
    /// The daemon, of its own accord.
    Daemon,
    /// Whoever has sent SIGHUP.
    Hangup,
    /// Who asked, as the socket tells it.
    Somebody(&'a str),
    /// A roll.
    Roll(&'a str),
    /// What the fleet has agreed on.
    Fleet,
}

/// What it is about.
#[derive(Debug, Clone, Copy, Default)]
pub struct About<'a> {
    /// The service.
    pub service: Option<&'a str>,
    /// The worker.
    pub worker: Option<SocketAddr>,
    /// The roll, where it is not the roll that has done it.
    pub roll: Option<&'a str>,
}

/// The history of this host.
pub struct History(Arc<Shared>);

struct Shared {
    files: Files,
    told: Mutex<Told>,
    wake: Condvar,
    settled: watch::Sender<Settled>,
    /// This daemon's first.
    first: u64,
}

struct Told {
    next: u64,
    known: Known,
    ring: Lines,
    backlog: Lines,
    /// Lines that are in no file.
    lost: u64,
    /// Why the last try to write failed.
    trouble: Option<String>,
    /// When the write in hand began.
    began: Option<Instant>,
    closed: bool,
}

/// Up to where the lines have been tried to be written.
#[derive(Debug, Clone, Copy)]
struct Settled {
    next: u64,
    over: bool,
}

impl fmt::Display for By<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Watch => f.write_str("the watch"),
            Self::Kernel => f.write_str("the kernel"),
            Self::Daemon => f.write_str("the daemon"),
            Self::Hangup => f.write_str("SIGHUP"),
            Self::Somebody(who) => f.write_str(who),
            Self::Roll(id) => write!(f, "roll {id}"),
            Self::Fleet => f.write_str("the fleet"),
        }
    }
}

impl<'a> About<'a> {
    /// About a service.
    #[must_use]
    pub fn service(service: &'a str) -> Self {
        Self { service: Some(service), ..Self::default() }
    }

    /// About a worker.
    #[must_use]
    pub fn worker(service: &'a str, worker: SocketAddr) -> Self {
        Self { service: Some(service), worker: Some(worker), roll: None }
    }
}

impl History {
    /// Reads what former daemons have told, and goes on. What cannot be read is left out.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let (files, mut known, mut first) = (Files::new(dir), Known::default(), 0);
        files.known(|entry| known.apply(&entry));
        files.read(|seq, entry| {
            first = seq + 1;
            if let Some(entry) = entry {
                known.apply(&entry);
            }
        });
        let (ring, backlog) = (Lines::default(), Lines::default());
        let told = Told { next: first, known, ring, backlog, lost: 0, trouble: None, began: None, closed: false };
        let (settled, _) = watch::channel(Settled { next: first, over: false });
        let appender = Appender::new(files.clone());
        let shared = Arc::new(Shared { files, told: Mutex::new(told), wake: Condvar::new(), settled, first });
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new().name("history".to_owned()).spawn(move || theirs.write(appender))?;
        Ok(Self(shared))
    }

    /// Takes the journal's word for workers of whom no line is left.
    pub fn suppose(&self, state: &State) {
        self.0.told().known.suppose(state);
    }

    /// Tells something that is a change by itself.
    pub fn tell(&self, by: By<'_>, about: About<'_>, change: Change) {
        self.0.told().tell(by, about, change);
        self.0.wake.notify_one();
    }

    fn change(&self, by: By<'_>, about: About<'_>, change: impl FnOnce(&mut Known) -> Option<Change>) {
        let mut told = self.0.told();
        if let Some(change) = change(&mut told.known) {
            told.tell(by, about, change);
            self.0.wake.notify_one();
        }
    }

    /// This daemon has begun.
    pub fn started(&self, version: &str, pid: u32) {
        let version = version.to_owned();
        self.change(By::Daemon, About::default(), |known| Some(Change::Started { version, pid, was: known.daemon() }));
    }

    /// How a worker was found: told if that is another phase than was known.
    pub fn found(&self, by: By<'_>, about: About<'_>, phase: Phase, reason: &str) {
        self.change(by, about, |known| known.found(about, phase, &capped(reason)));
    }

    /// What a worker goes through: told if it is another phase, or another reason.
    pub fn phase(&self, by: By<'_>, about: About<'_>, phase: Phase, reason: &str) {
        self.change(by, about, |known| known.phase(by, about, phase, &capped(reason)));
    }

    /// How all services are configured: told of those for which that is news, and of those that are gone.
    pub fn configured(&self, by: By<'_>, services: &[(&str, Configured)]) {
        let gone = self.0.told().known.gone(services.iter().map(|(name, _)| *name));
        for name in gone {
            self.change(by, About::service(&name), |known| known.configured(&name, None));
        }
        for (name, now) in services {
            self.change(by, About::service(name), |known| known.configured(name, Some(now)));
        }
    }

    /// Whether a roll has been told to begin, and not to end.
    #[must_use]
    pub fn has_roll(&self, id: &str) -> bool {
        self.0.told().known.has_roll(id)
    }

    /// Forgets rolls that are none of these.
    pub fn only_rolls(&self, ids: &BTreeSet<&str>) {
        self.0.told().known.only_rolls(ids);
    }

    /// Forgets workers that are none of these, by service.
    pub fn only(&self, workers: &BTreeSet<(&str, SocketAddr)>) {
        self.0.told().known.only(workers);
    }

    /// Whether a service, or every one, is bypassed.
    pub fn bypass(&self, by: By<'_>, about: About<'_>, on: bool) {
        self.change(by, about, |known| known.bypass(about, on));
    }

    /// Why connections go on to a worker that is drained.
    pub fn let_in(&self, about: About<'_>, short: Option<&str>) {
        self.change(By::Kernel, about, |known| known.let_in(about, short));
    }

    /// All that is amiss.
    pub fn trouble(&self, all: &[String]) {
        let all: Vec<_> = all.iter().map(|text| capped(text)).collect();
        let news = self.0.told().known.trouble(&all);
        for change in news {
            self.tell(By::Daemon, About::default(), change);
        }
    }

    /// How the last self-test ended.
    pub fn self_test(&self, result: TestResult, detail: &str) {
        self.change(By::Daemon, About::default(), |known| known.self_test(result, &capped(detail)));
    }

    /// Whether there is a connection to what the fleet agrees through, `zookeeper zk1:2181/deployer`; `Err`: why not. Told if
    /// that is another than was known.
    pub fn fleet_link(&self, link: Result<&str, &str>) {
        self.change(By::Daemon, About::default(), |known| known.fleet_link(link.map_err(capped)));
    }

    /// How far the fleet's order for a service is: told if that is news. `phase` is one word.
    pub fn fleet_phase(&self, service: &str, epoch: u64, phase: &str, text: &str) {
        self.change(By::Fleet, About::service(service), |known| {
            known.fleet_phase(service, Change::FleetPhase { epoch, phase: phase.to_owned(), text: capped(text) })
        });
    }

    /// What a host of the fleet is now, "enabled", "drained", "forgotten", "there", "gone": told if that is news.
    pub fn fleet_host(&self, by: By<'_>, host: &str, what: &str) {
        self.change(by, About::default(), |known| known.fleet_host(&capped(host), what));
    }

    /// Why lines cannot be written just now.
    #[must_use]
    pub fn unwritten(&self) -> Option<String> {
        let hangs = self.0.is_late().then(|| disk::hangs(&self.0.files.dir().display().to_string()));
        hangs.or_else(|| self.0.told().trouble.clone())
    }

    /// Waits until all that was told has been tried to be written.
    pub async fn flush(&self) {
        let next = self.0.told().next;
        // The thread goes on for as long as this lives.
        let _ = self.0.settled.subscribe().wait_for(|settled| settled.next >= next).await;
    }

    /// Sends away whoever follows.
    pub fn dismiss(&self) {
        self.0.settled.send_modify(|settled| settled.over = true);
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.0.told().closed = true;
        self.0.wake.notify_one();
    }
}

impl Told {
    /// What is known, in lines that would say it.
    fn known(&self) -> Vec<u8> {
        let mut text = Vec::new();
        for line in self.known.lines(self.next).iter().filter_map(|entry| serde_json::to_vec(entry).ok()) {
            text.extend(line);
            text.push(b'\n');
        }
        text
    }

    fn tell(&mut self, by: By<'_>, about: About<'_>, mut change: Change) {
        cap(&mut change);
        let (seq, by_roll) = (self.next, if let By::Roll(id) = by { Some(id) } else { None });
        let entry = Entry {
            seq,
            time_ms: unix_ms(),
            by: by.to_string(),
            service: about.service.map(str::to_owned),
            worker: about.worker,
            roll: about.roll.or(by_roll).map(str::to_owned),
            change,
        };
        // It has no map whose keys are not texts, which is all that could fail.
        let Ok(mut line) = serde_json::to_string(&entry) else { return };
        line.push('\n');
        let line: Arc<str> = line.into();
        self.known.apply(&entry);
        self.next += 1;
        self.ring.push(seq, Arc::clone(&line));
        self.ring.keep(RING);
        self.backlog.push(seq, line);
        self.lost += self.backlog.keep(BACKLOG);
    }
}

impl Shared {
    fn told(&self) -> MutexGuard<'_, Told> {
        // A panic elsewhere leaves it as good as it was.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the disk hangs.
    fn is_late(&self) -> bool {
        self.told().began.is_some_and(|began| began.elapsed() > disk::HANGS_AFTER)
    }

    fn write(&self, mut file: Appender) {
        while let Some(lines) = self.next() {
            let result = file.append(&lines.text(), || self.told().known());
            let next =
                self.wrote(lines, result.map_err(|error| format!("{} cannot be written: {error}", file.place())));
            self.settled.send_modify(|settled| settled.next = next);
        }
    }

    /// Waits for lines to write; `None`: there will be no more.
    fn next(&self) -> Option<Lines> {
        let mut told = self.told();
        if told.trouble.is_some() && !told.closed {
            told = self
                .wake
                .wait_timeout_while(told, AGAIN, |told| !told.closed)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        told = self
            .wake
            .wait_while(told, |told| told.backlog.lines.is_empty() && !told.closed)
            .unwrap_or_else(PoisonError::into_inner);
        // The last try that fails is the last.
        told.began = (!told.backlog.lines.is_empty()).then(Instant::now);
        told.began.is_some().then(|| std::mem::take(&mut told.backlog))
    }

    /// Says it when writing begins to fail and when it is over; returns what comes after the lines.
    fn wrote(&self, mut lines: Lines, result: Result<(), String>) -> u64 {
        let next = lines.lines.back().map_or(0, |(seq, _)| seq + 1);
        let mut told = self.told();
        told.began = None;
        match result {
            Ok(()) => {
                let lost = std::mem::take(&mut told.lost);
                let is_over = told.trouble.take().is_some();
                if lost > 0 {
                    told.tell(By::Daemon, About::default(), Change::Lost { lines: lost });
                }
                // The log may be slow, and nobody who tells is to wait for it.
                drop(told);
                if is_over {
                    info!(lost, "events can be written down again");
                }
            }
            Err(_) if told.closed => told.backlog = Lines::default(),
            Err(why) => {
                let newer = std::mem::take(&mut told.backlog);
                newer.lines.into_iter().for_each(|(seq, line)| lines.push(seq, line));
                told.lost += lines.keep(BACKLOG);
                told.backlog = lines;
                let is_new = told.trouble.replace(why.clone()).is_none();
                drop(told);
                if is_new {
                    warn!("{why}; it is tried again every second, and what is too much meanwhile is lost");
                }
            }
        }
        next
    }
}
