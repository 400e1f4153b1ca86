//! Work on the files of the state directory, beside the journal's: one thread does it, in the order in which it came.
//!
//! A file system can stand still for minutes: `fsfreeze` (as backups use it), a storage that does not answer. A task that
//! writes a file itself stands still with it, and takes a thread of the runtime along: two of them stop the API, the watch
//! and the renewal of leases on a machine of two processors. So no task writes: it hands the work over, and waits for it
//! only where it must, and never without a limit.

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tracing::error;

/// A write that takes longer than this is told: the disk hangs.
pub const HANGS_AFTER: Duration = Duration::from_secs(3);
/// The longest that a client waits for a file that is read for it.
const READ_WITHIN: Duration = Duration::from_secs(3);
/// Files that are read at the same time. A read that hangs keeps its place, so that these are all threads that a hanging
/// disk can take.
static READS: Semaphore = Semaphore::const_new(8);

/// What is told of a disk that hangs. The text does not change while it hangs, so that it is told once.
#[must_use]
pub fn hangs(place: &str) -> String {
    format!(
        "the disk of {place} hangs: a write has not ended for more than {} s. Steering and drains go on; rolls wait until \
         the write ends. Next: see whether a backup has frozen the file system (fsfreeze --unfreeze ends that), and \
         whether its storage answers",
        HANGS_AFTER.as_secs()
    )
}

/// A file could not be read in time.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the disk of {place} has not answered for {} s; ask again when it does", READ_WITHIN.as_secs())]
pub struct Hang {
    /// The directory.
    pub place: String,
}

/// Hands work to the thread. Clones share it; what was handed over is done, also after the last of them is gone.
#[derive(Clone)]
pub struct Disk(Arc<Handle>);

struct Handle(Arc<Shared>);

struct Shared {
    /// The directory, for messages.
    place: String,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// The number after that of the last work that was done.
    done: watch::Sender<u64>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// The number of the next.
    next: u64,
    /// When the work in hand began.
    began: Option<Instant>,
    is_started: bool,
    is_closed: bool,
}

struct Job {
    number: u64,
    /// What it writes: a newer one for the same takes its place.
    key: String,
    work: Box<dyn FnOnce() + Send>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Disk").field(&self.0.0.place).finish()
    }
}

impl Disk {
    /// For the files of a directory. The thread is started with the first work.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        let (queue, place) = (Mutex::default(), dir.display().to_string());
        let shared = Shared { place, queue, wake: Condvar::new(), done: watch::Sender::new(0) };
        Self(Arc::new(Handle(Arc::new(shared))))
    }

    /// Has `work` done after all that was handed over before; returns its number. Work that waits under the same `key` is
    /// dropped for it, so that the queue holds as many as there are keys.
    pub fn hand_over(&self, key: &str, work: impl FnOnce() + Send + 'static) -> u64 {
        let shared = &self.0.0;
        let mut queue = shared.queue();
        let work: Box<dyn FnOnce() + Send> = Box::new(work);
        if let Some(waiting) = queue.jobs.iter_mut().find(|job| job.key == key) {
            waiting.work = work;
            return waiting.number;
        }
        let number = queue.next;
        queue.next += 1;
        queue.jobs.push_back(Job { number, key: key.to_owned(), work });
        if !queue.is_started {
            queue.is_started = shared.start();
        }
        let is_started = queue.is_started;
        drop(queue);
        if is_started {
            shared.wake.notify_one();
        } else {
            // No thread can be had: the caller does it.
            while shared.work_once() {}
        }
        number
    }

    /// Waits until the work of this number is done, but not longer than `within`; whether it is.
    pub async fn is_done(&self, number: u64, within: Duration) -> bool {
        let mut done = self.0.0.done.subscribe();
        timeout(within, done.wait_for(|done| *done > number)).await.is_ok_and(|done| done.is_ok())
    }

    /// Waits until all that was handed over is done, but not longer than `within`; whether it is.
    pub async fn flush(&self, within: Duration) -> bool {
        let next = self.0.0.queue().next;
        next == 0 || self.is_done(next - 1, within).await
    }

    /// The same for a thread that may block.
    pub fn flush_blocking(&self, within: Duration) -> bool {
        let (next, until) = (self.0.0.queue().next, Instant::now() + within);
        while *self.0.0.done.borrow() < next {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Whether the work in hand has taken longer than `than`.
    #[must_use]
    pub fn is_late(&self, than: Duration) -> bool {
        self.0.0.queue().began.is_some_and(|began| began.elapsed() > than)
    }

    /// That the disk hangs, in words; `None`: it does not.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.is_late(HANGS_AFTER).then(|| hangs(&self.0.0.place))
    }

    /// Reads files for a client, after all that was handed over is written.
    ///
    /// # Errors
    /// [`Hang`]: there is no answer within 3 s, or too many reads wait for one.
    pub async fn read<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Hang> {
        let until = tokio::time::Instant::now() + READ_WITHIN;
        self.flush(READ_WITHIN).await;
        read_until(&self.0.0.place, until, work).await
    }
}

/// As [`Disk::read`], where nothing has to be written first.
///
/// # Errors
/// [`Hang`]
pub async fn read<T: Send + 'static>(place: &Path, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Hang> {
    read_until(&place.display().to_string(), tokio::time::Instant::now() + READ_WITHIN, work).await
}

async fn read_until<T: Send + 'static>(
    place: &str,
    until: tokio::time::Instant,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Hang> {
    let hang = || Hang { place: place.to_owned() };
    let span = tracing::Span::current();
    let read = async {
        let permit = READS.acquire().await.ok()?;
        let read = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            span.in_scope(work)
        });
        read.await.inspect_err(|error| error!(%error, "reading a file has panicked")).ok()
    };
    tokio::time::timeout_at(until, read).await.ok().flatten().ok_or_else(hang)
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.queue().is_closed = true;
        self.0.wake.notify_one();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread; whether it could be.
    fn start(self: &Arc<Self>) -> bool {
        let theirs = Arc::clone(self);
        std::thread::Builder::new().name("disk".to_owned()).spawn(move || theirs.run()).is_ok()
    }

    fn run(&self) {
        loop {
            while self.work_once() {}
            let queue = self.queue();
            let waiting = |queue: &mut Queue| queue.jobs.is_empty() && !queue.is_closed;
            let queue = self.wake.wait_while(queue, waiting).unwrap_or_else(PoisonError::into_inner);
            if queue.jobs.is_empty() {
                return;
            }
        }
    }

    /// Does the next work; whether there was any.
    fn work_once(&self) -> bool {
        let Some(Job { number, key, work }) = ({
            let mut queue = self.queue();
            queue.began = Some(Instant::now());
            queue.jobs.pop_front()
        }) else {
            self.queue().began = None;
            return false;
        };
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            error!(file = key, "writing a file has panicked");
        }
        self.queue().began = None;
        self.done.send_replace(number + 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);
    const NOW: Duration = Duration::from_millis(20);

    /// A disk whose thread stands still until the sender speaks.
    fn frozen() -> (Disk, mpsc::Sender<()>) {
        let disk = Disk::new(Path::new("/state"));
        let (thaw, frozen) = mpsc::channel::<()>();
        disk.hand_over("first", move || {
            let _ = frozen.recv();
        });
        (disk, thaw)
    }

    #[tokio::test]
    async fn work_is_done_in_its_order_and_once_a_key() {
        let (disk, thaw) = frozen();
        let (sender, said) = mpsc::channel();
        for (key, text) in [("a", "old"), ("b", "b"), ("a", "new")] {
            let sender = sender.clone();
            disk.hand_over(key, move || sender.send(text).unwrap());
        }
        assert!(!disk.flush(NOW).await && !disk.flush_blocking(NOW));
        thaw.send(()).unwrap();
        assert!(disk.flush(SOON).await && disk.flush_blocking(NOW));
        drop(sender);
        assert_eq!(said.iter().collect::<Vec<_>>(), ["new", "b"]);
    }

    #[tokio::test]
    async fn a_panic_does_not_end_it() {
        let disk = Disk::new(Path::new("/state"));
        disk.hand_over("a", || panic!("on purpose"));
        let (sender, said) = mpsc::channel();
        disk.hand_over("b", move || sender.send(()).unwrap());
        assert!(disk.flush(SOON).await && said.recv().is_ok());
    }

    #[tokio::test]
    async fn a_disk_that_stands_still_is_late() {
        let (disk, thaw) = frozen();
        tokio::time::sleep(NOW * 2).await;
        assert!(disk.is_late(NOW) && disk.trouble().is_none());
        thaw.send(()).unwrap();
        assert!(disk.flush(SOON).await && !disk.is_late(Duration::ZERO));
    }

    #[test]
    fn what_was_handed_over_is_done_after_the_last_handle_is_gone() {
        let (disk, thaw) = frozen();
        let (sender, said) = mpsc::channel();
        disk.hand_over("a", move || sender.send(()).unwrap());
        drop(disk);
        thaw.send(()).unwrap();
        said.recv_timeout(SOON).unwrap();
    }
}
