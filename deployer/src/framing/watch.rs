//! The thread that reads packets while a roll lasts.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::setpriority_process;
use tracing::{Span, warn};

use super::{
    packet::Segment,
    table::Table,
    verdict::{Framing, Seen},
};
use crate::{
    kernel::{Pair, packets::Packets},
    log::recurring::Recurring,
};

/// The thread's name.
const NAME: &str = "framing";
/// Between two looks at the queue, while nobody is in a hurry: each look costs more than a packet.
const REST: Duration = Duration::from_millis(2);
/// The same while some worker drains, whose connections may be complete for a few 100 us at a time.
const HURRY: Duration = Duration::from_micros(200);
/// How long it takes to notice that it has to end.
const ATTENTION: Duration = Duration::from_millis(50);
/// Its priority, as setpriority(2) has it: it needs little, and what it does late is no longer true.
const NICE: i32 = -10;
/// Packets that are read between two looks at whether it has to end, and whether any were missed.
const BATCH: usize = 1024;

/// Watches the connections between callers on this host and some workers. Ends when dropped.
pub struct FramingWatch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    table: Mutex<Table>,
    draining: Mutex<Vec<SocketAddr>>,
    /// How many are draining.
    hurry: AtomicUsize,
    is_over: AtomicBool,
}

impl FramingWatch {
    /// Begins to watch, in the network namespace of the calling thread. From then on `on_change` is told, by the thread
    /// that reads and as soon as it is seen, how connections to draining workers stand, whenever that changes.
    ///
    /// # Errors
    /// When packets cannot be received.
    pub fn start(workers: &[SocketAddr], on_change: impl Fn(Pair, Framing) + Send + 'static) -> io::Result<Self> {
        let ports: Vec<u16> = workers.iter().map(SocketAddr::port).collect();
        let packets = Packets::open(&ports)?;
        let shared = Arc::new(Shared {
            table: Mutex::new(Table::new(workers, Instant::now())),
            draining: Mutex::default(),
            hurry: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
        });
        // A roll's, if it is for one that the packets are read.
        let (theirs, span) = (Arc::clone(&shared), Span::current());
        let thread = thread::Builder::new()
            .name(NAME.to_owned())
            .spawn(move || span.in_scope(|| theirs.run(packets, &on_change)))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Marks a worker as draining, or no longer: while any is, packets are read almost at once, and `on_change` is told of
    /// its connections. How they stand now is what [`Self::all`] says afterwards.
    pub fn set_draining(&self, worker: SocketAddr, is_draining: bool) {
        let mut draining = lock(&self.shared.draining);
        draining.retain(|other| *other != worker);
        if is_draining {
            draining.push(worker);
        }
        self.shared.hurry.store(draining.len(), Ordering::Release);
    }

    /// How a connection stands, as far as has been read.
    #[must_use]
    pub fn framing(&self, pair: &Pair) -> Seen {
        lock(&self.shared.table).seen(pair)
    }

    /// How all connections to a worker stand of which something has been seen.
    #[must_use]
    pub fn all(&self, worker: SocketAddr) -> Vec<(Pair, Seen)> {
        lock(&self.shared.table).all(worker)
    }
}

impl Drop for FramingWatch {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // It has said what it had to.
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn run(&self, mut packets: Packets, on_change: &impl Fn(Pair, Framing)) {
        // Of the calling thread, which is what the kernel means by "process". Without, it is late more often.
        let _ = setpriority_process(None, NICE);
        let mut trouble = Recurring::new();
        while !self.is_over.load(Ordering::Acquire) {
            let looked = self.look(&mut packets, on_change);
            trouble.note(&looked, "read the packets between callers and workers");
            if looked.is_err() {
                // The device is down: what went before is unsure, and nothing goes now.
                lock(&self.table).miss(Instant::now());
                thread::sleep(ATTENTION);
            }
        }
    }

    fn look(&self, packets: &mut Packets, on_change: &impl Fn(Pair, Framing)) -> io::Result<()> {
        if !packets.wait(ATTENTION)? {
            return Ok(());
        }
        thread::sleep(if self.hurry.load(Ordering::Acquire) == 0 { REST } else { HURRY });
        let now = Instant::now();
        for _ in 0..BATCH {
            let Some((bytes, len)) = packets.read()? else { break };
            let Some(segment) = Segment::parse(bytes, len) else { continue };
            let changed = lock(&self.table).take(&segment, now);
            if let Some((pair, framing)) = changed
                && self.is_awaited(&pair)
            {
                on_change(pair, framing);
            }
        }
        let missed = packets.missed()?;
        if missed > 0 {
            lock(&self.table).miss(now);
            warn!(missed, "packets between callers and workers were missed");
        }
        Ok(())
    }

    fn is_awaited(&self, pair: &Pair) -> bool {
        let is_end = |worker: &SocketAddr| crate::kernel::diag::is_end(pair.worker, pair.caller, *worker);
        self.hurry.load(Ordering::Acquire) > 0 && lock(&self.draining).iter().any(is_end)
    }
}
