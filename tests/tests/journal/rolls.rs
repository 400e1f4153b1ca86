//! Rolls over the end of their daemon, under load: they go on where they were, and their clients follow.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use deployer_tests::api::Ending;
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::sandbox::Sandbox;
use deployer_tests::stage::Stage;

const TO_V2: &[&str] = &["--to", "v2"];

/// Workers that are so slow to start that whoever hears of it can do something about it, on a slow machine too.
fn stage(sandbox: &Sandbox) -> Result<Stage<'_>> {
    Stage::with_import(sandbox, 2.0)
}

/// As slow to warm.
fn slow() -> ServiceConfig {
    let warm = "requests = [\"GET /\", \"GET /pin/1\", \"GET /?slow=2\"], repeat = 1";
    ServiceConfig { warm, ..ServiceConfig::default() }
}

fn hold() -> ServiceConfig {
    ServiceConfig { daemon_extra: "on_start = \"hold\"\n".to_owned(), ..slow() }
}

/// Ends the daemon when a worker is in a phase, starts another, and returns how the roll ended for its client, and what
/// that printed beside the events.
fn over_a_restart(
    stage: &Stage<'_>,
    at: (u16, &str),
    signal: Signal,
    next: &ServiceConfig,
) -> Result<(Ending, String)> {
    let mut daemon = stage.daemon(&slow())?;
    let mut roll = stage.roll(&daemon, TO_V2)?;
    roll.until_phase(at.0, at.1)?;
    daemon.process().signal(signal)?;
    let ended = daemon.process().wait_for(Duration::from_secs(60))?.context("the daemon goes on")?;
    ensure!(signal == Signal::KILL || ended.success(), "{ended}: {}", daemon.log());
    // Nobody is there: callers must not notice.
    std::thread::sleep(Duration::from_millis(500));
    let next = Daemon::start(stage.sandbox, &stage.config(next))?;
    let (code, printed) = roll.left()?;
    let ending = Ending::read(roll.seen.last().context("no events")?)?;
    eprintln!("{at:?} {signal:?}: exit {code:?}, {ending:?}; printed: {}", printed.trim());
    let resumed = roll.seen.iter().filter(|event| event["event"] == "resumed").count();
    ensure!(resumed == 1, "{resumed} times resumed: {}", next.log());
    let wanted = if ending.result == "done" { 0 } else { 3 };
    ensure!(code == Some(wanted), "exit {code:?}: {printed}");
    ensure!(printed.contains("the daemon has gone; waiting") && printed.contains("the daemon is back"), "{printed}");
    stage.all_up()?;
    let status = stage.api().status()?;
    ensure!(status["trouble"] == Value::Array(Vec::new()), "{status}");
    stage.all_serve()?;
    Ok((ending, next.log()))
}

fn resumes(label: &str, at: (u16, &str), signal: Signal) -> Result<()> {
    let sandbox = Sandbox::new(label)?;
    let stage = stage(&sandbox)?;
    let (ending, log) = over_a_restart(&stage, at, signal, &slow())?;
    ending.must("done", &["4 workers restarted"])?;
    ensure!(ending.changed == 4 && !log.contains("a move that the table"), "{ending:?}: {log}");
    let report = stage.unharmed(label)?;
    ensure!(report.by_version.len() == 2, "{report}");
    Ok(())
}

#[test]
fn killed_while_draining() -> Result<()> {
    resumes("draining", (8000, "draining"), Signal::KILL)
}

#[test]
fn killed_while_stopping() -> Result<()> {
    resumes("stopping", (8000, "stopping"), Signal::KILL)
}

#[test]
fn killed_while_starting() -> Result<()> {
    resumes("starting", (8003, "starting"), Signal::KILL)
}

#[test]
fn killed_while_warming() -> Result<()> {
    resumes("warming", (8002, "warming"), Signal::KILL)
}

#[test]
fn asked_to_end() -> Result<()> {
    resumes("asked", (8000, "stopping"), Signal::TERM)
}

#[test]
fn held() -> Result<()> {
    let sandbox = Sandbox::new("held")?;
    let stage = stage(&sandbox)?;
    let (ending, _) = over_a_restart(&stage, (8001, "stopping"), Signal::KILL, &hold())?;
    ending
        .must("stopped", &["held after a restart of the daemon; roll again to go on", "2 of 4 workers are changed"])?;
    stage.unharmed("held")?;
    Ok(())
}

/// A roll that nobody goes on with, since other workers are configured now: no worker is left out.
#[test]
fn other_workers() -> Result<()> {
    let sandbox = Sandbox::new("others")?;
    let stage = stage(&sandbox)?;
    let mut daemon = stage.daemon(&ServiceConfig::default())?;
    let mut roll = stage.roll(&daemon, TO_V2)?;
    roll.until_phase(8001, "stopping")?;
    daemon.process().kill()?;
    let three = stage.config(&ServiceConfig::default()).replace("8000-8003", "8000-8002");
    let _next = Daemon::start(&sandbox, &three)?;
    let ending = roll.end()?;
    ending.must("stopped", &["has other workers"])?;
    stage.all_up()?;
    stage.unharmed("other workers")?;
    Ok(())
}

/// An operator who has had enough sets the service to observe: a roll that goes on would stop workers which their callers
/// still dial.
#[test]
fn observed_from_now_on() -> Result<()> {
    let sandbox = Sandbox::new("observed")?;
    let stage = stage(&sandbox)?;
    let config = ServiceConfig { batch: "1".to_owned(), ..ServiceConfig::default() };
    let mut daemon = stage.daemon(&config)?;
    let busy = stage.slow(8000, 8)?;
    let mut roll = stage.roll(&daemon, TO_V2)?;
    roll.until_phase(8000, "draining")?;
    daemon.process().kill()?;
    let observing = ServiceConfig { mode: Some("observe".to_owned()), ..config };
    let _next = Daemon::start(&sandbox, &stage.config(&observing))?;
    let ending = roll.end()?;
    eprintln!("{ending:?}");
    ending.must("stopped", &["127.0.0.1:8000", "not steered", "observe", "0 of 4 workers are changed"])?;
    ensure!(busy.status()? == 200);
    stage.all_up()?;
    stage.unharmed("observed from now on")?;
    Ok(())
}

/// The journal is lost in the middle of a roll: the words in the kernel tell which worker was in hand.
#[test]
fn a_lost_journal() -> Result<()> {
    let sandbox = Sandbox::new("lost")?;
    let stage = stage(&sandbox)?;
    let mut daemon = stage.daemon(&ServiceConfig::default())?;
    let mut roll = stage.roll(&daemon, TO_V2)?;
    roll.until_phase(8001, "starting")?;
    daemon.process().kill()?;
    std::fs::write(sandbox.state().join("state.json"), "{\"format\":1,\"written_by\":\"0.1")?;
    let next = Daemon::start(&sandbox, &stage.config(&ServiceConfig::default()))?;
    roll.end()?.must("stopped", &["its journal was lost"])?;
    stage.all_up()?;
    stage.all_serve()?;
    let status = stage.api().status()?;
    ensure!(status["trouble"][0].as_str().is_some_and(|it| it.contains("cut short")), "{status}");
    stage.roll(&next, TO_V2)?.end()?.must("done", &["4 workers"])?;
    stage.unharmed("a lost journal")?;
    Ok(())
}

/// The host was rebooted: nothing of what was in hand is there any more.
#[test]
fn another_boot() -> Result<()> {
    let sandbox = Sandbox::new("boot")?;
    let stage = stage(&sandbox)?;
    let mut daemon = stage.daemon(&ServiceConfig::default())?;
    let mut roll = stage.roll(&daemon, TO_V2)?;
    roll.until_phase(8003, "starting")?;
    daemon.process().kill()?;
    let pins = sandbox.pins().display().to_string();
    let detached = daemon.cli(&["detach", "--pins", &pins])?;
    ensure!(detached.status.success(), "{detached:?}");
    let file = sandbox.state().join("state.json");
    let mut state: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    state["boot"] = "another".into();
    std::fs::write(&file, state.to_string())?;
    // What a boot does.
    stage.supervisor.ctl(&["start", "web:*"])?;
    let _next = Daemon::start(&sandbox, &stage.config(&ServiceConfig::default()))?;
    roll.end()?.must("stopped", &["the host was rebooted in the middle"])?;
    stage.all_up()?;
    stage.all_serve()
}

/// The client's patience has an end, and the roll goes on without it.
#[test]
fn a_daemon_that_does_not_come_back() -> Result<()> {
    let sandbox = Sandbox::new("gone")?;
    let stage = stage(&sandbox)?;
    let mut daemon = stage.daemon(&ServiceConfig::default())?;
    let mut roll = stage.roll(&daemon, &["--to", "v2", "--wait", "1s"])?;
    roll.until_phase(8000, "draining")?;
    daemon.process().kill()?;
    let (code, printed) = roll.left()?;
    ensure!(code == Some(6) && printed.contains("has not come back"), "{code:?} {printed}");
    let id = roll.id()?;
    let _next = Daemon::start(&sandbox, &stage.config(&ServiceConfig::default()))?;
    stage.api().follow(&id)?.end()?.must("done", &["4 workers"])?;
    stage.unharmed("a daemon that does not come back")?;
    Ok(())
}
