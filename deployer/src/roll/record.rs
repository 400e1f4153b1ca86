//! What a roll has done so far: events in order, and whether somebody asked it to stop.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tracing::info;

use super::{
    kept::Kept,
    orders::{Order, Orders},
    run::ON_REQUEST,
    told,
};
use crate::{
    api::{Event, Exit, What},
    journal::{History, events::Log},
    kernel::clock,
    log,
};

/// Between two looks whether it is suspended, should the word of that have been taken by another.
const SUSPENDED: Duration = Duration::from_millis(200);

/// A roll's record; readers follow it from any point.
pub struct Record {
    /// Names the roll.
    pub id: String,
    /// Its service.
    pub service: String,
    /// Who asked for it.
    pub by: String,
    told: Mutex<Told>,
    written: watch::Sender<usize>,
    stop: AtomicBool,
    /// Why, where something else than a client's request has stopped it.
    stop_why: OnceLock<String>,
    suspend: AtomicBool,
    parked: AtomicBool,
    orders: Orders,
    /// Why the version of a fleet's deploy is ill.
    ill: Mutex<Option<String>>,
    /// So many events are a former daemon's.
    inherited: usize,
    /// When this daemon has entered it.
    entered: Instant,
    /// The history of the host, and the version that the workers said they run before.
    host: Option<(Arc<History>, Option<String>)>,
    /// Where events outlive the daemon.
    log: Option<Log>,
    /// The roll waits for its journal, which has been told.
    waits: AtomicBool,
}

struct Told {
    events: Kept,
    /// What has come before the roll begins, and is told after that.
    early: Vec<What>,
}

impl Record {
    /// An empty record, kept in memory only.
    #[must_use]
    pub fn new(id: String, service: String, by: String) -> Self {
        Self::resumed(id, service, by, Vec::new(), None)
    }

    /// One that has `events` already, and goes on in a log.
    #[must_use]
    pub fn resumed(id: String, service: String, by: String, events: Vec<Event>, log: Option<Log>) -> Self {
        let inherited = events.len();
        let (written, _) = watch::channel(inherited);
        let stop = AtomicBool::new(events.iter().any(|event| matches!(event.what, What::StopAsked { .. })));
        let told = Mutex::new(Told { events: events.into(), early: Vec::new() });
        let [suspend, parked, waits] = [false; 3].map(AtomicBool::new);
        let (orders, ill) = (Orders::default(), Mutex::default());
        Self {
            id,
            service,
            by,
            told,
            written,
            stop,
            stop_why: OnceLock::new(),
            suspend,
            parked,
            orders,
            ill,
            inherited,
            entered: Instant::now(),
            host: None,
            log,
            waits,
        }
    }

    /// Has the history of the host know of it, too; the workers ran version `before`.
    #[must_use]
    pub fn telling(mut self, history: &Arc<History>, before: Option<String>) -> Self {
        told::make_up(history, &self, before.as_deref(), &self.told().events);
        self.host = Some((Arc::clone(history), before));
        self
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event, and logs it. Never waits for the disk. Nothing comes after the end.
    pub fn add(&self, what: What) {
        let len = {
            let mut told = self.told();
            if told.result().is_some() {
                return;
            }
            // It is entered a while before it begins, which is the first thing that is told.
            if told.events.is_empty()
                && matches!(what, What::StopAsked { .. } | What::Asked { .. } | What::Ended { .. })
            {
                told.early.push(what);
                return;
            }
            self.push(&mut told, what);
            for what in std::mem::take(&mut told.early) {
                self.push(&mut told, what);
            }
            told.events.len()
        };
        self.written.send_replace(len);
    }

    fn push(&self, told: &mut Told, what: What) {
        // One that is abandoned before it begins.
        if told.result().is_some() {
            return;
        }
        let event = Event { seq: told.events.len() as u64, time_ms: unix_ms(), roll: self.id.clone(), what };
        // Phases are logged by the worker itself.
        if !matches!(event.what, What::Phase { .. }) {
            let _in = log::of_roll(&self.id).entered();
            info!(event = serde_json::to_string(&event.what).unwrap_or_default(), "roll");
        }
        self.log.iter().for_each(|log| log.add(&event));
        if let Some((history, before)) = &self.host {
            told::tell(history, self, before.as_deref(), &event.what);
        }
        told.events.push(event);
    }

    /// Where a reader goes on who has seen the events before `from`. One who has seen more than there are had them from a
    /// former daemon that could not write them down (or all that there are, and not the end); what this daemon adds
    /// bears their numbers once more, and is news.
    #[must_use]
    pub fn go_on(&self, from: usize) -> usize {
        let told = self.told();
        let ahead = from > told.events.len() || (from == told.events.len() && told.result().is_some());
        if ahead && self.inherited > 0 { self.inherited } else { from }
    }

    /// The event at `seq`, as soon as there is one; the next to read is the one after it, which may be further on where events
    /// are not kept any more. `None`: the roll has ended before it, or this daemon has left it to the next. It is in the log
    /// before a reader sees it, unless the disk hangs.
    pub async fn event(&self, seq: usize) -> Option<Event> {
        let mut written = self.written.subscribe();
        let event = loop {
            {
                let told = self.told();
                if let Some(event) = told.events.get(seq) {
                    break event;
                }
                if told.result().is_some() || self.parked.load(Ordering::SeqCst) {
                    return None;
                }
            }
            written.changed().await.ok()?;
        };
        let added = (event.seq + 1).saturating_sub(self.inherited as u64);
        if let Some(log) = self.log.as_ref().filter(|_| added > 0) {
            log.tried(added).await;
        }
        Some(event)
    }

    /// Waits until its events are in the log; not for a disk that hangs.
    pub async fn settled(&self) {
        if let Some(log) = &self.log {
            log.settled().await;
        }
    }

    /// The same for a thread that may block.
    pub fn settle(&self) {
        self.log.iter().for_each(Log::settle);
    }

    /// Tells that the roll waits for its journal, and why, or that it no longer does: each once.
    pub fn waits_for_journal(&self, why: Option<String>) {
        if self.waits.swap(why.is_some(), Ordering::SeqCst) != why.is_some() {
            self.add(What::Journal { trouble: why });
        }
    }

    /// Waits until this daemon does nothing more for it.
    pub async fn over(&self) {
        let mut written = self.written.subscribe();
        while self.result().is_none() && !self.parked.load(Ordering::SeqCst) {
            if written.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether nothing has been told yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.told().events.is_empty()
    }

    /// When it began, milliseconds since 1970.
    #[must_use]
    pub fn begun_ms(&self) -> Option<u64> {
        self.told().events.first().map(|event| event.time_ms)
    }

    /// How long it has lasted. Of one that a former daemon has begun only the time of day is known.
    #[must_use]
    pub fn lasted(&self) -> Duration {
        let by_date = || self.begun_ms().map(|begun| Duration::from_millis(unix_ms().saturating_sub(begun)));
        if self.inherited == 0 { self.entered.elapsed() } else { by_date().unwrap_or_default() }
    }

    /// Whether something like that has happened in it.
    #[must_use]
    pub fn has(&self, like: impl Fn(&What) -> bool) -> bool {
        self.told().events.iter().any(|event| like(&event.what))
    }

    /// What it told first.
    #[must_use]
    pub fn first(&self) -> Option<What> {
        self.told().events.first().map(|event| event.what.clone())
    }

    /// What it told last.
    #[must_use]
    pub fn last(&self) -> Option<What> {
        self.told().events.last().map(|event| event.what.clone())
    }

    /// How it ended; `None`: it has not.
    #[must_use]
    pub fn result(&self) -> Option<Exit> {
        self.told().result()
    }

    /// When it ended, milliseconds since 1970; `None`: it has not.
    #[must_use]
    pub fn ended_ms(&self) -> Option<u64> {
        let told = self.told();
        told.result().and(told.events.last()).map(|event| event.time_ms)
    }

    /// Asks for a stop after the batch in hand.
    pub fn ask_stop(&self, by: &str) {
        if !self.stop.swap(true, Ordering::SeqCst) {
            self.add(What::StopAsked { by: by.to_owned() });
            self.orders.wake();
        }
    }

    /// The same, where it cannot go on; the text of its end begins with "stopped: " and `why`.
    pub fn ask_stop_for(&self, by: &str, why: String) {
        let _ = self.stop_why.set(why);
        self.ask_stop(by);
    }

    /// What begins the text of its end when a stop was asked for.
    #[must_use]
    pub fn stop_text(&self) -> String {
        self.stop_why().map_or_else(|| ON_REQUEST.to_owned(), |why| format!("stopped: {why}"))
    }

    /// Why, if something else than a client's request has stopped it.
    #[must_use]
    pub fn stop_why(&self) -> Option<&str> {
        self.stop_why.get().map(String::as_str)
    }

    /// Has its readers told that something was asked for that concerns it; `what` in words.
    pub fn note(&self, what: &str, by: &str) {
        self.add(What::Asked { by: by.to_owned(), what: what.to_owned() });
    }

    /// Has a deploy asked for something; `what` in a word.
    pub fn order(&self, order: Order, what: &str, by: &str) {
        self.add(What::Asked { by: by.to_owned(), what: what.to_owned() });
        self.orders.give(order);
    }

    /// Why the version of a fleet's deploy is ill, while it bakes.
    #[must_use]
    pub fn ill(&self) -> Option<String> {
        self.ill.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers that it is ill, or well; it is told when it becomes so.
    pub fn set_ill(&self, why: Option<String>) {
        let before = std::mem::replace(&mut *self.ill.lock().unwrap_or_else(PoisonError::into_inner), why.clone());
        match (before, why) {
            (None, Some(why)) => self.add(What::Ill { why }),
            (Some(_), None) => {
                let _in = log::of_roll(&self.id).entered();
                info!("the new version is well again");
            }
            _ => {}
        }
    }

    /// What is asked of a deploy.
    #[must_use]
    pub fn orders(&self) -> &Orders {
        &self.orders
    }

    /// Whether a stop was asked for.
    #[must_use]
    pub fn stop_asked(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Leaves the roll to the next daemon, after the batch in hand.
    pub fn suspend(&self) {
        self.suspend.store(true, Ordering::SeqCst);
        self.orders.wake();
    }

    /// Whether it is to be left to the next daemon.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        self.suspend.load(Ordering::SeqCst)
    }

    /// Waits until it is to be left to the next daemon.
    pub async fn suspended(&self) {
        while !self.is_suspended() {
            self.orders.wait(SUSPENDED).await;
        }
    }

    /// This daemon does nothing more for it.
    pub fn park(&self) {
        self.parked.store(true, Ordering::SeqCst);
        self.written.send_modify(|_| {});
    }
}

impl Told {
    fn result(&self) -> Option<Exit> {
        match self.events.last()?.what {
            What::Finished { result, .. } => Some(result),
            _ => None,
        }
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    clock::wall_ms()
}

#[cfg(test)]
mod tests;
