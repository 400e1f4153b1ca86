//! A user keeps the API and the metrics page busy.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer_tests::daemon::Daemon;
use deployer_tests::process::{run, send};
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::site::{Plan, Site};
use rustix::process::Signal;
use serde_json::Value;

/// Where the page of metrics is served.
const METRICS: &str = "127.0.0.1:9394";
/// How many descriptors a process may have, unless it asks for more.
const SOFT: u64 = 1024;
/// How long root may wait for anything.
const SOON: Duration = Duration::from_secs(8);

/// A service of two workers that the daemon starts, whose API the group of `nobody` may use.
fn site(sandbox: &Sandbox) -> Result<Site<'_>> {
    // `nobody` gets as far as the socket.
    fs::set_permissions(sandbox.dir(), Permissions::from_mode(0o711)).context("open the sandbox's directory")?;
    let plan = Plan { workers: 2, bake: "1s", daemon: "group = \"nogroup\"", ..Plan::default() };
    Site::start(sandbox, Plan { metrics: Some(METRICS), ..plan })
}

/// Processes of `nobody` that hold connections until this is dropped.
struct Crowd(Vec<Child>);

impl Crowd {
    /// Holds so many connections, in processes of 300.
    fn hold(sandbox: &Sandbox, kind: &str, number: usize, at: &str) -> Result<Self> {
        let script = sandbox.dir().join("hostile.py");
        fs::write(&script, include_str!("../../app/hostile.py")).context("write hostile.py")?;
        fs::set_permissions(&script, Permissions::from_mode(0o644)).context("open hostile.py")?;
        let start = |_| {
            let mut command = sandbox.command_as_nobody(Place::Outside, "/usr/bin/python3");
            command.args(["-s", "-S"]).arg(&script).args([kind, "300", at]);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start hostile.py")
        };
        Ok(Self((0..number.div_ceil(300)).map(start).collect::<Result<Vec<_>>>()?))
    }

    /// Waits until all connections have been tried; what each process was answered after that.
    fn settled(&mut self) -> Result<Vec<(f64, String)>> {
        let answer = |child: &mut Child| {
            let mut line = String::new();
            let output = child.stdout.as_mut().context("its output")?;
            BufReader::new(output).read_line(&mut line).context("what hostile.py says")?;
            serde_json::from_str(&line).with_context(|| format!("hostile.py said {line:?}"))
        };
        self.0.iter_mut().map(answer).collect()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // The end of its input is its end; one that still connects is not waited for.
            drop(child.stdin.take());
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Root's verbs work, and the daemon does its work: a worker that is killed is started again.
fn is_unharmed(site: &Site<'_>, what: &str) -> Result<()> {
    let begun = Instant::now();
    let (exit, said) = site.verb(&["status"])?;
    ensure!(exit == 0 && begun.elapsed() < SOON, "{what}: status: exit {exit} after {:?}: {said}", begun.elapsed());
    let begun = Instant::now();
    let killed = *site.pids(8000)?.first().context("no worker")?;
    send(killed, Signal::KILL)?;
    let is_up =
        |service: &Value| service["workers"].as_array().is_some_and(|all| all.iter().all(|w| w["phase"] == "up"));
    while site.pids(8000)?.iter().all(|pid| *pid == killed) || !is_up(&site.service()?) {
        ensure!(begun.elapsed() < 2 * SOON, "{what}: the killed worker is not back:\n{}", site.daemon.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    eprintln!("{what}: the killed worker was back after {:.1?}", begun.elapsed());
    Ok(())
}

#[test]
fn connections_of_one_user_do_not_keep_root_out() -> Result<()> {
    let sandbox = Sandbox::new("crowd")?;
    let site = site(&sandbox)?;
    let socket = Daemon::socket_of(&sandbox).display().to_string();
    for kind in ["idle", "half", "body", "huge", "follow", "asked", "trace"] {
        let number = if kind == "idle" { 1200 } else { 600 };
        let mut crowd = Crowd::hold(&sandbox, kind, number, &socket)?;
        let answers = crowd.settled()?;
        is_unharmed(&site, kind)?;
        let is_served = |(_, answer): &(f64, String)| answer.contains(" 200 ");
        let is_refused = |(_, answer): &(f64, String)| {
            answer.contains(" 503 ") && answer.contains("no room") && answer.contains("\"busy\"")
        };
        // Connections that have asked nothing give way to newer ones of their user; those with a request under way do not.
        let as_expected = match kind {
            "idle" => answers.iter().any(is_served),
            "follow" => answers.iter().any(is_refused),
            _ => true,
        };
        ensure!(as_expected, "{kind}: {answers:?}");
    }
    let mut crowd = Crowd::hold(&sandbox, "idle", 1200, &socket)?;
    crowd.settled()?;
    let (exit, said) = site.deploy("v2", &[])?;
    ensure!(exit == 0, "deploy: exit {exit}: {said}");
    ensure!(!site.daemon.log().contains("panicked"), "{}", site.daemon.log());
    Ok(())
}

#[test]
fn connections_to_the_page_do_not_keep_prometheus_out() -> Result<()> {
    let sandbox = Sandbox::new("scrape")?;
    let site = site(&sandbox)?;
    for kind in ["idle", "half", "huge", "page"] {
        let mut crowd = Crowd::hold(&sandbox, kind, 300, METRICS)?;
        let _ = crowd.settled()?;
        let begun = Instant::now();
        let mut curl = sandbox.command(Place::Outside, "curl");
        let page = run(curl.args(["-s", "-m", "10", &format!("http://{METRICS}/metrics")])).context(kind)?;
        eprintln!("{kind}: {} bytes after {:.1?}", page.len(), begun.elapsed());
        ensure!(page.contains("deployer_worker_phase"), "{kind}: {page}");
        ensure!(begun.elapsed() < Duration::from_secs(4), "{kind}: after {:?}", begun.elapsed());
    }
    is_unharmed(&site, "the page")
}

/// The daemon takes all descriptors that it may have; its workers get what it was started with.
#[test]
fn workers_keep_the_usual_limit_of_descriptors() -> Result<()> {
    let sandbox = Sandbox::new("limits")?;
    let site = site(&sandbox)?;
    let soft = |pid: u32| -> Result<String> {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).context("limits")?;
        let line = limits.lines().find(|line| line.starts_with("Max open files")).context("no limit of files")?;
        Ok(line.split_whitespace().nth(3).context("no soft limit")?.to_owned())
    };
    let worker = *site.pids(8000)?.first().context("no worker")?;
    ensure!(soft(worker)? == SOFT.to_string(), "the worker may open {} files", soft(worker)?);
    ensure!(soft(site.daemon.pid())? != SOFT.to_string(), "the daemon may open {SOFT} files only");
    Ok(())
}
