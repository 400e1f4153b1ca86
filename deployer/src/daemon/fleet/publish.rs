//! This host's entries in server sets.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    super::Daemon,
    hand::{Fleet, lock},
};
use crate::{
    api::Phase,
    fleet::{
        coordinator::Trouble,
        member::Local,
        serverset::{self, Endpoint, Member},
        state::{FleetState, Release},
    },
    kernel::clock,
};

/// A host's entry, and the session that it was made in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    path: String,
    session: u64,
    member: Member,
}

/// What of a service this host has published.
#[derive(Debug, Default)]
pub(super) struct Publisher {
    /// By set.
    entries: BTreeMap<String, Entry>,
    /// No connection, or no answer: not before.
    again_at: Option<Instant>,
    /// When it was looked last whether they are there.
    looked_at: Option<Instant>,
}

/// After trouble.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two looks whether all of it is there.
const MISSED: Duration = Duration::from_secs(4);

impl Publisher {
    /// Has this host be in the sets that it belongs to, and in no other.
    pub(super) async fn publish(
        &mut self,
        daemon: &Arc<Daemon>,
        name: &str,
        state: Option<&FleetState>,
        local: &Local,
        serves: Option<bool>,
    ) {
        let fleet = &daemon.fleet;
        if !fleet.link().is_connected || self.again_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let is_ill = daemon
            .registry
            .service(name)
            .is_some_and(|service| !service.workers().iter().any(|worker| worker.control().phase == Phase::Up));
        let brought = if is_ill {
            self.leave(daemon, name).await
        } else {
            fleet.trouble(&format!("the server set of {name}"), None);
            self.bring_to(
                daemon,
                name,
                wanted(daemon, name, state, local, serves.unwrap_or_else(|| self.serves(daemon, name))),
            )
            .await
        };
        if let Err(trouble) = brought {
            self.again_at = Some(Instant::now() + PAUSE);
            self.entries.retain(|_, entry| entry.session == fleet.link().session);
            tracing::debug!(service = name, %trouble, "publishing");
        }
        *lock(&fleet.followed(name).published) = self.entries.keys().cloned().collect();
    }

    /// Whether this host is in the set of those that serve.
    fn serves(&self, daemon: &Daemon, name: &str) -> bool {
        self.entries.contains_key(&daemon.fleet.board.paths.active_set(name))
    }

    /// Nobody serves here. That is published, unless next to nobody would be left: then it is an operator's to say.
    async fn leave(&mut self, daemon: &Arc<Daemon>, name: &str) -> Result<(), Trouble> {
        if self.entries.is_empty() {
            return Ok(());
        }
        match may_leave(&daemon.fleet, name).await? {
            Ok(()) => self.bring_to(daemon, name, BTreeMap::new()).await,
            Err(why) => {
                let why = format!(
                    "{why}; none of its workers is up here, and it stays published: deployer fleet accept-shrink {name}"
                );
                daemon.fleet.trouble(&format!("the server set of {name}"), Some(why));
                // It asks for the whole set, and the roster.
                self.again_at = Some(Instant::now() + 10 * PAUSE);
                Ok(())
            }
        }
    }

    async fn bring_to(
        &mut self,
        daemon: &Arc<Daemon>,
        name: &str,
        wanted: BTreeMap<String, Member>,
    ) -> Result<(), Trouble> {
        let fleet = &daemon.fleet;
        let session = fleet.link().session;
        // What a former session had goes with it.
        self.entries.retain(|_, entry| entry.session == session);
        self.miss(fleet).await?;
        let gone: Vec<_> = self.entries.keys().filter(|set| !wanted.contains_key(*set)).cloned().collect();
        for set in gone {
            if let Some(entry) = self.entries.get(&set) {
                fleet.board.take_away(&entry.path).await?;
                self.entries.remove(&set);
                tracing::info!(service = name, set, "not published any more");
            }
        }
        for (set, member) in wanted {
            if self.entries.get(&set).is_some_and(|entry| entry.member == member) {
                continue;
            }
            let known = self.entries.remove(&set).map(|entry| entry.path);
            let is_new = known.is_none();
            let coordinator = &*fleet.board.coordinator;
            let path = serverset::publish(coordinator, &set, &member, known.as_deref()).await?;
            self.entries.insert(set.clone(), Entry { path, session, member });
            if is_new {
                tracing::info!(service = name, set, "published");
            }
        }
        Ok(())
    }

    /// Forgets what somebody else has taken away.
    async fn miss(&mut self, fleet: &Fleet) -> Result<(), Trouble> {
        if self.looked_at.is_some_and(|at| at.elapsed() < MISSED) {
            return Ok(());
        }
        self.looked_at = Some(Instant::now());
        for (set, entry) in std::mem::take(&mut self.entries) {
            if fleet.read(&entry.path).await?.is_some() {
                self.entries.insert(set, entry);
            }
        }
        Ok(())
    }

    /// The service is none of this host's any more.
    pub(super) async fn withdraw_all(&mut self, fleet: &Fleet) {
        for entry in std::mem::take(&mut self.entries).into_values() {
            // It goes with the session at the latest.
            let _ = fleet.board.take_away(&entry.path).await;
        }
    }
}

/// The sets that a service of this host belongs to, and what it says there.
fn wanted(
    daemon: &Arc<Daemon>,
    name: &str,
    state: Option<&FleetState>,
    local: &Local,
    serves: bool,
) -> BTreeMap<String, Member> {
    let fleet = &daemon.fleet;
    let Some(service) = daemon.registry.service(name) else { return BTreeMap::new() };
    let (Some(at), Some(current)) = (service.config.publish, &local.current) else { return BTreeMap::new() };
    if !daemon.fleet.is_enabled() {
        return BTreeMap::new();
    }
    let epoch = state.map_or(0, |state| state.epoch);
    let entry = |release: &Release| entry(fleet, at, release, epoch);
    let mut wanted = BTreeMap::new();
    if serves {
        wanted.insert(fleet.board.paths.active_set(name), entry(current));
    }
    for release in [Some(current), local.other.as_ref()].into_iter().flatten() {
        wanted.insert(fleet.board.paths.version_set(name, &release.version), entry(release));
    }
    wanted
}

fn entry(fleet: &Fleet, at: SocketAddr, release: &Release, epoch: u64) -> Member {
    let said = [
        ("version", release.version.to_string()),
        ("lane", release.lane.to_string()),
        ("epoch", epoch.to_string()),
        ("host", fleet.host.clone()),
        ("fleet", fleet.name.clone()),
    ];
    let metadata = said.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Member::serving(Endpoint { host: at.ip().to_string(), port: at.port() }, metadata)
}

/// Whether this host may leave a set although nobody has said that it is to: its workers are down.
async fn may_leave(fleet: &Fleet, name: &str) -> Result<Result<(), String>, Trouble> {
    let set = fleet.board.paths.active_set(name);
    let mut left = serverset::read(&*fleet.board.coordinator, &set).await?.hosts();
    left.remove(&fleet.host);
    let roster = fleet.board.roster().await?;
    let baseline = roster.into_iter().filter(|(_, enrolled)| enrolled.state == "enabled").map(|(host, _)| host);
    let accepted = fleet.read(&format!("{}/shrink", fleet.board.paths.service(name))).await?;
    let is_accepted = accepted.is_some_and(|node| is_of_now(&node.data));
    Ok(serverset::may_shrink(&baseline.collect(), &left, is_accepted))
}

/// Whether an operator has said it within the last ten minutes.
fn is_of_now(data: &[u8]) -> bool {
    let said = serde_json::from_slice::<serde_json::Value>(data).ok();
    let at_ms = said.and_then(|said| said["at_ms"].as_u64());
    // Also of one that lies in the future: what a client has written there is not believed for ever.
    at_ms.is_some_and(|at| clock::wall_ms().abs_diff(at) < 600_000)
}
