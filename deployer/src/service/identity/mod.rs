//! Whose the sockets are that listen at a worker's address. Only what the process manager has started for a worker is the
//! worker; everything else is a stranger, which is never sent anything, and is named.
//!
//! The manager is asked once for each new socket ([`ask`]); what it says is kept by the socket's cookie ([`seen`]). What
//! makes a socket the worker's is a rule of its own ([`rule`]).

pub mod rule;
pub mod seen;
pub mod squatters;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::Poll,
    time::Duration,
};

use tracing::Span;

use self::{
    rule::{Expected, Facts, Whose, is_foreign, whose},
    seen::{Answer, Listens},
};
use super::{Service, Worker, blocking};
use crate::{
    kernel::{
        diag::{self, Socket, states},
        family::{self, Family},
        procs::{self, Process},
        users,
    },
    workers::{Mark, Started},
};

/// Workers whose manager is asked at the same time.
const AT_A_TIME: usize = 8;

/// The sockets that are given the connections to `at`, of those that listen: those at that very address; where there are
/// none, those at every address (`__inet_lookup_listener` looks in this order).
#[must_use]
pub fn takers(found: &[Socket], at: SocketAddr) -> Vec<&Socket> {
    let at_port = || found.iter().filter(|socket| socket.local.port() == at.port());
    let exact: Vec<_> = at_port().filter(|socket| socket.local.ip() == at.ip()).collect();
    if exact.is_empty() { at_port().filter(|socket| is_wildcard_for(socket, at.ip())).collect() } else { exact }
}

/// Whether a socket listens at every address, those of `ip`'s family included.
pub(super) fn is_wildcard_for(socket: &Socket, ip: IpAddr) -> bool {
    match (socket.local.ip(), ip) {
        (IpAddr::V4(local), IpAddr::V4(_)) => local.is_unspecified(),
        (IpAddr::V6(local), IpAddr::V4(_)) => local.is_unspecified() && !socket.origin.v6only,
        (IpAddr::V6(local), IpAddr::V6(_)) => local.is_unspecified(),
        (IpAddr::V4(_), IpAddr::V6(_)) => false,
    }
}

/// All sockets that listen, by port: a user may have very many, and there may be very many workers.
#[derive(Debug, Default)]
pub struct Listening(HashMap<u16, Vec<Socket>>);

impl Listening {
    /// As they are now.
    ///
    /// # Errors
    /// When sock_diag fails.
    pub async fn look() -> io::Result<Self> {
        blocking(|| diag::sockets(states::LISTEN, None)).await.map(Self::from)
    }

    /// Those at a port.
    #[must_use]
    pub fn port(&self, port: u16) -> &[Socket] {
        self.0.get(&port).map_or(&[], Vec::as_slice)
    }

    /// Those that listen at a worker's address, or at its port of every address.
    #[must_use]
    pub fn at(&self, worker: SocketAddr) -> Vec<Socket> {
        at(self.port(worker.port()), worker)
    }
}

impl From<Vec<Socket>> for Listening {
    fn from(all: Vec<Socket>) -> Self {
        let mut by_port: HashMap<u16, Vec<Socket>> = HashMap::new();
        all.into_iter().for_each(|socket| by_port.entry(socket.local.port()).or_default().push(socket));
        Self(by_port)
    }
}

/// The sockets at a worker's port that listen at its address, or at every address.
fn at(listening: &[Socket], worker: SocketAddr) -> Vec<Socket> {
    let is_at = |socket: &&Socket| {
        let is_there = socket.local.ip() == worker.ip() || is_wildcard_for(socket, worker.ip());
        socket.local.port() == worker.port() && is_there
    };
    listening.iter().filter(is_at).cloned().collect()
}

/// What listens at a worker's address, by a look at the sockets now. The manager is asked where that is not known, or is due
/// to be asked again.
///
/// # Errors
/// When sock_diag fails.
pub async fn look(service: &Service, worker: &Worker) -> io::Result<Listens> {
    let port = worker.at.port();
    let found = at(&blocking(move || diag::sockets(states::LISTEN, Some(port))).await?, worker.at);
    if worker.seen().ask(&found) {
        ask(service, &[(worker, found.clone())]).await;
    }
    Ok(worker.seen().listens(&found, worker.at))
}

/// Looks at workers before anything is decided about them, for so long at most. What is not known by then is asked for by
/// the watch.
pub async fn look_first(services: impl Iterator<Item = &Service>, listening: &Listening, within: Duration) {
    let looks = services.map(|service| -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let found: Vec<_> = service.members().map(|worker| (&**worker, listening.at(worker.at))).collect();
        let due: Vec<_> = found.into_iter().filter(|(worker, found)| worker.seen().ask(found)).collect();
        Box::pin(async move {
            if !due.is_empty() && tokio::time::timeout(within, ask(service, &due)).await.is_err() {
                due.iter().for_each(|(worker, _)| worker.seen().unasked());
            }
        })
    });
    all(looks.collect()).await;
}

/// Asks the manager what it has started for these workers, and takes note of whose their sockets are.
pub async fn ask(service: &Service, due: &[(&Worker, Vec<Socket>)]) {
    let undo: Vec<_> = due.iter().map(|(worker, _)| Undo(worker)).collect();
    let mut started = Vec::with_capacity(due.len());
    for some in due.chunks(AT_A_TIME) {
        started.extend(all(some.iter().map(|(worker, _)| service.manager.started(worker.at)).collect()).await);
    }
    let usual: BTreeSet<u32> = service.members().flat_map(|worker| worker.seen().users().collect::<Vec<_>>()).collect();
    let user = service.manager.user();
    let asked = due.iter().zip(started).map(|((worker, found), started)| Asked {
        name: service.manager.name(worker.at),
        at: worker.at,
        found: found.clone(),
        started: started.map_err(|error| error.to_string()),
    });
    let asked: Vec<_> = asked.collect();
    let judged = blocking(move || Ok(judge(asked, user, &usual))).await;
    for ((worker, _), answers) in due.iter().zip(judged.unwrap_or_default()) {
        let mut seen = worker.seen();
        answers.into_iter().for_each(|(socket, answer)| seen.answer(&socket, answer));
    }
    drop(undo);
}

/// Sockets may be asked about again, whatever has become of a question.
struct Undo<'a>(&'a Worker);

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        self.0.seen().unasked();
    }
}

/// Waits for all of them at the same time; results in their order.
async fn all<T>(mut open: Vec<Pin<Box<dyn Future<Output = T> + Send + '_>>>) -> Vec<T> {
    let mut done: Vec<Option<T>> = open.iter().map(|_| None).collect();
    std::future::poll_fn(move |context| {
        for (one, done) in open.iter_mut().zip(&mut done).filter(|(_, done)| done.is_none()) {
            if let Poll::Ready(result) = one.as_mut().poll(context) {
                *done = Some(result);
            }
        }
        if done.iter().all(Option::is_some) { Poll::Ready(done.drain(..).flatten().collect()) } else { Poll::Pending }
    })
    .await
}

/// A worker with the manager's answer.
struct Asked {
    /// The manager's name for it.
    name: String,
    at: SocketAddr,
    found: Vec<Socket>,
    /// What the manager has started for it, or why that is not known.
    started: Result<Started, String>,
}

/// What belongs to a worker, as the manager says and `/proc` shows.
#[derive(Default)]
struct Own {
    cgroups: BTreeSet<u64>,
    sockets: BTreeSet<u32>,
    /// A socket must belong to what the manager has named: it always names something, and that can be looked at.
    is_traced: bool,
    users: BTreeSet<u32>,
}

/// Judges the sockets of each. Walks over `/proc`.
fn judge(asked: Vec<Asked>, user: Option<u32>, usual: &BTreeSet<u32>) -> Vec<Vec<(Socket, Answer)>> {
    let mut family = None;
    let judged = asked.into_iter().map(|mut asked| {
        let known = asked.started.and_then(|started| {
            let own = own(&started, &mut family);
            own.map(|own| (started, own)).map_err(|error| format!("its processes cannot be looked at: {error}"))
        });
        let verdicts = verdicts(&asked.found, user, usual, known.as_ref().ok());
        asked.started = known.map(|(started, _)| started);
        (asked, verdicts)
    });
    let judged: Vec<_> = judged.collect();
    // Their processes are looked for once, and only for sockets that are none of the workers'.
    let others = judged.iter().flat_map(|(_, verdicts)| verdicts).filter(|(_, whose)| *whose != Some(Whose::Worker));
    let holders = procs::holding(&others.map(|(socket, _)| socket.inode).filter(|inode| *inode != 0).collect());
    let answers = judged.into_iter().map(|(asked, verdicts)| {
        let answer = |(socket, whose): (Socket, Option<Whose>)| {
            let answer = answer(&asked, &socket, whose, user, &holders);
            (socket, answer)
        };
        verdicts.into_iter().map(answer).collect()
    });
    answers.collect()
}

/// Whose each socket is, by what the manager has started. `None`: that is not known, and the user says nothing.
fn verdicts(
    found: &[Socket],
    user: Option<u32>,
    usual: &BTreeSet<u32>,
    known: Option<&(Started, Own)>,
) -> Vec<(Socket, Option<Whose>)> {
    let Some((started, own)) = known else {
        let foreign = |socket: &Socket| is_foreign(socket.origin.uid, user, usual).then_some(Whose::Stranger);
        return found.iter().map(|socket| (socket.clone(), foreign(socket))).collect();
    };
    let expected = Expected {
        runs: started.runs,
        is_traced: own.is_traced,
        user: started.user,
        usual: if own.users.is_empty() { usual.clone() } else { own.users.clone() },
    };
    let judged = found.iter().map(|socket| {
        let facts = Facts {
            user: socket.origin.uid,
            is_in_cgroup: socket.origin.cgroup.is_some_and(|id| own.cgroups.contains(&id)),
            is_held: own.sockets.contains(&socket.inode),
        };
        (socket.clone(), Some(whose(facts, &expected)))
    });
    judged.collect()
}

/// # Errors
/// When the daemon lacks descriptors or memory for a look: what it did not see may be there.
fn own(started: &Started, family: &mut Option<Family>) -> io::Result<Own> {
    let mut own = Own { is_traced: started.mark != Mark::User, ..Own::default() };
    let pids = match &started.mark {
        Mark::Cgroup(cgroup) => {
            let tree = family::tree(cgroup)?;
            own.cgroups = tree.ids;
            tree.pids
        }
        Mark::Process(pid) => {
            own.users = family::user_of(*pid)?.into_iter().collect();
            // Where the daemon may not look at it, its user has to do.
            own.is_traced = !procs::exists(*pid) || procs::readable_sockets_of(*pid)?.is_some();
            match family {
                Some(family) => family.of(*pid),
                None => family.insert(Family::read()?).of(*pid),
            }
        }
        Mark::User | Mark::Nothing => BTreeSet::new(),
    };
    for pid in pids {
        own.sockets.extend(procs::sockets_of(pid)?);
    }
    Ok(own)
}

fn answer(
    asked: &Asked,
    socket: &Socket,
    whose: Option<Whose>,
    user: Option<u32>,
    holders: &HashMap<u32, Process>,
) -> Answer {
    let who = || format!("{} listens at {}", who(socket, holders), socket.local);
    match (&asked.started, whose) {
        (Ok(_), Some(Whose::Worker)) => Answer::Is(Whose::Worker, String::new()),
        (Ok(started), Some(whose)) => Answer::Is(whose, format!("{}{}", who(), why(asked, started, socket))),
        (Err(error), Some(Whose::Stranger)) => {
            let usual = user.map_or_else(String::new, |user| format!(", which is {}", users::name(user)));
            let foreign = format!(
                "{}, and runs as another user than the workers{usual}. No connection is sent to it. Next: end that \
                 process; the worker then comes back by itself",
                who()
            );
            Answer::Silent(error.clone(), Some(foreign))
        }
        (Err(error), _) => Answer::Silent(error.clone(), None),
        (Ok(_), None) => Answer::Silent("its manager has not been asked".to_owned(), None),
    }
}

/// Why a socket is not the worker's, and what to do.
fn why(asked: &Asked, started: &Started, socket: &Socket) -> String {
    let Asked { name, at, .. } = asked;
    let why = match (started, socket.origin.uid) {
        (Started { runs: false, .. }, _) => format!("the process manager says that {name} does not run"),
        (Started { mark: Mark::Cgroup(cgroup), .. }, _) => {
            format!("it is outside the cgroup of {name}, {}", cgroup.display())
        }
        (Started { mark: Mark::Process(pid), .. }, _) => {
            format!("it does not descend from process {pid}, which is {name}")
        }
        (Started { user: Some(user), .. }, uid) if uid != *user => format!(
            "{name} runs as user {} (if it is the worker, have the status command print `pid N`)",
            users::name(*user)
        ),
        _ => format!("the process manager names no process of {name}"),
    };
    format!(
        ", and is not the worker: {why}. No connection to {at} is sent to it. Next: end that process; the worker then \
         comes back by itself"
    )
}

/// "python3 (pid 4711, user nobody)"
pub(crate) fn who(socket: &Socket, holders: &HashMap<u32, Process>) -> String {
    let user = users::name(socket.origin.uid);
    match holders.get(&socket.inode) {
        Some(Process { pid, command }) => format!("{} (pid {pid}, user {user})", plain(command)),
        None => format!("a process that cannot be seen (user {user})"),
    }
}

/// A process names itself as it likes.
fn plain(command: &str) -> String {
    command.chars().map(|char| if char.is_control() { '?' } else { char }).collect()
}

/// Answers the questions of a watch: one task for each service that has any, so that a manager that hangs keeps no other.
pub(super) fn ask_apart(
    service: &std::sync::Arc<Service>,
    due: BTreeMap<u32, Vec<Socket>>,
    news: &std::sync::Arc<tokio::sync::Notify>,
) {
    let (service, news, span) = (std::sync::Arc::clone(service), std::sync::Arc::clone(news), Span::none());
    tokio::spawn(tracing::Instrument::instrument(
        async move {
            let due: Vec<_> =
                service.members().filter_map(|worker| Some((&**worker, due.get(&worker.index)?.clone()))).collect();
            ask(&service, &due).await;
            news.notify_one();
        },
        span,
    ));
}
