//! What a roll has done so far: events in order, and whether somebody asked it to stop.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;
use tracing::info;

use crate::api::{Event, Exit, What};

/// A roll's record; readers follow it from any point.
pub struct Record {
    /// Names the roll.
    pub id: String,
    /// Its service.
    pub service: String,
    /// Who asked for it.
    pub by: String,
    events: Mutex<Vec<Event>>,
    written: watch::Sender<usize>,
    stop: AtomicBool,
}

impl Record {
    /// An empty record.
    #[must_use]
    pub fn new(id: String, service: String, by: String) -> Self {
        let (written, _) = watch::channel(0);
        Self { id, service, by, events: Mutex::default(), written, stop: AtomicBool::new(false) }
    }

    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event, and logs it.
    pub fn add(&self, what: What) {
        let len = {
            let mut events = self.events();
            let event = Event { seq: events.len() as u64, time_ms: unix_ms(), roll: self.id.clone(), what };
            // Phases are logged by the worker itself.
            if !matches!(event.what, What::Phase { .. }) {
                info!(roll = self.id, event = serde_json::to_string(&event.what).unwrap_or_default(), "roll");
            }
            events.push(event);
            events.len()
        };
        self.written.send_replace(len);
    }

    /// The event at `seq`, as soon as there is one; `None`: the roll has ended before it.
    pub async fn event(&self, seq: usize) -> Option<Event> {
        let mut written = self.written.subscribe();
        loop {
            {
                let events = self.events();
                if let Some(event) = events.get(seq) {
                    return Some(event.clone());
                }
                if events.last().is_some_and(|event| matches!(event.what, What::Finished { .. })) {
                    return None;
                }
            }
            written.changed().await.ok()?;
        }
    }

    /// How it ended; `None`: it has not.
    #[must_use]
    pub fn result(&self) -> Option<Exit> {
        match self.events().last()?.what {
            What::Finished { result, .. } => Some(result),
            _ => None,
        }
    }

    /// Asks for a stop after the batch in hand.
    pub fn ask_stop(&self, by: &str) {
        if !self.stop.swap(true, Ordering::SeqCst) {
            self.add(What::StopAsked { by: by.to_owned() });
        }
    }

    /// Whether a stop was asked for.
    #[must_use]
    pub fn stop_asked(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
