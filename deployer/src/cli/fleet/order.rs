//! Deploys, rolls and rollbacks of the whole fleet, and barriers of others: what is written on the command line, and how
//! it is begun.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{
    follow::{Follow, Goal, caught, unanswered},
    path,
};
use crate::{
    api::{Done, DoubleBarrier, Exit, FleetDeploy, FleetRoll, FleetStarted, ServiceFleet, is_node},
    cli::{
        client::{Client, Failure},
        out,
        roll::patience,
    },
    fleet::state::Phase,
    version::Version,
};

/// Hosts that a roll takes at a time where nothing is said.
const HOST_BATCH: &str = "10%";

/// A deploy of the fleet.
#[derive(Debug, Args)]
pub(in crate::cli) struct DeployFlags {
    /// Deploy on every host of the fleet; all flip at one instant
    #[arg(long, conflicts_with_all = ["at", "hold", "supersede", "force"])]
    pub(in crate::cli) fleet: bool,
    /// Share of the fleet's hosts that must be ready; the others follow later [default: 95%]
    #[arg(long, value_name = "N%", value_parser = quorum, requires = "fleet")]
    quorum: Option<u8>,
    /// From the word GO to the flip, in which hosts confirm: 500ms to 10m [default: 2s]
    #[arg(long, value_name = "TIME", value_parser = patience, requires = "fleet")]
    lead: Option<Duration>,
    /// Also with hosts whose clocks are not synchronised
    #[arg(long, requires = "fleet")]
    allow_unsynchronised: bool,
}

/// A roll of the fleet.
#[derive(Debug, Args)]
pub(in crate::cli) struct RollFlags {
    /// Roll every host of the fleet, some at a time
    #[arg(long, conflicts_with_all = ["batch", "dry_run"])]
    pub(in crate::cli) fleet: bool,
    /// Hosts at a time: 2 or 10% [default: 10%]
    #[arg(long, value_name = "N|N%", value_parser = host_batch, requires = "fleet")]
    host_batch: Option<String>,
}

/// Barriers that others hold, in the ZooKeeper of `[fleet]`.
#[derive(Debug, Args)]
pub(in crate::cli) struct Barriers {
    /// Before the flip, or the first batch, wait until this node of ZooKeeper's is gone
    #[arg(long, value_name = "PATH", value_parser = node)]
    pub(in crate::cli) barrier: Option<String>,
    /// Enter this double barrier before the flip, or the first batch, and leave it at the end
    #[arg(long, value_name = "PATH", value_parser = node, requires = "parties", conflicts_with = "fleet")]
    double_barrier: Option<String>,
    /// So many enter the double barrier before any goes on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), requires = "double_barrier")]
    parties: Option<u32>,
}

impl Barriers {
    /// The double one, as the API has it.
    pub(in crate::cli) fn double(&self) -> Option<DoubleBarrier> {
        let (path, parties) = (self.double_barrier.clone()?, self.parties?);
        Some(DoubleBarrier { path, parties })
    }
}

/// `95%` or `95`
fn quorum(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    match number.parse() {
        Ok(quorum @ 1..=100) => Ok(quorum),
        _ => Err("write a share of the hosts from 1% to 100%".to_owned()),
    }
}

fn host_batch(text: &str) -> Result<String, String> {
    let roll = FleetRoll { to: None, host_batch: text.to_owned(), barrier: None, force: false };
    roll.hosts(1).map(|_| text.to_owned())
}

fn node(text: &str) -> Result<String, String> {
    is_node(text).map(|()| text.to_owned())
}

/// How an order is followed.
pub(in crate::cli) struct Following {
    /// Begin, and do not follow.
    pub(in crate::cli) detach: bool,
    pub(in crate::cli) json: bool,
    /// How long a daemon that has gone is waited for.
    pub(in crate::cli) wait: Duration,
}

/// `deployer deploy SERVICE --to VERSION --fleet`
pub(in crate::cli) async fn deploy(
    client: &Client,
    (service, to): (&str, &Version),
    (flags, bake, barrier): (&DeployFlags, Option<Duration>, Option<String>),
    following: &Following,
) -> Result<Exit, Failure> {
    let mut asked =
        FleetDeploy { barrier, allow_unsynchronised: flags.allow_unsynchronised, ..FleetDeploy::new(to.clone()) };
    asked.quorum = flags.quorum.unwrap_or(asked.quorum);
    asked.lead_ms = flags.lead.map_or(asked.lead_ms, milliseconds);
    asked.bake_ms = bake.map(milliseconds);
    asked.is_sound().map_err(|why| Failure::new(Exit::Usage, why))?;
    begin(client, service, ("deploy", &asked), following).await
}

/// `deployer roll SERVICE --fleet`
pub(in crate::cli) async fn roll(
    client: &Client,
    (service, to): (&str, Option<Version>),
    (flags, barrier, force): (&RollFlags, Option<String>, bool),
    following: &Following,
) -> Result<Exit, Failure> {
    let host_batch = flags.host_batch.clone().unwrap_or_else(|| HOST_BATCH.to_owned());
    begin(client, service, ("roll", &FleetRoll { to, host_batch, barrier, force }), following).await
}

async fn begin(
    client: &Client,
    service: &str,
    (what, asked): (&str, &impl serde::Serialize),
    following: &Following,
) -> Result<Exit, Failure> {
    // Caught before anything begins: from then on, to go is to detach.
    let mut signals = caught()?;
    let path = format!("{}/{what}", path(service));
    let started: FleetStarted = tokio::select! {
        started = client.post(&path, asked) => started?,
        _ = signals.next() => return Err(unanswered(service, what)),
    };
    if following.detach {
        let text = format!("epoch {} has begun; `deployer fleet watch {service}` follows it", started.epoch);
        return out::say(&if following.json { json!({ "epoch": started.epoch }).to_string() } else { text });
    }
    let follow = Follow::new(client, (service, started.epoch), Goal::End, (following.json, following.wait));
    follow.follow(&mut signals).await
}

/// `deployer rollback SERVICE --fleet`: what is under way is turned back; else the former version is deployed.
pub(in crate::cli) async fn rollback(client: &Client, service: &str, following: &Following) -> Result<Exit, Failure> {
    let mut signals = caught()?;
    let turned = async {
        let before: ServiceFleet = client.get(&path(service)).await?;
        let done: Done = client.post(&format!("{}/rollback", path(service)), &json!({})).await?;
        Ok::<_, Failure>((before, done))
    };
    let (before, done) = tokio::select! {
        turned = turned => turned?,
        _ = signals.next() => return Err(unanswered(service, "rollback")),
    };
    if !following.json {
        out::error(&done.done);
    }
    let state = &before.state;
    let (epoch, goal) = match state.phase {
        Phase::Idle => (state.epoch.saturating_add(1), Goal::End),
        _ => (state.epoch, Goal::Return),
    };
    Follow::new(client, (service, epoch), goal, (following.json, following.wait)).follow(&mut signals).await
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
