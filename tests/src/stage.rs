//! The usual scene of the suites about faults: four quick workers, nginx in front of them, a light load.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::api::{Api, Roll};
use crate::app::{App, Fault};
use crate::daemon::{Daemon, ServiceConfig};
use crate::journal::Journal;
use crate::load::{Load, LoadHandle};
use crate::nginx::{Nginx, Upstream};
use crate::pace::{SOON, patient};
use crate::process::send;
use crate::report::Report;
use crate::sandbox::{Place, Sandbox};
use crate::supervisor::{Options, Supervisor};

/// The workers' ports.
pub const PORTS: std::ops::RangeInclusive<u16> = 8000..=8003;

/// Everything but the daemon, under load.
#[derive(Debug)]
pub struct Stage<'a> {
    /// Where it all runs.
    pub sandbox: &'a Sandbox,
    /// The app, in versions v1 (current) and v2.
    pub app: App,
    /// supervisord.
    pub supervisor: Supervisor<'a>,
    /// The load balancer.
    pub nginx: Nginx,
    /// The load.
    pub load: LoadHandle,
}

impl<'a> Stage<'a> {
    /// Workers that take 0.3 s to import.
    pub fn new(sandbox: &'a Sandbox) -> Result<Self> {
        Self::with_import(sandbox, 0.3)
    }

    /// Workers that take this long to import, warm, with load on them.
    pub fn with_import(sandbox: &'a Sandbox, import_seconds: f32) -> Result<Self> {
        Self::with(sandbox, import_seconds, "")
    }

    /// The same, with parameters on nginx's `server` lines.
    pub fn with(sandbox: &'a Sandbox, import_seconds: f32, params: &str) -> Result<Self> {
        Self::of(sandbox, Options { import_seconds, cold_seconds: 0.05, ..Options::ports(PORTS) }, params)
    }

    /// Workers that listen on another address than 127.0.0.1: all, say.
    pub fn on(sandbox: &'a Sandbox, host: &'static str) -> Result<Self> {
        let options = Options { host, import_seconds: 0.3, cold_seconds: 0.05, ..Options::ports(PORTS) };
        Self::of(sandbox, options, "")
    }

    /// Workers beside which others may be started on these ports.
    pub fn with_spares(sandbox: &'a Sandbox, spares: std::ops::RangeInclusive<u16>) -> Result<Self> {
        let options = Options { import_seconds: 0.3, cold_seconds: 0.05, ..Options::ports(PORTS) };
        Self::of(sandbox, Options { spares: Some(spares), ..options }, "")
    }

    /// Workers of which some have a fault in both versions, from their first start on.
    pub fn faulty(sandbox: &'a Sandbox, faults: &[(u16, Fault)]) -> Result<Self> {
        let app = App::new(sandbox, &["v1", "v2"])?;
        for (port, fault) in faults {
            ["v1", "v2"].iter().try_for_each(|version| app.set_fault(version, *port, Some(*fault)))?;
        }
        let options = Options { import_seconds: 0.3, cold_seconds: 0.05, ..Options::ports(PORTS) };
        Self::with_app(sandbox, app, options, "")
    }

    fn of(sandbox: &'a Sandbox, options: Options, params: &str) -> Result<Self> {
        Self::with_app(sandbox, App::new(sandbox, &["v1", "v2"])?, options, params)
    }

    fn with_app(sandbox: &'a Sandbox, app: App, options: Options, params: &str) -> Result<Self> {
        let supervisor = Supervisor::start(sandbox, &app, options)?;
        supervisor.wait_up()?;
        supervisor.warm()?;
        let nginx = Nginx::start(sandbox, &Upstream::workers(PORTS, params))?;
        let load = Load { rate: 80.0, slow_one_in: 0, ..Load::new("load") }.start(sandbox)?;
        Ok(Self { sandbox, app, supervisor, nginx, load })
    }

    /// Starts a daemon; all workers are up.
    pub fn daemon(&self, config: &ServiceConfig) -> Result<Daemon<'a>> {
        let daemon = Daemon::start(self.sandbox, &self.config(config))?;
        self.all_up()?;
        Ok(daemon)
    }

    /// A configuration's text.
    pub fn config(&self, config: &ServiceConfig) -> String {
        config.text(self.sandbox, &self.app, &self.supervisor)
    }

    /// The daemon's API.
    pub fn api(&self) -> Api {
        Api::of(self.sandbox)
    }

    /// Begins `deployer roll web --json` with more arguments.
    pub fn roll(&self, daemon: &Daemon<'_>, arguments: &[&str]) -> Result<Roll> {
        let mut command = default_signals(&daemon.cli_command(&["roll", "web", "--json"]));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Roll::by(command.spawn().context("start deployer roll")?)
    }

    /// Has a daemon read this configuration (SIGHUP), and waits until it has; returns what it says of it.
    pub fn reload(&self, daemon: &Daemon<'_>, text: &str) -> Result<String> {
        Daemon::write_config(self.sandbox, text)?;
        let before = daemon.log().len();
        let said = || daemon.log()[before..].to_owned();
        send(daemon.pid(), Signal::HUP)?;
        self.wait(SOON, || Ok(said().contains("configuration "))).with_context(|| daemon.log())?;
        Ok(said())
    }

    /// Waits until every worker is up.
    pub fn all_up(&self) -> Result<()> {
        self.wait(SOON, || {
            // A daemon that is only just starting has no socket yet.
            let Ok(phases) = self.api().phases() else { return Ok(false) };
            Ok(phases.values().all(|phase| phase == "up"))
        })
        .context("waiting for all workers to be up")
    }

    /// Whether these workers are out for having failed, and all others up.
    pub fn only_failed(&self, ports: &[u16]) -> Result<()> {
        let phases = self.api().phases()?;
        let right = |(port, phase): (&u16, &String)| phase == if ports.contains(port) { "failed" } else { "up" };
        ensure!(phases.iter().all(right), "{phases:?}, where {ports:?} should be out");
        Ok(())
    }

    /// Watches for a moment that a worker which is out gets no requests.
    pub fn is_out(&self, port: u16) -> Result<()> {
        let requests = || anyhow::Ok(self.journal()?.entries.iter().filter(|entry| entry.port == port).count());
        let (before, sent) = (requests()?, self.load.sent());
        self.wait(SOON, || Ok(self.load.sent() > sent + 20)).context("the load has stopped")?;
        let more = requests()? - before;
        ensure!(more == 0, "{port} is out, and got {more} requests");
        Ok(())
    }

    /// Has a steered caller dial every worker: each must answer itself.
    pub fn all_serve(&self) -> Result<()> {
        for port in PORTS {
            self.serves(port)?;
        }
        Ok(())
    }

    /// Has a steered caller dial a worker, which must answer itself.
    pub fn serves(&self, port: u16) -> Result<()> {
        let slow = self.slow(port, 0)?;
        let id = slow.id.clone();
        let status = slow.status()?;
        ensure!(status == 200, "{port} answered {status}");
        let journal = self.journal()?;
        let by: Vec<_> = journal.entries.iter().filter(|entry| entry.id == id).map(|entry| entry.port).collect();
        ensure!(by == [port], "{port} was dialled, and answered by {by:?}");
        Ok(())
    }

    /// What the workers have written down.
    pub fn journal(&self) -> Result<Journal> {
        Journal::read(&self.app.journal_dir())
    }

    /// A request that keeps a worker busy, sent straight to it by a steered caller; returns when the worker has it.
    pub fn slow(&self, port: u16, seconds: u32) -> Result<Slow> {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let id = format!("slow-{}", NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let mut command = self.sandbox.command(Place::Callers, "curl");
        command.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", &format!("X-Request-Id: {id}")]);
        command.arg(format!("http://{}/?slow={seconds}", self.supervisor.address(port)));
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start curl")?;
        self.wait(SOON, || Ok(self.journal()?.entries.iter().any(|entry| entry.id == id)))
            .context("waiting for the slow request to begin")?;
        Ok(Slow { id, child })
    }

    /// Looks every 20 ms whether it is so, until `limit`, or longer on a slow machine.
    pub fn wait(&self, limit: Duration, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
        let limit = patient(limit);
        let deadline = Instant::now() + limit;
        while !is()? {
            if Instant::now() >= deadline {
                bail!("not so after {limit:?}; workers: {:?}", self.api().phases());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Whether no request has failed yet.
    pub fn no_loss(&self) -> Result<()> {
        ensure!(self.load.failed() == 0, "{} requests have failed", self.load.failed());
        Ok(())
    }

    /// Ends the load, which must have lost nothing, and sent nothing twice, and met nobody cold.
    pub fn unharmed(self, what: &str) -> Result<Report> {
        let (errors, journal) = (self.nginx.error_lines()?, self.app.journal_dir());
        let report = self.load.stop()?;
        // A worker writes an answer's end down just after it has sent it.
        std::thread::sleep(Duration::from_millis(100));
        let journal = Journal::read(&journal)?;
        let doubled = journal.doubled().len();
        eprintln!("{what}: {} doubled, {} lines in nginx's log; {report}", doubled, errors.len());
        ensure!(report.requests > 20, "hardly any load");
        ensure!(report.failed == 0 && report.cold == 0 && journal.cold().is_empty(), "{report}");
        ensure!(doubled == 0 && errors.is_empty(), "{doubled} doubled; nginx: {errors:#?}");
        ensure!(journal.contradictions(&report).is_empty(), "{:?}", journal.contradictions(&report));
        Ok(report)
    }
}

/// A slow request under way.
#[derive(Debug)]
pub struct Slow {
    id: String,
    child: Child,
}

impl Slow {
    /// Its status; 0: no answer.
    pub fn status(self) -> Result<u16> {
        let output = self.child.wait_with_output().context("wait for curl")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.parse().with_context(|| format!("curl says {text:?}"))
    }
}

/// The same command, with SIGINT and SIGHUP as a shell in the foreground leaves them, however these tests were started.
pub fn default_signals(command: &Command) -> Command {
    let mut signals = Command::new("env");
    signals.arg("--default-signal=INT,HUP").arg(command.get_program()).args(command.get_args());
    signals
}
