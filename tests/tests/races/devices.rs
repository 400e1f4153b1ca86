//! Callers that are bound to a device (SO_BINDTODEVICE). The hook does not ask for it, and a sibling is on the same
//! device as the worker that was dialled: who reaches the one reaches the other.

use anyhow::{Result, ensure};
use deployer_tests::dial::{Caller, Dial, answers};
use deployer_tests::process::run;
use deployer_tests::rig;
use deployer_tests::sandbox::{Place, Sandbox};

use super::scene::{Setup, asking};

const HOST: &str = "127.0.0.1";
/// The address on the other device.
const OTHER: &str = "10.9.0.1";
const DRAINED: u16 = 8000;
const EHOSTUNREACH: i32 = 113;

/// A namespace with a second device, `there`, that nobody is at the other end of.
fn sandbox(label: &str) -> Result<Sandbox> {
    let sandbox = Sandbox::new(label)?;
    let ip = |words: &[&str]| run(sandbox.command(Place::Outside, "ip").args(words)).map(drop);
    ip(&["link", "add", "there", "type", "veth", "peer", "name", "beyond"])?;
    ip(&["addr", "add", &format!("{OTHER}/24"), "dev", "there"])?;
    ip(&["link", "set", "there", "up"])?;
    ip(&["link", "set", "beyond", "up"])?;
    Ok(sandbox)
}

/// Bound to the device of the workers' address, they are steered as all others.
#[test]
fn the_workers_device() -> Result<()> {
    for (at, device) in [(HOST, "lo"), (OTHER, "there")] {
        let sandbox = sandbox("device")?;
        let rig = rig::Setup { host: at, at, ..rig::Setup::default() }.start(&sandbox)?;
        let caller = Caller::at(&sandbox, Place::Callers);
        for drained in [false, true] {
            let seen = caller.once(Dial { device: Some(device), ..Dial::to(at, DRAINED).times(12) })?;
            eprintln!("{device} to {at}, drained {drained}: {:?}, peer {:?}", answers(&seen), seen[0].peer);
            ensure!(seen.iter().all(|one| one.answer.is_some_and(|port| (port == DRAINED) != drained)), "{seen:?}");
            let peer = format!("{at} {DRAINED}");
            ensure!(seen.iter().all(|one| one.peer.as_deref() == Some(&peer)), "{seen:?}");
            if !drained {
                rig.drain(DRAINED)?;
            }
        }
        rig.compare("afterwards", [0; 4])?;
        ensure!(rig.service()?.sum(|w| w.tickets) == 0);
    }
    Ok(())
}

/// Bound to another device, they reach nobody at 127.0.0.1, steered or not. While one tries, it counts as on the way.
#[test]
fn another_device() -> Result<()> {
    let sandbox = sandbox("astray")?;
    let scene = Setup::default().start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let astray = || Dial { device: Some("there"), ..asking(HOST, DRAINED) };
    let up = caller.once(astray())?;
    scene.by_hand("drain", DRAINED)?;
    let drained = caller.once(astray())?;
    scene.by_hand("enable", DRAINED)?;
    let trying = caller.start(&[astray()])?;
    scene.wait("a connect() that tries", || Ok(scene.worker(DRAINED)?["direct"] == 2))?;
    let mut roll = scene.roll()?;
    let held = roll.until(|event| event["event"] == "held")?;
    let tried = trying.finish()?;
    let end = roll.end()?;
    eprintln!("up {up:?}, drained {drained:?}; a drain is held by {} and then {}", held["by"], end.text);
    let lost = [up, drained, tried].concat();
    ensure!(lost.iter().all(|one| one.connect == EHOSTUNREACH), "{lost:?}");
    ensure!(
        held["worker"] == "127.0.0.1:8000" && held["by"][0].as_str().is_some_and(|by| by.contains("1 syn-sent")),
        "{held}"
    );
    end.must("done", &["4 workers"])?;
    scene.counts_are_right("afterwards").map(drop)
}
