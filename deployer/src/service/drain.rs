//! Emptying a worker, by evidence.
//!
//! 1. DRAINING is published, as a lease that this task renews.
//! 2. An RCU grace period: every connect hook that may still have read the old word has ended.
//! 3. No open tickets: every connect() that had passed the hook has shown its socket. Then sock_diag, at both ends: once
//!    where the counters say the same before and after, else twice. It takes each bucket of the kernel's table under its
//!    lock, and goes on where it was as long as it finds nothing; a caller's end stays in its bucket from connect() on.
//! 4. STOPPING is entered by compare-and-swap, while the lease holds. Nothing selects it. Then 2 and 3 once more.
//!
//! Before 1 and 4 enough others must be up ([`super::floor`]): it waits for them.
//!
//! At the deadline, connections and tickets of callers that the service does not steer are cut, and the drain is complete if
//! nothing else is left ([`super::outsiders`]).
//!
//! A lease that ran out under us (the daemon was stopped for a while) has put the worker back into rotation: all of it
//! begins again.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use deployer_common::word::{State, WorkerWord};
use tracing::debug;

use super::{
    Worker,
    alive::Renewal,
    blocking,
    floor::{Floor, Short},
    holds::{Held, held},
    outsiders::{self, Cut, Sorted},
};
use crate::kernel::{
    Tables,
    diag::{self, Evidence, Socket},
    host,
};

/// Between two looks at the counters, which cost two loads.
const POLL: Duration = Duration::from_millis(2);
/// Between two looks at the sockets while the counter says that something is open, and at least ten times as long as the
/// last one took: the end of the last connection should not have to wait for a look that began before it.
const LOOK: Duration = Duration::from_millis(50);
/// Between two looks at all open files for the sockets that have tickets.
const ASK: Duration = Duration::from_secs(1);
/// The first of them.
const SOON: Duration = Duration::from_millis(50);
/// Between two looks for others who serve.
const SHORT: Duration = Duration::from_millis(20);
/// What a lease must still be worth when STOPPING is entered.
const ROOM: Duration = Duration::from_millis(500);
/// Between two words on what holds it.
const TELL: Duration = Duration::from_secs(1);

/// A steered caller's connect() that has no ticket, because the kernel refused socket storage, is waited for so long: from the
/// hook to its SYN it takes microseconds, unless it is preempted.
const UNNOTED: Duration = Duration::from_secs(1);
/// So often in a row nothing but outsiders' connections must be found before those are cut.
const PASSES: u32 = 2;

/// Why a worker was not emptied.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// It is still in use.
    #[error("not empty at the deadline: {0}")]
    Deadline(Held),
    /// Too few others serve.
    #[error("{0}")]
    Floor(Short),
    /// The kernel could not be asked.
    #[error("the kernel could not be asked whether it is empty: {0}")]
    Kernel(#[from] io::Error),
}

/// What the programs have counted of a worker.
#[derive(Default, PartialEq, Eq)]
struct Counted {
    tickets: u64,
    open: u64,
    /// Connections that are not in `open`, although they may be there.
    uncounted: u64,
}

/// What the last look at all open files has said of a worker's tickets.
struct Asked {
    again: Instant,
    tickets: u64,
    are_stale: bool,
}

impl Asked {
    /// Most connect() calls that are on their way are through before it is worth a look.
    fn new() -> Self {
        Self { again: Instant::now() + SOON, tickets: 0, are_stale: false }
    }
}

/// A worker being emptied.
pub struct Drain<'a> {
    tables: &'a Arc<Tables>,
    worker: &'a Worker,
    lease: Duration,
    word: WorkerWord,
    deadline: Instant,
    on_held: &'a (dyn Fn(&Held) + Sync),
    floor: &'a Floor<'a>,
    on_cut: Option<&'a (dyn Fn(&Cut) + Sync)>,
    told: Instant,
    last: Held,
    /// Whoever comes now is counted: every connect() has ended that may have missed the drain.
    sealed: bool,
    /// The worker has been seen to listen on every address.
    wildcard: bool,
    /// The lease is renewed since it was published.
    renewal: Option<Renewal>,
}

impl<'a> Drain<'a> {
    /// A drain that has not begun. `on_held` hears at most once a second what holds it.
    pub fn new(
        tables: &'a Arc<Tables>,
        worker: &'a Worker,
        lease: Duration,
        deadline: Instant,
        on_held: &'a (dyn Fn(&Held) + Sync),
    ) -> Self {
        let word = tables.word(worker.index);
        Self {
            tables,
            worker,
            lease,
            word,
            deadline,
            on_held,
            floor: &|| Ok(()),
            on_cut: None,
            told: Instant::now(),
            last: Held::default(),
            sealed: false,
            wildcard: false,
            renewal: None,
        }
    }

    /// The same, where others must serve before it is drained, and before it is stopped.
    pub fn above(self, floor: &'a Floor<'a>) -> Self {
        Self { floor, ..self }
    }

    /// The same, where connections of callers that the service does not steer are cut at the deadline; `on_cut` hears which.
    pub fn cutting(self, on_cut: Option<&'a (dyn Fn(&Cut) + Sync)>) -> Self {
        Self { on_cut, ..self }
    }

    /// Waits until enough others serve for it to be drained.
    ///
    /// # Errors
    /// [`DrainError::Floor`] at the deadline; nothing is published.
    pub async fn allowed(&mut self) -> Result<(), DrainError> {
        self.await_others(false).await
    }

    /// Publishes the drain: from now on new connections go elsewhere, while the lease lasts. A worker that the kernel has
    /// seen end meanwhile, or begin anew, stays what it is: nobody's fallback, or a cold one.
    pub fn publish(&mut self) {
        self.sealed = false;
        self.renewal.get_or_insert_with(Renewal::begin);
        self.word = self.tables.drain(self.worker.index, until(self.lease));
    }

    /// Waits until the worker is empty.
    ///
    /// # Errors
    /// [`DrainError`]; the drain is still published.
    pub async fn empty(&mut self) -> Result<(), DrainError> {
        while !self.look(true).await? {
            self.publish();
        }
        Ok(())
    }

    /// The same for one that is empty already: only if others have to be waited for is it looked at once more.
    ///
    /// # Errors
    /// [`DrainError`]; the drain is still published.
    pub async fn missed_by_nobody(&mut self) -> Result<(), DrainError> {
        if self.above_floor().is_ok() { Ok(()) } else { self.relieved().await }
    }

    /// Waits until enough others serve, and the worker is empty.
    ///
    /// # Errors
    /// [`DrainError`]; the drain is still published.
    pub async fn relieved(&mut self) -> Result<(), DrainError> {
        self.await_others(true).await?;
        self.empty().await
    }

    /// Whether enough others serve. One that is down itself is missed by nobody.
    fn above_floor(&self) -> Result<(), Short> {
        if self.word.state() == State::Down { Ok(()) } else { (self.floor)() }
    }

    async fn await_others(&mut self, leased: bool) -> Result<(), DrainError> {
        self.told = Instant::now();
        while let Err(short) = self.above_floor() {
            if Instant::now() >= self.deadline {
                return Err(DrainError::Floor(short));
            }
            if leased && !self.keep() {
                self.publish();
            }
            self.tell(Vec::new(), 0).await;
            tokio::time::sleep(SHORT).await;
        }
        Ok(())
    }

    /// Makes it final: from here on nothing selects the worker, and it is empty. Begins again where the lease ran out.
    ///
    /// # Errors
    /// [`DrainError`]; the worker is draining or stopping, and the caller says what becomes of it.
    pub async fn stopping(&mut self) -> Result<(), DrainError> {
        loop {
            let may_stop = self.renew(self.lease) && self.has_room() && self.above_floor().is_ok();
            if may_stop && self.swap(self.word.next(State::Stopping, 0)) {
                self.look(false).await?;
                return Ok(());
            }
            self.publish();
            self.relieved().await?;
        }
    }

    /// For a worker that is out already (failed, down): STOPPING at once, and the evidence.
    ///
    /// # Errors
    /// [`DrainError`]
    pub async fn stopping_at_once(&mut self) -> Result<(), DrainError> {
        self.word = self.tables.publish(self.worker.index, State::Stopping, 0);
        self.look(false).await.map(|_| ())
    }

    /// Renews the lease for as long as it is wanted; `false`: it was lost, and callers may have been let in.
    pub fn keep(&mut self) -> bool {
        self.renew(self.lease / 2)
    }

    /// Grace, tickets, sockets; `Ok(false)`: the lease was lost meanwhile.
    async fn look(&mut self, leased: bool) -> Result<bool, DrainError> {
        blocking(host::grace_period).await?;
        let at = self.worker.at;
        self.wildcard |= blocking(move || diag::listens_on_all(at)).await?;
        let (mut passes, mut asked) = (0, Asked::new());
        let (mut empty, mut next, mut took, mut quiet) = (0, Instant::now(), Duration::ZERO, Instant::now());
        self.told = Instant::now();
        loop {
            if leased && !self.keep() {
                return Ok(false);
            }
            let Counted { tickets, open, .. } = self.counted();
            let mut sockets = Vec::new();
            let begun = Instant::now();
            // The worker's end closes a moment after the caller's: a look that takes long is put off for a part of that.
            quiet = if open == 0 { quiet } else { begun };
            let is_ticketed = tickets > 0 && !self.are_stale(&mut asked, tickets).await;
            if !is_ticketed && !self.is_unsure() && (open == 0 && begun - quiet >= took / 8 || begun >= next) {
                sockets = self.sockets().await?;
                took = begun.elapsed();
                next = begun + LOOK.max(10 * took);
                // Behind a full accept queue callers of before are still on their way: at their own end, or at the worker's,
                // where a connection counts when it is established.
                let on_the_way = diag::states::SYN_SENT | diag::states::SYN_RECV;
                let all_through = !sockets.iter().any(|socket| socket.is_in(on_the_way));
                if all_through && leased && !self.sealed {
                    self.sealed = self.word.state() != State::Draining || self.swap(self.word.sealed());
                }
                empty = if sockets.is_empty() { empty + 1 } else { 0 };
                let all_agree = empty == 1 && open == 0 && self.counted() == Counted::default();
                if all_agree || empty == 2 {
                    debug!(service = self.worker.service, worker = %self.worker.at, "nobody is left");
                    return Ok(true);
                }
            }
            if is_ticketed || !sockets.is_empty() {
                self.tell(sockets, tickets).await;
            }
            if Instant::now() >= self.deadline && self.is_over(&mut passes).await? {
                return Ok(true);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The deadline has passed: whether nothing is left but connections and tickets of callers that are not steered, twice in
    /// a row. Those are cut then.
    async fn is_over(&mut self, passes: &mut u32) -> Result<bool, DrainError> {
        let (tables, at, places, wildcard) =
            (Arc::clone(self.tables), self.worker.at, self.worker.places(), self.wildcard);
        let sorted = blocking(move || Sorted::look(&tables, at, places, wildcard)).await?;
        let Some(on_cut) = self.on_cut.filter(|_| sorted.is_without_callers()) else {
            let tickets = self.counted().tickets;
            let held = held(self.tables, self.worker, self.sockets().await?, tickets).await;
            return Err(DrainError::Deadline(Held { short: self.above_floor().err(), ..held }));
        };
        *passes += 1;
        if *passes < PASSES {
            return Ok(false);
        }
        let (tables, index) = (Arc::clone(self.tables), self.worker.index);
        let cut = blocking(move || Ok(sorted.cut(&tables, index))).await?;
        if cut != Cut::default() {
            on_cut(&cut);
        }
        Ok(true)
    }

    /// Whether all tickets are of connect() calls that have failed, as of a moment ago. Tickets that come later are of others
    /// than steered callers, which the drain leads elsewhere.
    async fn are_stale(&self, asked: &mut Asked, tickets: u64) -> bool {
        if Instant::now() < asked.again && (asked.tickets == tickets || !asked.are_stale) {
            return asked.are_stale;
        }
        let (tables, index) = (Arc::clone(self.tables), self.worker.index);
        let are_stale = blocking(move || Ok(outsiders::are_stale(&tables, index))).await.unwrap_or(false);
        *asked = Asked { again: Instant::now() + ASK, tickets, are_stale };
        are_stale
    }

    fn counted(&self) -> Counted {
        let (count, evidence) = {
            let counts = self.tables.counts();
            (counts.worker(self.worker.index), counts.evidence(self.worker.index))
        };
        let open = count.open.saturating_add(self.tables.seed(self.worker.index));
        Counted { tickets: count.tickets, open, uncounted: evidence.uncounted }
    }

    /// Whether a connect() may be on its way that has no ticket. While the worker drains none is added, but for want of others
    /// that serve, so this ends.
    fn is_unsure(&self) -> bool {
        let last = self.tables.counts().evidence(self.worker.index).unnoted_ns / 1_000_000;
        last != 0 && host::now_ms().saturating_sub(last) < UNNOTED.as_millis() as u64
    }

    async fn sockets(&self) -> io::Result<Vec<Socket>> {
        let (tables, at, index, wildcard) = (Arc::clone(self.tables), self.worker.at, self.worker.index, self.wildcard);
        let look = move || {
            let evidence = Evidence::look(at, wildcard, tables.notes().map(|notes| (notes, index)))?;
            tables.forgive(evidence.left(at));
            Ok(evidence.sockets)
        };
        blocking(look).await
    }

    /// Says what holds it: from the second second on, once a second, and only what is new.
    async fn tell(&mut self, sockets: Vec<Socket>, tickets: u64) {
        if self.told.elapsed() < TELL {
            return;
        }
        self.told = Instant::now();
        let held = held(self.tables, self.worker, sockets, tickets).await;
        let held = Held { short: self.above_floor().err(), ..held };
        if held != self.last {
            self.last = held;
            (self.on_held)(&self.last);
        }
    }

    /// The loop that renews the lease comes round.
    pub fn beat(&self) {
        self.renewal.iter().for_each(Renewal::beat);
    }

    /// Renews once less than `left` remains; `false`: the lease has run out, or somebody else wrote the word. The kernel
    /// does, when the worker's process ends or another one begins: nobody is sent there then, drained or not.
    fn renew(&mut self, left: Duration) -> bool {
        self.beat();
        let found = self.tables.word(self.worker.index);
        if matches!(found.state(), State::Down | State::Cold) {
            self.word = found;
        }
        let (now, state) = (host::now_ms(), self.word.state());
        if state == State::Down {
            return true;
        }
        if now >= self.word.lease_ms() {
            return false;
        }
        if self.word.lease_ms().saturating_sub(now) > left.as_millis() as u64 {
            return true;
        }
        let end = if state == State::Cold { self.worker.quarantine(self.tables) } else { until(self.lease) };
        let new = self.word.next(state, end);
        self.swap(if self.sealed && state == State::Draining { new.sealed() } else { new })
    }

    fn has_room(&self) -> bool {
        self.word.state() == State::Down || self.word.lease_ms() > host::now_ms() + ROOM.as_millis() as u64
    }

    fn swap(&mut self, new: WorkerWord) -> bool {
        match self.tables.replace(self.worker.index, self.word, new) {
            Ok(word) => {
                self.word = word;
                true
            }
            Err(_) => false,
        }
    }
}

fn until(lease: Duration) -> u64 {
    host::now_ms() + lease.as_millis() as u64
}
