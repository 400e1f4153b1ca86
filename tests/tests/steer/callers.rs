//! Callers as they come: in cgroups below, in cgroups made anew, upgraded.

use std::fs;

use anyhow::{Context, Result, ensure};
use deployer_tests::dial::{Caller, Dial, answers};
use deployer_tests::rig::{Setup, wait};
use deployer_tests::sandbox::{Place, Sandbox};

const HOST: &str = "127.0.0.1";

/// A unit's cgroup, and those below it; also when a restart has made the cgroup anew.
#[test]
fn a_cgroup_that_is_made_anew() -> Result<()> {
    let sandbox = Sandbox::new("anew")?;
    let (unit, below) = (sandbox.root_cgroup().join("unit"), sandbox.root_cgroup().join("unit/below"));
    let make = || fs::create_dir_all(&below).context("make a cgroup");
    make()?;
    let rig = Setup { ports: 8000..=8001, callers: Some(vec![unit.clone()]), ..Setup::default() }.start(&sandbox)?;
    let answer = |cgroup: &std::path::Path| {
        let caller = Caller::at(&sandbox, Place::Callers).in_cgroup(cgroup);
        Ok::<_, anyhow::Error>(caller.once(Dial::to(HOST, 8000))?[0].answer)
    };
    rig.drain(8000)?;
    ensure!(answer(&unit)? == Some(8001) && answer(&below)? == Some(8001), "steered before");
    ensure!(answer(&sandbox.cgroup(Place::Callers))? == Some(8000), "not one of the callers");
    fs::remove_dir(&below).and_then(|()| fs::remove_dir(&unit)).context("remove a cgroup")?;
    make()?;
    let took = wait("the new cgroup to be steered", || Ok(answer(&below)? == Some(8001)))?;
    eprintln!("a cgroup made anew is steered after {took:.1?}");
    ensure!(took < std::time::Duration::from_secs(3), "{took:?}");
    Ok(())
}

/// A load balancer that is upgraded: the new file is steered, and so is the process that runs the old one.
#[test]
fn an_executable_that_is_replaced() -> Result<()> {
    let sandbox = Sandbox::new("upgrade")?;
    let caller = Caller::at(&sandbox, Place::Outside).copied("balancer")?;
    let callers = Some(vec![caller.executable().to_owned()]);
    let rig = Setup { ports: 8000..=8001, callers, ..Setup::default() }.start(&sandbox)?;
    rig.drain(8000)?;
    let old = caller.start(&[Dial { pause_ms: 10, ..Dial::to(HOST, 8000).times(200) }])?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    let new = caller.clone().copied("balancer")?;
    let took = wait("the new file to be steered", || Ok(new.once(Dial::to(HOST, 8000))?[0].answer == Some(8001)))?;
    let old = old.finish()?;
    eprintln!("the new file is steered after {took:.1?}; by the old one {:?}", answers(&old));
    ensure!(took < std::time::Duration::from_secs(3), "{took:?}");
    ensure!(answers(&old) == [(8001, 200)].into(), "{:?}", answers(&old));
    Ok(())
}

/// Programs attached to the callers' and the workers' cgroups, instead of to one above both.
#[test]
fn cgroups_apart() -> Result<()> {
    let sandbox = Sandbox::new("apart")?;
    let rig = Setup { apart: true, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.drain(8000)?;
    let held = caller.hold(&[Dial { keep: true, ..Dial::to(HOST, 8000).times(12) }])?;
    let lost = caller.once(Dial { source: Some("203.0.113.5"), freebind: true, ..Dial::to(HOST, 8001).times(5) })?;
    let service = rig.service()?;
    eprintln!("12 to 8000: {:?}, open {}", answers(&held.seen), service.sum(|w| w.open));
    ensure!(held.seen.iter().all(|one| one.answer.is_some_and(|port| port != 8000)), "{:?}", held.seen);
    ensure!(service.sum(|w| w.open) == 12 && service.sum(|w| w.established) == 12, "{service:?}");
    ensure!(lost.iter().all(|one| one.connect != 0) && service.sum(|w| w.tickets) == 0, "{service:?}");
    drop(held);
    wait("all to be closed", || Ok(rig.service()?.sum(|w| w.open) == 0)).map(drop)
}
