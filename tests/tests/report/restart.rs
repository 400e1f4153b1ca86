//! A roll whose daemon is killed in the middle: the kernel goes on counting, and the next daemon misses nothing.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use deployer_tests::api::Roll;
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::sandbox::Sandbox;

use super::figures::{Scene, WINDOWS};

#[test]
fn a_killed_daemon_misses_nothing() -> Result<()> {
    let sandbox = Sandbox::new("missed")?;
    let config = ServiceConfig { batch: "1".to_owned(), ..ServiceConfig::default() };
    let mut scene = Scene::new(&sandbox, 4, &config)?;
    let load = scene.load(150.0)?;
    scene.sent(&load, 100)?;
    let mut client = scene.daemon.cli_command(&["roll", "web", "--to", "v2", "--json"]);
    let mut roll = Roll::by(client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start deployer")?)?;
    roll.until_phase(8001, "warming")?;
    scene.daemon.process().kill()?;
    // Nobody is there to look.
    scene.sent(&load, 150)?;
    scene.daemon = Daemon::start(&sandbox, &scene.config)?;
    let (code, printed) = roll.left()?;
    ensure!(code == Some(0), "{code:?} {printed}\n{}", scene.daemon.log());
    scene.know_versions()?;
    scene.sent(&load, 100)?;
    let seen = load.stop()?;
    let report = scene.report(&roll.id()?)?;
    let (told, served) = (report.by_version(&WINDOWS, "connections"), scene.served()?);
    eprintln!("told {told:?}, served {served:?}; {seen}");
    // Each daemon asks every worker that is up what it runs.
    let (told, served): (u64, u64) = (told.values().sum(), served.values().sum());
    ensure!(told >= served && told <= served + 8, "told {told}, served {served}");
    ensure!(report.not_zero().is_empty(), "{:?}", report.not_zero());
    ensure!(report.0["notes"][0].as_str().is_some_and(|note| note.contains("restarted")), "{:?}", report.0["notes"]);
    Ok(())
}
