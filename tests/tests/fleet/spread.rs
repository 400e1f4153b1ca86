//! How far apart hosts flip: at one instant that all have been told before, and when a watch tells each.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use deployer_tests::fleet::flips::{Probes, Spread};
use deployer_tests::fleet::kazoo::Watcher;
use deployer_tests::fleet::{Fleet, Plan};
use deployer_tests::pace::is_full;

/// How many flips of each kind.
fn flips() -> usize {
    if is_full() { 5 } else { 2 }
}

/// Hosts that do not know of each other hold a deploy ready, and flip as soon as they hear of a node's change.
fn by_watches() -> Result<Vec<Spread>> {
    let fleet = Fleet::start(Plan { zookeepers: 1, bake: "1s", ..Plan::alone() })?;
    let mut spreads = Vec::new();
    for nth in 0..flips() {
        let version = format!("w{nth}");
        fleet.each(|host| host.must(&["deploy", "web", "--to", &version, "--hold", "--detach"]))?;
        let workers = fleet.plan.workers;
        fleet.each(|host| {
            host.wait("it holds", |service| {
                let pools = service["pools"].as_array();
                pools.is_some_and(|pools| pools.iter().all(|pool| pool["up"] == workers))
            })
        })?;
        // The last worker is up a moment before the deploy holds.
        sleep(Duration::from_secs(1));
        let (watchers, probes) = (fleet.watch()?, Probes::start(&fleet.hosts)?);
        sleep(Duration::from_millis(500));
        fleet.call()?;
        watchers.into_iter().try_for_each(Watcher::flipped)?;
        sleep(Duration::from_millis(500));
        spreads.push(probes.stop()?.flips_to(&version)?);
        fleet.each(|host| host.wait("the deploy is over", |service| service["roll"].is_null()))?;
    }
    Ok(spreads)
}

/// A fleet's deploys.
fn together() -> Result<Vec<Spread>> {
    let fleet = Fleet::joined(Plan { bake: "1s", ..Plan::default() })?;
    let mut spreads = Vec::new();
    for nth in 0..flips() {
        let version = format!("f{nth}");
        let probes = Probes::start(&fleet.hosts)?;
        let (exit, said) = fleet.deploy(1, &version, &[])?;
        ensure!(exit == 0, "exit {exit}: {said}\n{}", fleet.log());
        let probings = probes.stop()?;
        probings.must_be_whole()?;
        spreads.push(probings.flips_to(&version)?);
        fleet.settled(Duration::from_secs(30))?;
    }
    Ok(spreads)
}

#[test]
fn watches_flip_one_after_the_other() -> Result<()> {
    if !is_full() {
        eprintln!("only with --full");
        return Ok(());
    }
    for spread in by_watches()? {
        eprintln!("by a watch:   {spread}");
    }
    Ok(())
}

#[test]
fn hosts_flip_at_one_instant() -> Result<()> {
    let (together, watched) = (together()?, by_watches()?);
    for spread in &together {
        eprintln!("at an instant: {spread}");
    }
    for spread in &watched {
        eprintln!("by a watch:    {spread}");
    }
    // The clocks of all hosts are one here: nothing is left but when each kernel looks at it, and the probes see it.
    let worst = together.iter().map(Spread::least_ms).fold(0.0, f64::max);
    ensure!(worst <= 5.0, "hosts flip {worst} ms apart, at the least");
    Ok(())
}
