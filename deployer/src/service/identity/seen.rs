//! What has been found out of the sockets that listen at one worker's address. A socket is known by its cookie, which is
//! used once while the machine runs, so that a look costs nothing while nothing changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{rule::Whose, takers};
use crate::kernel::diag::Socket;
use std::net::SocketAddr;

/// How long a manager may take to name what it has started, before a socket that no manager answers for is a stranger's.
const GRACE: Duration = Duration::from_secs(1);
/// Between two questions about a socket in that time.
const ASK_SOON: Duration = Duration::from_millis(250);
/// Between two questions to a manager that did not answer.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// Between two questions about a stranger's socket, which the manager may still turn out to have started.
const ASK_LATER: Duration = Duration::from_secs(3);

/// What listens at a worker's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listens {
    /// Nothing.
    Nothing,
    /// The worker; cookies of its sockets.
    Worker(BTreeSet<u64>),
    /// Something of which the manager has not been asked yet, or could not be asked; why not, if it was tried.
    Unknown(Option<String>),
    /// Something that the manager has not started, as it says now; what.
    Doubtful(String),
    /// A stranger; its process, why it is not the worker's, and what to do.
    Stranger(String),
}

/// What is known of the sockets by cookie.
#[derive(Debug, Default)]
pub struct Seen(BTreeMap<u64, One>);

#[derive(Debug)]
struct One {
    verdict: Verdict,
    user: u32,
    first: Instant,
    asked: Option<Instant>,
    is_asking: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Not known; why the manager could not be asked, if it was tried.
    Unknown(Option<String>),
    /// Served when the daemon began with the service, and serves on until the manager has answered.
    Found,
    /// Served under a former daemon. Only another user makes it a stranger's: its process may have changed since.
    Former,
    Worker,
    Doubtful(String),
    Stranger(String),
}

/// What a question to the manager has come to, for one socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The rule's answer, with the process and the reason in words.
    Is(Whose, String),
    /// The manager cannot be asked; why not, and whether the user is plainly another, with the process in words.
    Silent(String, Option<String>),
}

impl Seen {
    /// Forgets the sockets that are no longer there.
    pub fn retain(&mut self, found: &[Socket]) {
        self.0.retain(|cookie, _| found.iter().any(|socket| socket.cookie == *cookie));
    }

    /// Whether the manager should be asked about any of these; then [`Seen::answer`] must follow, or [`Seen::unasked`].
    pub fn ask(&mut self, found: &[Socket]) -> bool {
        let now = Instant::now();
        let mut is_due = false;
        for socket in found {
            let one = self.entry(socket);
            let pause = match one.verdict {
                Verdict::Worker => continue,
                Verdict::Unknown(_) | Verdict::Found | Verdict::Former => ASK_AGAIN,
                Verdict::Doubtful(_) => ASK_SOON,
                Verdict::Stranger(_) => ASK_LATER,
            };
            if !one.is_asking && one.asked.is_none_or(|asked| now - asked >= pause) {
                (one.is_asking, is_due) = (true, true);
            }
        }
        is_due
    }

    /// A question has come to nothing, and may be asked again at once.
    pub fn unasked(&mut self) {
        self.0.values_mut().for_each(|one| one.is_asking = false);
    }

    /// Takes note of an answer.
    pub fn answer(&mut self, socket: &Socket, answer: Answer) {
        let one = self.entry(socket);
        let now = Instant::now();
        let was_doubtful = matches!(one.verdict, Verdict::Doubtful(_));
        (one.is_asking, one.asked) = (false, Some(now));
        if matches!(one.verdict, Verdict::Unknown(_)) {
            // Time without an answer is no time to have been named in.
            one.first = now;
        }
        match answer {
            Answer::Is(Whose::Worker, _) => one.verdict = Verdict::Worker,
            Answer::Is(Whose::Stranger, who) | Answer::Silent(_, Some(who)) => one.verdict = Verdict::Stranger(who),
            Answer::Is(Whose::Doubtful, who) => match one.verdict {
                Verdict::Former => one.verdict = Verdict::Worker,
                Verdict::Stranger(_) => one.verdict = Verdict::Stranger(who),
                _ if was_doubtful && now - one.first >= GRACE => one.verdict = Verdict::Stranger(who),
                _ => one.verdict = Verdict::Doubtful(who),
            },
            Answer::Silent(why, None) if matches!(one.verdict, Verdict::Unknown(_)) => {
                one.verdict = Verdict::Unknown(Some(why));
            }
            Answer::Silent(..) => {}
        }
    }

    /// These serve, and did so before this daemon had to do with them: they go on until the manager has answered.
    pub fn found(&mut self, found: &[Socket]) {
        for socket in found {
            let one = self.entry(socket);
            if matches!(one.verdict, Verdict::Unknown(_)) {
                one.verdict = Verdict::Found;
            }
        }
    }

    /// These served under a former daemon.
    pub fn former(&mut self, cookies: &BTreeSet<u64>) {
        for (_, one) in self.0.iter_mut().filter(|(cookie, _)| cookies.contains(cookie)) {
            if matches!(one.verdict, Verdict::Unknown(_) | Verdict::Found | Verdict::Doubtful(_)) {
                one.verdict = Verdict::Former;
            }
        }
    }

    /// What was found serving is to be looked at like anything else.
    pub fn distrust(&mut self) {
        self.0.retain(|_, one| !matches!(one.verdict, Verdict::Found | Verdict::Former));
    }

    /// The users of the sockets that are the worker's, or were found serving.
    pub fn users(&self) -> impl Iterator<Item = u32> {
        let is_its = |one: &&One| matches!(one.verdict, Verdict::Worker | Verdict::Found | Verdict::Former);
        self.0.values().filter(is_its).map(|one| one.user)
    }

    /// Whether a socket is the worker's, or was found serving.
    #[must_use]
    pub fn is_worker(&self, cookie: u64) -> bool {
        let is_its = |one: &One| matches!(one.verdict, Verdict::Worker | Verdict::Found | Verdict::Former);
        self.0.get(&cookie).is_some_and(is_its)
    }

    /// The stranger that has this socket.
    #[must_use]
    pub fn stranger(&self, cookie: u64) -> Option<&str> {
        match self.0.get(&cookie).map(|one| &one.verdict) {
            Some(Verdict::Stranger(who)) => Some(who),
            _ => None,
        }
    }

    /// What listens at `at`, of these sockets. One stranger among those that are given connections makes the whole address
    /// a stranger's: the kernel chooses among them. One that is only doubtful does not.
    #[must_use]
    pub fn listens(&self, found: &[Socket], at: SocketAddr) -> Listens {
        let takers = takers(found, at);
        if takers.is_empty() {
            return Listens::Nothing;
        }
        if let Some(who) = takers.iter().find_map(|socket| self.stranger(socket.cookie)) {
            return Listens::Stranger(who.to_owned());
        }
        let cookies = takers.iter().map(|socket| socket.cookie);
        let own: BTreeSet<_> = cookies.clone().filter(|cookie| self.is_worker(*cookie)).collect();
        if !own.is_empty() {
            return Listens::Worker(own);
        }
        let mut verdicts = cookies.filter_map(|cookie| self.0.get(&cookie)).map(|one| &one.verdict);
        match verdicts.find(|verdict| matches!(verdict, Verdict::Doubtful(_) | Verdict::Unknown(Some(_)))) {
            Some(Verdict::Doubtful(who)) => Listens::Doubtful(who.clone()),
            Some(Verdict::Unknown(why)) => Listens::Unknown(why.clone()),
            _ => Listens::Unknown(None),
        }
    }

    fn entry(&mut self, socket: &Socket) -> &mut One {
        self.0.entry(socket.cookie).or_insert_with(|| One {
            verdict: Verdict::Unknown(None),
            user: socket.origin.uid,
            first: Instant::now(),
            asked: None,
            is_asking: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::diag::Origin;

    const AT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8000);

    fn socket(local: &str, cookie: u64) -> Socket {
        let (local, peer) = (local.parse().unwrap(), "0.0.0.0:0".parse().unwrap());
        Socket { state: 10, local, peer, cookie, inode: 1, origin: Origin::default() }
    }

    fn is(whose: Whose) -> Answer {
        Answer::Is(whose, "python3 (pid 7)".to_owned())
    }

    #[test]
    fn a_stranger_among_those_that_are_given_connections_is_enough() {
        let (own, other) = (socket("127.0.0.1:8000", 1), socket("127.0.0.1:8000", 2));
        let mut seen = Seen::default();
        assert!(seen.ask(&[own.clone(), other.clone()]));
        assert!(!seen.ask(&[own.clone(), other.clone()]), "it is being asked");
        assert_eq!(seen.listens(std::slice::from_ref(&own), AT), Listens::Unknown(None));
        seen.answer(&own, is(Whose::Worker));
        assert_eq!(seen.listens(&[own.clone(), other.clone()], AT), Listens::Worker([1].into()));
        seen.answer(&other, is(Whose::Stranger));
        assert_eq!(seen.listens(&[own.clone(), other], AT), Listens::Stranger("python3 (pid 7)".to_owned()));
        // On a wildcard address it is given nothing while the worker has its own.
        let wide = socket("0.0.0.0:8000", 3);
        seen.answer(&wide, is(Whose::Stranger));
        assert_eq!(seen.listens(&[own, wide.clone()], AT), Listens::Worker([1].into()));
        assert!(matches!(seen.listens(std::slice::from_ref(&wide), AT), Listens::Stranger(_)));
        seen.retain(&[]);
        assert_eq!(seen.listens(&[wide], AT), Listens::Unknown(None));
        assert_eq!(seen.listens(&[], AT), Listens::Nothing);
    }

    #[test]
    fn doubt_becomes_certainty_after_a_while() {
        let one = [socket("127.0.0.1:8000", 1)];
        let mut seen = Seen::default();
        seen.ask(&one);
        for _ in 0..2 {
            seen.answer(&one[0], is(Whose::Doubtful));
            assert!(matches!(seen.listens(&one, AT), Listens::Doubtful(_)));
        }
        seen.0.get_mut(&1).unwrap().first -= GRACE;
        seen.answer(&one[0], is(Whose::Doubtful));
        assert!(matches!(seen.listens(&one, AT), Listens::Stranger(_)));
        // It may turn out to be the worker after all.
        seen.answer(&one[0], is(Whose::Worker));
        assert_eq!(seen.listens(&one, AT), Listens::Worker([1].into()));
    }

    #[test]
    fn what_was_found_serving_serves_on_until_the_manager_answers() {
        let one = [socket("127.0.0.1:8000", 1)];
        let silent = || Answer::Silent("supervisord cannot be reached".to_owned(), None);
        let mut seen = Seen::default();
        seen.ask(&one);
        seen.answer(&one[0], silent());
        assert_eq!(seen.listens(&one, AT), Listens::Unknown(Some("supervisord cannot be reached".to_owned())));
        seen.found(&one);
        seen.answer(&one[0], silent());
        assert_eq!(seen.listens(&one, AT), Listens::Worker([1].into()));
        seen.answer(&one[0], is(Whose::Doubtful));
        assert!(matches!(seen.listens(&one, AT), Listens::Doubtful(_)));
    }

    #[test]
    fn what_a_former_daemon_knew_is_a_stranger_by_its_user_alone() {
        let one = [socket("127.0.0.1:8000", 1)];
        for (answer, is_its) in [(is(Whose::Doubtful), true), (is(Whose::Worker), true), (is(Whose::Stranger), false)] {
            let mut seen = Seen::default();
            seen.ask(&one);
            seen.former(&[1].into());
            seen.answer(&one[0], answer.clone());
            assert_eq!(seen.listens(&one, AT) == Listens::Worker([1].into()), is_its, "{answer:?}");
        }
        let mut seen = Seen::default();
        seen.found(&one);
        seen.distrust();
        assert_eq!(seen.listens(&one, AT), Listens::Unknown(None));
    }
}
