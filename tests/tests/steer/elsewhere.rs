//! Callers in another network namespace: no hook runs for them, and the workers' ends see them all the same.

use anyhow::{Result, ensure};
use deployer_tests::dial::{Caller, Dial, Seen, answers};
use deployer_tests::link::{FAR, NEAR, join};
use deployer_tests::rig::{Setup, wait};
use deployer_tests::sandbox::{Place, Sandbox};

/// A reset, a closed port and a cold worker are counted for every peer; the daemon's own warm-ups are not.
#[test]
fn every_peer_counts_at_the_workers_end() -> Result<()> {
    let (near, far) = (Sandbox::new("near")?, Sandbox::new("far")?);
    join(&near, &far)?;
    let extra = "warm = { requests = [\"GET /\"], within = \"1s\" }";
    let setup = Setup { host: NEAR, at: NEAR, ports: 8000..=8001, extra, ..Setup::default() };
    let mut rig = setup.start(&near)?;
    let caller = Caller::at(&near, Place::Callers).in_netns_of(&far);
    let held = caller.hold(&[Dial { keep: true, ask: Some("reset"), ..Dial::to(NEAR, 8000).times(2) }])?;
    ensure!(answers(&held.seen) == [(8000, 2)].into(), "{:?}", held.seen);
    wait("two resets", || Ok(rig.worker(8000)?.reset == 2))?;

    rig.stop_worker(8000)?;
    let before = rig.worker(8000)?;
    let refused = caller.once(Dial::to(NEAR, 8000).times(3))?;
    let after = rig.worker(8000)?;
    ensure!(refused.iter().all(Seen::is_refused), "{refused:?}");
    ensure!(after.closed_port - before.closed_port == 3, "{before:?} {after:?}");

    rig.start_worker(8000)?;
    wait("a worker that listens", || Ok(["listening", "warming"].contains(&rig.worker(8000)?.phase.as_str())))?;
    let before = rig.worker(8000)?;
    let cold = caller.once(Dial::to(NEAR, 8000).times(4))?;
    let after = rig.worker(8000)?;
    eprintln!("{before:?}\n{after:?}");
    ensure!(answers(&cold) == [(8000, 4)].into(), "{cold:?}");
    ensure!(after.to_cold - before.to_cold == 4, "{before:?} {after:?}");
    ensure!(after.established - before.established == 4, "{before:?} {after:?}");
    // The one that has waited for the worker to listen is the harness's own.
    ensure!(before.to_cold <= 1, "the daemon's warm-ups count: {before:?}");
    let status = rig.must(&["status"])?;
    ensure!(status.contains(&format!("{FAR} (another host or network namespace)")), "{status}");
    Ok(())
}

/// The accept queue of a worker that closes its port is reset: the callers are elsewhere.
#[test]
fn what_was_not_accepted_counts_as_reset() -> Result<()> {
    let (near, far) = (Sandbox::new("near2")?, Sandbox::new("far2")?);
    join(&near, &far)?;
    let mut rig = Setup { host: NEAR, at: NEAR, ports: 8000..=8001, ..Setup::default() }.start(&near)?;
    let caller = Caller::at(&near, Place::Callers).in_netns_of(&far);
    rig.servers[0].freeze()?;
    let silent = Dial { keep: true, odd: Some("silent"), ..Dial::to(NEAR, 8000).times(5) };
    let _held = caller.hold(&[silent])?;
    wait("five connections", || Ok(rig.worker(8000)?.open == 5))?;
    rig.stop_worker(8000)?;
    let worker = rig.worker(8000)?;
    ensure!(worker.reset == 5, "{worker:?}");
    Ok(())
}

/// Over IPv6, and over a worker that listens on all addresses.
#[test]
fn other_spellings_count_as_well() -> Result<()> {
    let (near, far) = (Sandbox::new("near3")?, Sandbox::new("far3")?);
    join(&near, &far)?;
    let mut rig = Setup { host: "::", at: NEAR, ports: 8000..=8001, ..Setup::default() }.start(&near)?;
    let caller = Caller::at(&near, Place::Callers).in_netns_of(&far);
    let seen = caller.once(Dial::to("::ffff:10.99.0.1", 8000).times(3))?;
    ensure!(answers(&seen) == [(8000, 3)].into(), "{seen:?}");
    ensure!(rig.worker(8000)?.established == 3, "{:?}", rig.worker(8000)?);
    rig.stop_worker(8000)?;
    let before = rig.worker(8000)?.closed_port;
    let seen = caller.once(Dial::to("::ffff:10.99.0.1", 8000).times(3))?;
    ensure!(seen.iter().all(Seen::is_refused), "{seen:?}");
    let after = rig.worker(8000)?.closed_port;
    ensure!(after - before == 3, "{before} {after}");
    Ok(())
}
