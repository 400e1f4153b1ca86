//! What the kernel sees of workers' processes by itself: the daemon is stopped all the while, and told afterwards.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use deployer_tests::dial::{Caller, Dial, answers};
use deployer_tests::process::suspend;
use deployer_tests::rig::{Setup, wait};
use deployer_tests::sandbox::{Place, Sandbox};
use rustix::process::Signal;

const HOST: &str = "127.0.0.1";

/// A worker whose socket is older than the programs is killed, and started again. Callers are led around it until the
/// daemon has warmed it; whoever is not steered meets what is there.
#[test]
fn killed_and_started_while_the_daemon_stands_still() -> Result<()> {
    let sandbox = Sandbox::new("lives")?;
    let mut rig = Setup { ports: 8000..=8001, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let stranger = Caller::at(&sandbox, Place::Outside);
    let dial = || Dial::to(HOST, 8000).times(10);
    ensure!(answers(&caller.once(dial())?) == [(8000, 10)].into());
    suspend(rig.daemon.pid())?;
    rig.servers.remove(0).stop()?;
    let (seen, bare) = (caller.once(dial())?, stranger.once(dial())?);
    ensure!(answers(&seen) == [(8001, 10)].into(), "killed: {seen:?}");
    ensure!(bare.iter().all(deployer_tests::dial::Seen::is_refused), "the twin: {bare:?}");
    rig.start_worker(8000)?;
    let (seen, bare) = (caller.once(dial())?, stranger.once(dial())?);
    ensure!(answers(&seen) == [(8001, 10)].into(), "cold: {seen:?}");
    ensure!(answers(&bare) == [(8000, 10)].into(), "the twin: {bare:?}");
    rig.daemon.signal(Signal::CONT)?;
    rig.wait_phase(8000, "up")?;
    ensure!(answers(&caller.once(dial())?) == [(8000, 10)].into());
    wait("the end to be told", || Ok(rig.daemon.log().contains("is being killed"))).map(drop)
}

/// The same of one whose socket the programs have seen come: every kernel tells of that (older ones from 6.12 on).
#[test]
fn one_that_came_later_is_killed() -> Result<()> {
    let sandbox = Sandbox::new("later")?;
    let mut rig = Setup { ports: 8000..=8001, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.servers.remove(0).stop()?;
    rig.wait_phase(8000, "down")?;
    rig.start_worker(8000)?;
    rig.wait_phase(8000, "up")?;
    suspend(rig.daemon.pid())?;
    let before = rig.daemon.log().len();
    let later = rig.servers.iter().position(|server| server.port == 8000).expect("started above");
    rig.servers.remove(later).stop()?;
    let seen = caller.once(Dial::to(HOST, 8000).times(10))?;
    ensure!(answers(&seen) == [(8001, 10)].into(), "killed: {seen:?}");
    rig.daemon.signal(Signal::CONT)?;
    wait("the end to be told", || Ok(rig.daemon.log()[before..].contains("is being killed"))).map(drop)
}

/// Without a daemon nobody warms a worker that has been started: it is let in when its quarantine is over.
#[test]
fn a_quarantine_runs_out() -> Result<()> {
    let sandbox = Sandbox::new("limit")?;
    let mut rig = Setup { ports: 8000..=8001, extra: "cold_limit = \"10s\"", ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let answer = || Ok::<_, anyhow::Error>(caller.once(Dial::to(HOST, 8000))?[0].answer);
    rig.kill_daemon()?;
    rig.servers.remove(0).stop()?;
    let begun = Instant::now();
    rig.start_worker(8000)?;
    ensure!(answer()? == Some(8001), "cold, {:.1?} after it was started", begun.elapsed());
    wait("the end of its quarantine", || Ok(answer()? == Some(8000)))?;
    let took = begun.elapsed();
    eprintln!("let in {took:.1?} after it was started");
    ensure!(took > Duration::from_millis(9900), "{took:?}");
    // What has served is not taken out by the next daemon.
    rig.succeed()?;
    ensure!(answer()? == Some(8000) && rig.worker(8000)?.phase == "up");
    Ok(())
}
