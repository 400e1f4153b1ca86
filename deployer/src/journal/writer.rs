//! The one thread that writes. Whoever needs to know that something is on the disk waits for its generation; what comes
//! in meanwhile goes with the next write, so that forty workers are not forty writes in a row.

use std::{
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tracing::{error, info};

use super::{
    disk::{HANGS_AFTER, hangs},
    state::State,
};

/// Between two tries of a write that fails.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest that a request waits for a disk that hangs. A roll waits longer: [`HANG_PATIENCE`].
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The longest that a roll waits for a disk that hangs; then the disk counts as one that cannot be written. A backup freezes a
/// file system for seconds or minutes, and a worker must not stay drained for ever.
pub const HANG_PATIENCE: Duration = Duration::from_secs(600);

const WRITER_ENDED: &str =
    "the thread that writes the journal has ended, by a bug; restart the daemon (steering goes on)";

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
    /// The directory, for messages.
    dir: String,
    /// When the write in hand began.
    began: Mutex<Option<Instant>>,
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
        let place = store.place();
        let dir = Path::new(&place).parent().unwrap_or(Path::new("/")).display().to_string();
        let (wanted, wake, began) = (Mutex::new(wanted), Condvar::new(), Mutex::default());
        let shared = Arc::new(Shared { wanted, wake, dir, began });
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
        self.durable_within(generation, PATIENCE).await.unwrap_or_else(|| Err(self.hangs_for(PATIENCE)))
    }

    /// Waits until a generation is on the disk, but not longer than `within`; `None`: the disk hangs.
    pub async fn durable_within(&self, generation: u64, within: Duration) -> Option<Result<(), String>> {
        let mut progress = self.progress.clone();
        let tried = progress.wait_for(|it| it.tried >= generation);
        match tokio::time::timeout(within, tried).await {
            Err(_) => None,
            Ok(Err(_)) => Some(Err(WRITER_ENDED.to_owned())),
            Ok(Ok(progress)) if progress.written >= generation => Some(Ok(())),
            Ok(Ok(progress)) => Some(Err(progress.trouble.clone().unwrap_or_default())),
        }
    }

    /// That the journal has not been written for so long, in words.
    #[must_use]
    pub fn hangs_for(&self, time: Duration) -> String {
        format!("the journal has not been written for {} s: the disk of {} hangs", time.as_secs(), self.shared.dir)
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
        let is_late = self.shared.began().is_some_and(|began| began.elapsed() > HANGS_AFTER);
        let hangs = is_late.then(|| hangs(&self.shared.dir));
        // The writer's end of the channel goes with its thread, which ends by a panic only.
        let ended = || self.progress.has_changed().is_err().then(|| WRITER_ENDED.to_owned());
        hangs.or_else(ended).or_else(|| self.progress.borrow().trouble.clone())
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

    fn began(&self) -> MutexGuard<'_, Option<Instant>> {
        self.began.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, mut store: impl Store, progress: &watch::Sender<Progress>) {
        loop {
            // Borrowed no longer than that: whoever changes it waits for readers.
            let before = progress.borrow().clone();
            let Some((bytes, generation)) = self.next(&before) else { return };
            *self.began() = Some(Instant::now());
            let result = bytes.map_err(io::Error::other).and_then(|bytes| store.replace(&bytes));
            *self.began() = None;
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
