//! The built-in manager in the daemon: a boot, a roll under load, a daemon that is killed, a reload.

use std::{
    collections::BTreeMap,
    fs,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use deployer_tests::{
    api::{Api, Roll},
    app::{App, Fault},
    daemon::{Daemon, ServiceConfig},
    journal::Journal,
    load::{Load, LoadHandle},
    nginx::{Nginx, Upstream},
    process::{Process, send},
    sandbox::{Place, Sandbox},
    stage::{Stage, default_signals},
};
use rustix::process::Signal;

use super::scene::{PORTS, SOON, is_alive};

/// Quick workers that the daemon starts, with nginx in front of them, and a load.
pub(crate) struct Built<'a> {
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) app: App,
    pub(crate) daemon: Daemon<'a>,
    nginx: Nginx,
    load: LoadHandle,
}

fn config(sandbox: &Sandbox, app: &App) -> String {
    ServiceConfig::default().text_built_in(sandbox, app)
}

impl<'a> Built<'a> {
    /// As after a boot: nothing runs, and the daemon begins.
    fn new(sandbox: &'a Sandbox) -> Result<Self> {
        Self::of(sandbox, &ServiceConfig::default())
    }

    /// The same, where not all of the configuration is as usual.
    pub(crate) fn of(sandbox: &'a Sandbox, service: &ServiceConfig) -> Result<Self> {
        let app = App::new(sandbox, &["v1", "v2"])?;
        let daemon = Daemon::start(sandbox, &service.text_built_in(sandbox, &app))?;
        all_up(sandbox).with_context(|| daemon.log())?;
        let nginx = Nginx::start(sandbox, &Upstream::workers(PORTS, "max_fails=0"))?;
        let load = Load { rate: 150.0, slow_one_in: 0, ..Load::new("load") }.start(sandbox)?;
        Ok(Self { sandbox, app, daemon, nginx, load })
    }

    pub(crate) fn roll(&self) -> Result<Roll> {
        let mut command = default_signals(&self.daemon.cli_command(&["roll", "web", "--to", "v2", "--json"]));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Roll::by(command.spawn().context("start deployer roll")?)
    }

    /// The workers' processes, by port.
    pub(crate) fn pids(&self) -> Result<BTreeMap<u16, u32>> {
        let pid = |port: u16| {
            let procs = self.sandbox.cgroup(Place::Workers).join(format!("web/{port}/cgroup.procs"));
            let text = fs::read_to_string(&procs).with_context(|| procs.display().to_string())?;
            Ok((port, text.trim().parse().with_context(|| format!("processes of {port}: {text:?}"))?))
        };
        PORTS.map(pid).collect()
    }

    /// Ends the load, which has lost nothing.
    pub(crate) fn unharmed(self, what: &str) -> Result<()> {
        let (errors, journal) = (self.nginx.error_lines()?, self.app.journal_dir());
        let report = self.load.stop()?;
        sleep(Duration::from_millis(100));
        let journal = Journal::read(&journal)?;
        eprintln!("{what}: {} doubled, {} lines in nginx's log; {report}", journal.doubled().len(), errors.len());
        ensure!(report.requests > 20, "hardly any load");
        ensure!(report.failed == 0 && report.cold == 0 && journal.cold().is_empty(), "{report}");
        ensure!(journal.doubled().is_empty() && errors.is_empty(), "{errors:#?}");
        Ok(())
    }
}

pub(crate) fn all_up(sandbox: &Sandbox) -> Result<()> {
    let begun = Instant::now();
    loop {
        let phases = Api::of(sandbox).phases();
        if phases.as_ref().is_ok_and(|phases| phases.values().all(|phase| phase == "up")) {
            return Ok(());
        }
        ensure!(begun.elapsed() < SOON, "not all up: {phases:?}");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_roll_loses_nothing() -> Result<()> {
    let sandbox = Sandbox::new("built")?;
    let built = Built::new(&sandbox)?;
    let before = built.pids()?;
    let end = built.roll()?.end()?;
    end.must("done", &["4 workers"])?;
    let after = built.pids()?;
    let mut ports = PORTS;
    ensure!(ports.all(|port| before[&port] != after[&port] && !is_alive(before[&port])), "{before:?} {after:?}");
    built.unharmed("a roll of workers of the daemon's own")
}

#[test]
fn workers_outlive_a_killed_daemon() -> Result<()> {
    let sandbox = Sandbox::new("outlive")?;
    let mut built = Built::new(&sandbox)?;
    let before = built.pids()?;
    built.daemon.process().kill()?;
    sleep(Duration::from_millis(500));
    ensure!(built.pids()? == before, "other processes");
    built.daemon = Daemon::start(&sandbox, &config(&sandbox, &built.app))?;
    all_up(&sandbox)?;
    ensure!(built.pids()? == before, "other processes");
    built.roll()?.end()?.must("done", &["4 workers"])?;
    // As does one that is stopped in an orderly way.
    let before = built.pids()?;
    ensure!(built.daemon.stop()?.success(), "{}", built.daemon.log());
    sleep(Duration::from_millis(300));
    ensure!(built.pids()? == before, "other processes");
    built.unharmed("a killed daemon")
}

/// Who tends the workers goes on doing so, once; a worker that is new is started.
#[test]
fn a_reload_leaves_workers_alone() -> Result<()> {
    let sandbox = Sandbox::new("reloaded")?;
    let built = Built::new(&sandbox)?;
    let before = built.pids()?;
    let text = config(&sandbox, &built.app);
    for text in [&text.replace("8000-8003", "8000-8004"), &text] {
        reload(&built, text)?;
        all_up(&sandbox)?;
        ensure!(built.pids()? == before, "other processes");
    }
    send(before[&8001], Signal::KILL)?;
    let begun = Instant::now();
    // Between two processes there is none.
    while built.pids().map_or(true, |pids| pids[&8001] == before[&8001]) {
        ensure!(begun.elapsed() < SOON, "8001 is not restarted: {}", built.daemon.log());
        sleep(Duration::from_millis(20));
    }
    all_up(&sandbox)?;
    let pids = built.pids()?;
    sleep(Duration::from_secs(1));
    ensure!(built.pids()? == pids, "restarted twice");
    Ok(())
}

fn reload(built: &Built<'_>, text: &str) -> Result<()> {
    Daemon::write_config(built.sandbox, text)?;
    let before = built.daemon.log().len();
    send(built.daemon.pid(), Signal::HUP)?;
    let begun = Instant::now();
    while !built.daemon.log()[before..].contains("configuration read again") {
        ensure!(begun.elapsed() < SOON, "{}", built.daemon.log());
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A release that does not start: the roll says what the worker said, and the worker is out. Enabled by hand once it is
/// mended, it is started, and tended as before.
#[test]
fn a_release_that_ends_at_once() -> Result<()> {
    let sandbox = Sandbox::new("ends")?;
    let built = Built::new(&sandbox)?;
    built.app.set_fault("v2", 8000, Some(Fault::Crash))?;
    let end = built.roll()?.end()?;
    eprintln!("{end:?}");
    end.must("failed", &["127.0.0.1:8000", "web/8000", "exit status: 1", "fault: crash at start"])?;
    built.app.set_fault("v2", 8000, None)?;
    let enabled = built.daemon.cli(&["enable", "web", "8000"])?;
    ensure!(enabled.status.success(), "{enabled:?}");
    all_up(&sandbox)?;
    built.unharmed("a release that ends at once")
}

/// Stopped on request under a daemon whose state is lost since: the next one says why the worker is down, and `enable` starts
/// it.
#[test]
fn a_stop_that_only_its_mark_remembers() -> Result<()> {
    let sandbox = Sandbox::new("marked")?;
    let mut built = Built::new(&sandbox)?;
    ensure!(built.daemon.stop()?.success(), "{}", built.daemon.log());
    let cgroup = sandbox.cgroup(Place::Workers).join("web/8000");
    fs::create_dir(cgroup.with_extension("stopped"))?;
    fs::write(cgroup.join("cgroup.kill"), "1")?;
    fs::remove_dir_all(sandbox.state())?;
    built.daemon = Daemon::start(&sandbox, &config(&sandbox, &built.app))?;
    let worker = || Api::of(&sandbox).workers()?.remove(&8000).context("8000");
    let begun = Instant::now();
    let reason = loop {
        let reason = worker()?["reason"].as_str().unwrap_or_default().to_owned();
        if !reason.is_empty() || begun.elapsed() > SOON / 4 {
            break reason;
        }
        sleep(Duration::from_millis(20));
    };
    eprintln!("{reason}");
    ensure!(
        reason.contains("web/8000 is stopped (on request)") && reason.contains("deployer enable web 127.0.0.1:8000"),
        "{reason}"
    );
    let enabled = built.daemon.cli(&["enable", "web", "8000"])?;
    ensure!(enabled.status.success(), "{enabled:?}");
    all_up(&sandbox)
}

/// The workers' addresses are still held by the processes of a former manager. The built-in manager waits for each address,
/// says so, and starts its worker as soon as the address is free; its back-off, of a minute here, plays no part.
#[test]
fn a_former_manager_s_processes_are_waited_for() -> Result<()> {
    let sandbox = Sandbox::new("former")?;
    let app = App::new(&sandbox, &["v1"])?;
    let former = |port: u16| {
        let mut command = sandbox.command(Place::Callers, "/usr/bin/python3");
        command.args(["-sE", &app.worker().display().to_string(), &format!("--port={port}")]);
        command.env("APP_DIR", app.dir()).env("IMPORT_SECONDS", "0.1").env("COLD_SECONDS", "0.01");
        Process::start("a former worker", command, &sandbox.dir().join(format!("former-{port}.log")))
    };
    let mut former: Vec<_> = PORTS.map(former).collect::<Result<_>>()?;
    let listens = |port: u16| {
        let connected = sandbox.in_netns(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        connected.unwrap_or(false)
    };
    let begun = Instant::now();
    while !PORTS.clone().all(listens) {
        ensure!(begun.elapsed() < SOON, "{}", former[0].log());
        sleep(Duration::from_millis(20));
    }
    let text = config(&sandbox, &app).replace("first = \"200ms\", most = \"1s\"", "first = \"60s\", most = \"60s\"");
    let daemon = Daemon::start(&sandbox, &text)?;
    sleep(Duration::from_millis(500));
    let check = daemon.cli(&["check", "--config", &Daemon::config_of(&sandbox).display().to_string()])?;
    let check = String::from_utf8_lossy(&check.stdout).into_owned();
    let who = format!("python3 (pid {}", former[0].pid());
    let found = |line: &&str| line.contains("service.web.manager, 127.0.0.1:8000: ") && line.contains(&who);
    ensure!(check.lines().any(|line| found(&line) && line.contains("as soon as the address is free")), "{check}");
    let reason = Api::of(&sandbox).workers()?[&8000]["reason"].to_string();
    ensure!(reason.contains(&who), "{reason}");
    former.iter_mut().try_for_each(|process| process.kill().map(drop))?;
    let free = Instant::now();
    all_up(&sandbox).with_context(|| daemon.log())?;
    eprintln!("up {:.1?} after the addresses were free; before: {reason}", free.elapsed());
    Ok(())
}

/// A reload to the built-in manager, while processes that were up already serve: they go on, and the status and the events
/// say what their end is waited for.
#[test]
fn a_reload_to_the_built_in_manager() -> Result<()> {
    let sandbox = Sandbox::new("moved")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&ServiceConfig::default())?;
    let pid = stage.supervisor.pid_of(8000)?.context("8000 runs")?;
    let built_in =
        config(&sandbox, &stage.app).replace("first = \"200ms\", most = \"1s\"", "first = \"60s\", most = \"60s\"");
    stage.reload(&daemon, &built_in)?;
    let waits =
        format!("the built-in manager starts web/8000 as soon as 127.0.0.1:8000 is free, where python3 (pid {pid}, ");
    let worker = || stage.api().workers()?.remove(&8000).context("8000");
    stage.wait(Duration::from_secs(5), || {
        let worker = worker()?;
        Ok(worker["phase"] == "up" && worker["reason"].as_str().is_some_and(|reason| reason.contains(&waits)))
    })?;
    let events = daemon.cli(&["events", "--json"])?;
    ensure!(String::from_utf8_lossy(&events.stdout).contains(&waits), "no event says it");
    stage.supervisor.ctl(&["stop", "web:*"])?;
    stage.all_up()?;
    let worker = worker()?;
    ensure!(!worker["reason"].to_string().contains("as soon as"), "{worker}");
    Ok(())
}
