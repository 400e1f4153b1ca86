//! Rolls under load, behind a load balancer that keeps its connections.

use std::collections::BTreeMap;
use std::fmt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer_tests::api::Api;
use deployer_tests::app::App;
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::haproxy::Haproxy;
use deployer_tests::journal::Journal;
use deployer_tests::load::Load;
use deployer_tests::nginx::Nginx;
use deployer_tests::report::Report;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::supervisor::{Options, Supervisor};
use deployer_tests::varnish::Varnish;
use serde_json::Value;

/// Who keeps the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Balancer {
    Nginx,
    /// With two threads.
    Haproxy,
    /// With one, which may keep its connections.
    HaproxyOneThread,
    Varnish,
}

/// A load balancer with what `deployer lb` prints for it, and nothing else about the workers.
enum Running {
    Nginx(Nginx),
    Haproxy(Haproxy),
    Varnish(Varnish),
}

impl Running {
    fn start(sandbox: &Sandbox, daemon: &Daemon<'_>, balancer: Balancer, kept: u32) -> Result<Self> {
        let name = match balancer {
            Balancer::Nginx => "nginx",
            Balancer::Haproxy | Balancer::HaproxyOneThread => "haproxy",
            Balancer::Varnish => "varnish",
        };
        let config = sandbox.dir().join("deployer.toml");
        let config = config.to_str().context("a path")?;
        let output = daemon.cli(&["lb", name, "--config", config, "--service", "web"])?;
        let text = String::from_utf8(output.stdout).context("deployer lb")?;
        ensure!(output.status.success(), "deployer lb {name}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(match balancer {
            Balancer::Nginx => Self::Nginx(nginx(sandbox, &text, kept)?),
            Balancer::Haproxy => Self::Haproxy(Haproxy::start(sandbox, &text)?),
            Balancer::HaproxyOneThread => {
                let kept = text.replace("  option http-server-close\n", "");
                ensure!(kept != text, "{text}");
                Self::Haproxy(Haproxy::start_threads(sandbox, &kept, 1)?)
            }
            Balancer::Varnish => Self::Varnish(Varnish::start(sandbox, &text, &[])?),
        })
    }

    /// What it has complained of.
    fn errors(&self) -> Result<Vec<String>> {
        Ok(match self {
            Self::Nginx(nginx) => nginx.error_lines()?,
            Self::Haproxy(haproxy) => haproxy.log().lines().map(str::to_owned).collect(),
            Self::Varnish(varnish) => {
                varnish.log().lines().filter(|line| line.contains("Error")).map(str::to_owned).collect()
            }
        })
    }
}

fn nginx(sandbox: &Sandbox, text: &str, kept: u32) -> Result<Nginx> {
    ensure!(text.contains("keepalive 32;"), "{text}");
    Nginx::start_text(sandbox, &text.replace("keepalive 32;", &format!("keepalive {kept};")), "")
}

/// What is played.
pub(crate) struct Scene {
    /// Names the sandbox.
    pub(crate) label: &'static str,
    pub(crate) balancer: Balancer,
    /// Workers, from port 8000.
    pub(crate) workers: u16,
    /// Whether they answer at once.
    pub(crate) fast: bool,
    pub(crate) load: Load,
    pub(crate) config: ServiceConfig,
    /// Rolls in a row.
    pub(crate) rolls: usize,
    /// Idle connections that nginx keeps; 32 is what `deployer lb` prints.
    pub(crate) kept: u32,
}

/// One roll, or drains by hand.
#[derive(Debug)]
pub(crate) struct Rolled {
    pub(crate) exit: Option<i32>,
    pub(crate) seconds: f64,
    /// Seconds that each worker was draining.
    pub(crate) drains: Vec<f64>,
    /// Its end, in words.
    pub(crate) output: String,
}

/// What came of it.
pub(crate) struct Figures {
    pub(crate) report: Report,
    journal: Journal,
    pub(crate) rolls: Vec<Rolled>,
    errors: Vec<String>,
    status: Value,
    log: String,
}

impl Scene {
    /// Four workers, half of them at a time; clients that keep their connections, and nothing slow.
    pub(crate) fn new(label: &'static str, balancer: Balancer) -> Self {
        Self {
            label,
            balancer,
            workers: 4,
            fast: false,
            load: Load { rate: 100.0, slow_one_in: 0, keep_alive: true, ..Load::new("load") },
            config: ServiceConfig::default(),
            rolls: crate::rolls(),
            kept: 32,
        }
    }

    /// Rolls to v2, back to v1, and so on.
    pub(crate) fn run(&self) -> Result<Figures> {
        let versions = ["v2", "v1"].into_iter().cycle().take(self.rolls);
        self.play(|daemon| versions.map(|version| roll(daemon, version)).collect())
    }

    /// Sets everything up, does something under load, and takes everything down.
    pub(crate) fn play(&self, act: impl FnOnce(&Daemon<'_>) -> Result<Vec<Rolled>>) -> Result<Figures> {
        let sandbox = Sandbox::new(self.label)?;
        let app = App::new(&sandbox, &["v1", "v2"])?;
        let ports = 8000..=8000 + self.workers - 1;
        let options = Options {
            import_seconds: 0.3,
            cold_seconds: 0.05,
            fast: self.fast,
            start_seconds: 0,
            ..Options::ports(ports)
        };
        let supervisor = Supervisor::start(&sandbox, &app, options)?;
        supervisor.wait_up()?;
        supervisor.warm()?;
        let mut daemon = Daemon::start(&sandbox, &self.config.text(&sandbox, &app, &supervisor))?;
        let balancer = Running::start(&sandbox, &daemon, self.balancer, self.kept)?;
        all_up(&sandbox)?;
        let load = self.load.clone().start(&sandbox)?;
        sleep(Duration::from_secs(2));
        let rolls = act(&daemon)?;
        sleep(Duration::from_secs(1));
        let report = load.stop()?;
        // A worker writes an answer's end down just after it has sent it.
        sleep(Duration::from_millis(100));
        let (errors, status) = (balancer.errors()?, Api::of(&sandbox).status()?);
        daemon.stop()?;
        let journal = Journal::read(&app.journal_dir())?;
        Ok(Figures { report, journal, rolls, errors, status, log: daemon.log() })
    }
}

/// Waits until every worker of `web` is up.
pub(crate) fn all_up(sandbox: &Sandbox) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let phases = Api::of(sandbox).phases();
        if phases.as_ref().is_ok_and(|phases| phases.values().all(|phase| phase == "up")) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not all up after 30 s: {phases:?}");
        sleep(Duration::from_millis(20));
    }
}

fn roll(daemon: &Daemon<'_>, version: &str) -> Result<Rolled> {
    let begun = Instant::now();
    let output = daemon.cli(&["roll", "web", "--to", version, "--json"])?;
    let events = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = events.lines().last().unwrap_or_default().to_owned();
    Ok(Rolled {
        exit: output.status.code(),
        seconds: begun.elapsed().as_secs_f64(),
        drains: drains(&events),
        output: format!("{last}\n{}", String::from_utf8_lossy(&output.stderr)),
    })
}

/// Seconds that each worker was draining, from the events of a roll.
fn drains(events: &str) -> Vec<f64> {
    let mut begun = BTreeMap::new();
    let mut seconds = Vec::new();
    for event in events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let (Some(worker), Some(time)) = (event["worker"].as_str(), event["time_ms"].as_f64()) else { continue };
        match event["phase"].as_str() {
            Some("draining") => drop(begun.insert(worker.to_owned(), time)),
            Some("drained") => seconds.extend(begun.remove(worker).map(|begun| (time - begun) / 1000.0)),
            _ => {}
        }
    }
    seconds
}

impl Figures {
    /// Nothing failed, nothing was done twice or cut, nobody met a cold worker, no worker ended with a connection in it, and
    /// no drain came to its deadline.
    pub(crate) fn lost_nothing(&self, drain_limit: Duration) -> Result<()> {
        eprintln!("{self}");
        let tail = || {
            let outputs: Vec<_> = self.rolls.iter().map(|roll| roll.output.as_str()).collect();
            format!("{self}\n{}\n{}\n{}", outputs.join("\n"), self.errors.join("\n"), self.log)
        };
        ensure!(self.rolls.iter().all(|roll| roll.exit == Some(0)), "{}", tail());
        ensure!(self.report.requests > 100 && self.report.failed == 0 && self.report.cold == 0, "{}", tail());
        ensure!(self.journal.doubled().is_empty() && self.journal.cut().is_empty(), "{}", tail());
        ensure!(self.journal.cold().is_empty() && self.sum("cut") == 0, "{}", tail());
        let contradictions = self.journal.contradictions(&self.report);
        ensure!(contradictions.is_empty(), "{contradictions:?}");
        let longest = self.drains().last().copied().context("no drains")?;
        ensure!(longest < drain_limit.as_secs_f64(), "a drain took {longest:.1} s\n{}", tail());
        Ok(())
    }

    /// Seconds that workers were draining, in ascending order.
    pub(crate) fn drains(&self) -> Vec<f64> {
        let mut drains: Vec<_> = self.rolls.iter().flat_map(|roll| &roll.drains).copied().collect();
        drains.sort_by(f64::total_cmp);
        drains
    }

    /// A counter of the status, over all workers.
    pub(crate) fn sum(&self, counter: &str) -> u64 {
        let workers = self.status["services"][0]["workers"].as_array();
        workers.into_iter().flatten().filter_map(|worker| worker[counter].as_u64()).sum()
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.report)?;
        for roll in &self.rolls {
            let (exit, seconds, drains) = (roll.exit, roll.seconds, &roll.drains);
            write!(f, "  exit {exit:?} after {seconds:.1} s; ")?;
            match drains.len() {
                ..=16 => writeln!(f, "drains, s: {drains:.2?}")?,
                many => writeln!(f, "{many} drains, {:.2} s each", drains.iter().sum::<f64>() / many as f64)?,
            }
        }
        let (journal, errors) = (&self.journal, self.errors.len());
        let (doubled, cut) = (journal.doubled().len(), journal.cut().len());
        write!(
            f,
            "  {} connections for {} requests, {} closed in drains; doubled {doubled}, cut {cut}; {errors} lines of errors",
            self.sum("established"),
            self.report.requests,
            self.sum("closed")
        )
    }
}
