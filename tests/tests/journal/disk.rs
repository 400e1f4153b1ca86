//! A disk that hangs: the state's file system is frozen, as backups do it. The daemon goes on; a roll waits for its journal.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer_tests::api::Ending;
use deployer_tests::daemon::ServiceConfig;
use deployer_tests::disk::Disk;
use deployer_tests::prometheus;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::stage::Stage;
use serde_json::Value;

/// An answer that takes longer than this has waited for the disk; a report may wait for 3 s.
const PROMPT: Duration = Duration::from_secs(2);

/// Asks, and checks that the answer does not wait for the disk.
fn prompt<T>(what: &str, within: Duration, ask: impl FnOnce() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let answer = ask().with_context(|| format!("{what}, with a frozen disk"))?;
    ensure!(begun.elapsed() < within, "{what} took {:?} with a frozen disk", begun.elapsed());
    Ok(answer)
}

fn trouble(stage: &Stage<'_>) -> Result<String> {
    let status = prompt("status", PROMPT, || stage.api().status())?;
    Ok(status["trouble"].as_array().context("trouble")?.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n"))
}

/// A roll is in the middle of a drain when the disk freezes, with a lease that is shorter than the freeze.
#[test]
fn the_daemon_goes_on_and_a_roll_waits() -> Result<()> {
    let sandbox = Sandbox::new("frozen")?;
    let disk = Disk::mount(&sandbox, &sandbox.state())?;
    let stage = Stage::new(&sandbox)?;
    let config = ServiceConfig { batch: "1".to_owned(), metrics: Some(prometheus::PAGE), ..ServiceConfig::default() };
    let text = stage.config(&config).replace("[kernel]\n", "[kernel]\nlease = \"2s\"\n");
    let daemon = deployer_tests::daemon::Daemon::start(&sandbox, &text)?;
    stage.all_up()?;
    stage.roll(&daemon, &[])?.end()?.must("done", &[])?;
    // Holds the drain of the first worker for longer than its lease.
    let slow = stage.slow(8000, 3)?;
    let mut roll = stage.roll(&daemon, &["--to", "v2"])?;
    roll.until_phase(8000, "draining")?;
    let freeze = disk.freeze()?;
    let frozen = Instant::now();
    let mut told = String::new();
    while frozen.elapsed() < Duration::from_millis(7500) {
        told = trouble(&stage)?;
        let phase = stage.api().phases()?.remove(&8000);
        ensure!(phase.as_deref() != Some("up"), "the drain's lease has run out after {:?}", frozen.elapsed());
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(told.contains("hangs") && told.contains("fsfreeze"), "status does not tell of the disk: {told:?}");
    ensure!(told.lines().count() == 1, "told more than once: {told}");
    // Reads answer, or say why they cannot.
    prompt("report", Duration::from_secs(5), || stage.api().call("GET", "/v1/rolls/last/report", b""))?;
    let events = prompt("events", Duration::from_secs(5), || daemon.cli(&["events", "--json"]))?;
    let events = String::from_utf8_lossy(&events.stdout).into_owned();
    ensure!(events.contains("hangs"), "the events do not tell of the disk: {events}");
    let page = prompt("metrics", Duration::from_secs(5), || prometheus::page(&sandbox))?;
    ensure!(page.contains("deployer_journal_writable 0"), "{page}");
    slow.status()?;
    stage.no_loss()?;
    freeze.thaw();
    roll.left()?;
    Ending::read(roll.seen.last().context("no events")?)?.must("done", &["4 workers restarted"])?;
    let waits = roll.seen.iter().filter(|event| event["event"] == "journal").collect::<Vec<_>>();
    ensure!(waits.len() == 2 && waits[0]["trouble"].as_str().is_some_and(|why| why.contains("hangs")), "{waits:?}");
    ensure!(waits[1]["trouble"].is_null(), "{waits:?}");
    stage.wait(Duration::from_secs(3), || Ok(trouble(&stage)?.is_empty()))?;
    stage.unharmed("frozen")?;
    Ok(())
}
