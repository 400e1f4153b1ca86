//! `protect`: which user may bind a worker's address, and that only root may bind those at which no process listens.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use deployer_common::protect::{Protected, ROOT_ONLY};

use super::{Service, registry};
use crate::{
    kernel::{Tables, cgroup, family},
    workers::Mark,
};

/// Between two questions to a manager, of a worker whose user has been seen, and of one whose user has not.
const ASK_AGAIN: Duration = Duration::from_secs(30);
const ASK_SOON: Duration = Duration::from_secs(2);
/// How long a manager may take for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What is known of the users of workers.
#[derive(Default)]
pub struct Users {
    /// By service's name.
    services: BTreeMap<String, Known>,
    /// Whether a look has been taken: after the first, what an earlier daemon has entered does not count.
    has_begun: bool,
    /// A manager's cgroup was not there: its workers are told by their user alone until it is.
    lacks_cgroup: bool,
}

#[derive(Default)]
struct Known {
    /// As configured then. Another one has been read since: what was seen before does not count.
    of: Weak<Service>,
    /// By worker: its user, and when its manager was asked.
    workers: BTreeMap<SocketAddr, (Option<u32>, Instant)>,
}

impl Users {
    /// Whether the last look found all that it looked for.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.lacks_cgroup
    }

    /// The addresses to protect. One of a worker whose user is not known yet is left out: to keep the worker itself from it
    /// would be worse.
    pub async fn wanted(
        &mut self,
        services: &registry::Services,
        tables: &Tables,
        root: &Path,
    ) -> BTreeMap<SocketAddr, Protected> {
        let mut wanted = BTreeMap::new();
        self.lacks_cgroup = false;
        self.services.retain(|name, _| services.get(name).is_some_and(|service| service.config.protect));
        for (name, service) in services.iter().filter(|(_, service)| service.config.protect) {
            let known = self.services.entry(name.clone()).or_default();
            if known.of.as_ptr() != Arc::as_ptr(service) {
                *known = Known { of: Arc::downgrade(service), ..Known::default() };
            }
            let entry = |uid| Protected { uid, service: service.index, cgroup: 0, level: 0, zero: 0 };
            let addresses = service.config.address.into_iter().chain(registry::lane_address(service));
            wanted.extend(addresses.map(|at| (at, entry(ROOT_ONLY))));
            let cgroup = service.manager.cgroup();
            let below = cgroup.as_ref().and_then(|path| cgroup::id(root, path).ok());
            self.lacks_cgroup |= cgroup.is_some() && below.is_none();
            known.look(service).await;
            for worker in service.members() {
                let seen = known.workers.get(&worker.at).and_then(|(uid, _)| *uid);
                let (id, level) = below.map_or((0, 0), |below| (below.id, below.depth));
                let found = || tables.protected(worker.at).filter(|_| !self.has_begun);
                let now = seen.map(|uid| Protected { cgroup: id, level, ..entry(uid) });
                wanted.extend(now.or_else(found).map(|protected| (worker.at, protected)));
            }
        }
        self.has_begun = true;
        wanted
    }
}

impl Known {
    /// Asks the manager about the workers of which it is time to.
    async fn look(&mut self, service: &Service) {
        for worker in service.members() {
            let is_due = |(uid, asked): &(Option<u32>, Instant)| {
                asked.elapsed() >= if uid.is_some() { ASK_AGAIN } else { ASK_SOON }
            };
            if !self.workers.get(&worker.at).is_none_or(is_due) {
                continue;
            }
            let answer = tokio::time::timeout(ANSWER_WITHIN, user(service, worker.at)).await;
            let entry = self.workers.entry(worker.at).or_insert((None, Instant::now()));
            entry.1 = Instant::now();
            match answer {
                // A worker that does not run keeps the user that it had.
                Ok(Ok(uid)) => entry.0 = uid.or(entry.0),
                // The manager cannot be asked: not for each worker.
                Ok(Err(())) | Err(_) => return,
            }
        }
    }
}

/// The user that the manager names for a worker, else that of the processes which it has started for it.
async fn user(service: &Service, at: SocketAddr) -> Result<Option<u32>, ()> {
    let started = service.manager.started(at).await.map_err(|_| ())?;
    let processes = match started.mark {
        Mark::Process(pid) => BTreeSet::from([pid]),
        Mark::Cgroup(cgroup) => family::tree(&cgroup).map_err(|_| ())?.pids,
        Mark::User | Mark::Nothing => BTreeSet::new(),
    };
    // What root has started may have become another user: that is the higher number.
    let runs_as = processes.into_iter().filter_map(real_uid).max();
    Ok(started.user.filter(|user| *user != 0).or(runs_as).or(started.user))
}

/// The real user of a process: the one by which the kernel's programs judge.
fn real_uid(pid: u32) -> Option<u32> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    parse_uid(&status)
}

/// proc_pid_status(5): real, effective, saved and file system user. The name of the process, before them, may be any bytes
/// but a line's end.
fn parse_uid(status: &[u8]) -> Option<u32> {
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    std::str::from_utf8(line).ok()?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_user_counts() {
        assert_eq!(parse_uid(b"Name:\t\xff\nUmask:\t0022\nUid:\t33\t0\t0\t0\nGid:\t4\t4\t4\t4\n"), Some(33));
        assert_eq!(parse_uid(b"Name:\tUid: 5\nUid:\t7\t0\t0\t0\n"), Some(7));
        assert_eq!(parse_uid(b"Name:\tx\n"), None);
        assert_eq!(real_uid(std::process::id()), Some(rustix::process::getuid().as_raw()));
    }
}
