//! The log of a roll that goes on: events are handed to the disk's thread, and never waited for by the task that tells them.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use tracing::warn;

use super::{disk::Disk, events::LogFile};
use crate::{api::Event, log};

/// A reader sees an event that has not been written for so long all the same.
const LATE: Duration = Duration::from_secs(1);
/// Between two looks whether the disk is late.
const LOOK: Duration = Duration::from_millis(200);

/// The log of a roll.
#[derive(Debug)]
pub struct Log(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    id: String,
    disk: Disk,
    pending: Mutex<Pending>,
    file: Mutex<Written>,
    /// So many events have been tried to be written.
    tried: watch::Sender<u64>,
}

/// What the disk's thread has not taken yet.
#[derive(Debug, Default)]
struct Pending {
    lines: Vec<u8>,
    /// So many events were added in all.
    added: u64,
}

#[derive(Debug)]
struct Written {
    file: LogFile,
    /// The file cannot be written, which has been said.
    torn: bool,
}

impl Log {
    pub(super) fn new(id: &str, file: LogFile, disk: Disk) -> Self {
        let (pending, file) = (Mutex::default(), Mutex::new(Written { file, torn: false }));
        Self(Arc::new(Shared { id: id.to_owned(), disk, pending, file, tried: watch::Sender::new(0) }))
    }

    /// Adds an event. One that cannot be written is written with the next.
    pub fn add(&self, event: &Event) {
        // It has no map whose keys are not texts, which is all that could fail.
        let Ok(line) = serde_json::to_vec(event) else { return };
        {
            let mut pending = self.0.pending();
            pending.lines.extend(line);
            pending.lines.push(b'\n');
            pending.added += 1;
        }
        let theirs = Arc::clone(&self.0);
        self.0.disk.hand_over(&format!("events of {}", self.0.id), move || theirs.write());
    }

    /// Waits until all that was added has been tried to be written; not for a disk that hangs.
    pub async fn settled(&self) {
        let added = self.0.pending().added;
        self.tried(added).await;
    }

    /// The same for the first `count` events that were added here.
    pub async fn tried(&self, count: u64) {
        let mut tried = self.0.tried.subscribe();
        while !self.0.disk.is_late(LATE) {
            if timeout(LOOK, tried.wait_for(|tried| *tried >= count)).await.is_ok() {
                return;
            }
        }
    }

    /// As [`Log::settled`], for a thread that may block.
    pub fn settle(&self) {
        let added = self.0.pending().added;
        while *self.0.tried.borrow() < added && !self.0.disk.is_late(LATE) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what has come together, in the disk's thread.
    fn write(&self) {
        let (lines, added) = {
            let mut pending = self.pending();
            (std::mem::take(&mut pending.lines), pending.added)
        };
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let result = file.file.add(&lines);
        let was_torn = std::mem::replace(&mut file.torn, result.is_err());
        if let Err(error) = result
            && !was_torn
        {
            let _in = log::of_roll(&self.id).entered();
            warn!(%error, "the roll's events cannot be written; they are written with the next that can be");
        }
        self.tried.send_replace(added);
    }
}
