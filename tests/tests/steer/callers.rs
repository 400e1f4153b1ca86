//! Callers as they come: in cgroups below, in cgroups made anew, upgraded.

use std::fs;

use anyhow::{Context, Result, ensure};
use deployer_tests::dial::{Caller, Dial, answers};
use deployer_tests::rig::{Setup, wait};
use deployer_tests::sandbox::{Place, Sandbox};

const HOST: &str = "127.0.0.1";
/// A process manager that cannot be reached: a roll comes as far as that.
const NOT_THERE: &str = "{ supervisord = \"/nonexistent.sock\", program = \"web:web_{port}\" }";

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

/// A load balancer that was upgraded before the daemon came: its process runs a file that has no name any more.
#[test]
fn a_process_whose_file_was_replaced_before() -> Result<()> {
    let sandbox = Sandbox::new("before")?;
    let caller = Caller::at(&sandbox, Place::Outside).copied("balancer")?;
    let servers = deployer_tests::dial::Server::start_all(&sandbox, HOST, 8000..=8001)?;
    let mut old = caller.start(&[
        Dial::to(HOST, 8001),
        Dial { told: true, ask: Some("go"), ..Dial::to(HOST, 8001) },
        Dial { pause_ms: 5, ..Dial::to(HOST, 8000).times(100) },
    ])?;
    let runs = || Ok(fs::read_link(format!("/proc/{}/exe", old.pid())).is_ok_and(|link| link == caller.executable()));
    wait("the load balancer to run", runs)?;
    let new = caller.clone().copied("balancer")?;
    let callers = Some(vec![new.executable().to_owned()]);
    let rig = Setup { ports: 8000..=8001, callers, ..Setup::default() }.attach(&sandbox, servers)?;
    rig.drain(8000)?;
    old.tell()?;
    let old = old.finish()?;
    eprintln!("by the old file {:?}", answers(&old));
    ensure!(answers(&old) == [(8001, 102)].into(), "{:?}", answers(&old));
    ensure!(new.once(Dial::to(HOST, 8000))?[0].answer == Some(8001), "by the new one");
    Ok(())
}

/// In a container the name stands for a file of another mount namespace.
#[test]
fn an_executable_in_a_container() -> Result<()> {
    let sandbox = Sandbox::new("container")?;
    let caller = Caller::at(&sandbox, Place::Outside).copied("balancer")?;
    let callers = Some(vec![caller.executable().to_owned()]);
    let rig = Setup { ports: 8000..=8001, callers, ..Setup::default() }.start(&sandbox)?;
    rig.drain(8000)?;
    let seen = caller.contained()?.once(Dial { pause_ms: 50, ..Dial::to(HOST, 8000).times(60) })?;
    eprintln!("{:?}", answers(&seen));
    ensure!(seen[30..].iter().all(|one| one.answer == Some(8001)), "{:?}", answers(&seen));
    Ok(())
}

/// The load balancer is a copy that `callers` does not name: it is named, and stops a roll.
#[test]
fn a_caller_that_no_rule_fits_stops_a_roll() -> Result<()> {
    let sandbox = Sandbox::new("copy")?;
    let named = Caller::at(&sandbox, Place::Outside).copied("balancer")?;
    let copy = Caller::at(&sandbox, Place::Outside).copied("copied")?;
    let callers = Some(vec![named.executable().to_owned()]);
    let rig = Setup { ports: 8000..=8001, callers, manager: NOT_THERE, ..Setup::default() }.start(&sandbox)?;
    let running = copy.start(&[Dial { pause_ms: 10, ..Dial::to(HOST, 8000).times(400) }])?;
    wait("half of it", || Ok(rig.worker(8000)?.established >= 150))?;
    let path = copy.executable().display().to_string();
    let (exit, text) = rig.verb(&["roll", "web"])?;
    ensure!(exit == 1 && text.contains("not steered") && text.contains(&path), "{exit} {text}");
    ensure!(text.contains("No worker was touched") && text.contains("deployer roll web --force"), "{text}");
    // By force it comes as far as the process manager, which is not there.
    let (exit, text) = rig.verb(&["roll", "web", "--force"])?;
    ensure!(exit == 1 && text.contains("nonexistent.sock"), "{exit} {text}");
    let status = rig.must(&["status"])?;
    ensure!(status.contains(&format!("not steered in the last 5 minutes: {path} (copied, last pid")), "{status}");
    ensure!(status.contains(&format!("executable {}: no process is one", named.executable().display())), "{status}");
    let told = || Ok(rig.status()?.trouble.iter().any(|what| what.contains(&path)));
    wait("the status to say so on top", told)?;
    let (_, check) = rig.verb(&["check"])?;
    ensure!(check.contains(&path) && check.contains("no process is one just now"), "{check}");
    running.finish()?;
    Ok(())
}

/// Health checks that no rule fits, and a client of an operator, are in nothing's way.
#[test]
fn a_few_that_are_not_steered_stop_nothing() -> Result<()> {
    let sandbox = Sandbox::new("few")?;
    let rig = Setup { ports: 8000..=8001, manager: NOT_THERE, ..Setup::default() }.start(&sandbox)?;
    let checker = Caller::at(&sandbox, Place::Outside);
    checker.dial(&[Dial::to(HOST, 8000).times(10), Dial::to(HOST, 8001).times(10)])?;
    let _held = checker.hold(&[Dial { keep: true, ..Dial::to(HOST, 8000).times(2) }])?;
    let (_, text) = rig.verb(&["roll", "web"])?;
    ensure!(text.contains("nonexistent.sock"), "{text}");
    ensure!(rig.status()?.trouble.is_empty(), "{:?}", rig.status()?.trouble);
    // Kept alive, and most of what is there.
    let _kept = checker.hold(&[Dial { keep: true, ..Dial::to(HOST, 8001).times(4) }])?;
    let (exit, text) = rig.verb(&["roll", "web"])?;
    ensure!(exit == 1 && text.contains("open connections at 127.0.0.1:8001"), "{text}");
    Ok(())
}

/// Paths are bytes: a mount point that is not UTF-8 is in nothing's way, when the daemon starts or later.
#[test]
fn a_mount_point_that_is_not_utf_8() -> Result<()> {
    const MOUNT: &str = "d=\"$0/$(printf 'odd\\377')\"; mkdir -p \"$d\"; mount -t tmpfs none \"$d\"";
    let sandbox = Sandbox::new("bytes")?;
    let caller = Caller::at(&sandbox, Place::Outside).copied("balancer")?;
    let callers = Some(vec![caller.executable().to_owned()]);
    let setup = Setup { ports: 8000..=8001, callers, mounts: Some(":"), ..Setup::default() };
    let mut rig = setup.start(&sandbox)?;
    rig.drain(8000)?;
    let answer = |caller: &Caller<'_>| Ok::<_, anyhow::Error>(caller.once(Dial::to(HOST, 8000))?[0].answer);
    ensure!(answer(&caller)? == Some(8001));
    rig.in_mounts(MOUNT)?;
    let new = caller.clone().copied("balancer")?;
    let took = wait("the new file to be steered", || Ok(answer(&new)? == Some(8001)))?;
    ensure!(took < std::time::Duration::from_secs(5), "{took:?}");
    rig.kill_daemon()?;
    rig.succeed_with(|setup| setup.mounts = Some(MOUNT)).context("a daemon where one is mounted already")?;
    ensure!(answer(&new)? == Some(8001));
    Ok(())
}
