//! What clients ask of the fleet.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

use super::{
    super::{Daemon, error::Refusal, plan},
    hand::{Followed, View},
    register::HostInfo,
};
use crate::{
    api::{Done, FleetDeploy, FleetRoll, FleetStarted},
    fleet::{
        board::Enrolled,
        coordinator::Trouble,
        driver::{self, Seen},
        sound,
        state::{FleetState, Order, Phase, Release},
        turns,
    },
    journal::history::By,
    kernel::clock,
    service::Service,
};

/// How long somebody else may take to leave the line of drivers.
const LINE_WITHIN: Duration = Duration::from_secs(5);
/// Compare-and-set is tried so often.
const TRIES: usize = 5;

impl Daemon {
    /// Begins a deploy of the fleet.
    pub(in crate::daemon) async fn fleet_deploy_asked(
        self: &Arc<Self>,
        name: &str,
        asked: FleetDeploy,
        by: String,
    ) -> Result<FleetStarted, Refusal> {
        let service = self.service(name)?;
        let deploy = super::super::deploy::two_pools(&service)?.clone();
        asked.is_sound().map_err(Refusal::usage)?;
        plan::can_ask_versions(&service)?;
        let order = Order {
            by: self.signed(&by),
            at_ms: clock::wall_ms(),
            to: Some(asked.to),
            quorum: asked.quorum,
            lead_ms: asked.lead_ms,
            bake_ms: asked.bake_ms.unwrap_or(deploy.bake.as_millis() as u64),
            allow_unsynchronised: asked.allow_unsynchronised,
            host_batch: 0,
            force: false,
            barrier: asked.barrier,
        };
        let make = |state: &FleetState, active, seen: &Seen| {
            driver::deploy(state, order.clone(), active, deploy.lanes, seen, clock::wall_ms())
        };
        self.begin_order(&service, &by, make).await
    }

    /// Begins a roll of the fleet.
    pub(in crate::daemon) async fn fleet_roll_asked(
        self: &Arc<Self>,
        name: &str,
        asked: FleetRoll,
        by: String,
    ) -> Result<FleetStarted, Refusal> {
        let service = self.service(name)?;
        asked.hosts(1).map_err(Refusal::usage)?;
        if asked.to.is_some() {
            plan::can_ask_versions(&service)?;
        }
        let order = Order {
            by: self.signed(&by),
            at_ms: clock::wall_ms(),
            to: asked.to.clone(),
            quorum: 100,
            barrier: asked.barrier.clone(),
            force: asked.force,
            ..Order::default()
        };
        let make = |state: &FleetState, active, seen: &Seen| {
            let is_expected = |host: &&String| seen.roster.get(*host) == Some(&true);
            let hosts = seen.alive.iter().filter(is_expected).count();
            let host_batch = u32::try_from(asked.hosts(hosts)?).unwrap_or(u32::MAX);
            turns::order(state, Order { host_batch, ..order.clone() }, active, seen, clock::wall_ms())
        };
        self.begin_order(&service, &by, make).await
    }

    fn signed(&self, by: &str) -> String {
        if self.fleet.is_alone { by.to_owned() } else { format!("{by} on {}", self.fleet.host) }
    }

    /// Writes an order down, first in the line of drivers: whoever comes second hears who was first.
    async fn begin_order(
        self: &Arc<Self>,
        service: &Arc<Service>,
        by: &str,
        make: impl Fn(&FleetState, Option<Release>, &Seen) -> Result<(FleetState, String), String>,
    ) -> Result<FleetStarted, Refusal> {
        let (name, fleet) = (&service.config.name, Arc::clone(&self.fleet));
        let followed = fleet.followed(name);
        let _ordering = Ordering::begin(&followed);
        let away = |trouble: Trouble| self.unreachable(&trouble);
        let read = fleet.board.state(name).await.map_err(away)?;
        let (state, version) = read.map_or_else(|| (FleetState::default(), None), |(state, it)| (state, Some(it)));
        under_way(name, &state)?;
        let state = FleetState { epoch: self.highest_epoch(name, state.epoch).await.map_err(away)?, ..state };
        // The hosts would refuse what comes after an epoch that another program has written.
        let acted = self.fleet_local(name).map_or(0, |local| local.epoch);
        let path = fleet.board.paths.state(name);
        sound::step(acted, state.epoch).map_err(|why| Refusal::failed(format!("{path}: {why}; nothing was begun")))?;
        let roster = fleet.board.roster().await.map_err(away)?;
        let hosts = self.fleet_hosts().await.map_err(away)?;
        // A host that is there, and does not have the service, is expected of nothing. Of one that is not there it is not known.
        let lacks = |host: &String| hosts.get(host).is_some_and(|info| !info.services.contains_key(name));
        let roster = roster.into_iter().filter(|(host, _)| !lacks(host));
        let roster = roster.map(|(host, enrolled)| (host, enrolled.state == "enabled")).collect();
        let has = |(host, info): (&String, &HostInfo)| info.services.contains_key(name).then(|| host.clone());
        let seen = Seen { roster, alive: hosts.iter().filter_map(has).collect(), ..Seen::default() };
        let active = self.served(name, &seen).await?;
        let (next, text) =
            make(&state, active, &seen).map_err(|why| Refusal::failed(format!("{why}; nothing was begun")))?;
        fleet.board.lay_out(name, next.epoch).await.map_err(away)?;
        let place = self.first_place(name).await?;
        let changed = fleet.board.change(name, &place, version, &next, &text, Vec::new()).await;
        match changed {
            Ok(()) => {
                tracing::info!(service = name, epoch = next.epoch, by, text, "ordered of the fleet");
                let epoch = next.epoch;
                let version = version.map_or(0, |version| version + 1);
                fleet.followed(name).view.send_replace(Some(View { state: next, version }));
                Ok(FleetStarted { epoch })
            }
            Err(trouble) => {
                let _ = fleet.leave_line(name).await;
                match trouble {
                    Trouble::Refused { .. } => Err(Refusal::busy(format!(
                        "somebody else has just ordered something of {name}; deployer fleet status shows what"
                    ))),
                    trouble => Err(self.unreachable(&trouble)),
                }
            }
        }
    }

    /// The highest epoch that there was, also where the state was taken away: its marks may be there, and hosts refuse lower
    /// ones.
    async fn highest_epoch(&self, name: &str, known: u64) -> Result<u64, Trouble> {
        let paths = &self.fleet.board.paths;
        let above = paths.epochs(name);
        let mut highest = known;
        for node in self.fleet.board.coordinator.children(&above).await? {
            let Ok(epoch) = node.parse() else { continue };
            highest = highest.max(checked(&format!("{above}/{node}"), epoch)?);
        }
        for (host, info) in self.fleet_hosts().await? {
            let Some(service) = info.services.get(name) else { continue };
            highest = highest.max(checked(&format!("{}/{host}", paths.hosts()), service.epoch)?);
        }
        Ok(highest)
    }

    /// This host's place in the line of drivers, as soon as it is the first.
    async fn first_place(&self, name: &str) -> Result<String, Refusal> {
        let fleet = &self.fleet;
        fleet.get_in_line(name).await.map_err(|trouble| self.unreachable(&trouble))?;
        let until = Instant::now() + LINE_WITHIN;
        loop {
            let line = fleet.board.drivers(name).await.map_err(|trouble| self.unreachable(&trouble))?;
            // Those before it of this very host's are as good.
            let first = line.first().map(|first| format!("{}/{first}", fleet.board.paths.driver(name)));
            if let Some(first) = &first
                && fleet.is_mine(first).await.map_err(|trouble| self.unreachable(&trouble))?
            {
                return Ok(first.clone());
            }
            if Instant::now() >= until {
                let _ = fleet.leave_line(name).await;
                let who = match &first {
                    Some(first) => fleet.read(first).await.ok().flatten(),
                    None => None,
                };
                let who = who
                    .map_or_else(|| "another host".to_owned(), |node| String::from_utf8_lossy(&node.data).into_owned());
                return Err(Refusal::busy(format!("{who} is at {name} just now; deployer fleet status shows it")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What the hosts that are there, and enabled, say they serve, if all say the same.
    async fn served(&self, name: &str, seen: &Seen) -> Result<Option<Release>, Refusal> {
        let hosts = self.fleet_hosts().await.map_err(|trouble| self.unreachable(&trouble))?;
        let mut served: Option<(String, Release)> = None;
        for (host, info) in hosts.into_iter().filter(|(host, _)| seen.roster.get(host) == Some(&true)) {
            let Some(service) = info.services.get(name) else { continue };
            let Some(version) = service.version.clone() else { continue };
            let release = Release { version, lane: service.lane };
            match &served {
                Some((first, before)) if *before != release => {
                    let state = self.fleet.followed(name).view().and_then(|view| view.state.active);
                    if state.is_some() {
                        // They are on their way to it.
                        return Ok(state);
                    }
                    return Err(Refusal::failed(format!(
                        "hosts differ: {first} serves {} in lane {}, and {host} {} in lane {}; bring them to one version \
                         first, host by host",
                        before.version, before.lane, release.version, release.lane
                    )));
                }
                _ => served = Some((host, release)),
            }
        }
        Ok(served.map(|(_, release)| release))
    }

    /// Has the order in hand aborted, or turned back where somebody has flipped.
    pub(in crate::daemon) async fn fleet_abort(&self, name: &str, by: String) -> Result<Done, Refusal> {
        self.service(name)?;
        for _ in 0..TRIES {
            let read = self.fleet.board.state(name).await.map_err(|trouble| self.unreachable(&trouble))?;
            let (state, version) = read.unwrap_or_default();
            let next = driver::want(&state, &self.signed(&by)).map_err(Refusal::failed)?;
            match self.fleet.board.ask(name, version, &next).await {
                Ok(()) => {
                    tracing::info!(service = name, epoch = state.epoch, by, "the fleet's order is to be aborted");
                    return Ok(Done { done: format!("epoch {} of {name} {}", state.epoch, fate(state.phase)) });
                }
                Err(Trouble::Refused { .. }) => {}
                Err(trouble) => return Err(self.unreachable(&trouble)),
            }
        }
        Err(Refusal::busy(format!("the state of {name} changes all the time; try again")))
    }

    /// Has the former version serve again: by turning the deploy in hand back, else by a deploy of it.
    pub(in crate::daemon) async fn fleet_rollback(self: &Arc<Self>, name: &str, by: String) -> Result<Done, Refusal> {
        let read = self.fleet.board.state(name).await.map_err(|trouble| self.unreachable(&trouble))?;
        let (state, _) = read.unwrap_or_default();
        if state.phase != Phase::Idle {
            return self.fleet_abort(name, by).await;
        }
        let Some(former) = state.former.clone() else {
            return Err(Refusal::failed(format!(
                "nobody knows what the fleet served before; deploy a version by name: deployer deploy {name} --to VERSION \
                 --fleet"
            )));
        };
        let asked = FleetDeploy::new(former.version.clone());
        let started = self.fleet_deploy_asked(name, asked, by).await?;
        let done = format!("{} was retired; epoch {} deploys it again", former.version, started.epoch);
        Ok(Done { done })
    }

    /// Has this host's daemon drive the order in hand, if nobody else does.
    pub(in crate::daemon) async fn fleet_resume(self: &Arc<Self>, name: &str, _by: String) -> Result<Done, Refusal> {
        self.service(name)?;
        let read = self.fleet.board.state(name).await.map_err(|trouble| self.unreachable(&trouble))?;
        let (state, _) = read.unwrap_or_default();
        if state.phase == Phase::Idle {
            return Err(Refusal::failed(format!("nothing of {name} is under way in the fleet")));
        }
        if let Some(driver) = self.driver_of(name).await.map_err(|trouble| self.unreachable(&trouble))? {
            return Ok(Done { done: format!("epoch {} of {name} is driven by {driver}", state.epoch) });
        }
        self.fleet.followed(name).drive.notify_one();
        Ok(Done { done: format!("epoch {} of {name} is driven by {} from here on", state.epoch, self.fleet.host) })
    }

    /// Puts a host into the roster, has it stand aside, or forgets it: `enable`, `drain`, `forget`.
    pub(in crate::daemon) async fn fleet_host(&self, host: &str, what: &str, by: String) -> Result<Done, Refusal> {
        let fleet = &self.fleet;
        let path = format!("{}/{host}", fleet.board.paths.roster());
        let away = |trouble: Trouble| self.unreachable(&trouble);
        let is_known = fleet.read(&path).await.map_err(away)?.is_some();
        if !is_known && what != "enable" {
            return Err(Refusal::usage(format!(
                "there is no host {host} in the roster; deployer fleet hosts shows it"
            )));
        }
        let (state, done) = match what {
            "enable" => ("enabled", "is expected of every order, and published where it serves"),
            "drain" => ("drained", "is in no server set, and expected of nothing; it follows the fleet's version"),
            _ => {
                fleet.board.take_away(&path).await.map_err(away)?;
                self.history.fleet_host(By::Somebody(&by), host, "forgotten");
                return Ok(Done { done: format!("{host} is forgotten; it comes back if its daemon enrols itself") });
            }
        };
        let enrolled = Enrolled { state: state.to_owned(), by: self.signed(&by), at_ms: clock::wall_ms() };
        fleet.board.put(&path, &enrolled).await.map_err(away)?;
        self.history.fleet_host(By::Somebody(&by), host, state);
        Ok(Done { done: format!("{host} {done}") })
    }

    /// Has a server set that has shrunk below half be believed, for a while.
    pub(in crate::daemon) async fn fleet_accept_shrink(&self, name: &str, by: String) -> Result<Done, Refusal> {
        self.service(name)?;
        let path = format!("{}/shrink", self.fleet.board.paths.service(name));
        let word = serde_json::json!({ "at_ms": clock::wall_ms(), "by": self.signed(&by) });
        self.fleet.board.put(&path, &word).await.map_err(|trouble| self.unreachable(&trouble))?;
        Ok(Done { done: format!("what the server sets of {name} hold now is believed, for ten minutes") })
    }

    /// A host of a fleet serves what the fleet serves, and would be brought back to that. `else_` goes on.
    pub(in crate::daemon) fn not_the_fleets(&self, name: &str, to: &str, else_: &str) -> Result<(), Refusal> {
        let view = self.fleet.followed(name).view();
        let active = view.and_then(|view| view.state.active).filter(|_| !self.fleet.is_alone);
        match active {
            Some(active) if active.version != to => Err(Refusal::failed(format!(
                "{name} is the fleet's, which serves {} on every host: deployer deploy {name} --to {to} --fleet; {else_}",
                active.version
            ))),
            _ => Ok(()),
        }
    }

    /// Who drives a service.
    pub(super) async fn driver_of(&self, name: &str) -> Result<Option<String>, Trouble> {
        let Some(first) = self.fleet.board.drivers(name).await?.into_iter().next() else { return Ok(None) };
        let node = self.fleet.read(&format!("{}/{first}", self.fleet.board.paths.driver(name))).await?;
        Ok(node.map(|node| String::from_utf8_lossy(&node.data).into_owned()))
    }

    /// What could not be asked of the coordinator.
    pub(super) fn unreachable(&self, trouble: &Trouble) -> Refusal {
        Refusal::failed(format!("the fleet's coordinator ({}): {trouble}", self.fleet.at))
    }
}

/// An epoch that was read from a node.
fn checked(path: &str, epoch: u64) -> Result<u64, Trouble> {
    sound::epoch(epoch).map_err(|why| Trouble::Failed(format!("{path} {why}")))
}

fn under_way(name: &str, state: &FleetState) -> Result<(), Refusal> {
    if state.phase == Phase::Idle {
        return Ok(());
    }
    Err(Refusal::busy(format!(
        "epoch {} of {name} is under way, begun by {}; deployer fleet watch {name} follows it, deployer fleet abort {name} \
         ends it",
        state.epoch, state.order.by
    )))
}

/// What becomes of an order that is not wanted any more.
fn fate(phase: Phase) -> &'static str {
    match phase {
        Phase::Flipped => "is turned back: the old version serves again",
        Phase::Roll => "stops: the hosts whose turn it is end the batch in hand; the order waits 10 s for them at most",
        _ => "is aborted, or turned back where a host has flipped already",
    }
}

/// An order that is being given.
struct Ordering<'a>(&'a Followed);

impl<'a> Ordering<'a> {
    fn begin(followed: &'a Followed) -> Self {
        followed.ordering.fetch_add(1, SeqCst);
        Self(followed)
    }
}

impl Drop for Ordering<'_> {
    fn drop(&mut self) {
        self.0.ordering.fetch_sub(1, SeqCst);
    }
}
