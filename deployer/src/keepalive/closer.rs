//! The thread that strikes while some worker drains.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tracing::warn;

use super::ground::ground;
use crate::{
    framing::{Framing, FramingWatch, Seen},
    kernel::{Answer, Ground, Pair, Reaper, diag},
};

/// Between two strikes, at least; and at least as long as the last one took, as it locks every TCP socket in passing.
const PAUSE: Duration = Duration::from_millis(1);
/// Between two strikes at nothing but connections that have to be quiet for seconds, or that stay as they are.
const IDLE: Duration = Duration::from_millis(20);
/// Between two looks at all connections. What changes meanwhile, the watch tells at once.
const SURVEY: Duration = Duration::from_millis(50);

/// Closes connections to workers that drain.
pub(super) struct Closer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    reaper: Reaper,
    state: Mutex<State>,
    /// Somebody drains, or it is over.
    news: Condvar,
}

#[derive(Default)]
struct State {
    draining: BTreeMap<SocketAddr, Draining>,
    /// Connections closed so far, by worker.
    closed: HashMap<SocketAddr, u64>,
    is_over: bool,
}

struct Draining {
    watch: Arc<FramingWatch>,
    quiet_after: Option<Duration>,
    /// A drain may begin before the hold on a worker that was left ends.
    users: usize,
    /// What the last strike said of its connections.
    answers: HashMap<Pair, Answer>,
}

/// What the watch tells as soon as it is seen: a hot connection is complete for 100 µs at a time.
pub(super) struct Aim(Arc<Shared>);

impl Aim {
    pub(super) fn change(&self, pair: Pair, framing: Framing) {
        let Framing::Complete { asked, answered } = framing else { return self.0.reaper.spare(&pair) };
        // At worst it is aimed at by the next survey.
        let _ = self.0.reaper.aim(pair, Ground::Complete { asked, answered });
    }
}

impl Closer {
    pub(super) fn start(reaper: Reaper) -> io::Result<Self> {
        let shared = Arc::new(Shared { reaper, state: Mutex::default(), news: Condvar::new() });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("closer".to_owned()).spawn(move || theirs.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(super) fn aim(&self) -> Aim {
        Aim(Arc::clone(&self.shared))
    }

    pub(super) fn begin(&self, worker: SocketAddr, watch: Arc<FramingWatch>, quiet_after: Option<Duration>) {
        let mut state = self.shared.state();
        watch.set_draining(worker, true);
        let new = || Draining { watch, quiet_after, users: 0, answers: HashMap::new() };
        state.draining.entry(worker).or_insert_with(new).users += 1;
        self.shared.news.notify_one();
    }

    /// From here on nothing more of it is aimed at. A strike that is under way may still close a connection to it that may be.
    pub(super) fn end(&self, worker: SocketAddr) {
        let mut state = self.shared.state();
        let Some(over) = state.end(worker) else { return };
        over.watch.set_draining(worker, false);
        drop(state);
        over.answers.keys().chain(over.watch.all(worker).iter().map(|(pair, _)| pair)).for_each(|pair| {
            self.shared.reaper.spare(pair);
        });
    }

    pub(super) fn answer(&self, pair: &Pair) -> Option<Answer> {
        self.shared.state().draining.values().find_map(|draining| draining.answers.get(pair).copied())
    }

    pub(super) fn closed(&self, worker: SocketAddr) -> u64 {
        self.shared.state().closed.get(&worker).copied().unwrap_or(0)
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        self.shared.state().is_over = true;
        self.shared.news.notify_one();
        if let Some(thread) = self.thread.take() {
            // It has said what it had to.
            let _ = thread.join();
        }
    }
}

impl State {
    /// The last who has begun it ends it.
    fn end(&mut self, worker: SocketAddr) -> Option<Draining> {
        let draining = self.draining.get_mut(&worker)?;
        draining.users -= 1;
        if draining.users == 0 { self.draining.remove(&worker) } else { None }
    }

    fn note(&mut self, worker: SocketAddr, answers: &[(Pair, Answer)]) {
        let of = answers.iter().filter(|(pair, _)| diag::is_end(pair.worker, pair.caller, worker));
        let of: HashMap<_, _> = of.copied().collect();
        let closed = of.values().filter(|answer| **answer == Answer::Closed).count() as u64;
        *self.closed.entry(worker).or_default() += closed;
        if let Some(draining) = self.draining.get_mut(&worker) {
            draining.answers = of;
        }
    }
}

/// A worker that drains, as the thread goes through it without the lock.
type Task = (SocketAddr, Arc<FramingWatch>, Option<Duration>);

impl Shared {
    fn run(&self) {
        let mut surveyed = None::<Instant>;
        while let Some(tasks) = self.tasks() {
            let begun = Instant::now();
            if surveyed.is_none_or(|last| begun.duration_since(last) >= SURVEY) {
                surveyed = Some(begun);
                for (worker, watch, quiet_after) in &tasks {
                    self.survey(*worker, watch, *quiet_after);
                }
            }
            // What the watch has told while a drain ended.
            self.reaper.retain(|pair| tasks.iter().any(|(worker, ..)| diag::is_end(pair.worker, pair.caller, *worker)));
            let is_close = self.strike(&tasks);
            let pause = if is_close { PAUSE } else { IDLE };
            thread::sleep(pause.max(begun.elapsed()));
        }
    }

    /// Who drains; waits until somebody does. `None`: it is over.
    fn tasks(&self) -> Option<Vec<Task>> {
        let mut state = self.state();
        while state.draining.is_empty() && !state.is_over {
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let task = |(worker, it): (&SocketAddr, &Draining)| (*worker, Arc::clone(&it.watch), it.quiet_after);
        (!state.is_over).then(|| state.draining.iter().map(task).collect())
    }

    /// Aims at all connections to a worker that there is a ground for.
    fn survey(&self, worker: SocketAddr, watch: &FramingWatch, quiet_after: Option<Duration>) {
        let mut seen: HashMap<Pair, Seen> = watch.all(worker).into_iter().collect();
        match diag::holders(worker, false) {
            Ok(sockets) => {
                let callers = sockets.iter().filter(|socket| diag::is_end(socket.peer, socket.local, worker));
                let pairs = callers.map(|socket| Pair { caller: socket.local, worker: socket.peer });
                for pair in pairs {
                    seen.entry(pair).or_insert_with(|| watch.framing(&pair));
                }
            }
            Err(error) => warn!(%worker, %error, "cannot list the connections to a worker that drains"),
        }
        for (pair, seen) in &seen {
            match ground(seen, quiet_after) {
                // At worst it holds the drain.
                Some(ground) => drop(self.reaper.aim(*pair, ground)),
                None => self.reaper.spare(pair),
            }
        }
    }

    /// Strikes once, and notes what came of it. Whether one was close to being closed.
    fn strike(&self, tasks: &[Task]) -> bool {
        let answers = match self.reaper.strike() {
            Ok(answers) => answers,
            Err(error) => {
                warn!(%error, "cannot go over the TCP sockets of this host to close kept-alive ones");
                return false;
            }
        };
        let is_close = |answer: &Answer| !answer.is_final() && !matches!(answer, Answer::NotQuiet | Answer::Gone);
        let close = answers.iter().any(|(_, answer)| is_close(answer));
        let mut state = self.state();
        for (worker, ..) in tasks {
            state.note(*worker, &answers);
        }
        close
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves it as good as it was.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
