//! The usual scene of the suites about faults: four quick workers, nginx in front of them, a light load.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::api::Api;
use crate::app::App;
use crate::daemon::{Daemon, ServiceConfig};
use crate::journal::Journal;
use crate::load::{Load, LoadHandle};
use crate::nginx::{Nginx, Upstream};
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
        let app = App::new(sandbox, &["v1", "v2"])?;
        let options = Options { import_seconds, cold_seconds: 0.05, ..Options::ports(PORTS) };
        let supervisor = Supervisor::start(sandbox, &app, options)?;
        supervisor.wait_up()?;
        supervisor.warm()?;
        let nginx = Nginx::start(sandbox, &Upstream::workers(PORTS, ""))?;
        let load = Load { rate: 150.0, slow_one_in: 0, ..Load::new("load") }.start(sandbox)?;
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

    /// Waits until every worker is up.
    pub fn all_up(&self) -> Result<()> {
        self.wait(Duration::from_secs(10), || {
            let phases = self.api().phases()?;
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
        std::thread::sleep(Duration::from_millis(300));
        ensure!(self.load.sent() > sent + 20, "the load has stopped");
        let more = requests()? - before;
        ensure!(more == 0, "{port} is out, and got {more} requests");
        Ok(())
    }

    /// Waits until every worker has got a request: they all serve.
    pub fn all_serve(&self) -> Result<()> {
        let begun = self.journal()?.entries.len();
        self.wait(Duration::from_secs(5), || {
            let journal = self.journal()?;
            let entries = &journal.entries;
            ensure!(entries.len() >= begun, "the journal has shrunk");
            let since = crate::journal::monotonic_ns() - 500_000_000;
            Ok(PORTS.clone().all(|port| entries.iter().any(|entry| entry.port == port && entry.begin_ns > since)))
        })
        .context("waiting for every worker to get requests")
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
        self.wait(Duration::from_secs(5), || Ok(self.journal()?.entries.iter().any(|entry| entry.id == id)))
            .context("waiting for the slow request to begin")?;
        Ok(Slow(child))
    }

    /// Looks every 20 ms whether it is so.
    pub fn wait(&self, limit: Duration, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !is()? {
            if Instant::now() >= deadline {
                bail!("not so after {limit:?}; workers: {:?}", self.api().workers());
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
        let journal = Journal::read(&journal)?;
        let doubled = journal.doubled().len();
        eprintln!("{what}: {} doubled, {} lines in nginx's log; {report}", doubled, errors.len());
        ensure!(report.requests > 100, "hardly any load");
        ensure!(report.failed == 0 && report.cold == 0 && journal.cold().is_empty(), "{report}");
        ensure!(doubled == 0 && errors.is_empty(), "{doubled} doubled; nginx: {errors:#?}");
        ensure!(journal.contradictions(&report).is_empty(), "{:?}", journal.contradictions(&report));
        Ok(report)
    }
}

/// A slow request under way.
#[derive(Debug)]
pub struct Slow(Child);

impl Slow {
    /// Its status; 0: no answer.
    pub fn status(self) -> Result<u16> {
        let output = self.0.wait_with_output().context("wait for curl")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.parse().with_context(|| format!("curl says {text:?}"))
    }
}
