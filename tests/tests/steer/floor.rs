//! The floor (`min_up`): who is drained goes on to serve while too few others are up, whoever is there to see to it.

use anyhow::{Context, Result, ensure};
use deployer_tests::dial::{Caller, Dial, answers};
use deployer_tests::rig::{Rig, Setup, wait};
use deployer_tests::sandbox::{Place, Sandbox};

const HOST: &str = "127.0.0.1";

/// Dials every worker ten times; who answers, if nobody was refused.
fn dial_all(caller: &Caller<'_>) -> Result<std::collections::BTreeMap<u16, usize>> {
    let seen = caller.dial(&[8000, 8001, 8002, 8003].map(|port| Dial::to(HOST, port).times(10)))?;
    ensure!(seen.iter().all(|one| one.answer.is_some()), "{seen:?}");
    Ok(answers(&seen))
}

fn floor(rig: &Rig<'_>) -> Result<[u64; 4]> {
    let service = rig.service()?;
    Ok([8000, 8001, 8002, 8003].map(|port| service.workers[&port].fallback_floor))
}

/// By hand: one of four may go, a second one only by force, and then both go on to serve, by either policy.
#[test]
fn drained_by_hand() -> Result<()> {
    for extra in ["min_up = 3", "min_up = \"75%\"\ndrain = { policy = \"refuse\" }"] {
        let sandbox = Sandbox::new("floor")?;
        let rig = Setup { extra, ..Setup::default() }.start(&sandbox)?;
        let caller = Caller::at(&sandbox, Place::Callers);
        rig.drain(8000)?;
        ensure!(rig.worker(8000)?.reason.ends_with("until it is enabled"), "{:?}", rig.worker(8000)?);
        let (exit, text) = rig.verb(&["drain", "web", "8001"])?;
        eprintln!("a second one: exit {exit}: {text}");
        let named = ["127.0.0.1:8001", "2 others are up, and min_up = 3", "--force"];
        ensure!(exit == 1 && named.iter().all(|name| text.contains(name)), "exit {exit}: {text}");
        ensure!(rig.worker(8001)?.phase == "up" && floor(&rig)? == [0; 4], "{:?}", rig.service()?);
        rig.must(&["drain", "web", "8001", "--force"])?;
        let told = |worker: &deployer_tests::rig::Worker| {
            worker.phase == "draining"
                && worker.reason.contains("connections go on to it: 2 others are up, and min_up = 3")
        };
        ensure!(told(&rig.worker(8000)?) && told(&rig.worker(8001)?), "{:?}", rig.service()?);
        let seen = dial_all(&caller)?;
        eprintln!("two of four up: {seen:?}, by the floor {:?}", floor(&rig)?);
        ensure!(seen == [(8000, 10), (8001, 10), (8002, 10), (8003, 10)].into(), "{seen:?}");
        ensure!(floor(&rig)? == [10, 10, 0, 0], "{:?}", rig.service()?);
        // Logged by whoever holds each drain, at its next tick; where nobody was told, nobody is told of the end.
        let told = || rig.daemon.log().matches("connections go on to it: the floor").count();
        wait("the floor in the log, of both", || Ok(told() >= 2))?;
        rig.enable(8001)?;
        ensure!(rig.worker(8000)?.reason.ends_with("until it is enabled"), "{:?}", rig.worker(8000)?);
        let steered = caller.once(Dial::to(HOST, 8000).times(10))?;
        ensure!(!answers(&steered).contains_key(&8000), "enough are up: {steered:?}");
        wait("the floor to be left", || Ok(rig.daemon.log().contains("no more connections go to it")))?;
    }
    Ok(())
}

/// A service address, and a sibling that is down: whoever is drained takes its share.
#[test]
fn picked_below_the_floor() -> Result<()> {
    let sandbox = Sandbox::new("floorpick")?;
    let extra = "address = \"127.0.0.1:9000\"\nmin_up = 3";
    let mut rig = Setup { extra, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.drain(8000)?;
    let before = caller.once(Dial::to(HOST, 9000).times(100))?;
    ensure!(!answers(&before).contains_key(&8000), "three are up: {:?}", answers(&before));
    rig.stop_worker(8003)?;
    let seen = caller.dial(&[Dial::to(HOST, 9000).times(100), Dial::to(HOST, 8003).times(50)])?;
    eprintln!("8000 drained, 8003 down: {:?}, by the floor {:?}", answers(&seen), floor(&rig)?);
    ensure!(answers(&seen).keys().eq(&[8000, 8001, 8002]), "{seen:?}");
    ensure!(floor(&rig)? == [answers(&seen)[&8000] as u64, 0, 0, 0], "{:?}", rig.service()?);
    Ok(())
}

/// No daemon, two of four drained, and a third one dies: the drained ones serve, and nobody is refused. Without a floor,
/// the one that is up would have to do.
#[test]
fn without_a_daemon() -> Result<()> {
    for (extra, expected) in [("min_up = 2", true), ("min_up = 1", false)] {
        let sandbox = Sandbox::new("floordead")?;
        let mut rig = Setup { extra, lease: "60s", ..Setup::default() }.start(&sandbox)?;
        let caller = Caller::at(&sandbox, Place::Callers);
        rig.drain(8000)?;
        rig.drain(8001)?;
        rig.kill_daemon()?;
        let index = rig.servers.iter().position(|server| server.port == 8002).context("started above")?;
        rig.servers.remove(index).stop()?;
        let seen = dial_all(&caller)?;
        eprintln!("{extra}, no daemon, 8002 dead: {seen:?}");
        rig.succeed()?;
        let floor = floor(&rig)?;
        eprintln!("counted by the floor: {floor:?}");
        if expected {
            ensure!(seen[&8000] >= 10 && seen[&8001] >= 10 && !seen.contains_key(&8002), "{seen:?}");
            ensure!(floor == [seen[&8000] as u64, seen[&8001] as u64, 0, 0], "{floor:?}");
        } else {
            ensure!(seen == [(8003, 40)].into() && floor == [0; 4], "{seen:?}, {floor:?}");
        }
    }
    Ok(())
}

/// A service of one worker: it is not drained by hand but by force, and then it is the last resort.
#[test]
fn one_worker() -> Result<()> {
    let sandbox = Sandbox::new("floorone")?;
    let rig = Setup { ports: 8000..=8000, ..Setup::default() }.start(&sandbox)?;
    let (exit, text) = rig.verb(&["drain", "web", "8000"])?;
    eprintln!("exit {exit}: {text}");
    ensure!(exit == 1 && text.contains("no other worker is up, and min_up = 1"), "exit {exit}: {text}");
    let (exit, text) = rig.verb(&["roll", "web"])?;
    eprintln!("exit {exit}: {text}");
    ensure!(exit == 1 && text.contains("web has one worker") && text.contains("roll.surge = 1"), "exit {exit}: {text}");
    rig.must(&["drain", "web", "8000", "--force"])?;
    let seen = Caller::at(&sandbox, Place::Callers).once(Dial::to(HOST, 8000).times(10))?;
    let worker = rig.worker(8000)?;
    eprintln!("{:?}: {}", answers(&seen), worker.reason);
    ensure!(answers(&seen) == [(8000, 10)].into() && worker.fallback_draining == 10, "{worker:?}");
    ensure!(worker.fallback_floor == 0 && worker.reason.contains("no other worker is up"), "{worker:?}");
    Ok(())
}
