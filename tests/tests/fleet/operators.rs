//! Several operators, a barrier of somebody else's, and what is told of all that.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use deployer_tests::dial::PYTHON;
use deployer_tests::fleet::orders::{active, result};
use deployer_tests::fleet::{Fleet, Plan};
use deployer_tests::pace::SOON;
use deployer_tests::process::{Process, run};
use deployer_tests::sandbox::Place;
use deployer_tests::site::ended;
use rustix::process::Signal;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
const METRICS: &str = "[metrics]\nlisten = \"127.0.0.1:9469\"";

/// Kazoo holds a plain barrier until it is told to let go.
fn hold(fleet: &Fleet, path: &str) -> Result<Process> {
    let script = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/app/zoo.py"));
    let sandbox = &fleet.host(3).sandbox;
    let mut command = sandbox.command(Place::Outside, PYTHON);
    command.arg("-s").arg(script).args([&fleet.plan.connect(), "10", "hold", path]);
    let mut process = Process::start("kazoo", command, &sandbox.dir().join("kazoo.out"))?;
    let log = sandbox.dir().join("kazoo.out");
    let is_held = || std::fs::read_to_string(&log).is_ok_and(|said| said.contains("held"));
    process.wait_ready(SOON, is_held)?;
    Ok(process)
}

fn page(fleet: &Fleet, host: usize) -> Result<String> {
    let code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9469/metrics').read().decode())";
    run(fleet.host(host).sandbox.command(Place::Outside, PYTHON).args(["-I", "-c", code]))
}

#[test]
fn operators_are_kept_apart_and_a_barrier_is_waited_for() -> Result<()> {
    let mut fleet = Fleet::joined(Plan { hosts: 3, bake: "4s", more: METRICS, ..Plan::default() })?;
    let mut kazoo = hold(&fleet, "/barriers/web")?;
    let deploy = fleet.deploying(1, "v2", &["--barrier", "/barriers/web"])?;
    let held = fleet.wait_web("the barrier is waited for", LIMIT, |web| {
        web["waits"].as_str().is_some_and(|waits| waits.contains("/barriers/web is held"))
    })?;
    ensure!(held["state"]["phase"] == "prepare" && held["driver"] == "h1", "{held}");
    // Whoever comes second is told who was first, and can follow, or end it.
    let (exit, said) = fleet.deploy(2, "v3", &[])?;
    ensure!(exit == 4 && said.contains("under way") && said.contains("on h1"), "exit {exit}: {said}");
    let watching = fleet.host(2).spawn(&["fleet", "watch", "web"])?;
    is_resumed(&mut fleet)?;
    kazoo.signal(Signal::USR1)?;
    let ((exit, said), (watched, seen)) = (ended(deploy)?, ended(watching)?);
    ensure!(exit == 0 && said.contains("v2"), "exit {exit}: {said}");
    ensure!(watched == 0 && seen.contains("FLIPPED"), "exit {watched}: {seen}");
    ensure!(active(&fleet.settled(LIMIT)?) == "v2");
    // An abort by another, who has not begun it.
    let mut kazoo = hold(&fleet, "/barriers/web")?;
    let deploy = fleet.deploying(1, "v3", &["--barrier", "/barriers/web"])?;
    fleet.wait_marks("v3", "ready", 3)?;
    fleet.host(2).must(&["fleet", "abort", "web"])?;
    let (exit, said) = ended(deploy)?;
    ensure!(exit == 3 && said.contains("aborted"), "exit {exit}: {said}");
    kazoo.signal(Signal::USR1)?;
    let end = fleet.settled(LIMIT)?;
    ensure!(active(&end) == "v2" && result(&end) == "aborted", "{end}");
    is_told(&fleet)
}

/// Who drives dies; another operator has his own host go on with it, and what is waited for is waited for there.
fn is_resumed(fleet: &mut Fleet) -> Result<()> {
    fleet.host_mut(1).kill_daemon()?;
    let begun = Instant::now();
    let said = loop {
        let said = fleet.host(2).must(&["fleet", "resume", "web"])?;
        if !said.contains("driven by h1") {
            break said;
        }
        ensure!(begun.elapsed() < LIMIT, "{said}");
    };
    ensure!(said.contains("driven by h2 from here on"), "{said}");
    let took = begun.elapsed();
    fleet.host_mut(1).start_daemon(&[])?;
    let web = fleet.wait_web("another waits for the barrier", LIMIT, |web| {
        web["driver"] == "h2" && web["waits"].as_str().is_some_and(|waits| waits.contains("/barriers/web is held"))
    })?;
    eprintln!("resumed after {took:.1?}: {}; {}", said.trim_end(), web["waits"]);
    Ok(())
}

fn is_told(fleet: &Fleet) -> Result<()> {
    let events = fleet.host(3).must(&["events", "--json", "-n", "1000"])?;
    for word in ["fleet-connected", "\"phase\":\"prepare\"", "\"phase\":\"go\"", "\"phase\":\"flipped\"", "aborted by"]
    {
        ensure!(events.contains(word), "no {word} in what host 3 tells: {events}");
    }
    let lines = fleet.host(3).must(&["fleet", "hosts", "--json"])?;
    let hosts: Vec<Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let names: Vec<_> = hosts.iter().filter_map(|host| host["host"].as_str()).collect();
    ensure!(names == ["h1", "h2", "h3"], "{lines}");
    let page = page(fleet, 3)?;
    for line in [
        "deployer_fleet_phase{service=\"web\",phase=\"idle\"} 1",
        "deployer_fleet_epoch{service=\"web\"} 2",
        "deployer_fleet_published{service=\"web\"} 1",
    ] {
        ensure!(page.contains(line), "no {line} in {page}");
    }
    let figures: Vec<_> = page.lines().filter(|line| line.starts_with("deployer_fleet")).collect();
    eprintln!("{}", figures.join("\n"));
    Ok(())
}
