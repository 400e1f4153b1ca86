//! A machine of words, processes and a disk, which ends its daemon after so many effects: from then on nothing that the
//! daemon does has any.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use deployer_common::{lanes::FlipWord, word::State as Word};

use crate::{
    api::Phase,
    deploy::health::Figures,
    journal::Store,
    keepalive::Closing,
    roll::world::{How, Moment, World},
    service::{Service, Worker, drain::DrainError, holds::Held, identity::seen::Listens},
    version::Version,
    workers::{ManagerError, Pending, ProcessManager, ProcessPhase, ProcessStatus},
};

/// Workers of the machine.
pub(super) const WORKERS: usize = 5;
/// Its spares, numbered after them.
pub(super) const SPARES: usize = 2;

#[derive(Debug)]
pub(super) struct Sim(Mutex<Inner>);

struct Inner {
    workers: Vec<One>,
    /// Cookies that have been used.
    cookies: u64,
    disk: Vec<u8>,
    /// Daemons so far.
    lives: usize,
    /// Effects and writes of this daemon.
    ops: usize,
    /// After which it ends.
    most: Option<usize>,
    /// After so many the disk is full.
    full: Option<usize>,
    problems: Vec<String>,
    flip: FlipWord,
    /// The fewest that were up at any time.
    fewest: usize,
}

#[derive(Debug)]
struct One {
    word: Word,
    cookie: Option<u64>,
    warm: bool,
    /// Nobody is in it, and nobody has been let in since.
    empty: bool,
    /// Warm-ups of it that are to fail.
    broken: usize,
    /// Drains of it that are to miss their deadline.
    busy: usize,
}

/// What starts and stops its processes.
pub(super) struct SimManager(pub(super) Arc<Sim>);

/// Its disk, as one of its daemons writes it.
pub(super) struct SimDisk {
    sim: Arc<Sim>,
    life: usize,
}

impl Sim {
    pub(super) fn new(broken: &[usize], times: usize) -> Arc<Self> {
        let one = |nth| One {
            word: if nth < WORKERS { Word::Up } else { Word::Down },
            cookie: (nth < WORKERS).then_some(nth as u64 + 1),
            warm: nth < WORKERS,
            empty: false,
            broken: if broken.contains(&nth) { times } else { 0 },
            busy: 0,
        };
        let (workers, cookies) = ((0..WORKERS + SPARES).map(one).collect(), WORKERS as u64);
        let inner = Inner {
            workers,
            cookies,
            disk: Vec::new(),
            lives: 0,
            ops: 0,
            most: None,
            full: None,
            problems: Vec::new(),
            flip: FlipWord::default(),
            fewest: WORKERS,
        };
        Arc::new(Self(Mutex::new(inner)))
    }

    /// A new daemon begins.
    pub(super) fn live(&self, most: Option<usize>) {
        let mut inner = self.0.lock().unwrap();
        (inner.lives, inner.ops, inner.most) = (inner.lives + 1, 0, most);
    }

    /// The daemon finds a worker, as it does from words and listeners.
    pub(super) fn adopt(&self, worker: &Worker) {
        let inner = self.0.lock().unwrap();
        let one = &inner.workers[worker.index as usize];
        if matches!(one.word, Word::Up | Word::Draining) && one.cookie.is_some() {
            worker.control().listeners = one.cookie.into_iter().collect();
            worker.enter(Phase::Up, "found");
        }
    }

    /// A worker misses the deadlines of so many drains.
    pub(super) fn be_busy(&self, nth: usize, drains: usize) {
        self.0.lock().unwrap().workers[nth].busy = drains;
    }

    /// Whether a worker's process is the one that there was at the beginning.
    pub(super) fn is_as_it_was(&self, nth: usize) -> bool {
        self.0.lock().unwrap().workers[nth].cookie == Some(nth as u64 + 1)
    }

    /// The disk is full after so many effects and writes, for good.
    pub(super) fn fill(&self, after: usize) {
        self.0.lock().unwrap().full = Some(after);
    }

    pub(super) async fn ended(&self) {
        while !self.0.lock().unwrap().is_over() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub(super) fn written(&self) -> Vec<u8> {
        self.0.lock().unwrap().disk.clone()
    }

    pub(super) fn problems(&self) -> Vec<String> {
        self.0.lock().unwrap().problems.clone()
    }

    pub(super) fn ops(&self) -> usize {
        self.0.lock().unwrap().ops
    }

    pub(super) fn fewest(&self) -> usize {
        self.0.lock().unwrap().fewest
    }

    /// Whether a process runs.
    pub(super) fn runs(&self, nth: usize) -> bool {
        self.0.lock().unwrap().workers[nth].cookie.is_some()
    }

    pub(super) fn words(&self) -> BTreeMap<usize, Word> {
        self.0.lock().unwrap().workers.iter().map(|one| one.word).enumerate().collect()
    }

    /// Has an effect, or none where the daemon has ended.
    fn act<T>(&self, effect: impl FnOnce(&mut Inner) -> T) -> Option<T> {
        self.act_in(None, effect)
    }

    /// The same, where it is still this daemon's life.
    fn act_in<T>(&self, life: Option<usize>, effect: impl FnOnce(&mut Inner) -> T) -> Option<T> {
        let mut inner = self.0.lock().unwrap();
        if inner.is_over() || life.is_some_and(|life| life != inner.lives) {
            return None;
        }
        inner.ops += 1;
        Some(effect(&mut inner))
    }

    /// The same, for what the daemon waits for.
    async fn wait<T>(&self, effect: impl FnOnce(&mut Inner) -> T) -> T {
        match self.act(effect) {
            Some(done) => done,
            None => pending().await,
        }
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let disk = String::from_utf8_lossy(&self.disk);
        f.debug_struct("Inner")
            .field("problems", &self.problems)
            .field("workers", &self.workers)
            .field("ops", &self.ops)
            .field("disk", &disk)
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn is_over(&self) -> bool {
        self.most.is_some_and(|most| self.ops >= most)
    }

    fn publish(&mut self, nth: usize, word: Word) {
        let one = &mut self.workers[nth];
        let unfit = one.cookie.is_none() || !one.warm;
        if matches!(word, Word::Up | Word::Draining) && unfit {
            self.problems.push(format!("worker {nth} is {word:?}, and not warm"));
        }
        one.word = word;
        one.empty &= matches!(word, Word::Stopping | Word::Failed | Word::Down);
        let up = self.workers.iter().filter(|one| one.word == Word::Up).count();
        self.fewest = self.fewest.min(up);
    }

    fn stop(&mut self, nth: usize) {
        let one = &mut self.workers[nth];
        if one.cookie.is_some() && (one.word != Word::Stopping || !one.empty) {
            self.problems.push(format!("worker {nth} is stopped undrained, {one:?}"));
        }
        one.cookie = None;
    }

    /// What comes of waiting for a worker that is draining.
    fn empty(&mut self, nth: usize) -> Result<(), DrainError> {
        if self.workers[nth].busy > 0 {
            self.workers[nth].busy -= 1;
            return Err(DrainError::Deadline(Held { open: 1, ..Held::default() }));
        }
        self.workers[nth].empty = true;
        self.publish(nth, Word::Stopping);
        Ok(())
    }

    fn start(&mut self, nth: usize) {
        self.cookies += 1;
        let cookie = self.cookies;
        let one = &mut self.workers[nth];
        if one.cookie.is_none() {
            (one.cookie, one.warm, one.empty) = (Some(cookie), false, false);
        }
    }
}

impl World for Sim {
    fn steering(&self, _: &Service) -> Result<u64, String> {
        Ok(0)
    }

    fn state(&self, worker: &Worker) -> Word {
        self.0.lock().unwrap().workers[worker.index as usize].word
    }

    fn publish(&self, worker: &Worker, state: Word) {
        self.act(|inner| inner.publish(worker.index as usize, state));
    }

    fn hold(&self, worker: &Worker, _: Duration) {
        self.publish(worker, Word::Draining);
    }

    fn stay(&self, worker: &Worker, _: Duration) -> Word {
        let nth = worker.index as usize;
        if self.state(worker) == Word::Up {
            self.act(|inner| inner.publish(nth, Word::Draining));
        }
        self.state(worker)
    }

    fn closing(&self, worker: &Worker, _: Option<Duration>) -> Closing {
        Closing::nothing(worker.at)
    }

    fn drain<'a>(&'a self, worker: &'a Worker, how: How<'a>) -> Pending<'a, Result<(), DrainError>> {
        Box::pin(async move {
            let nth = worker.index as usize;
            (how.floor)().map_err(DrainError::Floor)?;
            self.wait(|inner| inner.publish(nth, Word::Draining)).await;
            (how.on_published)();
            (how.floor)().map_err(DrainError::Floor)?;
            self.wait(|inner| inner.empty(nth)).await
        })
    }

    fn empty<'a>(&'a self, worker: &'a Worker, _: How<'a>) -> Pending<'a, Result<(), DrainError>> {
        Box::pin(async move {
            let nth = worker.index as usize;
            self.wait(|inner| {
                inner.workers[nth].empty = true;
                inner.publish(nth, Word::Stopping);
            })
            .await;
            Ok(())
        })
    }

    fn listeners<'a>(&'a self, worker: &'a Worker) -> Pending<'a, io::Result<BTreeSet<u64>>> {
        let inner = self.0.lock().unwrap();
        let found = inner.workers[worker.index as usize].cookie.into_iter().collect();
        Box::pin(async move { Ok(found) })
    }

    fn listens<'a>(&'a self, _: &'a Service, worker: &'a Worker) -> Pending<'a, io::Result<Listens>> {
        let cookie = self.0.lock().unwrap().workers[worker.index as usize].cookie;
        let listens = cookie.map_or(Listens::Nothing, |cookie| Listens::Worker([cookie].into()));
        Box::pin(async move { Ok(listens) })
    }

    fn answers<'a>(&'a self, _: &'a Service, _: &'a Worker) -> Pending<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn warm_up<'a>(
        &'a self,
        _: &'a Service,
        worker: &'a Worker,
        _: Option<&'a Version>,
        _: Instant,
    ) -> Pending<'a, Result<Option<Version>, String>> {
        Box::pin(self.wait(|inner| {
            let one = &mut inner.workers[worker.index as usize];
            if one.broken > 0 {
                one.broken -= 1;
                return Err("broken".to_owned());
            }
            one.warm = true;
            Ok(None)
        }))
    }

    fn flip(&self, _: &Service) -> FlipWord {
        self.0.lock().unwrap().flip
    }

    fn publish_flip(&self, _: &Service, word: FlipWord) {
        self.act(|inner| inner.flip = word);
    }

    fn closing_former(&self, worker: &Worker, quiet_after: Option<Duration>) -> Closing {
        self.closing(worker, quiet_after)
    }

    fn figures(&self, _: &Service, _: u32) -> Figures {
        Figures::default()
    }

    fn mark(&self, _: Moment<'_>) {}
}

fn number(at: SocketAddr) -> usize {
    usize::from(at.port()) - 8000
}

impl ProcessManager for SimManager {
    fn name(&self, worker: SocketAddr) -> String {
        worker.to_string()
    }

    fn check<'a>(&'a self, _: &'a [SocketAddr]) -> Pending<'a, Result<(), ManagerError>> {
        Box::pin(async { Ok(()) })
    }

    fn stop(&self, worker: SocketAddr) -> Pending<'_, Result<(), ManagerError>> {
        Box::pin(async move {
            self.0.wait(|inner| inner.stop(number(worker))).await;
            Ok(())
        })
    }

    fn start(&self, worker: SocketAddr) -> Pending<'_, Result<(), ManagerError>> {
        Box::pin(async move {
            self.0.wait(|inner| inner.start(number(worker))).await;
            Ok(())
        })
    }

    fn status(&self, _: SocketAddr) -> Pending<'_, Result<ProcessStatus, ManagerError>> {
        Box::pin(async { Ok(ProcessStatus { phase: ProcessPhase::Running, pid: None, detail: String::new() }) })
    }
}

impl SimDisk {
    pub(super) fn new(sim: &Arc<Sim>) -> Self {
        Self { sim: Arc::clone(sim), life: sim.0.lock().unwrap().lives }
    }

    fn is_mine(&self) -> bool {
        self.sim.0.lock().unwrap().lives == self.life
    }
}

impl Store for SimDisk {
    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        let write = |inner: &mut Inner| {
            if inner.full.is_some_and(|after| inner.ops > after) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            inner.disk = bytes.to_vec();
            Ok(())
        };
        if let Some(result) = self.sim.act_in(Some(self.life), write) {
            return result;
        }
        // Nobody is told of a write after the end.
        while self.is_mine() {
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(io::ErrorKind::NotConnected.into())
    }

    fn place(&self) -> String {
        "/state.json".to_owned()
    }
}
