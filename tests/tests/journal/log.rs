//! What the daemon logs: JSON for the journal's own stream, text for everybody else; a roll's id on every line of it.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use deployer_tests::app::Fault;
use deployer_tests::daemon::{Daemon, DeployerBin, ServiceConfig};
use deployer_tests::process::send;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::stage::Stage;

/// Whatever these say while a roll runs is about it.
const OF_A_ROLL: [&str; 4] = ["deployer::roll", "deployer::warm", "deployer::service::drain", "deployer::keepalive"];

fn start<'a>(stage: &Stage<'a>, journal: &str) -> Result<Daemon<'a>> {
    let config = ServiceConfig { max_failures: 4, batch: "1".to_owned(), ..ServiceConfig::default() };
    let environment = [("JOURNAL_STREAM", journal.to_owned()), ("DEPLOYER_LOG", "deployer=debug".to_owned())];
    let daemon = Daemon::start_with(stage.sandbox, DeployerBin::find()?, &stage.config(&config), &environment)?;
    stage.all_up()?;
    Ok(daemon)
}

#[test]
fn a_roll_is_on_every_line_of_it() -> Result<()> {
    let sandbox = Sandbox::new("log")?;
    let stage = Stage::new(&sandbox)?;
    let file = File::create(sandbox.dir().join("deployer.log"))?.metadata()?;
    let daemon = start(&stage, &format!("{}:{}", file.dev(), file.ino()))?;
    stage.app.set_fault("v2", 8003, Some(Fault::Crash))?;
    let busy = stage.slow(8001, 30)?;
    let mut roll = stage.roll(&daemon, &["--to", "v2"])?;
    roll.until_phase(8001, "draining")?;
    send(stage.supervisor.pid_of(8001)?.context("8001 does not run")?, Signal::KILL)?;
    roll.left()?;
    drop(busy);
    bears(&daemon.log(), &roll.id()?)
}

/// Whether every line of a roll bears its id, once, and no line before it does.
fn bears(log: &str, id: &str) -> Result<()> {
    let parsed = |line: &str| {
        ensure!(line.matches("\"roll\":").count() <= 1, "twice: {line}");
        serde_json::from_str(line).with_context(|| line.to_owned())
    };
    let lines: Vec<Value> = log.lines().map(parsed).collect::<Result<_>>()?;
    let is = |line: &Value, event: &str| {
        let told = line["fields"]["event"].as_str().unwrap_or_default();
        told.starts_with(&format!("{{\"event\":\"{event}\""))
    };
    let begun = lines.iter().position(|line| is(line, "begun")).context("no beginning")?;
    let ended = lines.iter().position(|line| is(line, "finished")).context("no end")?;
    let (mut in_hand, mut bearing) = (BTreeSet::new(), 0);
    for line in &lines[begun..=ended] {
        let target = line["target"].as_str().context("no target")?;
        let worker = line["fields"]["worker"].as_str().unwrap_or_default();
        let phase = line["fields"]["phase"].as_str().unwrap_or_default();
        if phase == "Draining" {
            in_hand.insert(worker);
        }
        let must = OF_A_ROLL.iter().any(|module| target.starts_with(module)) || in_hand.contains(worker);
        ensure!(!must || line["roll"] == id, "of no roll: {line}");
        bearing += usize::from(line["roll"] == id);
        if ["Up", "Down", "Failed"].contains(&phase) {
            in_hand.remove(worker);
        }
    }
    eprintln!("{bearing} of {} lines are the roll's; killed: {}", ended - begun + 1, log.contains("is being killed"));
    ensure!(bearing > 20 && log.contains("\"phase\":\"Failed\""), "{log}");
    ensure!(lines[..begun].iter().all(|line| line.get("roll").is_none()), "{log}");
    Ok(())
}

/// A daemon that is started from a service's shell inherits `JOURNAL_STREAM`.
#[test]
fn another_stream_gets_text() -> Result<()> {
    let sandbox = Sandbox::new("text")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = start(&stage, "8:12345")?;
    let mut roll = stage.roll(&daemon, &["--to", "v2"])?;
    roll.left()?;
    let (id, log) = (format!(" roll={}", roll.id()?), daemon.log());
    ensure!(!log.contains('\u{1b}') && log.contains("  INFO attached callers="), "{log}");
    ensure!(log.lines().all(|line| line.matches("roll=").count() <= 1), "{log}");
    let of_workers = log.lines().filter(|line| line.contains(" phase=Draining "));
    ensure!(of_workers.clone().count() == 4 && of_workers.into_iter().all(|line| line.ends_with(&id)), "{log}");
    Ok(())
}
