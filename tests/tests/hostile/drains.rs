//! A user holds connections, sockets and tickets, so that drains do not end.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer_tests::{
    daemon::{Daemon, ServiceConfig},
    dial::PYTHON,
    sandbox::{Place, Sandbox},
    stage::Stage,
};
use serde_json::Value;

/// So long a drain may last in these tests.
const DEADLINE: &str = "2s";
/// The worker at whose port the user tries it.
const PORT: u16 = 8000;

/// A process of the user `nobody`, which has done something and keeps it as it is.
struct Stranger(Child);

impl Stranger {
    /// Starts it and waits until it has done what `mode` says (`tests/app/stranger.py`).
    fn start(sandbox: &Sandbox, place: Place, mode: &str) -> Result<Self> {
        let mut command = sandbox.command_as_nobody(place, PYTHON);
        command.args(["-c", include_str!("../../app/stranger.py"), mode, &PORT.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start stranger.py")?;
        let output = child.stdout.take().context("its output")?;
        let (mut stranger, mut line) = (Self(child), String::new());
        BufReader::new(output).read_line(&mut line).context("what stranger.py says")?;
        ensure!(line == "ready\n", "stranger.py {mode}: {line:?}, {:?}", stranger.0.wait());
        Ok(stranger)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // The end of its input is its end.
        drop(self.0.stdin.take());
        self.0.wait().ok();
    }
}

fn config(drain: &'static str) -> ServiceConfig {
    ServiceConfig { deadline: DEADLINE, drain, batch: "4".to_owned(), ..ServiceConfig::default() }
}

/// A roll by an ordinary client: exit code and output.
fn roll(daemon: &Daemon<'_>) -> Result<(Option<i32>, String)> {
    let output = daemon.cli(&["roll", "web", "--to", "v2"])?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok((output.status.code(), text))
}

/// Client and server without cookies (Documentation/networking/ip-sysctl.rst): then a SYN may wait for the first write.
fn fast_open(sandbox: &Sandbox) -> Result<()> {
    sandbox.in_netns(|| fs::write("/proc/sys/net/ipv4/tcp_fastopen", (0x1 | 0x2 | 0x4 | 0x200).to_string()))??;
    Ok(())
}

/// What a roll printed that went through while a stranger of this mode was there, and how long it took.
fn rolls_beside(host: &'static str, place: Place, modes: &[&str]) -> Result<(String, Duration)> {
    let sandbox = Sandbox::new("stranger")?;
    let stage = Stage::on(&sandbox, host)?;
    let daemon = stage.daemon(&config(""))?;
    let strangers = modes.iter().map(|mode| Stranger::start(&sandbox, place, mode)).collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    let (exit, text) = roll(&daemon)?;
    let took = begun.elapsed();
    eprintln!("{modes:?} in {place:?}, workers at {host}: {took:.1?}\n{text}");
    ensure!(exit == Some(0) && text.contains("4 workers changed"), "{modes:?}: exit {exit:?}: {text}");
    drop((strangers, daemon));
    Ok((text, took))
}

/// Sockets at the worker's port that no listener of the worker has accepted: nothing is waited for, nothing is cut.
#[test]
fn what_leads_to_no_worker_does_not_hold_a_drain() -> Result<()> {
    let modes = ["itself", "each_other", "beside"];
    let (text, _) = rolls_beside("127.0.0.1", Place::Outside, &modes)?;
    ensure!(!text.contains("held by") && !text.contains("cut"), "{text}");
    Ok(())
}

/// A ticket comes back however connect() fails, also that of a steered caller, for which a roll would wait.
#[test]
fn a_connect_that_fails_leaves_no_ticket() -> Result<()> {
    for place in [Place::Outside, Place::Callers] {
        let (text, _) = rolls_beside("127.0.0.1", place, &["failed", "unrouted"])?;
        ensure!(!text.contains("held by") && !text.contains("cut"), "{text}");
    }
    Ok(())
}

/// Connections of processes that are not among the callers are waited for until the deadline, then cut, counted and named.
#[test]
fn outsiders_are_cut_at_the_deadline_counted_and_named() -> Result<()> {
    let sandbox = Sandbox::new("outsiders")?;
    let stage = Stage::new(&sandbox)?;
    // One before the programs, the other after.
    let early = Stranger::start(&sandbox, Place::Outside, "half")?;
    let daemon = stage.daemon(&config(""))?;
    let late = Stranger::start(&sandbox, Place::Outside, "half")?;
    let begun = Instant::now();
    let (exit, text) = roll(&daemon)?;
    eprintln!("{text}");
    ensure!(exit == Some(0) && text.contains("4 workers changed"), "exit {exit:?}: {text}");
    ensure!(begun.elapsed() >= Duration::from_secs(2), "they were not waited for: {text}");
    ensure!(text.contains("cut 2 connections of processes that are not among the service's callers"), "{text}");
    for pid in [early.pid(), late.pid()] {
        ensure!(text.contains(&format!("(pid {pid}, user nobody): 1 established")), "{text}");
    }
    let workers = stage.api().workers()?;
    ensure!(workers[&PORT]["outsiders_cut"] == 2, "{}", workers[&PORT]);
    let report: Value = serde_json::from_slice(&daemon.cli(&["report", "--json"])?.stdout).context("the report")?;
    let cut = |tally: &Value| tally["cut"].as_u64();
    let cut: u64 = report["during"]["versions"].as_array().into_iter().flatten().filter_map(cut).sum();
    ensure!(cut == 2, "{report}");
    drop((early, late));
    stage.unharmed("outsiders")?;
    Ok(())
}

/// Until the deadline a ticket holds the drain, and the status says whose it is.
#[test]
fn a_ticket_of_an_outsider_is_named_and_does_not_stop_a_roll() -> Result<()> {
    let sandbox = Sandbox::new("deferred")?;
    fast_open(&sandbox)?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&ServiceConfig { deadline: "5s", ..config("") })?;
    let stranger = Stranger::start(&sandbox, Place::Outside, "deferred")?;
    let mut roll = stage.roll(&daemon, &["--to", "v2"])?;
    let held = roll.until(|event| event["event"] == "held")?;
    ensure!(held["tickets"] == 1, "{held}");
    let named = format!("(pid {}, user nobody): 1 connect() call", stranger.pid());
    ensure!(held["by"][0].as_str().is_some_and(|by| by.contains(&named)), "{held}");
    let worker = &stage.api().workers()?[&PORT];
    let hold = &worker["ticket_holds"][0];
    ensure!(hold["pid"] == stranger.pid() && hold["user"] == "nobody" && hold["outsider"] == true, "{worker}");
    let status = String::from_utf8_lossy(&daemon.cli(&["status"])?.stdout).into_owned();
    ensure!(status.contains("held by a connect() call") && status.contains("user nobody"), "{status}");
    let cut = roll.until(|event| event["event"] == "outsiders-cut")?;
    ensure!(cut["tickets"] == 1 && cut["by"].to_string().contains(&named), "{cut}");
    let ending = roll.end()?;
    ensure!(ending.result == "done" && ending.changed == 4, "{ending:?}");
    Ok(())
}

/// A socket may have no room for the programs' notes: its ticket could never be handed back, so none is taken. That is told,
/// and the worker is rolled all the same.
#[test]
fn sockets_without_room_for_notes_leave_no_tickets() -> Result<()> {
    let sandbox = Sandbox::new("optmem")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&config(""))?;
    for place in [Place::Outside, Place::Callers] {
        drop(Stranger::start(&sandbox, place, "full")?);
    }
    let worker = &stage.api().workers()?[&PORT];
    ensure!(worker["tickets"] == 0 && worker["unnoted"].as_u64() >= Some(6), "{worker}");
    let is_told = || Ok(stage.api().status()?["trouble"].to_string().contains("Raise net.core.optmem_max"));
    stage.wait(Duration::from_secs(5), is_told).context("trouble")?;
    let (exit, text) = roll(&daemon)?;
    ensure!(exit == Some(0) && text.contains("4 workers changed"), "exit {exit:?}: {text}");
    stage.unharmed("optmem")?;
    Ok(())
}

/// With `outsiders = "hold"`, and for callers in any case, a roll stops as it always has.
#[test]
fn callers_and_outsiders_on_hold_stop_a_roll() -> Result<()> {
    for (place, mode, drain) in [
        (Place::Callers, "half", ""),
        (Place::Callers, "deferred", ""),
        (Place::Outside, "half", "outsiders = \"hold\""),
    ] {
        let sandbox = Sandbox::new("onhold")?;
        fast_open(&sandbox)?;
        let stage = Stage::new(&sandbox)?;
        let daemon = stage.daemon(&config(drain))?;
        let stranger = Stranger::start(&sandbox, place, mode)?;
        let ending = stage.roll(&daemon, &["--to", "v2"])?.end()?;
        ensure!(ending.result == "stopped", "{mode} in {place:?}: {ending:?}");
        ensure!(ending.text.contains(&format!("(pid {}", stranger.pid())), "{ending:?}");
        let outsiders =
            stage.api().workers()?.values().map(|worker| worker["outsiders_cut"].clone()).collect::<Vec<_>>();
        ensure!(outsiders.iter().all(|cut: &Value| *cut == 0), "{outsiders:?}");
    }
    Ok(())
}
