//! The thread that strikes while some worker drains.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::SocketAddr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tracing::{Span, debug, warn};

use super::{Closed, ground::ground};
use crate::{
    framing::{Framing, FramingWatch, Seen},
    kernel::{
        Answer, Ground, Pair, Reaper,
        diag::{Doors, Evidence},
    },
};

/// Between two strikes, at least; and at least as long as the last one took, as it locks every TCP socket in passing.
const PAUSE: Duration = Duration::from_millis(1);
/// Between a closing and the next strike, where its owner has more to close: it wakes, and sleeps again in a moment.
const SOON: Duration = Duration::from_micros(200);
/// After so many strikes that might have closed something and have not, the pause is twice as long, after twice as many three times, and so on.
const FRUITLESS: u32 = 256;
/// Between two strikes at nothing but connections that have to be quiet for seconds, or that stay as they are, and at least
/// ten times as long as the last one took; unless the watch aims at another.
const IDLE: Duration = Duration::from_millis(20);
/// Between two looks at all connections, and at least ten times as long as the last one took. What changes meanwhile, the
/// watch tells at once.
const SURVEY: Duration = Duration::from_millis(50);

/// Closes connections to workers that drain.
pub(super) struct Closer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    reaper: Reaper,
    state: Mutex<State>,
    /// Somebody drains, it is over, or the watch has aimed.
    news: Condvar,
}

#[derive(Default)]
struct State {
    draining: BTreeMap<SocketAddr, Draining>,
    /// Connections closed so far, by worker.
    closed: HashMap<SocketAddr, Closed>,
    /// Since the last strike began, somebody has begun to drain, or the watch has aimed at a connection.
    has_news: bool,
    is_over: bool,
}

struct Draining {
    watch: Arc<FramingWatch>,
    quiet_after: Option<Duration>,
    scope: Scope,
    /// A drain may begin before the hold on a worker that was left ends.
    users: usize,
    /// Where the worker is reached; `None`: not looked at yet.
    doors: Option<Doors>,
    /// What the last strike said of its connections.
    answers: HashMap<Pair, Answer>,
    /// Connections that are aimed at as they have been quiet, not as their last answer is complete.
    quiet: HashSet<Pair>,
    /// Of the roll that drains it, for the log.
    span: Span,
}

/// Which connections to a worker are closed.
enum Scope {
    /// All of them: it drains.
    All,
    /// Those that are there at the first look.
    Former,
    /// Those that were, as far as they are still there.
    These(HashSet<Pair>),
}

impl Scope {
    fn has(&self, pair: &Pair) -> bool {
        match self {
            Self::All => true,
            Self::Former => false,
            Self::These(pairs) => pairs.contains(pair),
        }
    }

    /// After a look at all there are.
    fn look(&mut self, there: &HashMap<Pair, Seen>) {
        match self {
            Self::All => {}
            Self::Former => *self = Self::These(there.keys().copied().collect()),
            Self::These(pairs) => pairs.retain(|pair| there.contains_key(pair)),
        }
    }
}

/// What the watch tells as soon as it is seen: a hot connection is complete for 100 µs at a time.
pub(super) struct Aim(Arc<Shared>);

impl Aim {
    pub(super) fn change(&self, pair: Pair, framing: Framing) {
        let Framing::Complete { asked, answered } = framing else { return self.0.reaper.spare(&pair) };
        let mut state = self.0.state();
        // A strike may be under way: nobody else's is aimed at for a moment.
        let Some(owner) = state.owner_mut(&pair) else { return };
        // Threads stay threads.
        let is_new = !owner.answers.get(&pair).is_some_and(|answer| answer.is_final());
        owner.quiet.remove(&pair);
        // At worst it is aimed at by the next survey.
        let _ = self.0.reaper.aim(pair, Ground::Complete { asked, answered });
        state.has_news |= is_new;
        drop(state);
        self.0.news.notify_one();
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

    /// With `former` only the connections that there are now.
    pub(super) fn begin(
        &self,
        worker: SocketAddr,
        watch: Arc<FramingWatch>,
        quiet_after: Option<Duration>,
        former: bool,
    ) {
        let mut state = self.shared.state();
        watch.set_draining(worker, true);
        let (answers, quiet, span) = (HashMap::new(), HashSet::new(), Span::current());
        let scope = if former { Scope::Former } else { Scope::All };
        let new = || Draining { watch, quiet_after, scope, users: 0, doors: None, answers, quiet, span };
        let draining = state.draining.entry(worker).or_insert_with(new);
        draining.users += 1;
        if !former {
            draining.scope = Scope::All;
        }
        state.has_news = true;
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
        if Arc::strong_count(&over.watch) == 1 {
            // The last one waits for the watch's thread, which nobody here should.
            thread::spawn(move || drop(over));
        }
    }

    pub(super) fn answer(&self, pair: &Pair) -> Option<Answer> {
        self.shared.state().draining.values().find_map(|draining| draining.answers.get(pair).copied())
    }

    /// Of those that were there when it began, how many still are; `None`: all are closed, or it has not looked yet.
    pub(super) fn former(&self, worker: SocketAddr) -> Option<usize> {
        match &self.shared.state().draining.get(&worker)?.scope {
            Scope::These(pairs) => Some(pairs.len()),
            Scope::All | Scope::Former => None,
        }
    }

    pub(super) fn closed(&self, worker: SocketAddr) -> Closed {
        self.shared.state().closed.get(&worker).copied().unwrap_or_default()
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
    /// Who drains of a connection's worker.
    fn owner(&self, pair: &Pair) -> Option<&Draining> {
        self.draining.iter().find(|(worker, it)| it.owns(**worker, pair)).map(|(_, it)| it)
    }

    fn owner_mut(&mut self, pair: &Pair) -> Option<&mut Draining> {
        self.draining.iter_mut().find(|(worker, it)| it.owns(**worker, pair)).map(|(_, it)| it)
    }

    /// The last who has begun it ends it.
    fn end(&mut self, worker: SocketAddr) -> Option<Draining> {
        let draining = self.draining.get_mut(&worker)?;
        draining.users -= 1;
        if draining.users == 0 { self.draining.remove(&worker) } else { None }
    }

    fn note(&mut self, answers: &[(Pair, Answer)]) {
        for (worker, draining) in &mut self.draining {
            let of = answers.iter().filter(|(pair, _)| draining.owns(*worker, pair)).copied();
            draining.answers = of.collect();
            let closed = self.closed.entry(*worker).or_default();
            for (pair, _) in draining.answers.iter().filter(|(_, answer)| **answer == Answer::Closed) {
                let ground = if draining.quiet.remove(pair) { &mut closed.quiet } else { &mut closed.complete };
                *ground += 1;
            }
        }
    }
}

impl Draining {
    /// Whether a connection is one to the worker `at`, and to no other process that listens at its port.
    fn owns(&self, at: SocketAddr, pair: &Pair) -> bool {
        let is_reached = || self.doors.as_ref().is_some_and(|doors| doors.take(pair.worker.ip(), false));
        self.scope.has(pair)
            && pair.worker != pair.caller
            && (pair.worker == at || pair.worker.port() == at.port() && is_reached())
    }
}

/// A worker that drains, as the thread goes through it without the lock.
struct Task {
    worker: SocketAddr,
    watch: Arc<FramingWatch>,
    quiet_after: Option<Duration>,
    is_new: bool,
    wildcard: bool,
    span: Span,
}

impl Shared {
    fn run(&self) {
        let (mut survey_at, mut is_failing, mut fruitless) = (Instant::now(), false, 0);
        while let Some(tasks) = self.tasks() {
            let (begun, is_new) = (Instant::now(), tasks.iter().any(|task| task.is_new));
            if begun >= survey_at || is_new {
                tasks.iter().for_each(|task| self.survey(task));
                survey_at = Instant::now() + SURVEY.max(10 * begun.elapsed());
            }
            let (struck, result) = (Instant::now(), self.strike());
            if let (Err(error), false) = (&result, is_failing) {
                tell(&tasks, error);
            }
            is_failing = result.is_err();
            let answers = result.unwrap_or_default();
            fruitless = match answers.contains(&Answer::Closed) || is_new {
                true => 0,
                false => u32::saturating_add(fruitless, answers.iter().any(|answer| is_close(*answer)).into()),
            };
            let (least, most) = pause(&answers, struck.elapsed(), fruitless);
            thread::sleep(least);
            self.rest(most.saturating_sub(least));
        }
    }

    /// Waits for so long at most, or until there is something new to strike at.
    fn rest(&self, most: Duration) {
        let is_idle = |state: &mut State| !state.has_news && !state.is_over;
        drop(self.news.wait_timeout_while(self.state(), most, is_idle).unwrap_or_else(PoisonError::into_inner));
    }

    /// Who drains; waits until somebody does. `None`: it is over.
    fn tasks(&self) -> Option<Vec<Task>> {
        let mut state = self.state();
        while state.draining.is_empty() && !state.is_over {
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let task = |(worker, it): (&SocketAddr, &Draining)| Task {
            worker: *worker,
            watch: Arc::clone(&it.watch),
            quiet_after: it.quiet_after,
            is_new: it.doors.is_none(),
            wildcard: it.doors.as_ref().is_some_and(Doors::is_wildcard),
            span: it.span.clone(),
        };
        (!state.is_over).then(|| state.draining.iter().map(task).collect())
    }

    /// Aims at all connections to a worker that there is a ground for.
    fn survey(&self, Task { worker, watch, quiet_after, wildcard, span, .. }: &Task) {
        let _in = span.enter();
        let (pairs, doors) = match look(*worker, *wildcard) {
            Ok(found) => found,
            Err(error) => return debug!(%worker, %error, "cannot list the connections to a worker that drains"),
        };
        let unseen = pairs.into_iter().map(|pair| (pair, watch.framing(&pair)));
        let seen: HashMap<Pair, Seen> = unseen.chain(watch.all(*worker)).collect();
        let now = Instant::now();
        let mut state = self.state();
        let Some(draining) = state.draining.get_mut(worker) else { return };
        draining.doors = Some(doors);
        draining.quiet.clear();
        draining.scope.look(&seen);
        for (pair, seen) in &seen {
            if !draining.owns(*worker, pair) {
                continue;
            }
            let ground = ground(seen, now, *quiet_after);
            if matches!(ground, Some(Ground::Quiet { .. })) {
                draining.quiet.insert(*pair);
            }
            match ground {
                // At worst it holds the drain.
                Some(ground) => drop(self.reaper.aim(*pair, ground)),
                None => self.reaper.spare(pair),
            }
        }
    }

    /// Strikes once, and notes what came of it.
    fn strike(&self) -> io::Result<Vec<Answer>> {
        {
            let mut state = self.state();
            state.has_news = false;
            // What was aimed at while its drain ended, or is somebody else's.
            self.reaper.retain(|pair| state.owner(pair).is_some());
        }
        let answers = self.reaper.strike()?;
        self.state().note(&answers);
        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves it as good as it was.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says it to each roll that it is about.
fn tell(tasks: &[Task], error: &io::Error) {
    for (nth, task) in tasks.iter().enumerate() {
        if tasks[..nth].iter().all(|other| other.span.id() != task.span.id()) {
            let _in = task.span.enter();
            warn!(%error, "cannot go over the TCP sockets of this host: kept-alive connections are not closed");
        }
    }
}

/// The connections of callers on this host to a worker, and where that is reached. `wildcard`: it has been seen to listen on
/// every address.
fn look(worker: SocketAddr, wildcard: bool) -> io::Result<(Vec<Pair>, Doors)> {
    let Evidence { sockets, doors, .. } = Evidence::look(worker, wildcard, None)?;
    let callers =
        sockets.iter().filter(|socket| socket.peer.port() == worker.port() && doors.take(socket.peer.ip(), false));
    Ok((callers.map(|socket| Pair { caller: socket.local, worker: socket.peer }).collect(), doors))
}

/// How long nothing is struck, at least and at most, after a strike that took so long, and so many in vain.
fn pause(answers: &[Answer], took: Duration, fruitless: u32) -> (Duration, Duration) {
    // Each closing wakes the owner, so that the others are spared until it sleeps again.
    if answers.contains(&Answer::Closed) && answers.contains(&Answer::Awake) {
        return (SOON, SOON);
    }
    let most = IDLE.max(10 * took);
    let least = PAUSE.max(took).saturating_mul(1 + fruitless / FRUITLESS).min(most);
    (least, if answers.iter().any(|answer| is_close(*answer)) { least } else { most })
}

/// Whether a connection may be closed a moment later, as its owner may go to sleep, or its answer come to its end. The
/// others stay as they are for long.
fn is_close(answer: Answer) -> bool {
    use Answer::{Awake, Changing, Closed, Missing, MovedOn, Unacknowledged, Unread};
    matches!(answer, Awake | Changing | Closed | Missing | MovedOn | Unacknowledged | Unread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strikes_soon_where_it_may_close_something() {
        let (took, none) = (Duration::from_millis(3), Duration::ZERO);
        assert_eq!(pause(&[Answer::Closed, Answer::Awake], took, 0), (SOON, SOON));
        assert_eq!(pause(&[Answer::Closed, Answer::Threads], took, 0), (took, took));
        assert_eq!(pause(&[Answer::Awake], none, 1), (PAUSE, PAUSE));
        assert_eq!(pause(&[Answer::Awake], took, 2 * FRUITLESS), (3 * took, 3 * took));
        assert_eq!(pause(&[Answer::Awake], took, u32::MAX), (10 * took, 10 * took));
        assert_eq!(pause(&[Answer::Threads, Answer::NotQuiet], took, 1), (took, 10 * took));
        assert_eq!(pause(&[], none, 1), (PAUSE, IDLE));
    }
}
