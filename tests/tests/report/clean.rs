//! A roll that loses nothing, to the last connection.

use anyhow::{Context, Result, ensure};
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::sandbox::Sandbox;

use super::figures::{Scene, WINDOWS};

/// nginx keeps no connection to a worker, so each request is one, and each worker writes down the version that took it.
#[test]
fn every_connection_is_told_with_its_version() -> Result<()> {
    let sandbox = Sandbox::new("exact")?;
    let scene = Scene::new(&sandbox, 4, &ServiceConfig::default())?;
    let (exit, text) = scene.said(&["report"])?;
    ensure!(exit == Some(2) && text.contains("no roll yet"), "{exit:?} {text}");
    // The daemon has asked for versions.
    let own = scene.established()?;
    let load = scene.load(200.0)?;
    scene.sent(&load, 300)?;
    let id = scene.roll("v2")?;
    scene.sent(&load, 300)?;
    let seen = load.stop()?;
    let report = scene.report(&id)?;
    let (told, served) = (report.by_version(&WINDOWS, "connections"), scene.served()?);
    eprintln!("told {told:?}, served {served:?}, {own} of the daemon's own; {seen}");
    ensure!(seen.failed == 0 && report.not_zero().is_empty(), "{:?}", report.not_zero());
    ensure!(scene.nginx.error_lines()?.is_empty());
    ensure!(told.get("v2") == served.get("v2"), "{told:?} {served:?}");
    let others: u64 = told.iter().filter(|(version, _)| *version != "v2").map(|(_, count)| count).sum();
    ensure!(Some(others) == served.get("v1").map(|served| served + own), "{told:?} {served:?} {own}");
    for window in WINDOWS {
        ensure!(report.by_version(&[window], "connections").values().sum::<u64>() > 100, "{window}: {:?}", report.0);
    }
    ensure!(report.0["from"] == "v1" && report.0["to"] == "v2" && report.0["result"] == "done", "{:?}", report.0);
    ensure!(report.0["complete"] == false && report.0["notes"] == serde_json::json!([]), "{:?}", report.0);
    let p50 = report.0["during"]["versions"][0]["latency"]["p50_us"].as_u64().context("no latency")?;
    ensure!(p50 > 1_000, "requests take 5 ms, and the median is {p50} us");
    kept(scene, &id)
}

/// The next roll completes the report of the one before, which is then a file like any other; and the next daemon reads it.
fn kept(mut scene: Scene<'_>, id: &str) -> Result<()> {
    let next = scene.roll("v1")?;
    ensure!(scene.report(id)?.0["complete"] == true);
    ensure!(scene.said(&["report"])?.1.starts_with(&format!("roll {next}: web, v2 -> v1, done")));
    let (exit, text) = scene.said(&["report", "web-1"])?;
    ensure!(exit == Some(2) && text.contains("no roll `web-1`"), "{exit:?} {text}");
    let file = scene.sandbox.state().join(format!("rolls/{id}.report.json"));
    let whole = std::fs::read(&file)?;
    std::fs::write(&file, &whole[..whole.len() / 2])?;
    let (exit, text) = scene.said(&["report", id])?;
    ensure!(exit == Some(1) && text.contains("cut short") && text.contains(".report.json"), "{exit:?} {text}");
    std::fs::remove_file(&file)?;
    let (exit, text) = scene.said(&["report", id])?;
    ensure!(exit == Some(1) && text.contains("has no report"), "{exit:?} {text}");
    std::fs::write(&file, &whole)?;
    scene.daemon.stop()?;
    let (exit, text) = scene.said(&["report"])?;
    ensure!(exit == Some(6) && text.contains("start the daemon"), "{exit:?} {text}");
    scene.daemon = Daemon::start(scene.sandbox, &scene.config)?;
    ensure!(scene.report(id)?.0["complete"] == true);
    Ok(())
}
