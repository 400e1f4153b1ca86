//! A drain is a lease, and the programs are the daemon's: what becomes of both when it stands still, or dies.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use deployer_tests::dial::{Caller, Dial, answers};
use deployer_tests::rig::{Setup, wait};
use deployer_tests::sandbox::{Place, Sandbox};
use rustix::process::Signal;

const HOST: &str = "127.0.0.1";
const LEASE: Duration = Duration::from_secs(2);

#[test]
fn a_daemon_that_stands_still_loses_the_lease() -> Result<()> {
    let sandbox = Sandbox::new("lease")?;
    let mut rig = Setup { ports: 8000..=8001, lease: "2s", ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let answer = || Ok::<_, anyhow::Error>(caller.once(Dial::to(HOST, 8000))?[0].answer);
    rig.drain(8000)?;
    // The twin: a daemon that lives renews it.
    let begun = Instant::now();
    while begun.elapsed() < LEASE + Duration::from_millis(700) {
        ensure!(answer()? == Some(8001), "renewed, {:?} after the drain", begun.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    rig.daemon.signal(Signal::STOP)?;
    ensure!(answer()? == Some(8001), "right after SIGSTOP the lease still holds");
    let back = wait("the worker to serve again", || Ok(answer()? == Some(8000)))?;
    rig.daemon.signal(Signal::CONT)?;
    let out = wait("the worker to be drained again", || Ok(answer()? == Some(8001)))?;
    eprintln!("lease {LEASE:?}: back {back:.2?} after SIGSTOP, out again {out:.2?} after SIGCONT");
    ensure!(back <= LEASE + Duration::from_secs(2) && back >= LEASE / 4, "{back:?}");
    ensure!(out <= Duration::from_secs(3), "{out:?}");
    let seen = caller.once(Dial::to(HOST, 8000).times(20))?;
    ensure!(answers(&seen) == [(8001, 20)].into() && rig.worker(8000)?.phase == "draining", "{seen:?}");
    Ok(())
}

/// A drain with an end, `drain --for`, ends there.
#[test]
fn a_drain_with_an_end() -> Result<()> {
    let sandbox = Sandbox::new("for")?;
    let rig = Setup { ports: 8000..=8001, lease: "1s", ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let answer = || Ok::<_, anyhow::Error>(caller.once(Dial::to(HOST, 8000))?[0].answer);
    rig.must(&["drain", "web", "8000", "--for", "1500ms"])?;
    ensure!(answer()? == Some(8001));
    let back = wait("the end of the drain", || Ok(answer()? == Some(8000)))?;
    eprintln!("drained for 1.5 s: back after {back:.2?}");
    ensure!(back > Duration::from_millis(1200) && back < Duration::from_millis(1900), "{back:?}");
    rig.wait_phase(8000, "up")
}

#[test]
fn a_killed_daemon_steers_on_and_its_lease_runs_out() -> Result<()> {
    let sandbox = Sandbox::new("killed")?;
    let mut rig = Setup { ports: 8000..=8001, lease: "4s", ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.drain(8000)?;
    let before = caller.once(Dial::to(HOST, 8000).times(10))?;
    rig.daemon.kill()?;
    let after = caller.once(Dial::to(HOST, 8000).times(10))?;
    let answer = || Ok::<_, anyhow::Error>(caller.once(Dial::to(HOST, 8000))?[0].answer);
    let back = wait("the worker to serve again", || Ok(answer()? == Some(8000)))?;
    eprintln!("before kill -9 {:?}, after {:?}; back after {back:.2?}", answers(&before), answers(&after));
    ensure!(answers(&before) == [(8001, 10)].into() && answers(&after) == [(8001, 10)].into());
    Ok(())
}
