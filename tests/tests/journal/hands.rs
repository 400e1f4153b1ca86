//! What operators have said, and what has failed, over the end of the daemon.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use deployer_tests::app::Fault;
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::dial::{Caller, Dial, Server, answers};
use deployer_tests::process::send;
use deployer_tests::rig::{Rig, Setup};
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::stage::{Stage, default_signals};
use rustix::process::Signal;

const HOST: &str = "127.0.0.1";

fn two(sandbox: &Sandbox) -> Result<Rig<'_>> {
    Setup { ports: 8000..=8001, ..Setup::default() }.start(sandbox)
}

/// Drained by hand, killed, started: not one connection in between.
#[test]
fn a_drain_until_enabled() -> Result<()> {
    let sandbox = Sandbox::new("drained")?;
    let mut rig = two(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.drain(8000)?;
    let reason = rig.worker(8000)?.reason;
    rig.daemon.kill()?;
    let without = caller.once(Dial::to(HOST, 8000).times(20))?;
    rig.succeed()?;
    let with = caller.once(Dial::to(HOST, 8000).times(20))?;
    ensure!(answers(&without) == [(8001, 20)].into(), "{:?}", answers(&without));
    ensure!(answers(&with) == [(8001, 20)].into(), "{:?}", answers(&with));
    let worker = rig.worker(8000)?;
    ensure!(worker.phase == "draining" && worker.reason == reason, "{worker:?}, {reason}");
    rig.enable(8000)?;
    ensure!(answers(&caller.once(Dial::to(HOST, 8000).times(5))?) == [(8000, 5)].into());
    // And no longer, once it is enabled.
    rig.daemon.kill()?;
    rig.succeed()?;
    ensure!(rig.worker(8000)?.phase == "up");
    Ok(())
}

#[test]
fn a_drain_with_an_end() -> Result<()> {
    let sandbox = Sandbox::new("until")?;
    let mut rig = two(&sandbox)?;
    let begun = Instant::now();
    rig.must(&["drain", "web", "8000", "--for", "4s"])?;
    rig.must(&["drain", "web", "8001", "--for", "250ms", "--force"])?;
    rig.daemon.kill()?;
    std::thread::sleep(Duration::from_millis(400));
    rig.succeed()?;
    ensure!(rig.worker(8001)?.phase == "up", "its time was over: {:?}", rig.worker(8001)?);
    if begun.elapsed() < Duration::from_millis(3500) {
        ensure!(rig.worker(8000)?.phase == "draining", "{:?}", rig.worker(8000)?);
    }
    rig.wait_phase(8000, "up")?;
    let lasted = begun.elapsed();
    eprintln!("a drain of 4 s lasted {lasted:.2?}");
    ensure!(lasted > Duration::from_millis(3900), "{lasted:?}");
    Ok(())
}

/// A worker that is started anew while no daemon runs is warmed before it serves.
#[test]
fn a_stranger_is_warmed() -> Result<()> {
    let sandbox = Sandbox::new("stranger")?;
    let mut rig = two(&sandbox)?;
    rig.daemon.stop(Duration::from_secs(10))?;
    rig.servers.remove(0).stop()?;
    rig.start_worker(8000)?;
    rig.succeed()?;
    rig.wait_phase(8000, "up")?;
    let worker = rig.worker(8000)?;
    ensure!(worker.reason.contains("started by itself"), "{worker:?}");
    ensure!(rig.worker(8001)?.reason.contains("found serving"), "{:?}", rig.worker(8001)?);
    Ok(())
}

#[test]
fn a_bypass() -> Result<()> {
    let sandbox = Sandbox::new("bypass")?;
    let mut rig = two(&sandbox)?;
    rig.must(&["bypass", "web"])?;
    rig.daemon.kill()?;
    rig.succeed()?;
    ensure!(rig.service()?.mode == "bypass");
    // Its tables, too, are lost; what was said to the daemon is not.
    rig.daemon.kill()?;
    rig.detach_offline()?;
    rig.succeed()?;
    ensure!(rig.service()?.mode == "bypass");
    rig.must(&["bypass", "web", "--off"])?;
    rig.daemon.kill()?;
    rig.succeed()?;
    ensure!(rig.service()?.mode == "enforce");
    Ok(())
}

#[test]
fn a_failed_worker_stays_out() -> Result<()> {
    let sandbox = Sandbox::new("failed")?;
    let stage = Stage::new(&sandbox)?;
    let config = ServiceConfig { batch: "1".to_owned(), ..ServiceConfig::default() };
    let mut daemon = stage.daemon(&config)?;
    stage.app.set_fault("v2", 8000, Some(Fault::Crash))?;
    stage.roll(&daemon, &["--to", "v2"])?.end()?.must("failed", &["8000"])?;
    let reason = stage.api().workers()?[&8000]["reason"].clone();
    daemon.process().kill()?;
    let daemon = Daemon::start(&sandbox, &stage.config(&config))?;
    stage.only_failed(&[8000])?;
    let kept = stage.api().workers()?[&8000]["reason"].clone();
    ensure!(kept == reason, "it was {reason}, and is {kept}");
    stage.is_out(8000)?;
    stage.app.set_fault("v2", 8000, None)?;
    stage.roll(&daemon, &["--to", "v2"])?.end()?.must("done", &["4 workers"])?;
    stage.unharmed("a failed worker")?;
    Ok(())
}

/// Drained, restarted by hand, enabled: the answer comes when the new process is up, and not before.
#[test]
fn a_restart_by_hand_is_waited_for() -> Result<()> {
    let sandbox = Sandbox::new("byhand")?;
    let mut rig = two(&sandbox)?;
    rig.drain(8000)?;
    rig.servers.remove(0).stop()?;
    let enabled = std::thread::scope(|scope| {
        let late = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(1200));
            Server::start(&sandbox, HOST, 8000)
        });
        let enabled = rig.verb(&["enable", "web", "8000"]);
        (enabled, rig.worker(8000), late.join().expect("a thread that starts a server"))
    });
    let (enabled, worker, server) = enabled;
    let ((exit, text), _server) = (enabled?, server?);
    ensure!(exit == 0 && text.contains("back in rotation"), "exit {exit}: {text}");
    let worker = worker?;
    ensure!(worker.phase == "up", "{worker:?}");
    Ok(())
}

/// The wait has a limit, which says what was waited for; Ctrl-C ends it before, and the worker comes back all the same.
#[test]
fn the_wait_for_a_worker_has_an_end() -> Result<()> {
    let sandbox = Sandbox::new("waits")?;
    let mut rig = two(&sandbox)?;
    rig.drain(8000)?;
    rig.servers.remove(0).stop()?;
    let begun = Instant::now();
    let (exit, text) = rig.verb(&["enable", "web", "8000", "--within", "700ms"])?;
    eprintln!("{text}");
    ensure!(
        exit == 1 && begun.elapsed() > Duration::from_millis(600),
        "exit {exit} after {:?}: {text}",
        begun.elapsed()
    );
    let said = ["127.0.0.1:8000 is not back in rotation after 0.7 s", "waited for its process to listen", "it is down"];
    ensure!(said.iter().all(|said| text.contains(said)), "{text}");
    let mut waits = default_signals(&rig.command(&["enable", "web", "8000"])?).spawn()?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(waits.try_wait()?.is_none(), "it does not wait");
    send(waits.id(), Signal::INT)?;
    let begun = Instant::now();
    ensure!(!waits.wait()?.success() && begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    rig.start_worker(8000)?;
    rig.wait_phase(8000, "up")
}

/// A worker that failed is being enabled when a roll comes to it: the roll waits for that, and restarts it then.
#[test]
fn a_roll_takes_over_what_is_being_enabled() -> Result<()> {
    let sandbox = Sandbox::new("takesover")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&ServiceConfig { batch: "1".to_owned(), ..ServiceConfig::default() })?;
    stage.app.set_fault("v2", 8000, Some(Fault::Crash))?;
    stage.roll(&daemon, &["--to", "v2"])?.end()?.must("failed", &["8000"])?;
    // It listens 8 s after its start.
    stage.app.set_fault("v2", 8000, Some(Fault::SlowStart))?;
    let enabling = daemon.cli_spawn(&["enable", "web", "8000"])?;
    stage.wait(Duration::from_secs(10), || Ok(stage.supervisor.pid_of(8000)?.is_some()))?;
    std::thread::sleep(Duration::from_millis(500));
    stage.app.set_fault("v2", 8000, None)?;
    let end = stage.roll(&daemon, &["--to", "v2"])?.end()?;
    eprintln!("{end:?}");
    end.must("done", &["4 workers"])?;
    let enabled = enabling.wait_with_output()?;
    ensure!(enabled.status.success(), "{enabled:?}");
    stage.only_failed(&[])?;
    stage.unharmed("a roll that takes over")?;
    Ok(())
}
