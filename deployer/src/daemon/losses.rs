//! What the kernel has refused to the programs (socket storage, room in a table or a ring), told while it is recent.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use deployer_common::layout::WorkerEvidence;

use super::{Daemon, lock};

/// So long it is told after it was last seen.
const RECENT: Duration = Duration::from_secs(600);

/// A counter, and what it means.
type Kind = (fn(&WorkerEvidence) -> u64, &'static str);

/// What of it is counted.
const KINDS: [Kind; 5] = [
    (
        |evidence| evidence.unnoted,
        "connections went to it without a note, because the kernel refused socket storage: drains wait a little longer, and \
         getpeername() shows where they went. Raise net.core.optmem_max",
    ),
    (
        |evidence| evidence.uncounted,
        "connections to it are not among those that are counted as open, because the kernel refused socket storage. Raise \
         net.core.optmem_max",
    ),
    (
        |evidence| evidence.unmeasured,
        "connections to it were not timed, because the kernel refused socket storage. Raise net.core.optmem_max",
    ),
    (
        |evidence| evidence.unlisted,
        "sockets that listen for it are not followed, because the kernel refused socket storage, or more than 4096 sockets \
         listen: the death of its process is noticed late. Raise net.core.optmem_max, or start fewer processes on a port",
    ),
    (
        |evidence| evidence.untold,
        "events of it were lost, because the daemon did not fetch them in time. They are in no log; the counters are right",
    ),
];

/// The counters as they were last seen, and when each rose.
#[derive(Debug, Default)]
pub(super) struct Losses(BTreeMap<SocketAddr, Lost>);

#[derive(Debug, Default)]
struct Lost {
    service: String,
    seen: [u64; KINDS.len()],
    rose: [Option<Instant>; KINDS.len()],
}

impl Losses {
    /// Takes a look at a worker. What was counted before the first look is not told.
    fn take(&mut self, service: &str, at: SocketAddr, evidence: &WorkerEvidence, now: Instant) {
        let counts = KINDS.map(|(count, _)| count(evidence));
        let Some(lost) = self.0.get_mut(&at) else {
            self.0.insert(at, Lost { service: service.to_owned(), seen: counts, rose: Default::default() });
            return;
        };
        for ((seen, rose), count) in lost.seen.iter_mut().zip(&mut lost.rose).zip(counts) {
            if count > *seen {
                *rose = Some(now);
            }
            *seen = count;
        }
        lost.rose.iter_mut().for_each(|rose| *rose = rose.filter(|rose| now.duration_since(*rose) < RECENT));
    }

    /// What is recent, in words.
    pub(super) fn trouble(&self) -> Vec<String> {
        let told = self.0.iter().flat_map(|(at, lost)| {
            let kinds = KINDS.iter().zip(&lost.seen).zip(&lost.rose).filter(|(_, rose)| rose.is_some());
            kinds.map(move |(((_, what), _), _)| format!("{} {at}: {what}", lost.service))
        });
        told.collect()
    }
}

impl Daemon {
    /// Looks at what the kernel has refused.
    pub(super) fn look_for_losses(&self) {
        let (services, counts, now) = (self.registry.services(), self.tables.counts(), Instant::now());
        let mut losses = lock(&self.losses);
        let members = services.values().flat_map(|service| service.members());
        let known: Vec<_> = members.map(|worker| (worker.at, worker)).collect();
        losses.0.retain(|at, _| known.iter().any(|(known, _)| known == at));
        for (at, worker) in known {
            losses.take(&worker.service, at, &counts.evidence(worker.index), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rises_is_told_for_a_while() {
        let (mut losses, begun) = (Losses::default(), Instant::now());
        let at = SocketAddr::from(([127, 0, 0, 1], 8000));
        let evidence = |unnoted, untold| WorkerEvidence { unnoted, untold, ..WorkerEvidence::default() };
        losses.take("web", at, &evidence(3, 0), begun);
        assert_eq!(losses.trouble(), Vec::<String>::new());
        losses.take("web", at, &evidence(4, 0), begun);
        assert_eq!(losses.trouble().len(), 1);
        assert!(losses.trouble()[0].starts_with("web 127.0.0.1:8000: connections went to it without a note"));
        // The text does not change while it lasts: it is told once.
        let text = losses.trouble();
        losses.take("web", at, &evidence(9, 0), begun + RECENT / 2);
        assert_eq!(losses.trouble(), text);
        losses.take("web", at, &evidence(9, 1), begun + RECENT);
        assert_eq!(losses.trouble().len(), 2);
        losses.take("web", at, &evidence(9, 1), begun + 2 * RECENT);
        assert_eq!(losses.trouble(), Vec::<String>::new());
        // Counted anew.
        losses.take("web", at, &evidence(0, 0), begun + 2 * RECENT);
        assert_eq!(losses.trouble(), Vec::<String>::new());
    }
}
