//! Tasks of the daemon that panic: a bug of the daemon is told, and costs no service its rolls or its watch.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use deployer_tests::api::{Api, Ending};
use deployer_tests::app::App;
use deployer_tests::daemon::{Daemon, DeployerBin, ServiceConfig};
use deployer_tests::process::send;
use deployer_tests::prometheus;
use deployer_tests::rig;
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::stage::Stage;

fn panics_at(point: &str, dir: &Path) -> [(&'static str, String); 3] {
    [
        ("DEPLOYER_FAILPOINT", point.to_owned()),
        ("DEPLOYER_FAILPOINT_DIR", dir.display().to_string()),
        ("DEPLOYER_FAILPOINT_DO", "panic".to_owned()),
    ]
}

/// A daemon in which the first task that comes to `point` panics there.
fn daemon<'a>(stage: &Stage<'a>, point: &str) -> Result<Daemon<'a>> {
    let dir = stage.sandbox.dir().join("failpoint");
    fs::create_dir(&dir).context("make the failpoint's directory")?;
    let config = ServiceConfig { metrics: Some(prometheus::PAGE), ..ServiceConfig::default() };
    let text = stage.config(&config);
    let daemon = Daemon::start_with(stage.sandbox, DeployerBin::find()?, &text, &panics_at(point, &dir))?;
    stage.all_up()?;
    Ok(daemon)
}

/// A roll in which a task panics, and what comes after it.
fn roll_that_panics(label: &str, point: &str) -> Result<Ending> {
    let sandbox = Sandbox::new(label)?;
    let stage = Stage::new(&sandbox)?;
    let daemon = daemon(&stage, point)?;
    let end = stage.roll(&daemon, &["--to", "v2"])?.end()?;
    // No worker is left in the hands of a roll that is gone, in the daemon and in its journal.
    stage.all_up()?;
    let services = stage.api().status()?["services"].clone();
    ensure!(services[0]["roll"].is_null(), "{services}");
    let kept: Value = serde_json::from_slice(&fs::read(sandbox.state().join("state.json"))?)?;
    ensure!(kept["rolls"] == Value::Array(Vec::new()), "the journal keeps the roll: {}", kept["rolls"]);
    stage.roll(&daemon, &["--to", "v2"])?.end()?.must("done", &["4 workers restarted"])?;
    stage.unharmed(label)?;
    Ok(end)
}

#[test]
fn a_roll_whose_task_panics_ends_with_a_reason() -> Result<()> {
    let end = roll_that_panics("rollpanic", "batch.done")?;
    end.must("failed", &["the roll's task has panicked: failpoint batch.done", "deployer roll web"])
}

#[test]
fn a_worker_whose_restart_panics_goes_back_to_the_watch() -> Result<()> {
    let end = roll_that_panics("workpanic", "drained@8001")?;
    ensure!(end.result != "done" && !end.text.is_empty(), "{end:?}");
    Ok(())
}

/// The task that tends a worker of the built-in manager panics: a worker that ends is started again all the same.
#[test]
fn a_task_that_tends_a_worker_begins_again() -> Result<()> {
    let sandbox = Sandbox::new("tendpanic")?;
    let app = App::new(&sandbox, &["v1"])?;
    let dir = sandbox.dir().join("failpoint");
    fs::create_dir(&dir).context("make the failpoint's directory")?;
    let text = ServiceConfig::default().text_built_in(&sandbox, &app);
    let daemon = Daemon::start_with(&sandbox, DeployerBin::find()?, &text, &panics_at("task.tend", &dir))?;
    let up = || Ok(Api::of(&sandbox).phases().is_ok_and(|phases| phases.values().all(|phase| phase == "up")));
    rig::wait("workers that are up", up).with_context(|| daemon.log())?;
    ensure!(daemon.log().contains("the task that tends a worker has panicked"), "{}", daemon.log());
    let pids = || -> Result<BTreeSet<u32>> {
        let of = |port| fs::read_to_string(sandbox.cgroup(Place::Workers).join(format!("web/{port}/cgroup.procs")));
        let texts = (8000..=8003).map(of).collect::<Result<Vec<_>, _>>().context("processes of workers")?;
        texts.iter().flat_map(|text| text.split_whitespace()).map(|pid| pid.parse().context("a pid")).collect()
    };
    let before = pids()?;
    ensure!(!before.is_empty(), "no workers");
    before.iter().try_for_each(|pid| send(*pid, Signal::KILL))?;
    rig::wait("other processes", || Ok(before.is_disjoint(&pids()?) && up()?)).with_context(|| daemon.log()).map(drop)
}

#[test]
fn a_watch_that_panics_is_told_and_started_again() -> Result<()> {
    let sandbox = Sandbox::new("watchpanic")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = daemon(&stage, "task.watch")?;
    let trouble = || Ok(stage.api().status()?["trouble"].to_string().contains("background task \\\"watch\\\""));
    stage.wait(Duration::from_secs(5), trouble).with_context(|| daemon.log())?;
    let events = daemon.cli(&["events"])?;
    let events = String::from_utf8_lossy(&events.stdout).into_owned();
    ensure!(events.contains("has panicked: failpoint task.watch"), "{events}");
    let page = prometheus::page(&sandbox)?;
    ensure!(page.contains("deployer_task_restarts_total 1"), "{page}");
    // It watches again.
    let pid = stage.supervisor.pid_of(8002)?.context("no worker")?;
    send(pid, Signal::KILL)?;
    stage.wait(Duration::from_secs(20), || Ok(daemon.log().contains("warm after it had started by itself")))?;
    stage.all_up()
}
