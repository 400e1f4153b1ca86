//! Workers that call their own port, as an app does that fetches a page of its own.

use std::time::Duration;

use anyhow::{Result, ensure};
use deployer_tests::daemon::ServiceConfig;
use deployer_tests::dial::{Caller, Dial, answers};
use deployer_tests::sandbox::{Place, Sandbox};

use super::scene::{PORTS, Scene, Setup, asking};

const HOST: &str = "127.0.0.1";
const OWN: u16 = 8003;

/// Who answers when the worker on [`OWN`] calls itself, asked past all steering.
fn inner(scene: &Scene<'_>, ask: &str) -> Result<Vec<u16>> {
    let outside = Caller::at(scene.sandbox, Place::Outside);
    let seen = outside.once(Dial { ask: Some(ask), ..Dial::to(HOST, OWN).times(12) })?;
    eprintln!("{OWN} calls itself ({ask}): {:?}", answers(&seen));
    Ok(answers(&seen).into_keys().collect())
}

/// Steered, it reaches a sibling while it is drained, or is refused, as any caller would be; if not, itself.
#[test]
fn while_up_and_while_drained() -> Result<()> {
    const ALL: &[Place] = &[Place::Callers, Place::Workers];
    let cases = [
        (ALL, "steer", &[8000, 8001, 8002][..]),
        (ALL, "refuse", &[0]),
        (&[Place::Callers], "steer", &[OWN]),
        (&[Place::Callers], "refuse", &[OWN]),
    ];
    for (callers, policy, drained) in cases {
        let sandbox = Sandbox::new("self")?;
        let service = ServiceConfig { policy, ..ServiceConfig::default() };
        let scene = Setup { callers, service, ..Setup::default() }.start(&sandbox)?;
        let up = inner(&scene, "self")?;
        scene.by_hand("drain", OWN)?;
        let out = inner(&scene, "self")?;
        ensure!(up == [OWN] && out == drained, "callers {callers:?}, {policy}: up {up:?}, drained {out:?}");
        scene.by_hand("enable", OWN)?;
        scene.counts_are_right("afterwards")?;
    }
    Ok(())
}

/// Requests in which a worker calls itself go on through rolls, whether it is steered or not.
#[test]
fn rolled_while_they_call_themselves() -> Result<()> {
    for callers in [&[Place::Callers, Place::Workers][..], &[Place::Callers]] {
        let sandbox = Sandbox::new("selfroll")?;
        let scene = Setup { callers, ..Setup::default() }.start(&sandbox)?;
        let caller = Caller::at(&sandbox, Place::Callers);
        let dial = |port| Dial { ask: Some("self"), pause_ms: 2, ..Dial::to(HOST, port).times(0) };
        let mut running = PORTS.map(|port| caller.start(&[dial(port)])).collect::<Result<Vec<_>>>()?;
        let end = scene.roll()?.end()?;
        running.iter_mut().try_for_each(|one| one.tell())?;
        let seen = running.into_iter().map(|one| one.finish()).collect::<Result<Vec<_>>>()?.concat();
        eprintln!("callers {callers:?}: {:?} in {:.1} s; {}", answers(&seen), end.seconds, end.text);
        end.must("done", &["4 workers"])?;
        let harmed: Vec<_> =
            seen.iter().filter(|one| one.answer.is_none() || one.answer == Some(0) || one.cold).collect();
        ensure!(harmed.is_empty() && seen.len() > 20, "lost or served cold: {harmed:?}");
    }
    Ok(())
}

/// A connection to itself that a worker keeps open holds its drain, like that of any caller. That ends at the deadline, and
/// the roll says that it is the worker itself.
#[test]
fn kept_open_it_holds_to_the_deadline() -> Result<()> {
    let sandbox = Sandbox::new("selfkeep")?;
    let service = ServiceConfig { batch: "1".to_owned(), deadline: "5s", ..ServiceConfig::default() };
    let callers = &[Place::Callers, Place::Workers];
    let scene = Setup { service, callers, ..Setup::default() }.start(&sandbox)?;
    let old = scene.pids()?;
    ensure!(inner(&scene, "keep")? == [OWN]);
    let end = scene.roll()?.end()?;
    eprintln!("{end:?}");
    ensure!(end.seconds < 60.0, "not ended at the deadline");
    let who = format!("python3 (pid {}): 12 established", old[&OWN]);
    end.must("stopped", &["127.0.0.1:8003", "not empty after 5 s: 12 connections", &who])?;
    let now = scene.pids()?;
    ensure!(now[&OWN] == old[&OWN] && now[&8000] != old[&8000], "{old:?} {now:?}");
    let asked = Caller::at(&sandbox, Place::Callers).once(asking(HOST, OWN))?;
    ensure!(asked[0].pid == Some(old[&OWN]), "{asked:?}");
    scene.wait("it to be up", || Ok(scene.worker(OWN)?["phase"] == "up")).map(|_: Duration| ())
}
