//! A supervisord that dies, hangs, or does late what it was asked to do.

use std::time::Instant;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use deployer_tests::api::Roll;
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::process::send;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::stage::Stage;

const TO_V2: &[&str] = &["--to", "v2"];

fn one_by_one() -> ServiceConfig {
    ServiceConfig { batch: "1".to_owned(), ..ServiceConfig::default() }
}

/// Begins a roll and stops where a request of 2 s holds the drain of 8001: the next thing asked of supervisord is its stop.
fn roll_to_8001(stage: &Stage<'_>, daemon: &Daemon<'_>) -> Result<Roll> {
    let slow = stage.slow(8001, 2)?;
    let mut roll = stage.roll(daemon, TO_V2)?;
    roll.until_phase(8001, "draining")?;
    drop(slow);
    Ok(roll)
}

#[test]
fn supervisord_dies_in_mid_roll() -> Result<()> {
    let sandbox = Sandbox::new("dies")?;
    let mut stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&one_by_one())?;
    let pid = stage.supervisor.pid_of(8001)?;
    let roll = roll_to_8001(&stage, &daemon)?;
    stage.supervisor.kill_supervisord()?;
    let end = roll.end()?;
    eprintln!("{end:?}");
    let socket = stage.supervisor.socket().display().to_string();
    end.must("stopped", &["supervisord cannot be reached at", &socket, "web:web_8001", "1 of 4 workers are changed"])?;
    ensure!(end.failed.is_empty() && stage.supervisor.pid_of(8001)? == pid, "{end:?}");
    stage.only_failed(&[])?;
    stage.all_serve()?;
    // Without it no roll even begins.
    let answer = stage.api().call("POST", "/v1/services/web/roll", br#"{"to":"v2"}"#)?;
    eprintln!("another roll: {answer:?}");
    let (error, exit) = answer.refusal()?;
    ensure!(exit == "failed" && error.contains(&socket) && error.contains("no worker was touched"), "{error}");
    stage.unharmed("supervisord dies in mid-roll")?;
    Ok(())
}

#[test]
fn supervisord_dies_while_a_worker_starts() -> Result<()> {
    let sandbox = Sandbox::new("diesstart")?;
    let mut stage = Stage::with_import(&sandbox, 0.6)?;
    let daemon = stage.daemon(&one_by_one())?;
    let mut roll = stage.roll(&daemon, TO_V2)?;
    roll.until_phase(8001, "starting")?;
    stage.supervisor.kill_supervisord()?;
    let end = roll.end()?;
    eprintln!("{end:?}");
    end.must(
        "failed",
        &["127.0.0.1:8001", "supervisord cannot be reached at", "1 of 4 workers are changed, 1 failed"],
    )?;
    stage.only_failed(&[8001])?;
    stage.is_out(8001)?;
    stage.unharmed("supervisord dies while a worker starts")?;
    Ok(())
}

#[test]
fn supervisord_hangs_in_mid_roll() -> Result<()> {
    let sandbox = Sandbox::new("hangs")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&one_by_one())?;
    let roll = roll_to_8001(&stage, &daemon)?;
    let begun = Instant::now();
    send(stage.supervisor.pid(), Signal::STOP)?;
    let end = roll.end();
    send(stage.supervisor.pid(), Signal::CONT)?;
    let end = end?;
    eprintln!("after {:.1?}: {end:?}", begun.elapsed());
    end.must(
        "stopped",
        &["127.0.0.1:8001", "supervisord cannot be reached at", "hangs", "1 of 4 workers are changed"],
    )?;
    stage.all_up()?;
    stage.all_serve()?;
    // It goes on as if nothing had been, and so does a roll.
    let end = stage.roll(&daemon, TO_V2)?.end()?;
    end.must("done", &["4 workers"])?;
    stage.unharmed("supervisord hangs in mid-roll")?;
    Ok(())
}
