//! The one thread that writes. Whoever needs to know that something is on the disk waits for its generation; what comes
//! in meanwhile goes with the next write, so that forty workers are not forty writes in a row.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tracing::{error, info};

use super::state::State;

/// Between two tries of a write that fails.
const AGAIN: Duration = Duration::from_secs(1);
/// A disk that takes longer counts as one that cannot be written: a worker must not be left drained for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the state is kept.
pub trait Store: Send + 'static {
    /// Replaces it whole, durably.
    ///
    /// # Errors
    /// What was kept is untouched then.
    fn replace(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Its place, for messages.
    fn place(&self) -> String;
}

/// What is to be on the disk, and how far it is.
pub struct Journal {
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
}

struct Shared {
    wanted: Mutex<Wanted>,
    wake: Condvar,
}

struct Wanted {
    state: State,
    generation: u64,
    closed: bool,
}

#[derive(Debug, Clone, Default)]
struct Progress {
    /// The last generation that was tried to be written.
    tried: u64,
    /// The last that is on the disk.
    written: u64,
    /// Why the last try failed.
    trouble: Option<String>,
}

impl Journal {
    /// Starts the writer; `state` is written at once.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(state: State, store: impl Store) -> io::Result<Self> {
        let wanted = Wanted { state, generation: 1, closed: false };
        let shared = Arc::new(Shared { wanted: Mutex::new(wanted), wake: Condvar::new() });
        let (sender, progress) = watch::channel(Progress::default());
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new().name("journal".to_owned()).spawn(move || theirs.write(store, &sender))?;
        Ok(Self { shared, progress })
    }

    /// Changes the state; returns the generation to wait for.
    pub fn update(&self, change: impl FnOnce(&mut State)) -> u64 {
        let mut wanted = self.shared.wanted();
        change(&mut wanted.state);
        wanted.generation += 1;
        self.shared.wake.notify_one();
        wanted.generation
    }

    /// Changes the state if that makes a difference: for what is looked at now and then.
    pub fn refresh(&self, change: impl FnOnce(&mut State)) {
        let mut wanted = self.shared.wanted();
        let mut state = wanted.state.clone();
        change(&mut state);
        if state != wanted.state {
            wanted.state = state;
            wanted.generation += 1;
            self.shared.wake.notify_one();
        }
    }

    /// Looks at the state as it is to be.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.shared.wanted().state)
    }

    /// Waits until a generation is on the disk.
    ///
    /// # Errors
    /// Why it is not, in words; it is tried again and again.
    pub async fn durable(&self, generation: u64) -> Result<(), String> {
        let mut progress = self.progress.clone();
        let tried = progress.wait_for(|it| it.tried >= generation);
        match tokio::time::timeout(PATIENCE, tried).await {
            Err(_) => Err(format!("the journal has not been written for {} s: the disk hangs", PATIENCE.as_secs())),
            Ok(Err(_)) => Err("the journal's writer has ended".to_owned()),
            Ok(Ok(progress)) if progress.written >= generation => Ok(()),
            Ok(Ok(progress)) => Err(progress.trouble.clone().unwrap_or_default()),
        }
    }

    /// Changes the state, and waits until that is on the disk.
    ///
    /// # Errors
    /// As [`Journal::durable`].
    pub async fn commit(&self, change: impl FnOnce(&mut State)) -> Result<(), String> {
        let generation = self.update(change);
        self.durable(generation).await
    }

    /// Waits until all of it is on the disk.
    ///
    /// # Errors
    /// As [`Journal::durable`].
    pub async fn flush(&self) -> Result<(), String> {
        let generation = self.shared.wanted().generation;
        self.durable(generation).await
    }

    /// Why it cannot be written just now; `None`: it can.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.progress.borrow().trouble.clone()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shared.wanted().closed = true;
        self.shared.wake.notify_one();
    }
}

impl Shared {
    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        // A change that panicked half way has left a state that is as good as any the writer may meet.
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, mut store: impl Store, progress: &watch::Sender<Progress>) {
        loop {
            // Borrowed no longer than that: whoever changes it waits for readers.
            let before = progress.borrow().clone();
            let Some((bytes, generation)) = self.next(&before) else { return };
            let result = bytes.map_err(io::Error::other).and_then(|bytes| store.replace(&bytes));
            let trouble = result.err().map(|error| format!("the journal {} cannot be written: {error}", store.place()));
            tell(before.trouble.as_deref(), trouble.as_deref());
            progress.send_modify(|it| {
                it.tried = generation;
                if trouble.is_none() {
                    it.written = generation;
                }
                it.trouble = trouble;
            });
        }
    }

    /// Waits for something to write; `None`: there will be nothing more.
    fn next(&self, progress: &Progress) -> Option<(serde_json::Result<Vec<u8>>, u64)> {
        let mut wanted = self.wanted();
        while wanted.generation == progress.tried {
            if wanted.closed {
                return None;
            }
            if progress.trouble.is_none() {
                wanted = self.wake.wait(wanted).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (again, waited) = self.wake.wait_timeout(wanted, AGAIN).unwrap_or_else(PoisonError::into_inner);
            wanted = again;
            if waited.timed_out() {
                break;
            }
        }
        Some((serde_json::to_vec(&wanted.state), wanted.generation))
    }
}

/// Says it when it begins, changes and ends.
fn tell(before: Option<&str>, now: Option<&str>) {
    match (before, now) {
        (Some(_), None) => info!("the journal can be written again"),
        (before, Some(why)) if before != Some(why) => {
            error!("{why}; it is tried again every second, and rolls are refused until then");
        }
        _ => {}
    }
}
