//! This host's entries in server sets.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    super::Daemon,
    hand::{Fleet, lock},
};
use crate::{
    api::Phase,
    fleet::{
        coordinator::{Kind, Op, Trouble},
        member::Local,
        state::{FleetState, Release},
    },
};

/// A host's entry, and the session that it was made in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    path: String,
    session: u64,
    text: String,
}

/// What of a service this host has published.
#[derive(Debug, Default)]
pub(super) struct Publisher {
    /// By set.
    entries: BTreeMap<String, Entry>,
    /// No connection, or no answer: not before.
    again_at: Option<Instant>,
}

/// After trouble.
const PAUSE: Duration = Duration::from_secs(1);

impl Publisher {
    /// Has this host be in the sets that it belongs to, and in no other.
    pub(super) async fn publish(
        &mut self,
        daemon: &Arc<Daemon>,
        name: &str,
        state: Option<&FleetState>,
        local: &Local,
        serves: bool,
    ) {
        let fleet = &daemon.fleet;
        if !fleet.link().is_connected || self.again_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let wanted = wanted(daemon, name, state, local, serves).await;
        if let Err(trouble) = self.bring_to(daemon, name, wanted).await {
            self.again_at = Some(Instant::now() + PAUSE);
            self.entries.retain(|_, entry| entry.session == fleet.link().session);
            tracing::debug!(service = name, %trouble, "publishing");
        }
        *lock(&fleet.followed(name).published) = self.entries.keys().cloned().collect();
    }

    async fn bring_to(
        &mut self,
        daemon: &Arc<Daemon>,
        name: &str,
        wanted: BTreeMap<String, String>,
    ) -> Result<(), Trouble> {
        let fleet = &daemon.fleet;
        let session = fleet.link().session;
        // What a former session had goes with it.
        self.entries.retain(|_, entry| entry.session == session);
        let gone: Vec<_> = self.entries.keys().filter(|set| !wanted.contains_key(*set)).cloned().collect();
        for set in gone {
            if let Some(entry) = self.entries.get(&set) {
                fleet.board.take_away(&entry.path).await?;
                self.entries.remove(&set);
                tracing::info!(service = name, set, "not published any more");
            }
        }
        for (set, text) in wanted {
            if self.entries.get(&set).is_some_and(|entry| entry.text == text) {
                continue;
            }
            let path = self.put(fleet, &set, &text).await?;
            if self.entries.insert(set.clone(), Entry { path, session, text }).is_none() {
                tracing::info!(service = name, set, "published");
            }
        }
        Ok(())
    }

    /// Makes an entry, and takes the one before away with the same stroke, and what a former session has left.
    async fn put(&self, fleet: &Fleet, set: &str, text: &str) -> Result<String, Trouble> {
        fleet.board.coordinator.ensure(set).await?;
        let mut ops: Vec<_> = hosts_of(fleet, set)
            .await?
            .into_iter()
            .filter(|(_, host)| *host == fleet.host)
            .map(|(node, _)| Op::Delete { path: format!("{set}/{node}"), version: None })
            .collect();
        let (path, data) = (format!("{set}/member_"), text.as_bytes().to_vec());
        ops.push(Op::Create { path, data, kind: Kind::EphemeralSequential });
        let made = fleet.board.coordinator.transact(ops).await?;
        made.into_iter().next().ok_or_else(|| Trouble::Unknown("publishing".to_owned()))
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
async fn wanted(
    daemon: &Arc<Daemon>,
    name: &str,
    state: Option<&FleetState>,
    local: &Local,
    serves: bool,
) -> BTreeMap<String, String> {
    let fleet = &daemon.fleet;
    let Some(service) = daemon.registry.service(name) else { return BTreeMap::new() };
    let (Some(at), Some(current)) = (service.config.publish, &local.current) else { return BTreeMap::new() };
    let up = service.workers().iter().filter(|worker| worker.control().phase == Phase::Up).count();
    let is_enabled = daemon.fleet.is_enabled();
    if up == 0 || !is_enabled {
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

fn entry(fleet: &Fleet, at: SocketAddr, release: &Release, epoch: u64) -> String {
    let endpoint = json!({ "host": at.ip().to_string(), "port": at.port() });
    json!({
        "serviceEndpoint": endpoint,
        "additionalEndpoints": { "http": endpoint },
        "status": "ALIVE",
        "metadata": {
            "version": release.version,
            "lane": release.lane.to_string(),
            "epoch": epoch.to_string(),
            "host": fleet.host,
            "fleet": fleet.name,
        },
    })
    .to_string()
}

/// The nodes of a set, each with the host that it is of.
pub(super) async fn hosts_of(fleet: &Fleet, set: &str) -> Result<Vec<(String, String)>, Trouble> {
    let mut all = Vec::new();
    for node in fleet.board.coordinator.children(set).await? {
        let read = fleet.board.coordinator.get(&format!("{set}/{node}")).await?;
        let said = read.and_then(|read| serde_json::from_slice::<Value>(&read.data).ok());
        let host = said.and_then(|said| said["metadata"]["host"].as_str().map(str::to_owned));
        all.push((node, host.unwrap_or_default()));
    }
    Ok(all)
}
