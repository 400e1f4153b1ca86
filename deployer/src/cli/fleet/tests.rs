//! What is said and shown of a fleet, and how following ends.

mod follow;
mod lines;
mod status;

use super::view::Seen;
use crate::{
    api::{FleetState, HostService, HostStatus, ServiceFleet},
    cli::{Cli, clap_code},
    fleet::{
        paths::Mark,
        state::{Ended, Order, Outcome, Phase, Release},
    },
};
use clap::Parser as _;

/// 2026-01-31 14:00:00Z
const BEGUN: u64 = 1_769_868_000_000;

fn release(version: &str, lane: u8) -> Option<Release> {
    Some(Release { version: version.into(), lane })
}

fn named(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

/// A deploy of v2 in epoch 7, of five hosts.
fn state(phase: Phase) -> FleetState {
    let order = Order {
        by: "uid 0 on app1".to_owned(),
        at_ms: BEGUN,
        to: Some("v2".into()),
        quorum: 80,
        lead_ms: 2000,
        bake_ms: 600_000,
        ..Order::default()
    };
    FleetState {
        epoch: 7,
        phase,
        active: release("v1", 2),
        other: release("v2", 3),
        order,
        expected: named(&["app1", "app2", "app3", "app4", "app5"]),
        since_ms: BEGUN,
        ..FleetState::default()
    }
}

fn service(state: FleetState) -> ServiceFleet {
    ServiceFleet { service: "web".to_owned(), driver: Some("app1".to_owned()), state, ..ServiceFleet::default() }
}

fn say(service: &mut ServiceFleet, mark: Mark, hosts: &[&str]) {
    service.marks.insert(mark.name().to_owned(), named(hosts));
}

fn host(name: &str, stage: &str, up: usize) -> HostStatus {
    let web = HostService {
        version: Some("v1".to_owned()),
        lane: 2,
        epoch: 7,
        stage: stage.to_owned(),
        up,
        workers: 4,
        published: true,
    };
    HostStatus {
        host: name.to_owned(),
        roster: "enabled".to_owned(),
        alive: true,
        services: [("web".to_owned(), web)].into(),
        synchronised: Some(true),
        clock_error_us: Some(320),
        deployer: "0.1.0".to_owned(),
    }
}

fn over(mut state: FleetState, result: Ended, text: &str) -> FleetState {
    let (epoch, at_ms) = (state.epoch, BEGUN + 12_300);
    state.phase = Phase::Idle;
    state.outcome = Some(Outcome { epoch, result, text: text.to_owned(), at_ms });
    state
}

fn seen(service: ServiceFleet) -> Seen {
    Seen { line: serde_json::to_string(&service).unwrap(), service, hosts: Vec::new(), now_ms: BEGUN + 1500 }
}

#[test]
fn every_verb_is_understood() {
    for line in [
        "deployer fleet status",
        "deployer fleet status web --json",
        "deployer fleet hosts --json",
        "deployer fleet watch web --json --wait 5m",
        "deployer fleet abort web",
        "deployer fleet resume web",
        "deployer fleet enable app1",
        "deployer fleet drain app1",
        "deployer fleet forget app1",
        "deployer fleet accept-shrink web",
        "deployer deploy web --to v2 --fleet",
        "deployer deploy web --to v2 --fleet --quorum 80% --lead 500ms --bake 1m --allow-unsynchronised --barrier /b \
         --detach --json",
        "deployer roll web --fleet --host-batch 10% --to v2 --barrier /b",
        "deployer roll web --fleet",
        "deployer rollback web --fleet --json",
        "deployer deploy web --to v2 --barrier /b",
        "deployer roll web --double-barrier /b --parties 3",
    ] {
        let parsed = Cli::try_parse_from(line.split_whitespace());
        assert!(parsed.is_ok(), "{line}: {:?}", parsed.err());
    }
}

#[test]
fn mistakes_are_usage_errors() {
    for line in [
        "deployer fleet",
        "deployer fleet watch",
        "deployer fleet enable",
        "deployer deploy web --fleet",
        "deployer deploy web --to v2 --quorum 80%",
        "deployer deploy web --to v2 --fleet --quorum 0",
        "deployer deploy web --to v2 --fleet --quorum 101%",
        "deployer deploy web --to v2 --fleet --lead 2",
        "deployer deploy web --to v2 --fleet --hold",
        "deployer deploy web --to v2 --fleet --at +30s",
        "deployer deploy web --to v2 --fleet --double-barrier /b --parties 2",
        "deployer deploy web --to v2 --barrier b",
        "deployer deploy web --to v2 --double-barrier /b",
        "deployer deploy web --to v2 --parties 2",
        "deployer roll web --double-barrier /b --parties 0",
        "deployer roll web --host-batch 10%",
        "deployer roll web --fleet --host-batch 0",
        "deployer roll web --fleet --batch 4",
        "deployer roll web --fleet --dry-run",
    ] {
        let error = Cli::try_parse_from(line.split_whitespace()).unwrap_err();
        assert_eq!(clap_code(&error), 2, "{line}: {error}");
    }
}
