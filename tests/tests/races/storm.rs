//! Hundreds of non-blocking connect()s at a time, of several processes, while what they meet is published: a worker goes
//! out and in, or all are rolled. Some callers close at once, some never look at what became of it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer_tests::daemon::ServiceConfig;
use deployer_tests::journal::monotonic_ns;
use deployer_tests::sandbox::{Place, Sandbox};

use super::racer::{Racer, Sights, end};
use super::scene::{PORTS, SOON, Scene, Setup};

/// The worker that goes out and in.
const OUT: u16 = 8003;
/// Each process has so many connections that it looks after at a time, and 30 that it never looks at.
const FLIGHT: usize = 8;
const PROCESSES: usize = 3;

/// A process of callers in a hurry.
fn storm(sandbox: &Sandbox, place: Place) -> Result<Racer> {
    let job = format!("{{\"ports\": {:?}, \"flight\": {FLIGHT}, \"to\": \"127.0.0.1\"}}", PORTS.collect::<Vec<_>>());
    Racer::start(sandbox, place, &["storm", &job])
}

/// All that are steered.
fn storms(sandbox: &Sandbox) -> Result<Vec<Racer>> {
    (0..PROCESSES).map(|_| storm(sandbox, Place::Callers)).collect()
}

/// Takes a worker out and puts it back, over and over; from when to when it was out for sure, for [`monotonic_ns`].
///
/// At least for this time; then until it was out 12 times, and enough have dialled it meanwhile, by the kernel's count:
/// callers that are steered, and others, who have met it. Of either, six in ten are looked after.
fn out_and_in(scene: &Scene<'_>, time: Duration) -> Result<Vec<(u64, u64)>> {
    const ENOUGH: u64 = 20;
    let count = || {
        let worker = scene.worker(OUT)?;
        let number = |key: &str| worker[key].as_u64().with_context(|| format!("{key} in {worker}"));
        Ok::<_, anyhow::Error>((number("away")?, number("established")?))
    };
    let (begun, mut out, mut away, mut met) = (Instant::now(), Vec::new(), 0, 0);
    let mut is_enough = false;
    while begun.elapsed() < time || !is_enough && begun.elapsed() < SOON {
        scene.by_hand("drain", OUT)?;
        let (from, before) = (monotonic_ns(), count()?);
        sleep(Duration::from_millis(50));
        let after = count()?;
        out.push((from, monotonic_ns()));
        scene.by_hand("enable", OUT)?;
        away += after.0 - before.0;
        met += after.1 - before.1;
        is_enough = out.len() >= 12 && away >= ENOUGH && met >= ENOUGH;
    }
    Ok(out)
}

#[test]
fn while_a_worker_goes_out_and_in() -> Result<()> {
    let sandbox = Sandbox::new("storm")?;
    let scene = Setup::default().start(&sandbox)?;
    let mut steered = storms(&sandbox)?;
    // The twin: one that is not steered meets the worker whatever is published.
    let mut other = storm(&sandbox, Place::Outside)?;
    sleep(Duration::from_millis(500));
    let out = out_and_in(&scene, Duration::from_secs(4))?;
    let (seen, unsteered) = (end(&mut steered)?, other.end()?);
    let meant = |all: &Sights| {
        let is_out = |at: u64| out.iter().any(|(from, to)| (*from..*to).contains(&at));
        let during: Vec<_> = all.seen.iter().filter(|one| one.port == OUT && is_out(one.at)).collect();
        (during.len(), during.iter().filter(|one| one.answer == Some(OUT)).count())
    };
    let ((dialled, met), (_, twin)) = (meant(&seen), meant(&unsteered));
    let (drains, begun, silent) = (out.len(), seen.begun, seen.silent);
    eprintln!(
        "{begun} connects, {silent} silent, {drains} drains: {dialled} dialled {OUT} then, {met} met it; unsteered {twin}"
    );
    let lost = [seen.harmed(), unsteered.harmed()].concat();
    ensure!(lost.is_empty(), "lost: {lost:?}");
    ensure!(met == 0, "{met} of {dialled} reached {OUT} after its drain");
    ensure!(begun > 200 && drains >= 12 && dialled > 5 && twin > 0, "too little was tried");
    let open = scene.counts_are_right("the silent ones are left")?;
    ensure!(open.values().sum::<u64>() == silent + unsteered.silent, "{open:?}");
    drop((steered, other));
    let open = scene.counts_are_right("all are gone")?;
    ensure!(open.values().all(|open| *open == 0), "{open:?}");
    Ok(())
}

#[test]
fn while_all_are_rolled() -> Result<()> {
    let sandbox = Sandbox::new("stormroll")?;
    let scene = Setup::default().start(&sandbox)?;
    let before = scene.pids()?;
    let mut steered = storms(&sandbox)?;
    let rolled = scene.roll()?.end()?;
    let seen = end(&mut steered)?;
    eprintln!("{} connects in {:.1} s: {} harmed; {}", seen.begun, rolled.seconds, seen.harmed().len(), rolled.text);
    rolled.must("done", &["4 workers"])?;
    ensure!(seen.harmed().is_empty(), "lost or served cold: {:?}", seen.harmed());
    let after = scene.pids()?;
    ensure!(before.iter().all(|(port, pid)| after[port] != *pid) && seen.begun > 200, "{before:?} {after:?}");
    scene.counts_are_right("the silent ones are left")?;
    Ok(())
}

/// The twin: callers that are not steered. A drain would wait for ever for those that they never look at; where it does
/// not wait, they meet closed ports and cold workers.
#[test]
fn while_all_are_rolled_unsteered() -> Result<()> {
    let sandbox = Sandbox::new("stormtwin")?;
    let service =
        ServiceConfig { batch: "1".to_owned(), deadline: "1s", on_deadline: "kill", ..ServiceConfig::default() };
    let scene = Setup { service, ..Setup::default() }.start(&sandbox)?;
    let mut storm = storm(&sandbox, Place::Outside)?;
    let rolled = scene.roll()?.end()?;
    let seen = storm.end()?;
    let (harmed, of) = (seen.harmed().len(), seen.seen.len());
    eprintln!("unsteered: {harmed} of {of} met a closed port or a cold worker; {}", rolled.text);
    ensure!(harmed > 0, "a storm that nothing happens to shows nothing");
    Ok(())
}
