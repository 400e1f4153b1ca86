//! `deployer events`: what happened, when, by whom, over the end of the daemon.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::process::{Process, send};
use deployer_tests::sandbox::Sandbox;
use deployer_tests::stage::Stage;

/// A worker's way through a roll.
const THROUGH: [&str; 7] = ["draining", "drained", "stopping", "starting", "listening", "warming", "up"];

fn events(daemon: &Daemon<'_>) -> Result<Vec<Value>> {
    let output = daemon.cli(&["events", "--json", "--last", "10000"])?;
    ensure!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).context("UTF-8")?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// What a follower has printed: events, and what it says itself.
fn followed(follower: &Process) -> Result<(Vec<Value>, Vec<String>)> {
    let log = follower.log();
    let (events, said): (Vec<_>, Vec<_>) = log.lines().partition(|line| line.starts_with('{'));
    let events = events.into_iter().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok((events, said.into_iter().map(str::to_owned).collect()))
}

fn of<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == kind).collect()
}

/// Who moved each worker where; what it was before must be what was told before.
fn ways(events: &[Value]) -> Result<BTreeMap<String, Vec<(String, String)>>> {
    let mut ways: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for event in of(events, "phase") {
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let way = ways.entry(text("worker")).or_default();
        let was = way.last().map_or(Value::Null, |(phase, _)| json!(phase));
        ensure!(event["was"] == was, "{event} after {way:?}");
        way.push((text("phase"), text("by")));
    }
    Ok(ways)
}

/// A roll, a drain by hand, a worker killed, the daemon killed.
fn act<'a>(stage: &Stage<'a>, daemon: &mut Daemon<'a>) -> Result<()> {
    stage.wait(Duration::from_secs(20), || {
        Ok(stage.api().workers()?.values().all(|worker| worker["version"] == "v1"))
    })?;
    stage.roll(daemon, &["--to", "v2"])?.end()?.must("done", &["4 workers"])?;
    for verb in ["drain", "enable"] {
        let output = daemon.cli(&[verb, "web", "8000"])?;
        ensure!(output.status.success(), "{output:?}");
    }
    let pid = stage.supervisor.pid_of(8001)?.context("8001 does not run")?;
    send(pid, Signal::KILL)?;
    stage.wait(Duration::from_secs(30), || {
        let worker = stage.api().workers()?[&8001].clone();
        Ok(worker["phase"] == "up" && worker["reason"].as_str().is_some_and(|why| why.contains("started by itself")))
    })?;
    // Its end is told when its files are closed.
    stage.wait(Duration::from_secs(20), || Ok(!of(&events(daemon)?, "process-ended").is_empty()))?;
    // Else the next daemon finds a process that none before it has warmed, which is another change.
    stage.wait(Duration::from_secs(20), || {
        let state: Value = serde_json::from_slice(&std::fs::read(stage.sandbox.state().join("state.json"))?)?;
        let reason = &state["services"]["web"]["workers"]["127.0.0.1:8001"]["reason"];
        Ok(reason.as_str().is_some_and(|why| why.contains("started by itself")))
    })?;
    daemon.process().kill()?;
    std::thread::sleep(Duration::from_millis(500));
    *daemon = Daemon::start(stage.sandbox, &stage.config(&ServiceConfig::default()))?;
    stage.all_up()
}

#[test]
fn each_change_once() -> Result<()> {
    let sandbox = Sandbox::new("history")?;
    let stage = Stage::new(&sandbox)?;
    let mut daemon = stage.daemon(&ServiceConfig::default())?;
    let arguments = ["events", "--follow", "--json", "--last", "10000"];
    let mut follower =
        Process::start("deployer events", daemon.cli_command(&arguments), &sandbox.dir().join("followed"))?;
    act(&stage, &mut daemon)?;
    let told = events(&daemon)?;
    for (seq, event) in told.iter().enumerate() {
        ensure!(event["seq"] == seq, "a gap before {event}: {told:#?}");
    }
    the_roll_and_the_drain(&told)?;
    the_ends(&told)?;
    stage.wait(Duration::from_secs(20), || Ok(followed(&follower)?.0.len() >= told.len()))?;
    let (heard, said) = followed(&follower)?;
    ensure!(heard[..told.len()] == told, "{heard:#?}");
    ensure!(said.len() == 2 && said[0].contains("has gone; waiting") && said[1].contains("is back"), "{said:?}");
    follower.kill()?;
    let human = String::from_utf8(daemon.cli(&["events"])?.stdout)?;
    eprintln!("{human}");
    ensure!(human.contains("web 127.0.0.1:8000  up -> draining: by uid 0 (pid "), "{human}");
    only_some(&daemon, &told)
}

fn the_roll_and_the_drain(told: &[Value]) -> Result<()> {
    let (begun, ended) = (of(told, "roll-begun"), of(told, "roll-ended"));
    ensure!(begun.len() == 1 && ended.len() == 1 && of(told, "roll-command").len() == 1, "{told:#?}");
    ensure!(begun[0]["by"].as_str().is_some_and(|by| by.starts_with("uid 0 (pid ")), "{}", begun[0]);
    ensure!(begun[0]["was"] == "v1" && begun[0]["to"] == "v2" && begun[0]["workers"] == 4, "{}", begun[0]);
    ensure!(ended[0]["result"] == "done" && ended[0]["roll"] == begun[0]["roll"], "{}", ended[0]);
    let roll = format!("roll {}", begun[0]["roll"].as_str().context("no id")?);
    for (worker, way) in ways(told)? {
        eprintln!("{worker}: {way:?}");
        ensure!(way[0] == ("up".to_owned(), "the daemon".to_owned()), "{way:?}");
        ensure!(way[1..8].iter().map(|(phase, _)| phase.as_str()).eq(THROUGH), "{way:?}");
        ensure!(way[1..8].iter().all(|(_, by)| *by == roll), "{way:?}");
        let rest: Vec<_> = way[8..].iter().map(|(phase, by)| (phase.as_str(), by.as_str())).collect();
        match &*worker {
            "127.0.0.1:8000" => {
                let by_hand = rest.iter().all(|(_, by)| by.starts_with("uid 0 (pid "));
                ensure!(by_hand && rest.len() == 2 && rest[0].1 != rest[1].1, "{rest:?}");
                ensure!((rest[0].0, rest[1].0) == ("draining", "up"), "{rest:?}");
            }
            "127.0.0.1:8001" => {
                let by_itself = ["down", "listening", "warming", "up"].map(|phase| (phase, "the watch"));
                ensure!(rest == by_itself, "{rest:?}");
            }
            _ => ensure!(rest.is_empty(), "{rest:?}"),
        }
    }
    Ok(())
}

fn the_ends(told: &[Value]) -> Result<()> {
    let killed = of(told, "process-ended");
    ensure!(killed.len() == 1 && killed[0]["worker"] == "127.0.0.1:8001", "{killed:?}");
    ensure!(killed[0]["by"] == "the kernel" && killed[0].get("roll").is_none(), "{killed:?}");
    let started = of(told, "started");
    ensure!(started.len() == 2 && started[0]["was"].is_null(), "{started:?}");
    let was = started[1]["was"].as_str().unwrap_or_default();
    let before = format!("(pid {}), which ended without a word", started[0]["pid"]);
    ensure!(was.ends_with(&before), "{started:?}");
    ensure!(of(told, "service").len() == 1 && of(told, "lost").is_empty(), "{told:#?}");
    Ok(())
}

fn only_some(daemon: &Daemon<'_>, told: &[Value]) -> Result<()> {
    let lines = |arguments: &[&str]| -> Result<usize> {
        let output = daemon.cli(&[&["events"], arguments].concat())?;
        ensure!(output.status.success(), "{output:?}");
        Ok(output.stdout.iter().filter(|byte| **byte == b'\n').count())
    };
    ensure!(lines(&["-n", "3"])? == 3 && lines(&["-n", "0"])? == 0);
    ensure!(lines(&["--since", "1h"])? >= told.len());
    let of_all = told.iter().filter(|event| event.get("service").is_none()).count();
    ensure!(lines(&["--since", "1h", "--service", "other"])? >= of_all);
    ensure!(lines(&["--since", "1h", "--service", "other"])? < told.len());
    Ok(())
}

/// Who reads nothing, or goes away, holds nobody up.
#[test]
fn bad_readers() -> Result<()> {
    use std::io::Write as _;

    let sandbox = Sandbox::new("readers")?;
    let stage = Stage::new(&sandbox)?;
    let mut daemon = stage.daemon(&ServiceConfig::default())?;
    let request = b"GET /v1/events?follow=true HTTP/1.1\r\nHost: deployer\r\n\r\n";
    let mut idle = Vec::new();
    // More than may read at a time, each gone at once.
    for nth in 0..100 {
        let mut stream = stage.api().connect()?;
        stream.write_all(request)?;
        if nth < 20 {
            idle.push(stream);
        }
    }
    stage.wait(Duration::from_secs(10), || Ok(daemon.cli(&["events"])?.status.success()))?;
    for from in ["-1", "x", "99999999999999999999"] {
        let answer = stage.api().call("GET", &format!("/v1/events?from={from}"), b"")?;
        ensure!(answer.status == 400, "{answer:?}");
    }
    let ahead = stage.api().call("GET", "/v1/events?from=18446744073709551615", b"")?;
    ensure!(ahead.status == 200 && ahead.body.contains("\"event\":\"started\""), "{ahead:?}");
    ensure!(daemon.stop()?.success(), "{}", daemon.log());
    drop(idle);
    let daemon = Daemon::start(&sandbox, &stage.config(&ServiceConfig::default()))?;
    let told = events(&daemon)?;
    let was = of(&told, "started").last().map(|event| event["was"].clone()).unwrap_or_default();
    ensure!(of(&told, "stopped").len() == 1 && was.as_str().is_some_and(|was| was.ends_with(", stopped")), "{told:#?}");
    Ok(())
}
