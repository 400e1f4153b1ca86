//! What the daemon tells of the host: how it finds services and workers, and what is amiss.

use std::net::SocketAddr;

use anyhow::Result;
use deployer_common::word;
use tokio::task::JoinError;

use super::{Daemon, LAST_WORDS, lock};
use crate::{
    api::{Change, Configured, Reloaded},
    config::{Mode, Policy, Service},
    journal::history::{About, By},
    service::Worker,
};

impl Daemon {
    /// Tells how services are configured and what their workers go through, as far as that is news. From here on workers
    /// tell it themselves.
    pub(super) fn tell_found(&self, by: By<'_>) {
        let services = self.registry.services();
        let configured: Vec<_> =
            services.iter().map(|(name, service)| (name.as_str(), configured(&service.config))).collect();
        self.history.configured(by, &configured);
        let members = services.values().flat_map(|service| service.members());
        self.history.only(&members.map(|worker| (worker.service.as_str(), worker.at)).collect());
        for service in services.values() {
            service.members().for_each(|worker| worker.tell_in(&self.history));
        }
    }

    /// Tells who is bypassed. The kernel's word is what holds; the journal, which may be older, is made to say the same.
    pub(super) fn tell_bypassed(&self) {
        let all = self.tables.bypassed();
        let is_bypassed = |index| self.tables.service_word(index).mode() == word::Mode::Bypass;
        let services = self.registry.services().into_iter();
        let each: Vec<_> = services.map(|(name, service)| (name, is_bypassed(service.index))).collect();
        self.journal.refresh(|state| {
            state.bypassed = all;
            for (name, on) in &each {
                state.services.entry(name.clone()).or_default().bypassed = *on;
            }
        });
        self.history.bypass(By::Daemon, About::default(), all);
        for (name, on) in each {
            self.history.bypass(By::Daemon, About::service(&name), on);
        }
    }

    /// Tells how a worker's process has ended.
    pub(super) fn tell_process_ended(&self, worker: &Worker, text: &str, cut: usize, callers: &[String]) {
        let roll = worker.control().roll().map(str::to_owned);
        let about = About { roll: roll.as_deref(), ..About::worker(&worker.service, worker.at) };
        let (text, callers) = (text.to_owned(), callers.to_vec());
        self.history.tell(By::Kernel, about, Change::ProcessEnded { text, cut, callers });
    }

    /// Tells that the configuration was read again, and what is another now.
    pub(super) fn tell_reloaded(&self, by: By<'_>, read: &Result<Result<Reloaded>, JoinError>) {
        let error = match read {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(error) => Some(error.to_string()),
        };
        self.history.tell(by, About::default(), Change::Reloaded { error });
        self.tell_found(by);
    }

    /// The last word, and the end for those who follow.
    pub(super) async fn tell_stopped(&self) {
        let (version, pid) = (env!("CARGO_PKG_VERSION").to_owned(), std::process::id());
        self.history.tell(By::Daemon, About::default(), Change::Stopped { version, pid });
        self.keep_history().await;
        self.history.dismiss();
    }

    /// Waits until what was told is written. A disk that hangs keeps nobody.
    pub(super) async fn keep_history(&self) {
        let _ = tokio::time::timeout(LAST_WORDS, self.history.flush()).await;
    }

    /// Tells what is amiss that was not, and what no longer is.
    pub(super) fn tell_trouble(&self) {
        // One look after the other: else a former one could be told as the latter.
        let _gate = lock(&self.told);
        self.history.trouble(&self.trouble());
    }
}

fn configured(service: &Service) -> Configured {
    let (mode, policy) = (mode(service.mode), policy(service.drain.policy));
    Configured {
        mode: mode.to_owned(),
        policy: policy.to_owned(),
        min_up: service.limits.min_up,
        address: service.address,
        workers: ranges(&service.workers),
        second: ranges(service.second()),
        spares: ranges(&service.spares),
    }
}

/// As status and history write it.
pub(super) fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Observe => "observe",
        Mode::Enforce => "enforce",
    }
}

/// As status and history write it.
pub(super) fn policy(policy: Policy) -> &'static str {
    match policy {
        Policy::Steer => "steer",
        Policy::Refuse => "refuse",
    }
}

/// Addresses as a configuration may write them: `127.0.0.1:8000-8003 127.0.0.1:8010`
fn ranges(all: &[SocketAddr]) -> String {
    let follows = |one: &SocketAddr, next: &SocketAddr| {
        one.ip() == next.ip() && one.port().checked_add(1).is_some_and(|port| port == next.port())
    };
    let range = |run: &[SocketAddr]| match run {
        [first, .., last] => Some(format!("{first}-{}", last.port())),
        [one] => Some(one.to_string()),
        [] => None,
    };
    all.chunk_by(follows).filter_map(range).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_a_row_are_a_range() {
        let some = |ports: &[u16]| ports.iter().map(|port| ([127, 0, 0, 1], *port).into()).collect::<Vec<_>>();
        assert_eq!(
            ranges(&some(&[8000, 8001, 8002, 8010, 65535])),
            "127.0.0.1:8000-8002 127.0.0.1:8010 127.0.0.1:65535"
        );
        assert_eq!(ranges(&[]), "");
        let mixed = ["[::1]:1", "[::1]:2", "127.0.0.1:3"].map(|at| at.parse().unwrap());
        assert_eq!(ranges(&mixed), "[::1]:1-2 127.0.0.1:3");
    }
}
