//! Deploys of the whole fleet, and what operators do about them.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use deployer_tests::fleet::flips::Probes;
use deployer_tests::fleet::orders::{active, result};
use deployer_tests::fleet::{Fleet, Plan};
use deployer_tests::journal::monotonic_ns;
use deployer_tests::site::ended;

const LIMIT: Duration = Duration::from_secs(60);

/// The first thing that must be shown: two deploys, a third that is turned back, and nobody notices.
#[test]
fn deploys_and_a_rollback_lose_and_mix_nothing() -> Result<()> {
    let fleet = Fleet::joined(Plan::default())?;
    let (browsers, probes) = (fleet.browse("ride")?, Probes::start(&fleet.hosts)?);
    sleep(Duration::from_secs(2));
    for version in ["v2", "v3"] {
        let (exit, said) = fleet.deploy(1, version, &[])?;
        ensure!(exit == 0, "{version}: exit {exit}: {said}\n{}", fleet.log());
        ensure!(active(&fleet.settled(LIMIT)?) == version, "{version}");
    }
    let deploy = fleet.deploying(1, "v4", &[])?;
    fleet.wait_marks("v4", "flipped", fleet.hosts.len())?;
    sleep(Duration::from_secs(2));
    // By another operator, on another host.
    fleet.host(3).must(&["rollback", "web", "--fleet"])?;
    let (exit, said) = ended(deploy)?;
    ensure!(exit == 5, "exit {exit}: {said}\n{}", fleet.log());
    let web = fleet.settled(LIMIT)?;
    ensure!(active(&web) == "v3" && result(&web) == "turned-back", "{web}");
    let (seen, probings) = (browsers.stop()?, probes.stop()?);
    eprintln!("{seen}");
    for version in ["v2", "v4"] {
        eprintln!("{version}: {}", probings.flips_to(version)?);
    }
    probings.must_be_whole()?;
    ensure!(seen.pages.keys().eq(["v1", "v2", "v3", "v4"]), "{seen}");
    fleet.judge("ride", &seen, &[])
}

/// A deploy that waits for a host is aborted by another operator; meanwhile nobody else can begin one.
#[test]
fn an_abort_before_the_flip_leaves_no_trace() -> Result<()> {
    let fleet = Fleet::joined(Plan { is_gated: true, ..Plan::default() })?;
    let browsers = fleet.browse("abort")?;
    fleet.hold(5, true)?;
    let deploy = fleet.deploying(1, "v2", &[])?;
    fleet.wait_marks("v2", "ready", 4)?;
    fleet.wait_web("the slowest is named", LIMIT, |web| web["waiting_for"] == serde_json::json!(["h5"]))?;
    let (exit, said) = fleet.deploy(2, "v3", &[])?;
    ensure!(exit != 0 && said.contains("under way"), "two operators at once: exit {exit}: {said}");
    // Another host's daemon watches what this one's began.
    let watch = fleet.host(4).spawn(&["fleet", "watch", "web", "--json"])?;
    fleet.host(2).must(&["fleet", "abort", "web"])?;
    let (exit, said) = ended(deploy)?;
    ensure!(exit != 0, "exit {exit}: {said}");
    let (watched, told) = ended(watch)?;
    ensure!(watched == exit && told.contains("aborted"), "exit {watched}: {told}");
    fleet.hold(5, false)?;
    let web = fleet.settled(LIMIT)?;
    ensure!(active(&web) == "v1" && result(&web) == "aborted", "{web}");
    let seen = browsers.stop()?;
    eprintln!("{seen}");
    ensure!(seen.pages.keys().eq(["v1"]), "a page of an aborted version: {seen}");
    fleet.judge("abort", &seen, &[])
}

/// Between GO and the instant: whoever has confirmed takes it back, and nobody flips.
#[test]
fn an_abort_before_the_instant_is_no_flip() -> Result<()> {
    let fleet = Fleet::joined(Plan::default())?;
    let browsers = fleet.browse("cancel")?;
    let deploy = fleet.deploying(1, "v2", &["--lead", "5s"])?;
    fleet.wait_marks("v2", "confirmed", fleet.hosts.len())?;
    fleet.host(2).must(&["fleet", "abort", "web"])?;
    let (exit, said) = ended(deploy)?;
    ensure!(exit != 0, "exit {exit}: {said}");
    let web = fleet.settled(LIMIT)?;
    ensure!(active(&web) == "v1" && result(&web) == "aborted", "{web}");
    // The instant passes.
    sleep(Duration::from_secs(5));
    let seen = browsers.stop()?;
    ensure!(seen.pages.keys().eq(["v1"]), "an aborted flip has happened: {seen}");
    fleet.judge("cancel", &seen, &[])
}

/// Host by host, as a roll of one host is worker by worker.
#[test]
fn a_roll_of_the_fleet_loses_nothing() -> Result<()> {
    let fleet = Fleet::joined(Plan::default())?;
    let browsers = fleet.browse("roll")?;
    sleep(Duration::from_secs(3));
    let before = pids_since(&fleet, 0)?;
    let (exit, said) = fleet.host(2).verb(&["roll", "web", "--fleet", "--host-batch", "40%"])?;
    ensure!(exit == 0, "exit {exit}: {said}\n{}", fleet.log());
    fleet.settled(LIMIT)?;
    let over_ns = monotonic_ns();
    sleep(Duration::from_secs(3));
    let seen = browsers.stop()?;
    let after = pids_since(&fleet, over_ns)?;
    eprintln!("{} workers before, {} after; {seen}", before.len(), after.len());
    ensure!(before.len() == 10 && before.is_disjoint(&after), "{before:?}, {after:?}");
    fleet.judge("roll", &seen, &[])
}

/// The processes of workers that have had requests since then, ns of `CLOCK_MONOTONIC`; those of all hosts.
fn pids_since(fleet: &Fleet, at_ns: u64) -> Result<BTreeSet<u32>> {
    let journal = fleet.journal()?;
    Ok(journal.entries.iter().filter(|entry| entry.begin_ns > at_ns).map(|entry| entry.pid).collect())
}
