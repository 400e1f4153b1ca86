//! Says that this host is there, and how its services stand.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::{super::Daemon, hand::lock};
use crate::{
    api::Phase,
    fleet::{
        board::Enrolled,
        coordinator::{Trouble, Watch},
        member::{Local, Stage},
    },
    kernel::clock,
    roll::record::unix_ms,
    version::{self, Version},
};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// The same at this host's entry in the roster.
const ROSTER: Duration = Duration::from_secs(10);
/// The same at how many hosts there are.
const COUNT: Duration = Duration::from_secs(10);

/// What a host says of itself: the node `hosts/HOST`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct HostInfo {
    /// Which boot of which machine it is.
    pub(super) boot_id: String,
    /// Its deployer's version.
    pub(super) deployer: String,
    /// By name.
    pub(super) services: BTreeMap<String, ServiceInfo>,
    /// Whether its clock is synchronised.
    pub(super) synchronised: bool,
    /// By how much it may be off, microseconds.
    pub(super) clock_error_us: u64,
}

/// No host has more workers of a service.
const WORKERS_MOST: usize = 1 << 16;

impl HostInfo {
    /// The same, where what is shown and reckoned with are numbers that can be: any client may have written it. Epochs are
    /// checked where they count.
    pub(super) fn within_limits(mut self) -> Self {
        for service in self.services.values_mut() {
            service.up = service.up.min(WORKERS_MOST);
            service.workers = service.workers.min(WORKERS_MOST);
        }
        self
    }
}

/// How a service stands on a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ServiceInfo {
    /// As far as the host says one that is valid.
    #[serde(default, deserialize_with = "version::known")]
    pub(super) version: Option<Version>,
    pub(super) lane: u8,
    pub(super) epoch: u64,
    pub(super) stage: String,
    pub(super) up: usize,
    pub(super) workers: usize,
    pub(super) published: bool,
}

impl Daemon {
    /// Says that this host is there, as long as it is.
    pub(in crate::daemon) async fn register(self: Arc<Self>) {
        let mut said: Option<(u64, HostInfo)> = None;
        let (mut twin, mut seen_at) = (None::<Instant>, Instant::now());
        let (mut enrolled_at, mut counted_at) = (None::<Instant>, None::<Instant>);
        let mut roster = self.roster_watch();
        loop {
            tokio::select! {
                () = sleep(LOOK) => {}
                () = roster.changed() => enrolled_at = None,
            }
            let link = self.fleet.link();
            self.tell_link(link.is_connected, link.session);
            if !link.is_connected {
                continue;
            }
            let info = self.info();
            if seen_at.elapsed() > ROSTER {
                seen_at = Instant::now();
                let path = format!("{}/{}", self.fleet.board.paths.hosts(), self.fleet.host);
                if matches!(self.fleet.read(&path).await, Ok(None)) {
                    said = None;
                }
            }
            if said.as_ref().is_none_or(|(session, before)| *session != link.session || differs(before, &info)) {
                match self.say_so(&info, &mut twin).await {
                    Ok(true) => said = Some((link.session, info)),
                    Ok(false) | Err(_) => said = None,
                }
            }
            if enrolled_at.is_none_or(|at| at.elapsed() > ROSTER) {
                // Where nobody tells, the last that was read counts.
                enrolled_at = self.enrol().await.is_ok().then(Instant::now);
            }
            if counted_at.is_none_or(|at| at.elapsed() > COUNT) {
                counted_at = self.count_hosts().await.is_ok().then(Instant::now);
            }
        }
    }

    /// Hears when somebody has this host stand aside, or not any more.
    fn roster_watch(&self) -> Watch {
        let fleet = &self.fleet;
        fleet.board.coordinator.watch(&format!("{}/{}", fleet.board.paths.roster(), fleet.host), false)
    }

    fn tell_link(&self, is_connected: bool, session: u64) {
        let fleet = &self.fleet;
        if fleet.is_alone {
            return;
        }
        let why = match session {
            0 => format!("no connection to {} yet; what is served stays as it is", fleet.at),
            _ => format!("the connection to {} is lost; what is served stays as it is", fleet.at),
        };
        self.history.fleet_link(if is_connected { Ok(&fleet.at) } else { Err(&why) });
        fleet.trouble("the coordinator", (!is_connected).then_some(why));
    }

    /// Whether it could be said: not while another machine bears this host's name.
    async fn say_so(&self, info: &HostInfo, twin: &mut Option<Instant>) -> Result<bool, Trouble> {
        let fleet = &self.fleet;
        let path = format!("{}/{}", fleet.board.paths.hosts(), fleet.host);
        let there = fleet.read(&path).await?.and_then(|node| serde_json::from_slice::<HostInfo>(&node.data).ok());
        if there.is_some_and(|there| there.boot_id != info.boot_id) {
            // Its own, of before a reboot, goes with its session.
            let since = *twin.get_or_insert_with(Instant::now);
            if since.elapsed() > 2 * fleet.session_timeout {
                let why = format!(
                    "another machine calls itself {0}; give [fleet] host another value on one of them",
                    fleet.host
                );
                fleet.trouble("the host's name", Some(why));
            }
            return Ok(false);
        }
        *twin = None;
        fleet.trouble("the host's name", None);
        fleet.board.hold(&path, info).await?;
        Ok(true)
    }

    async fn enrol(&self) -> Result<(), Trouble> {
        let fleet = &self.fleet;
        let path = format!("{}/{}", fleet.board.paths.roster(), fleet.host);
        let enrolled = match fleet.read(&path).await? {
            // What makes no sense changes nothing.
            Some(node) => match serde_json::from_slice::<Enrolled>(&node.data) {
                Ok(enrolled) => Some(enrolled),
                Err(_) => return Ok(()),
            },
            None if fleet.enrols => {
                let (state, by) = ("enabled".to_owned(), "itself".to_owned());
                let enrolled = Enrolled { state, by, at_ms: unix_ms() };
                if fleet.is_alone {
                    fleet.board.hold(&path, &enrolled).await?;
                } else {
                    fleet.board.put(&path, &enrolled).await?;
                }
                Some(enrolled)
            }
            None => None,
        };
        fleet.set_enabled(enrolled.is_some_and(|enrolled| enrolled.state == "enabled"));
        Ok(())
    }

    async fn count_hosts(&self) -> Result<(), Trouble> {
        let (fleet, paths) = (&self.fleet, &self.fleet.board.paths);
        let roster = fleet.board.coordinator.children(&paths.roster()).await?.len();
        let there = fleet.board.coordinator.children(&paths.hosts()).await?.len();
        *lock(&fleet.counted) = (roster, there);
        for name in self.registry.services().into_keys() {
            let set = serverset_size(fleet, &name).await?;
            let publishes = self.registry.service(&name).is_some_and(|service| service.config.publish.is_some());
            let is_small = publishes && set * 2 < roster;
            let why = if is_small { self.shrunk(&name, set).await? } else { None };
            fleet.trouble(&format!("the server sets of {name}"), why);
        }
        Ok(())
    }

    /// Why a server set is smaller than anybody can have meant; `None`: it is not, those aside that are drained.
    async fn shrunk(&self, name: &str, set: usize) -> Result<Option<String>, Trouble> {
        let enabled =
            self.fleet.board.roster().await?.into_values().filter(|enrolled| enrolled.state == "enabled").count();
        let text = format!(
            "{set} of {enabled} hosts are in it; whoever follows it keeps what it had, until an operator says that this is \
             meant: deployer fleet accept-shrink {name}"
        );
        Ok((set * 2 < enabled).then_some(text))
    }

    fn info(&self) -> HostInfo {
        let clock = clock::synchronised();
        let services = self.registry.services().into_keys();
        let services = services.filter_map(|name| Some((name.clone(), self.service_info(&name)?)));
        HostInfo {
            boot_id: self.boot.clone(),
            deployer: env!("CARGO_PKG_VERSION").to_owned(),
            services: services.collect(),
            synchronised: clock.synchronised,
            clock_error_us: clock.error_us,
        }
    }

    fn service_info(&self, name: &str) -> Option<ServiceInfo> {
        let (service, local) = (self.registry.service(name)?, self.fleet_local(name)?);
        let is_up = |worker: &&Arc<crate::service::Worker>| worker.control().phase == Phase::Up;
        let pool = if matches!(local.stage, Stage::Starting(_) | Stage::Holding(_) | Stage::Armed(..)) {
            service.pool(1 - service.current())
        } else {
            service.workers()
        };
        let published = lock(&self.fleet.followed(name).published).contains(&self.fleet.board.paths.active_set(name));
        Some(ServiceInfo {
            version: local.current.as_ref().map(|current| current.version.clone()),
            lane: local.current.as_ref().map_or(0, |current| current.lane),
            epoch: local.epoch,
            stage: stage(&local).to_owned(),
            up: pool.iter().filter(is_up).count(),
            workers: pool.len(),
            published,
        })
    }
}

/// What a host is at, in a word.
fn stage(local: &Local) -> &'static str {
    match local.stage {
        Stage::Idle => "idle",
        Stage::Busy(_) => "busy",
        Stage::Starting(_) => "starting",
        Stage::Holding(_) => "holding",
        Stage::Armed(..) => "armed",
        Stage::Baking(..) => "baking",
        Stage::Lingering(_) => "lingering",
        Stage::Ending(_) => "ending",
        Stage::Rolling(_) => "rolling",
    }
}

/// The clock's error grows all the time; that alone is no news.
fn differs(before: &HostInfo, now: &HostInfo) -> bool {
    let without = |info: &HostInfo| HostInfo { clock_error_us: 0, ..info.clone() };
    without(before) != without(now) || now.clock_error_us > before.clock_error_us.saturating_mul(2).max(50_000)
}

/// How many hosts are in a service's server set.
async fn serverset_size(fleet: &super::Fleet, name: &str) -> Result<usize, Trouble> {
    Ok(fleet.board.coordinator.children(&fleet.board.paths.active_set(name)).await?.len())
}
