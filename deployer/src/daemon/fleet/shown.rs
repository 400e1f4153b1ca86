//! How the fleet stands, for who asks.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::{Daemon, error::Refusal},
    drive,
    hand::lock,
    register::HostInfo,
};
use crate::{
    api::{FleetStatus, HostService, HostStatus, ServiceFleet},
    fleet::{
        board::{Enrolled, Known},
        coordinator::Trouble,
        driver::{self, Seen, Step},
        paths::Mark,
        state::{FleetState, Phase},
    },
    kernel::clock,
    metrics::{FleetFigures, FleetServiceFigures},
};

/// So many lines of the log are shown.
const LINES: usize = 12;

impl Daemon {
    /// How the fleet stands, as it is known here.
    pub(in crate::daemon) async fn fleet_status(&self) -> FleetStatus {
        let (fleet, link) = (&self.fleet, self.fleet.link());
        let mut trouble = fleet.troubles();
        let hosts = self.host_statuses().await.unwrap_or_else(|why| {
            trouble.push(format!("the hosts: {why}"));
            Vec::new()
        });
        let mut services = Vec::new();
        for name in self.registry.services().into_keys() {
            services.push(self.service_fleet(&name).await);
        }
        FleetStatus {
            name: fleet.name.clone(),
            coordinator: fleet.at.clone(),
            host: fleet.host.clone(),
            connected: link.is_connected,
            since_ms: link.since_ms,
            sessions_lost: link.lost,
            hosts,
            services,
            trouble,
        }
    }

    /// How a service of the fleet stands.
    pub(in crate::daemon) async fn fleet_service(&self, name: &str) -> Result<ServiceFleet, Refusal> {
        self.service(name)?;
        Ok(self.service_fleet(name).await)
    }

    /// What hosts say of themselves, by name.
    pub(super) async fn fleet_hosts(&self) -> Result<BTreeMap<String, HostInfo>, Trouble> {
        let (fleet, above) = (&self.fleet, self.fleet.board.paths.hosts());
        let mut hosts = BTreeMap::new();
        for host in fleet.board.coordinator.children(&above).await? {
            let node = fleet.read(&format!("{above}/{host}")).await?;
            if let Some(info) = node.and_then(|node| serde_json::from_slice::<HostInfo>(&node.data).ok()) {
                hosts.insert(host, info.within_limits());
            }
        }
        Ok(hosts)
    }

    /// The same for the page of metrics; `None`: this host is alone.
    pub(in crate::daemon) fn fleet_figures(&self) -> Option<FleetFigures> {
        let (fleet, link) = (&self.fleet, self.fleet.link());
        if fleet.is_alone {
            return None;
        }
        let now = clock::wall_ms();
        let since = |ms: u64| now.saturating_sub(ms) as f64 / 1000.0;
        let (enrolled, alive) = *lock(&fleet.counted);
        let services = self.registry.services().into_keys().map(|name| self.service_figures(name));
        Some(FleetFigures {
            name: fleet.name.clone(),
            host: fleet.host.clone(),
            connected: link.is_connected,
            sessions_lost: link.lost,
            session_seconds: if link.is_connected { since(link.since_ms) } else { 0.0 },
            enrolled,
            alive,
            services: services.collect(),
        })
    }

    fn service_figures(&self, service: String) -> FleetServiceFigures {
        let followed = self.fleet.followed(&service);
        let state = followed.view().map(|view| view.state).unwrap_or_default();
        let publishes = self.registry.service(&service).is_some_and(|it| it.config.publish.is_some());
        let is_published = lock(&followed.published).contains(&self.fleet.board.paths.active_set(&service));
        let late_ms = *lock(&followed.late_ms);
        let is_driver = lock(&followed.waits).is_some();
        FleetServiceFigures {
            service,
            epoch: state.epoch,
            phase: state.phase,
            phase_seconds: clock::wall_ms().saturating_sub(state.since_ms) as f64 / 1000.0,
            marks: *lock(&followed.marks),
            expected: state.expected.len(),
            late_seconds: late_ms.map(|late| late as f64 / 1000.0),
            published: publishes.then_some(is_published),
            driver: is_driver,
        }
    }

    async fn host_statuses(&self) -> Result<Vec<HostStatus>, Trouble> {
        let (roster, alive) = (self.fleet.board.roster().await?, self.fleet_hosts().await?);
        let names: BTreeSet<_> = roster.keys().chain(alive.keys()).cloned().collect();
        Ok(names.into_iter().map(|host| status_of(roster.get(&host), alive.get(&host), host)).collect())
    }

    /// What can be read of it now; of the state, what was read last, if nothing can.
    async fn service_fleet(&self, name: &str) -> ServiceFleet {
        let view = self.fleet.followed(name).view();
        let read = self.fleet.board.state(name).await;
        let (state, version) = match read {
            Ok(Some(read)) => read,
            _ => view.map(|view| (view.state, view.version)).unwrap_or_default(),
        };
        let mut shown = ServiceFleet { service: name.to_owned(), ..ServiceFleet::default() };
        match self.fleet.board.seen(name, &state, &mut Known::default()).await {
            Ok(seen) => self.tell_seen(&mut shown, &state, seen).await,
            Err(trouble) => shown.waits = format!("the coordinator: {trouble}"),
        }
        shown.driver = self.driver_of(name).await.ok().flatten();
        shown.log = self.lines(name).await.unwrap_or_default();
        let said: usize = shown.marks.values().map(Vec::len).sum();
        shown.seq = i64::from(version) * 100_000 + said as i64;
        shown.state = state;
        shown
    }

    async fn tell_seen(&self, shown: &mut ServiceFleet, state: &FleetState, mut seen: Seen) {
        shown.flips = drive::flips(&seen);
        shown.marks = marks(&seen);
        if state.phase == Phase::Idle {
            return;
        }
        // Whoever drives is patient for a while; so is who looks.
        let waits = lock(&self.fleet.followed(&shown.service).waits).clone();
        seen.quorum_since_ms = None;
        let (why, hosts) = waits.unwrap_or_else(|| match driver::drive(state, &seen, clock::wall_ms()) {
            Step::Wait { why, hosts } => (why, hosts),
            Step::Become { text, .. } => (text, Vec::new()),
        });
        shown.waits = why;
        shown.waiting_for = self.slowest_first(&shown.service, hosts).await;
    }

    /// Hosts that are gone first, then those with the fewest workers up.
    async fn slowest_first(&self, name: &str, mut hosts: Vec<String>) -> Vec<String> {
        let known = self.fleet_hosts().await.unwrap_or_default();
        let share = |host: &String| {
            let service = known.get(host).and_then(|info| info.services.get(name));
            service.map_or(0, |service| 1 + service.up * 1000 / service.workers.max(1))
        };
        hosts.sort_by_key(share);
        hosts
    }

    async fn lines(&self, name: &str) -> Result<Vec<String>, Trouble> {
        let above = self.fleet.board.paths.log(name);
        let names = self.fleet.board.coordinator.children(&above).await?;
        let mut lines = Vec::new();
        for line in names.iter().skip(names.len().saturating_sub(LINES)) {
            if let Some(node) = self.fleet.read(&format!("{above}/{line}")).await? {
                lines.push(String::from_utf8_lossy(&node.data).into_owned());
            }
        }
        Ok(lines)
    }
}

fn marks(seen: &Seen) -> BTreeMap<String, Vec<String>> {
    let who = Mark::ALL.into_iter().map(|mark| (mark.name().to_owned(), seen.who(mark).cloned().collect::<Vec<_>>()));
    who.filter(|(_, hosts)| !hosts.is_empty()).collect()
}

fn status_of(enrolled: Option<&Enrolled>, info: Option<&HostInfo>, host: String) -> HostStatus {
    let service = |service: &super::register::ServiceInfo| HostService {
        version: service.version.clone().map(String::from),
        lane: service.lane,
        epoch: service.epoch,
        stage: service.stage.clone(),
        up: service.up,
        workers: service.workers,
        published: service.published,
    };
    HostStatus {
        host,
        roster: enrolled.map_or_else(|| "unknown".to_owned(), |enrolled| enrolled.state.clone()),
        alive: info.is_some(),
        services: info
            .map(|info| info.services.iter().map(|(name, it)| (name.clone(), service(it))).collect())
            .unwrap_or_default(),
        synchronised: info.map(|info| info.synchronised),
        clock_error_us: info.map(|info| info.clock_error_us),
        deployer: info.map(|info| info.deployer.clone()).unwrap_or_default(),
    }
}
