//! What the daemon logs: JSON for the journal's own stream, text for everybody else; a roll's id on every line of it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use deployer_tests::api::{Api, Roll};
use deployer_tests::app::{App, Fault};
use deployer_tests::daemon::{Daemon, DeployerBin, ServiceConfig};
use deployer_tests::process::send;
use deployer_tests::rig::wait;
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::stage::{Stage, default_signals};

/// Who tends the workers that the daemon starts itself.
const TENDING: &str = "deployer::workers::builtin::";
/// Whatever these say while a roll runs is about it.
const OF_A_ROLL: [&str; 4] = ["deployer::roll", "deployer::warm", "deployer::service::drain", "deployer::keepalive"];

/// One worker after the other, however many fail.
fn config() -> ServiceConfig {
    ServiceConfig { max_failures: 4, batch: "1".to_owned(), ..ServiceConfig::default() }
}

fn start<'a>(sandbox: &'a Sandbox, config: &str, journal: &str) -> Result<Daemon<'a>> {
    let environment = [("JOURNAL_STREAM", journal.to_owned()), ("DEPLOYER_LOG", "deployer=debug".to_owned())];
    let daemon = Daemon::start_with(sandbox, DeployerBin::find()?, config, &environment)?;
    wait("all workers up", || {
        // A daemon that is only just starting has no socket yet.
        Ok(Api::of(sandbox).phases().is_ok_and(|phases| phases.values().all(|phase| phase == "up")))
    })?;
    Ok(daemon)
}

/// The log as the journal's stream.
fn stream(sandbox: &Sandbox) -> Result<String> {
    let file = File::create(sandbox.dir().join("deployer.log"))?.metadata()?;
    Ok(format!("{}:{}", file.dev(), file.ino()))
}

#[test]
fn a_roll_is_on_every_line_of_it() -> Result<()> {
    let sandbox = Sandbox::new("log")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = start(&sandbox, &stage.config(&config()), &stream(&sandbox)?)?;
    stage.app.set_fault("v2", 8003, Some(Fault::Crash))?;
    let busy = stage.slow(8001, 30)?;
    let mut roll = stage.roll(&daemon, &["--to", "v2"])?;
    roll.until_phase(8001, "draining")?;
    send(stage.supervisor.pid_of(8001)?.context("8001 does not run")?, Signal::KILL)?;
    roll.left()?;
    drop(busy);
    bears(&daemon.log(), &roll.id()?).map(drop)
}

/// Also on those of the task that tends a worker, which no roll has begun: of a process that ends while it is drained, and
/// of one that ends at each start. Not on those of the same workers once the roll is over.
#[test]
fn a_roll_is_on_every_line_of_the_daemons_own_workers() -> Result<()> {
    let sandbox = Sandbox::new("log_built")?;
    let app = App::new(&sandbox, &["v1", "v2"])?;
    let daemon = start(&sandbox, &config().text_built_in(&sandbox, &app), &stream(&sandbox)?)?;
    app.set_fault("v2", 8003, Some(Fault::Crash))?;
    let mut busy = sandbox.command(Place::Callers, "curl");
    let mut busy = busy.args(["-s", "http://127.0.0.1:8001/?slow=30"]).stdout(Stdio::null()).spawn()?;
    wait("8001 is busy", || Ok(Api::of(&sandbox).workers()?[&8001]["open"] == 1))?;
    let mut command = default_signals(&daemon.cli_command(&["roll", "web", "--to", "v2", "--json"]));
    let mut roll = Roll::by(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)?;
    roll.until_phase(8001, "draining")?;
    kill(&sandbox, 8001)?;
    roll.left()?;
    busy.wait()?;
    let during = daemon.log().lines().count();
    kill(&sandbox, 8002)?;
    let mut after = Vec::new();
    // 8003 is started again and again: who tends it has not lost it.
    wait("ends after the roll", || {
        let lines = parsed(&daemon.log())?;
        after = lines[during..].to_vec();
        Ok(ends(&after, 8002) > 0 && ends(&after, 8003) > 0)
    })?;
    let of_the_roll = bears(&daemon.log(), &roll.id()?)?;
    let (drained, started) = (ends(&of_the_roll, 8001), ends(&of_the_roll, 8003));
    eprintln!("ends of the roll's: {drained} while drained, {started} at a start");
    ensure!(drained == 1 && started >= 2, "{}", daemon.log());
    ensure!(of_the_roll.iter().any(|line| tended(line, "started")), "{}", daemon.log());
    let borne = after.iter().find(|line| tended(line, "") && line.get("roll").is_some());
    ensure!(borne.is_none(), "after the roll: {borne:?}");
    Ok(())
}

/// Kills a worker of the daemon's own.
fn kill(sandbox: &Sandbox, port: u16) -> Result<()> {
    let procs = sandbox.cgroup(Place::Workers).join(format!("web/{port}/cgroup.procs"));
    let pid = fs::read_to_string(&procs).with_context(|| procs.display().to_string())?;
    send(pid.trim().parse().with_context(|| format!("processes of {port}: {pid:?}"))?, Signal::KILL)
}

/// How often the built-in manager says that this worker has ended unasked.
fn ends(lines: &[Value], port: u16) -> usize {
    let is = |line: &&Value| line["fields"]["worker"] == format!("web/{port}") && tended(line, "ended after");
    lines.iter().filter(is).count()
}

/// Whether the built-in manager says something that begins like this.
fn tended(line: &Value, message: &str) -> bool {
    let is = |key: &Value, with: &str| key.as_str().is_some_and(|text| text.starts_with(with));
    is(&line["target"], TENDING) && is(&line["fields"]["message"], message)
}

fn parsed(log: &str) -> Result<Vec<Value>> {
    let line = |line: &str| {
        ensure!(line.matches("\"roll\":").count() <= 1, "twice: {line}");
        serde_json::from_str(line).with_context(|| line.to_owned())
    };
    log.lines().map(line).collect()
}

/// The lines that bear a roll's id. Every line of the roll does, once, and no line before it.
fn bears(log: &str, id: &str) -> Result<Vec<Value>> {
    let lines = parsed(log)?;
    let is = |line: &Value, event: &str| {
        let told = line["fields"]["event"].as_str().unwrap_or_default();
        told.starts_with(&format!("{{\"event\":\"{event}\""))
    };
    let begun = lines.iter().position(|line| is(line, "begun")).context("no beginning")?;
    let ended = lines.iter().position(|line| is(line, "finished")).context("no end")?;
    let mut in_hand = BTreeSet::new();
    for line in &lines[begun..=ended] {
        let target = line["target"].as_str().context("no target")?;
        // `127.0.0.1:8003`, or the built-in manager's `web/8003`.
        let worker =
            line["fields"]["worker"].as_str().and_then(|name| name.rsplit([':', '/']).next()).unwrap_or_default();
        let phase = line["fields"]["phase"].as_str().unwrap_or_default();
        if phase == "Draining" {
            in_hand.insert(worker);
        }
        let must = OF_A_ROLL.iter().any(|module| target.starts_with(module)) || in_hand.contains(worker);
        ensure!(!must || line["roll"] == id, "of no roll: {line}");
        if ["Up", "Down", "Failed"].contains(&phase) {
            in_hand.remove(worker);
        }
    }
    let bearing: Vec<_> = lines.iter().filter(|line| line["roll"] == id).cloned().collect();
    eprintln!(
        "{} of {} lines are the roll's; killed: {}",
        bearing.len(),
        ended - begun + 1,
        log.contains("is being killed")
    );
    ensure!(bearing.len() > 20 && log.contains("\"phase\":\"Failed\""), "{log}");
    ensure!(lines[..begun].iter().all(|line| line.get("roll").is_none()), "{log}");
    Ok(bearing)
}

/// A daemon that is started from a service's shell inherits `JOURNAL_STREAM`.
#[test]
fn another_stream_gets_text() -> Result<()> {
    let sandbox = Sandbox::new("text")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = start(&sandbox, &stage.config(&config()), "8:12345")?;
    let mut roll = stage.roll(&daemon, &["--to", "v2"])?;
    roll.left()?;
    let (id, log) = (format!(" roll={}", roll.id()?), daemon.log());
    ensure!(!log.contains('\u{1b}') && log.contains("  INFO attached callers="), "{log}");
    ensure!(log.lines().all(|line| line.matches("roll=").count() <= 1), "{log}");
    let of_workers = log.lines().filter(|line| line.contains(" phase=Draining "));
    ensure!(of_workers.clone().count() == 4 && of_workers.into_iter().all(|line| line.ends_with(&id)), "{log}");
    Ok(())
}
