//! Drains that a slow request holds, past the deadline and within it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::process::{send, suspend};
use deployer_tests::sandbox::Sandbox;
use deployer_tests::stage::Stage;

const TO_V2: &[&str] = &["--to", "v2"];
/// Of a request that outlasts a roll which does not wait for it, in seconds.
const LONG: u32 = 12;

fn one_by_one() -> ServiceConfig {
    ServiceConfig { batch: "1".to_owned(), ..ServiceConfig::default() }
}

#[test]
fn the_deadline_stops_the_roll() -> Result<()> {
    let sandbox = Sandbox::new("deadline")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&ServiceConfig { deadline: "2s", ..one_by_one() })?;
    let slow = stage.slow(8001, LONG)?;
    let roll = stage.roll(&daemon, TO_V2)?;
    let end = roll.end()?;
    eprintln!("{end:?}");
    end.must("stopped", &["127.0.0.1:8001", "not empty after 2 s", "1 connection ", "curl (pid", "1 of 4 workers"])?;
    ensure!(end.failed.is_empty() && end.changed == 1 && end.seconds < f64::from(LONG), "{end:?}");
    stage.only_failed(&[])?;
    stage.all_serve()?;
    ensure!(slow.status()? == 200, "the slow request");
    stage.unharmed("the deadline stops the roll")?;
    Ok(())
}

#[test]
fn the_deadline_kills() -> Result<()> {
    let sandbox = Sandbox::new("kill")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&ServiceConfig { deadline: "2s", on_deadline: "kill", ..one_by_one() })?;
    let slow = stage.slow(8001, 2 * LONG)?;
    let mut roll = stage.roll(&daemon, TO_V2)?;
    roll.until_phase(8001, "draining")?;
    let begun = Instant::now();
    let drained = roll.until_phase(8001, "drained")?;
    ensure!(drained["reason"].as_str().is_some_and(|why| why.contains("at the deadline, with 1 conn")), "{drained}");
    eprintln!("drained after {:.2?}: {}", begun.elapsed(), drained["reason"]);
    let end = roll.end()?;
    end.must("done", &["4 workers"])?;
    ensure!(slow.status()? == 0, "the slow request was to be cut");
    stage.only_failed(&[])?;
    let cut = stage.journal()?.cut().into_iter().filter(|entry| entry.id.starts_with("slow")).count();
    ensure!(cut == 1, "{cut} slow requests cut");
    stage.unharmed("the deadline kills")?;
    Ok(())
}

#[test]
fn a_request_of_8_s_is_waited_for() -> Result<()> {
    let sandbox = Sandbox::new("wait")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&ServiceConfig { batch: "2".to_owned(), ..ServiceConfig::default() })?;
    let slow = stage.slow(8001, 8)?;
    let mut roll = stage.roll(&daemon, TO_V2)?;
    let held = roll.until(|event| event["event"] == "held")?;
    eprintln!("{held}");
    ensure!(held["worker"] == "127.0.0.1:8001" && held["open"] == 1, "{held}");
    ensure!(held["by"][0].as_str().is_some_and(|by| by.contains("curl (pid")), "{held}");
    let begun = Instant::now();
    roll.until_phase(8001, "drained")?;
    let waited = begun.elapsed();
    ensure!(slow.status()? == 200, "the slow request");
    ensure!(waited > Duration::from_secs(1) && waited < Duration::from_secs(30), "{waited:?}");
    let end = roll.end()?;
    eprintln!("{waited:.2?} after the first word of what held it; {end:?}");
    end.must("done", &["4 workers"])?;
    stage.only_failed(&[])?;
    stage.unharmed("a request of 8 s is waited for")?;
    Ok(())
}

/// A daemon that is stopped for longer than its lease, in the middle of a drain: the worker is back in rotation meanwhile,
/// and when the daemon goes on it drains it anew instead of stopping it with requests in it.
#[test]
fn a_daemon_that_slept_through_its_lease() -> Result<()> {
    let sandbox = Sandbox::new("slept")?;
    let stage = Stage::new(&sandbox)?;
    let text = stage.config(&one_by_one()).replace("[kernel]\n", "[kernel]\nlease = \"1s\"\n");
    let daemon = Daemon::start(&sandbox, &text)?;
    stage.all_up()?;
    let slow = stage.slow(8001, 8)?;
    let mut roll = stage.roll(&daemon, TO_V2)?;
    roll.until_phase(8001, "draining")?;
    suspend(daemon.pid())?;
    sleep(Duration::from_millis(2500));
    stage.serves(8001)?;
    let during = stage.slow(8001, 3)?;
    send(daemon.pid(), Signal::CONT)?;
    let end = roll.end()?;
    eprintln!("{end:?}");
    end.must("done", &["4 workers"])?;
    ensure!(slow.status()? == 200 && during.status()? == 200, "requests that were waited for");
    stage.unharmed("a daemon that slept through its lease")?;
    Ok(())
}
