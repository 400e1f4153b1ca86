//! Workers on wildcard addresses, and callers that dial one. (That dialling 0.0.0.0 shows in getpeername() as it does
//! without steering: suite `steer`, addresses.)

use anyhow::{Result, ensure};
use deployer_tests::dial::{Caller, Dial, Running, answers};
use deployer_tests::process::run;
use deployer_tests::sandbox::{Place, Sandbox};

use super::scene::{Scene, Setup, asking};

const WORKER: u16 = 8003;

/// Where workers listen, how; their address in the configuration; what reaches them.
const WORKERS: [(&str, &[&str], &str, &[&str]); 5] = [
    ("0.0.0.0", &[], "127.0.0.1", &["127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1", "::ffff:0.0.0.0"]),
    ("0.0.0.0", &["reuseport"], "127.0.0.1", &["127.0.0.1", "0.0.0.0"]),
    ("::", &[], "127.0.0.1", &["127.0.0.1", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"]),
    ("::", &[], "[::1]", &["::1", "::"]),
    ("::", &["v6only"], "[::1]", &["::1", "::"]),
];

/// However they are dialled, nobody meets one that is drained, or one that is being restarted.
#[test]
fn drained_and_rolled() -> Result<()> {
    for (host, words, at, dialled) in WORKERS {
        let sandbox = Sandbox::new("anywhere")?;
        let scene = Setup { host, words, at, ..Setup::default() }.start(&sandbox)?;
        is_spared(&scene, dialled)?;
        let caller = Caller::at(&sandbox, Place::Callers);
        let dial = |to: &&str| caller.start(&[Dial { pause_ms: 3, ..asking(to, WORKER).times(0) }]);
        let mut running = dialled.iter().map(dial).collect::<Result<Vec<_>>>()?;
        let end = scene.roll()?.end()?;
        running.iter_mut().try_for_each(Running::tell)?;
        let seen = running.into_iter().map(Running::finish).collect::<Result<Vec<_>>>()?.concat();
        eprintln!("{host} {words:?} as {at}: {:?} in {:.1} s; {}", answers(&seen), end.seconds, end.text);
        end.must("done", &["4 workers"])?;
        let harmed: Vec<_> = seen.iter().filter(|one| one.answer.is_none() || one.cold).collect();
        ensure!(harmed.is_empty() && seen.len() > 40, "lost or served cold: {harmed:?}");
        scene.counts_are_right("afterwards")?;
    }
    Ok(())
}

/// Drained by hand, it gets none of those that dial it.
fn is_spared(scene: &Scene<'_>, dialled: &[&str]) -> Result<()> {
    let dials: Vec<_> = dialled.iter().map(|to| asking(to, WORKER).times(5)).collect();
    let caller = Caller::at(scene.sandbox, Place::Callers);
    let up = caller.dial(&dials)?;
    scene.by_hand("drain", WORKER)?;
    let drained = caller.dial(&dials)?;
    scene.by_hand("enable", WORKER)?;
    eprintln!("{dialled:?}: up {:?}, drained {:?}", answers(&up), answers(&drained));
    ensure!(answers(&up) == [(WORKER, up.len())].into(), "{up:?}");
    ensure!(drained.iter().all(|one| one.answer.is_some_and(|port| port > 0 && port != WORKER)), "{drained:?}");
    Ok(())
}

/// Other addresses of the host than the configured one and loopback are not steered: who dials them reaches what is
/// there, drained or not. They are waited for.
#[test]
fn by_another_address_of_the_host() -> Result<()> {
    const OTHER: &str = "10.9.0.1";
    let sandbox = Sandbox::new("elsewhere")?;
    run(sandbox.command(Place::Outside, "ip").args(["addr", "add", &format!("{OTHER}/32"), "dev", "lo"]))?;
    let scene = Setup { host: "0.0.0.0", ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    scene.by_hand("drain", WORKER)?;
    let seen = caller.dial(&[asking(OTHER, WORKER).times(5), asking("127.0.0.2", WORKER).times(5)])?;
    ensure!(answers(&seen) == [(WORKER, 10)].into(), "{seen:?}");
    scene.by_hand("enable", WORKER)?;
    let kept = caller.hold(&[Dial { keep: true, ..asking(OTHER, WORKER) }])?;
    let mut roll = scene.roll()?;
    let held = roll.until(|event| event["event"] == "held")?;
    ensure!(held["worker"] == "127.0.0.1:8003" && held["open"] == 1, "{held}");
    drop(kept);
    let end = roll.end()?;
    eprintln!("by {OTHER}: {:?} while drained; held by {}, then {}", answers(&seen), held["by"], end.text);
    end.must("done", &["4 workers"])
}
