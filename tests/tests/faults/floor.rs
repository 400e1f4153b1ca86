//! Rolls and the floor (`min_up`).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer_tests::app::Fault;
use deployer_tests::crash::Kill;
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::report::Report;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::stage::Stage;

const TO_V2: &[&str] = &["--to", "v2"];

fn held_to(min_up: u16) -> ServiceConfig {
    ServiceConfig { extra: format!("min_up = {min_up}"), ..ServiceConfig::default() }
}

fn by_floor(stage: &Stage<'_>) -> Result<u64> {
    Ok(stage.api().workers()?.values().filter_map(|worker| worker["fallback_floor"].as_u64()).sum())
}

/// What was inside the worker that was killed is lost: in hand, in its accept queue, or on the way to it. So each request
/// that failed had begun before the kill, or hardly later, and ended after it.
fn lost_only_by(kill: &Kill, report: &Report) -> Result<()> {
    // From the look at the tables inside connect() to the SYN, a caller may lose the processor.
    const ON_THE_WAY_NS: u64 = 100_000_000;
    let (before, after) = kill.span_ns;
    let is_inside = |start: u64, end: u64| start <= after + ON_THE_WAY_NS && before <= end;
    let others = report.failures().filter(|one| !is_inside(one.start_ns, one.end_ns));
    let others: Vec<_> = others.map(ToString::to_string).collect();
    ensure!(others.is_empty(), "lost, and not by the kill: {others:?}; {report}");
    Ok(())
}

/// A batch that could never be taken is refused with the largest that could; at the floor a roll goes, and stays there.
#[test]
fn a_batch_leaves_the_floor() -> Result<()> {
    let sandbox = Sandbox::new("floorbatch")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&held_to(3))?;
    for (words, exit) in [(&["roll", "web"][..], 1), (&["roll", "web", "--batch", "50%"], 2)] {
        let output = daemon.cli(words)?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        eprintln!("{words:?}: {text}");
        ensure!(output.status.code() == Some(exit) && text.contains("min_up = 3"), "{output:?}");
        ensure!(text.contains("the largest batch that works is 1"), "{text}");
    }
    stage.reload(&daemon, &stage.config(&held_to(2)))?;
    let (is_over, fewest, looks) = (AtomicBool::new(false), AtomicUsize::new(4), AtomicUsize::new(0));
    let end = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let Ok(phases) = stage.api().phases() else { continue };
                fewest.fetch_min(phases.values().filter(|phase| *phase == "up").count(), Ordering::Relaxed);
                looks.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(2));
            }
        });
        let end = stage.roll(&daemon, TO_V2).and_then(deployer_tests::api::Roll::end);
        is_over.store(true, Ordering::Relaxed);
        end
    })?;
    eprintln!("{end:?}; fewest up {fewest:?} in {looks:?} looks");
    end.must("done", &["4 workers"])?;
    ensure!(fewest.load(Ordering::Relaxed) == 2 && looks.load(Ordering::Relaxed) > 50, "{fewest:?}, {looks:?}");
    ensure!(by_floor(&stage)? == 0, "{:?}", stage.api().workers()?);
    stage.unharmed("a batch leaves the floor")?;
    Ok(())
}

/// A sibling crashes in a roll and does not come back. At a floor of three of four the worker in hand gets connections
/// again, the roll says why it waits, and stops at the deadline; at a floor of one it goes on.
/// All that takes long is done before the slow request, which holds the drain until the sibling is killed.
#[test]
fn a_sibling_that_stays_down() -> Result<()> {
    for (min_up, label) in [(3, "floordown"), (1, "floortwin")] {
        let sandbox = Sandbox::new(label)?;
        let stage = Stage::with(&sandbox, 0.3, "max_fails=0")?;
        let config = ServiceConfig { batch: "1".to_owned(), deadline: "15s", ..held_to(min_up) };
        let daemon = stage.daemon(&config)?;
        ["v1", "v2"].iter().try_for_each(|version| stage.app.set_fault(version, 8003, Some(Fault::Crash)))?;
        let pid = stage.supervisor.pid_of(8003)?.context("no worker")?;
        let slow = stage.slow(8000, 10)?;
        let mut roll = stage.roll(&daemon, TO_V2)?;
        roll.until_phase(8000, "draining")?;
        let kill = Kill::strike(8003, pid, "a sibling")?;
        if min_up == 3 {
            let held = roll.until(|event| event["event"] == "held" && event["floor"].is_string())?;
            eprintln!("{held}");
            ensure!(held["worker"] == "127.0.0.1:8000" && held["floor"] == "2 others are up, and min_up = 3", "{held}");
            let reason = stage.api().workers()?[&8000]["reason"].to_string();
            ensure!(reason.contains("connections go on to it: 2 others are up"), "{reason}");
        }
        let (end, floor) = (roll.end()?, by_floor(&stage)?);
        eprintln!("min_up = {min_up}: {end:?}; {floor} by the floor");
        ensure!(slow.status()? == 200, "the slow request");
        if min_up == 3 {
            end.must("stopped", &["127.0.0.1:8000", "2 others are up, and min_up = 3", "0 of 4 workers are changed"])?;
            ensure!(end.failed.is_empty() && floor > 0, "{floor}");
            ensure!(stage.api().phases()?[&8000] == "up", "{:?}", stage.api().phases()?);
            ensure!(daemon.log().contains("held by the floor"), "{}", daemon.log());
        } else {
            end.must("failed", &["127.0.0.1:8003", "3 of 4 workers are changed"])?;
            ensure!(floor == 0, "{floor}");
        }
        let (report, journal) = (stage.load.stop()?, deployer_tests::journal::Journal::read(&stage.app.journal_dir())?);
        let (cut, doubled) = (journal.cut().len(), journal.doubled().len());
        eprintln!("{cut} cut by the kill, {doubled} doubled; {report}");
        ensure!(report.cold == 0, "{report}");
        lost_only_by(&kill, &report)?;
    }
    Ok(())
}

/// The daemon is killed with two of four drained, then a third worker is: the two go on to serve, and nobody is refused.
#[test]
fn a_daemon_killed_at_the_floor() -> Result<()> {
    let sandbox = Sandbox::new("floorkill")?;
    let stage = Stage::with(&sandbox, 0.3, "max_fails=0")?;
    let text = stage.config(&held_to(2)).replace("[kernel]\n", "[kernel]\nlease = \"60s\"\n");
    let mut daemon = Daemon::start(&sandbox, &text)?;
    stage.all_up()?;
    let pid = stage.supervisor.pid_of(8002)?.context("no worker")?;
    let slow = [stage.slow(8000, 15)?, stage.slow(8001, 15)?];
    let mut roll = stage.roll(&daemon, &["--wait", "0s"])?;
    roll.until_phase(8000, "draining")?;
    stage.wait(Duration::from_secs(10), || Ok(stage.api().phases()?[&8001] == "draining"))?;
    daemon.process().kill()?;
    let id = roll.id()?;
    // It stays down meanwhile.
    ["v1", "v2"].iter().try_for_each(|version| stage.app.set_fault(version, 8002, Some(Fault::Crash)))?;
    let kill = Kill::strike(8002, pid, "a third worker")?;
    stage.load.mark("below");
    for port in [8000, 8001, 8003] {
        stage.serves(port)?;
    }
    for slow in slow {
        ensure!(slow.status()? == 200, "a slow request");
    }
    ["v1", "v2"].iter().try_for_each(|version| stage.app.set_fault(version, 8002, None))?;
    // supervisord has given up on it meanwhile.
    stage.supervisor.ctl(&["start", "web:*"])?;
    let _next = Daemon::start(&sandbox, &text)?;
    let floor = by_floor(&stage)?;
    let end = stage.api().follow(&id)?.end()?;
    let status = stage.api().status()?;
    let exhausted = status["services"][0]["exhausted"].clone();
    eprintln!("{floor} by the floor, {exhausted} refused; {end:?}");
    ensure!(floor >= 2 && exhausted == 0, "{status}");
    let (report, journal) = (stage.load.stop()?, deployer_tests::journal::Journal::read(&stage.app.journal_dir())?);
    eprintln!("{} cut by the kill; {report}", journal.cut().len());
    lost_only_by(&kill, &report)
}
