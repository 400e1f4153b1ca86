//! `deployer fleet status` and `deployer fleet hosts`: how the fleet stands, as tables or as JSON.

use std::{
    collections::BTreeSet,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use super::{lines, path};
use crate::{
    api::{Exit, FleetStatus, HostService, HostStatus, ServiceFleet},
    cli::{
        client::{Client, Failure},
        happened,
        out::{self, clean, counted, joined, short},
    },
    fleet::{paths::Mark, state::Phase},
};

const SERVICES: [&str; 8] = ["service", "phase", "for", "epoch", "active", "other", "driver", "last order"];
/// Lines of a service's log that are shown.
const LOG: usize = 10;

pub(super) async fn run(client: &Client, service: Option<&str>, json: bool) -> Result<Exit, Failure> {
    if let (Some(service), true) = (service, json) {
        return print(&[client.get::<ServiceFleet>(&path(service)).await?]);
    }
    let fleet: FleetStatus = client.get("/v1/fleet").await?;
    match service {
        None if json => print(&[fleet]),
        None => out::say(&table(&fleet, now_ms())),
        Some(service) => {
            let service: ServiceFleet = client.get(&path(service)).await?;
            out::say(&details(&service, &fleet.hosts))
        }
    }
}

pub(super) async fn hosts(client: &Client, json: bool) -> Result<Exit, Failure> {
    let fleet: FleetStatus = client.get("/v1/fleet").await?;
    if !json {
        return out::say(&host_table(&fleet.hosts));
    }
    if fleet.hosts.is_empty() { Ok(Exit::Done) } else { print(&fleet.hosts) }
}

fn print<T: Serialize>(all: &[T]) -> Result<Exit, Failure> {
    let lines: Result<Vec<_>, _> = all.iter().map(serde_json::to_string).collect();
    let failed = |error| Failure::new(Exit::Failed, format!("cannot write the fleet's status as JSON: {error}"));
    out::say(&lines.map_err(failed)?.join("\n"))
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The fleet, and a line a service.
pub(super) fn table(fleet: &FleetStatus, now_ms: u64) -> String {
    let mut text = String::new();
    for trouble in &fleet.trouble {
        text.push_str(&format!("!!! {}\n", clean(trouble)));
    }
    text.push_str(&heading(fleet));
    if fleet.services.is_empty() {
        text.push_str("no services\n");
        return text;
    }
    text.push('\n');
    let mut rows = vec![SERVICES.map(str::to_owned).to_vec()];
    rows.extend(fleet.services.iter().map(|service| row(service, now_ms)));
    text.push_str(&out::columns(&rows, &[2, 3]));
    for service in fleet.services.iter().filter(|service| service.state.phase != Phase::Idle) {
        let (name, count) = (clean(&service.service), progress(service));
        text.push_str(&format!("\n{name}: {count}{}\n", lines::waiting(service, &fleet.hosts)));
    }
    text
}

fn heading(fleet: &FleetStatus) -> String {
    let (name, host, coordinator) = (clean(&fleet.name), clean(&fleet.host), clean(&fleet.coordinator));
    if fleet.coordinator == "local" {
        return format!("{host} is a fleet of its own; [fleet] in the configuration makes it a member of one\n");
    }
    let since = if fleet.since_ms > 0 { format!(" since {}", happened::time(fleet.since_ms)) } else { String::new() };
    let lost = match fleet.sessions_lost {
        0 => String::new(),
        lost => format!(", {} lost", counted(usize::try_from(lost).unwrap_or(usize::MAX), "session")),
    };
    let alive = fleet.hosts.iter().filter(|host| host.alive).count();
    let enabled = fleet.hosts.iter().filter(|host| host.roster == "enabled").count();
    let mut text = String::new();
    if !fleet.connected {
        text.push_str(&format!(
            "!!! NOT CONNECTED{since}: what is served stays as it is, orders wait, and what follows may be old\n"
        ));
    }
    let connected = if fleet.connected { format!("connected{since}") } else { "not connected".to_owned() };
    text.push_str(&format!("fleet {name}, seen from {host}: {coordinator}, {connected}{lost}\n"));
    text.push_str(&format!("{enabled} of {} enabled, {alive} there\n", counted(fleet.hosts.len(), "host")));
    text
}

fn row(service: &ServiceFleet, now_ms: u64) -> Vec<String> {
    let state = &service.state;
    let outcome = state.outcome.as_ref().map_or_else(
        || "-".to_owned(),
        |it| {
            format!(
                "epoch {} {} at {}: {}",
                it.epoch,
                lines::ending(it.result),
                happened::time(it.at_ms),
                clean(&it.text)
            )
        },
    );
    vec![
        clean(&service.service),
        state.phase.name().to_owned(),
        if state.since_ms == 0 { "-".to_owned() } else { short(now_ms.saturating_sub(state.since_ms) as f64 / 1000.0) },
        state.epoch.to_string(),
        lines::release(state.active.as_ref()),
        lines::release(state.other.as_ref()),
        service.driver.as_deref().map_or_else(|| "-".to_owned(), clean),
        outcome,
    ]
}

fn progress(service: &ServiceFleet) -> String {
    let count = lines::count(service);
    if count.is_empty() { clean(&service.waits) } else { count }
}

/// All that is known of a service.
pub(super) fn details(service: &ServiceFleet, hosts: &[HostStatus]) -> String {
    let state = &service.state;
    let mut text = format!("{}: {}\n", clean(&service.service), lines::phase(service));
    if state.phase != Phase::Idle {
        let driver = service.driver.as_deref().map_or_else(|| "nobody".to_owned(), clean);
        text.push_str(&format!("  {}{}; driven by {driver}\n", progress(service), lines::waiting(service, hosts)));
    }
    text.push_str(&format!("  active {}, other ", lines::release(state.active.as_ref())));
    text.push_str(&format!("{}, epoch {}\n", lines::release(state.other.as_ref()), state.epoch));
    if let Some(wanted) = &state.wanted {
        text.push_str(&format!("  {} wants it to end\n", clean(&wanted.by)));
    }
    for mark in Mark::ALL {
        let said = lines::said(service, mark);
        if !said.is_empty() {
            text.push_str(&format!("  {}: {}\n", mark.name(), joined(said, ", ")));
        }
    }
    for (host, at_ms) in &service.flips {
        text.push_str(&format!("  {} has flipped at {}\n", clean(host), happened::time(*at_ms)));
    }
    let log = service.log.iter().skip(service.log.len().saturating_sub(LOG));
    log.for_each(|line| text.push_str(&format!("  {}\n", clean(line))));
    text
}

/// A row a host, a column a service.
pub(super) fn host_table(hosts: &[HostStatus]) -> String {
    if hosts.is_empty() {
        return "no hosts\n".to_owned();
    }
    let services: BTreeSet<_> = hosts.iter().flat_map(|host| host.services.keys()).collect();
    let mut heading = vec!["host".to_owned(), "roster".to_owned(), "there".to_owned()];
    heading.extend(services.iter().map(|service| clean(service)));
    heading.extend(["clock".to_owned(), "deployer".to_owned()]);
    let mut rows = vec![heading];
    for host in hosts {
        let mut row = vec![clean(&host.host), clean(&host.roster), if host.alive { "yes" } else { "NO" }.to_owned()];
        let of = |service: &&String| host.services.get(*service).map_or_else(|| "-".to_owned(), serves);
        row.extend(services.iter().map(of));
        row.extend([clock(host), if host.deployer.is_empty() { "-".to_owned() } else { clean(&host.deployer) }]);
        rows.push(row);
    }
    out::columns(&rows, &[])
}

/// `v2 lane 3, idle, 4/4 up, published`
fn serves(it: &HostService) -> String {
    let version = it.version.as_deref().map_or_else(|| "?".to_owned(), clean);
    let published = if it.published { ", published" } else { "" };
    format!("{version} lane {}, {}, {}/{} up{published}", it.lane, clean(&it.stage), it.up, it.workers)
}

/// `within 0.3 ms`
fn clock(host: &HostStatus) -> String {
    match (host.synchronised, host.clock_error_us) {
        (Some(false), _) => "NOT SYNCHRONISED".to_owned(),
        (Some(true), Some(error)) => format!("within {:.1} ms", error as f64 / 1000.0),
        (Some(true), None) => "synchronised".to_owned(),
        (None, _) => "-".to_owned(),
    }
}
