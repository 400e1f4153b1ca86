//! Verbs that are refused, and those that change nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use deployer_tests::daemon::{Daemon, DeployerBin, ServiceConfig};
use deployer_tests::sandbox::Sandbox;
use deployer_tests::stage::{PORTS, Stage};

use super::{must, verb};

const TO_V2: &[&str] = &["--to", "v2"];

#[test]
fn one_roll_at_a_time() -> Result<()> {
    let sandbox = Sandbox::new("busy")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&ServiceConfig::default())?;
    let slow = stage.slow(8001, 10)?;
    let mut first = stage.roll(&daemon, TO_V2)?;
    first.until_phase(8001, "draining")?;
    let who = format!("(pid {})", first.client()?);
    verb(&daemon, &["roll", "web"], 4, &[&first.id()?, "runs already", "uid 0", &who, "deployer status"])?;
    verb(&daemon, &["drain", "web", "8003"], 4, &[&first.id()?])?;
    verb(&daemon, &["bypass"], 4, &[&first.id()?])?;
    verb(&daemon, &["bypass", "web"], 4, &[&first.id()?])?;
    verb(&daemon, &["detach"], 4, &[&first.id()?])?;
    verb(&daemon, &["enable", "web", "8001"], 4, &["8001"])?;
    verb(&daemon, &["status"], 0, &[&first.id()?, "8001", "draining"])?;
    ensure!(slow.status()? == 200);
    first.end()?.must("done", &["4 workers"])?;
    by_hand(&stage, &daemon)?;
    stage.unharmed("one roll at a time")?;
    Ok(())
}

/// Drains by an operator's hand, with which a roll does not interfere either.
fn by_hand(stage: &Stage<'_>, daemon: &Daemon<'_>) -> Result<()> {
    verb(daemon, &["drain", "web", "8003"], 0, &["127.0.0.1:8003 is out of rotation"])?;
    stage.is_out(8003)?;
    verb(daemon, &["drain", "web", "8003"], 4, &["127.0.0.1:8003"])?;
    verb(daemon, &["roll", "web"], 4, &["127.0.0.1:8003 is drained by hand", "deployer enable web 8003"])?;
    verb(daemon, &["enable", "web", "8003"], 0, &["back in rotation"])?;
    verb(daemon, &["enable", "web", "8003"], 0, &["up already"])?;
    verb(daemon, &["drain", "web", "8002", "--for", "700ms"], 0, &["8002", "0.7 s"])?;
    ensure!(stage.api().phases()?[&8002] == "draining");
    stage.wait(Duration::from_secs(2), || Ok(stage.api().phases()?[&8002] == "up"))?;
    stage.all_serve()
}

#[test]
fn what_makes_no_sense() -> Result<()> {
    let sandbox = Sandbox::new("usage")?;
    let stage = Stage::new(&sandbox)?;
    let text = stage.config(&ServiceConfig::default());
    let unversioned: Vec<_> = text.lines().filter(|line| !line.starts_with("version")).collect();
    let daemon = Daemon::start(&sandbox, &unversioned.join("\n"))?;
    let cases: &[(&[&str], &[&str])] = &[
        (&["roll", "wob"], &["no service `wob`", "there is web"]),
        (&["roll", ""], &["SERVICE"]),
        (&["roll", "../web"], &["no service `../web`"]),
        (&["roll"], &["SERVICE"]),
        (&["roll", "web", "--to", "v2"], &["add `version` to [service.web]"]),
        (&["roll", "web", "--to", ""], &["--to"]),
        (&["roll", "web", "--to", "../../etc"], &["--to"]),
        (&["roll", "web", "--batch", "0"], &["--batch"]),
        (&["roll", "web", "--batch", "101%"], &["--batch"]),
        (&["roll", "web", "--batch", "many"], &["--batch"]),
        (&["roll", "web", "--batch=-1"], &["--batch"]),
        (&["roll", "web", "--batch", "99999999999999999999"], &["--batch"]),
        (&["roll", "web", "--fast"], &["--fast"]),
        (&["drain", "web"], &["PORT"]),
        (&["drain", "web", "1"], &["no worker on port 1", "8000 8001 8002 8003"]),
        (&["drain", "web", "0"], &["0"]),
        (&["drain", "web", "65536"], &["65536"]),
        (&["drain", "web", "http"], &["http"]),
        (&["drain", "web", "8000", "--for", "0s"], &["--for"]),
        (&["drain", "web", "8000", "--for", "10"], &["--for"]),
        (&["enable", "web", "9"], &["no worker on port 9"]),
        (&["enable", "wob", "8000"], &["no service `wob`"]),
        (&["bypass", "wob"], &["no service `wob`"]),
        (&["reboot"], &["reboot"]),
        (&[], &["Usage"]),
    ];
    for (arguments, named) in cases {
        verb(&daemon, arguments, 2, named)?;
    }
    stage.only_failed(&[])?;
    stage.unharmed("what makes no sense")?;
    Ok(())
}

#[test]
fn no_daemon() -> Result<()> {
    let sandbox = Sandbox::new("nodaemon")?;
    let bin = DeployerBin::find()?;
    let nowhere = sandbox.dir().join("nowhere.sock");
    let left_over = sandbox.dir().join("left-over.sock");
    drop(std::os::unix::net::UnixListener::bind(&left_over)?);
    for socket in [&nowhere, &left_over] {
        for arguments in [&["status"][..], &["status", "--json"], &["roll", "web"], &["drain", "web", "8000"]] {
            let output = bin.command(&sandbox).arg("--socket").arg(socket).args(arguments).output()?;
            must(&output, &arguments.join(" "), 6, &["cannot reach the daemon", &socket.display().to_string()])?;
        }
    }
    // Something else listens there.
    let stranger = std::os::unix::net::UnixListener::bind(&nowhere)?;
    let thread = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = stranger.accept()?;
        // One that hung up in the middle of a call would be a daemon that went away.
        let _ = stream.read(&mut [0; 4096])?;
        stream.write_all(b"220 mail ESMTP\r\n\r\n")
    });
    let output = bin.command(&sandbox).arg("--socket").arg(&nowhere).arg("status").output()?;
    must(&output, "status", 1, &["not a daemon of this version of deployer"])?;
    thread.join().ok().context("the stranger")??;
    Ok(())
}

#[test]
fn looking_changes_nothing() -> Result<()> {
    let sandbox = Sandbox::new("look")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&ServiceConfig::default())?;
    let pids = || PORTS.map(|port| stage.supervisor.pid_of(port)).collect::<Result<Vec<_>>>();
    let before = pids()?;
    let plan = ["roll", "web", "--to", "v2", "--batch", "75%", "--dry-run"];
    let workers = ["127.0.0.1:8000", "127.0.0.1:8001", "127.0.0.1:8002", "127.0.0.1:8003"];
    verb(&daemon, &plan, 0, &[&workers[..], &["batch 2", "switch", "v2"]].concat())?;
    let json: Value = serde_json::from_str(&verb(&daemon, &[&plan[..], &["--json"]].concat(), 0, &[])?)?;
    ensure!(json["batches"].as_array().is_some_and(|batches| batches.len() == 2), "{json}");
    let status: Value = serde_json::from_str(&verb(&daemon, &["status", "--json"], 0, &[])?)?;
    let listed = status["services"][0]["workers"].as_array().context("workers")?;
    ensure!(listed.len() == 4 && listed.iter().all(|worker| worker["phase"] == "up"), "{status}");
    ensure!(status["pid"] == daemon.pid() && status["attached"] == true, "{status}");
    verb(&daemon, &["status"], 0, &["web", "8000", "8003", "up"])?;
    for help in [&["--help"][..], &["roll", "--help"], &["--version"]] {
        verb(&daemon, help, 0, &["deployer"])?;
    }
    ensure!(pids()? == before && stage.app.current_version()? == "v1");
    stage.only_failed(&[])?;
    stage.unharmed("looking changes nothing")?;
    Ok(())
}
