//! Workers that are not empty at the drain's deadline, where `on_deadline = "leave"`.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use deployer_tests::api::Roll;
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::stage::Stage;

const TO_V2: &[&str] = &["--to", "v2"];

fn leaving() -> ServiceConfig {
    ServiceConfig { batch: "1".to_owned(), deadline: "2s", on_deadline: "leave", ..ServiceConfig::default() }
}

/// A steered caller that has connected to a worker and says nothing, for as long as it is not told to.
struct Silent {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Silent {
    fn connect(stage: &Stage<'_>, port: u16) -> Result<Self> {
        const ASK: &str = "exec 3<>/dev/tcp/127.0.0.1/$0; echo connected; read -r _; \
            printf 'GET /version HTTP/1.1\\r\\nHost: web\\r\\nConnection: close\\r\\n\\r\\n' >&3; exec cat <&3";
        let mut command = stage.sandbox.command(Place::Callers, "bash");
        command.args(["-c", ASK, &port.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start bash")?;
        let mut answers = BufReader::new(child.stdout.take().context("its output")?);
        let mut line = String::new();
        answers.read_line(&mut line)?;
        ensure!(line == "connected\n", "{line:?}");
        Ok(Self { child, answers })
    }

    /// Asks now which version answers, which ends the connection.
    fn version(mut self) -> Result<String> {
        self.child.stdin.take().context("its input")?.write_all(b"\n")?;
        let mut answer = String::new();
        self.answers.read_to_string(&mut answer)?;
        self.child.wait()?;
        let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("it was cut: {answer:?}"))?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{answer:?}");
        Ok(body.to_owned())
    }
}

/// Reads up to the moment when all others are through and 8001 is waited for.
fn until_waiting(roll: &mut Roll) -> Result<Value> {
    let left = roll.until(|event| event["event"] == "left")?;
    eprintln!("{left}");
    let why = left["why"].as_str().unwrap_or_default();
    ensure!(left["worker"] == "127.0.0.1:8001" && why.contains("not empty after 2 s: 1 connection "), "{left}");
    for port in [8002, 8003] {
        roll.until_phase(port, "up")?;
    }
    roll.until(|event| event["event"] == "again")
}

fn versions(stage: &Stage<'_>) -> Result<Vec<String>> {
    Ok(stage.api().workers()?.values().map(|worker| worker["version"].as_str().unwrap_or("?").to_owned()).collect())
}

/// What the status says of the one connection that holds 8001.
fn hold(stage: &Stage<'_>) -> Result<Value> {
    let worker = stage.api().workers()?.remove(&8001).context("8001")?;
    ensure!(worker["phase"] == "draining" && worker["holds"].as_array().is_some_and(|all| all.len() == 1), "{worker}");
    Ok(worker["holds"][0].clone())
}

#[test]
fn who_becomes_empty_is_restarted_last() -> Result<()> {
    let sandbox = Sandbox::new("leave")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&leaving())?;
    let silent = Silent::connect(&stage, 8001)?;
    let (pid, begun) = (silent.child.id(), Instant::now());
    let mut roll = stage.roll(&daemon, TO_V2)?;
    let again = until_waiting(&mut roll)?;
    ensure!(again["workers"] == serde_json::json!(["127.0.0.1:8001"]), "{again}");
    ensure!(again["seconds"].as_f64().is_some_and(|most| most > 3500.0 && most <= 3600.0), "{again}");
    let text = String::from_utf8(daemon.cli(&["status"])?.stdout)?;
    let (hold, elapsed) = (hold(&stage)?, begun.elapsed().as_secs_f64());
    eprintln!("{hold}\n{text}");
    ensure!(hold["process"] == "bash" && hold["pid"] == pid, "{hold}");
    ensure!(hold["state"] == "established" && hold["why"] == "nothing has passed since the watch began", "{hold}");
    ensure!(hold["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{hold}");
    for key in ["idle_s", "age_s"] {
        ensure!(hold[key].as_f64().is_some_and(|time| time > 2.0 && time < elapsed + 2.0), "{elapsed}: {hold}");
    }
    ensure!(text.contains(&format!("bash (pid {pid}, user root)")) && text.contains("quiet for"), "{text}");
    ensure!(versions(&stage)? == ["v2", "v1", "v2", "v2"], "{:?}", versions(&stage)?);
    ensure!(silent.version()? == "v1", "it was not the worker that was left");
    let end = roll.end()?;
    eprintln!("{end:?}");
    end.must("done", &["4 workers restarted"])?;
    ensure!(versions(&stage)? == ["v2"; 4], "{:?}", versions(&stage)?);
    stage.all_serve()?;
    stage.unharmed("who becomes empty is restarted last")?;
    Ok(())
}

#[test]
fn who_does_not_stays_as_it_was() -> Result<()> {
    let sandbox = Sandbox::new("leavemax")?;
    let stage = Stage::new(&sandbox)?;
    let text = stage.config(&leaving()).replace("\"leave\"", "\"leave\", leave_max = \"2s\"");
    let daemon = Daemon::start(&sandbox, &text)?;
    stage.all_up()?;
    let silent = Silent::connect(&stage, 8001)?;
    let mut roll = stage.roll(&daemon, TO_V2)?;
    until_waiting(&mut roll)?;
    let begun = Instant::now();
    let end = roll.end()?;
    eprintln!("{:.2?} later: {end:?}", begun.elapsed());
    let left = "left as they were: 127.0.0.1:8001: not empty after 2 s more: 1 connection (bash (pid ";
    end.must("incomplete", &["3 of 4 workers are changed, 0 failed", left])?;
    ensure!(begun.elapsed() > Duration::from_millis(1500) && end.failed.is_empty(), "{end:?}");
    stage.only_failed(&[])?;
    ensure!(versions(&stage)? == ["v2", "v1", "v2", "v2"], "{:?}", versions(&stage)?);
    ensure!(silent.version()? == "v1", "it was not the worker that was left");
    stage.all_serve()?;
    // The next roll meets nobody.
    stage.roll(&daemon, TO_V2)?.end()?.must("done", &["4 workers restarted"])?;
    stage.unharmed("who does not stays as it was")?;
    Ok(())
}

/// All four have somebody who does not go: the floor has them serve on, all but one at a time.
#[test]
fn all_are_left_and_the_floor_holds() -> Result<()> {
    let sandbox = Sandbox::new("leaveall")?;
    let stage = Stage::new(&sandbox)?;
    let config = ServiceConfig { extra: "min_up = 3".to_owned(), ..leaving() };
    let text = stage.config(&config).replace("\"leave\"", "\"leave\", leave_max = \"3s\"");
    let daemon = Daemon::start(&sandbox, &text)?;
    stage.all_up()?;
    let silent = (8000..=8003).map(|port| Silent::connect(&stage, port)).collect::<Result<Vec<_>>>()?;
    let end = stage.roll(&daemon, TO_V2)?.end()?;
    eprintln!("{end:?}");
    end.must("incomplete", &["0 of 4 workers are changed", "127.0.0.1:8000: ", "127.0.0.1:8003: "])?;
    let by_floor: u64 = stage.api().workers()?.values().filter_map(|worker| worker["fallback_floor"].as_u64()).sum();
    ensure!(by_floor == 0, "{by_floor} connections were let in by the floor");
    stage.only_failed(&[])?;
    for silent in silent {
        ensure!(silent.version()? == "v1", "a worker was restarted");
    }
    stage.all_serve()?;
    stage.unharmed("all are left")?;
    Ok(())
}

#[test]
fn a_stop_ends_the_wait() -> Result<()> {
    let sandbox = Sandbox::new("leavestop")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&leaving())?;
    let silent = Silent::connect(&stage, 8001)?;
    let mut roll = stage.roll(&daemon, TO_V2)?;
    until_waiting(&mut roll)?;
    let id = roll.id()?;
    stage.api().ask("POST", &format!("/v1/rolls/{id}/stop"), "")?;
    let end = roll.end()?;
    eprintln!("{end:?}");
    end.must("stopped", &["stopped on request; 3 of 4 workers are changed", "left as they were: 127.0.0.1:8001: "])?;
    stage.only_failed(&[])?;
    ensure!(silent.version()? == "v1", "it was not the worker that was left");
    stage.unharmed("a stop ends the wait")?;
    Ok(())
}

/// Stopped, and then killed, while it waits: the next daemon goes on, and restarts the worker when it is empty.
#[test]
fn the_next_daemon_goes_on_waiting() -> Result<()> {
    let sandbox = Sandbox::new("leavenext")?;
    let stage = Stage::new(&sandbox)?;
    let text = stage.config(&leaving());
    let mut daemon = stage.daemon(&leaving())?;
    let silent = Silent::connect(&stage, 8001)?;
    let mut roll = stage.roll(&daemon, TO_V2)?;
    until_waiting(&mut roll)?;
    let begun = Instant::now();
    daemon.stop()?;
    eprintln!("stopped within {:.2?}", begun.elapsed());
    let mut next = Daemon::start(&sandbox, &text)?;
    let resumed = roll.until(|event| event["event"] == "resumed")?;
    roll.until_phase(8001, "draining")?;
    let again = roll.until(|event| event["event"] == "again")?;
    eprintln!("{resumed}\n{again}");
    next.process().kill()?;
    let _last = Daemon::start(&sandbox, &text)?;
    let again = roll.until(|event| event["event"] == "again")?;
    ensure!(again["seconds"].as_f64().is_some_and(|rest| rest < 3600.0), "the wait began anew: {again}");
    ensure!(silent.version()? == "v1", "it was not the worker that was left");
    let end = roll.end()?;
    eprintln!("{end:?}");
    end.must("done", &["4 workers restarted"])?;
    ensure!(versions(&stage)? == ["v2"; 4], "{:?}", versions(&stage)?);
    stage.unharmed("the next daemon goes on waiting")?;
    Ok(())
}
