//! The main job, whole: nginx, workers under supervisord, steady load, and in the middle of it a deploy.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    api::Api,
    app::App,
    capture::Capture,
    crash::{Account, Evidence, Kill},
    daemon::{Daemon, ServiceConfig},
    journal::{Journal, monotonic_ns},
    load::{Load, LoadHandle},
    nginx::{Nginx, Upstream},
    pace::patient,
    process::{Process, send},
    report::Report,
    sandbox::{Place, Sandbox},
    supervisor::{Options, Supervisor},
};

/// A deploy from v1 to v2 under load.
pub struct Rollout {
    /// Names the sandbox: letters, digits, underscores.
    pub label: &'static str,
    /// The workers' ports.
    pub ports: RangeInclusive<u16>,
    /// What nginx names.
    pub upstream: Upstream,
    /// What deployer is told.
    pub config: ServiceConfig,
    /// Requests a second.
    pub rate: f64,
    /// Load before the deploy; the daemon starts, and attaches, in the middle of it.
    pub before: Duration,
    /// Load after the deploy.
    pub after: Duration,
    /// How the new version comes.
    pub how: How,
    /// Whether, after all that, a worker is killed (SIGKILL) with requests in it.
    pub crash: bool,
}

/// How a new version comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// `deployer roll`; with `show`, its output goes to the terminal.
    Roll {
        /// Whether its output is shown.
        show: bool,
    },
    /// The twin, without deployer: the workers are killed, and supervisord restarts them.
    Kill,
}

/// What came of it.
pub struct Figures {
    /// What the callers saw.
    pub report: Report,
    /// What the workers wrote down.
    pub journal: Journal,
    /// Seconds that the deploy took.
    pub seconds: f64,
    /// Exit code of the deploy.
    pub exit: i32,
    /// Its output, where it was not shown.
    pub output: String,
    /// nginx's error log, up to the crash.
    pub nginx_errors: Vec<String>,
    /// What `nft monitor` printed during the deploy.
    pub nft_events: String,
    /// `deployer status --json` at the end.
    pub status: Value,
    /// The daemon's log.
    pub log: String,
    /// What the crash has brought, if there was one.
    pub crash: Option<Crash>,
}

/// A worker that was killed.
pub struct Crash {
    /// The worker's port.
    pub port: u16,
    /// What was lost by it, and all that was lost by no kill.
    pub account: Account,
    /// Requests that were sent after the kill and served cold.
    pub cold: usize,
    /// Seconds until it was up again.
    pub seconds: f64,
}

impl Figures {
    /// Requests without a right answer, but for those that were lost by the crash.
    pub fn failed(&self) -> usize {
        let by_crash = self.crash.as_ref().map_or(0, |crash| crash.account.sum(|row| row.failed));
        self.report.failed - by_crash
    }

    /// Ids that were begun more than once, but for those that nginx has sent again because of the crash.
    pub fn doubled(&self) -> usize {
        self.crash.as_ref().map_or_else(|| self.journal.doubled().len(), |crash| crash.account.doubled.len())
    }

    /// A counter of the status, over all workers.
    pub fn sum(&self, counter: &str) -> u64 {
        let workers = self.status["services"][0]["workers"].as_array();
        workers.into_iter().flatten().filter_map(|worker| worker[counter].as_u64()).sum()
    }

    /// Workers by phase.
    pub fn phases(&self) -> BTreeMap<String, usize> {
        let workers = self.status["services"][0]["workers"].as_array();
        let mut phases = BTreeMap::new();
        for phase in workers.into_iter().flatten().filter_map(|worker| worker["phase"].as_str()) {
            *phases.entry(phase.to_owned()).or_insert(0) += 1;
        }
        phases
    }

    /// The 99th percentile of a phase of the load, in milliseconds, slow requests aside.
    pub fn p99_ms(&self, phase: &str) -> f64 {
        self.report.phase(phase).map_or(0.0, |phase| phase.percentile_ms(0.99))
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.report)?;
        write!(
            f,
            "deploy: exit {}, {:.1} s; doubled {}, cut {}; steered {}, picked {}, refused {}, fallbacks {} and {}; \
             nginx error lines {}; phases {:?}",
            self.exit,
            self.seconds,
            self.doubled(),
            self.journal.cut().len(),
            self.sum("steered"),
            self.sum("picked"),
            self.sum("refused"),
            self.sum("fallback_draining"),
            self.sum("fallback_cold"),
            self.nginx_errors.len(),
            self.phases(),
        )
    }
}

impl Rollout {
    /// `workers` workers from port 8000, nginx naming each, load for a few seconds either side.
    pub fn new(label: &'static str, workers: u16) -> Self {
        let ports = 8000..=8000 + workers - 1;
        Self {
            label,
            upstream: Upstream::workers(ports.clone(), ""),
            ports,
            config: ServiceConfig { batch: (workers / 4).max(1).to_string(), ..ServiceConfig::default() },
            rate: 300.0,
            before: Duration::from_secs(3),
            after: Duration::from_secs(1),
            how: How::Roll { show: false },
            crash: false,
        }
    }

    /// Sets everything up, does it, and takes everything down. `say` hears what is going on.
    ///
    /// # Errors
    /// When a part does not start; a deploy that fails is told in [`Figures::exit`].
    pub fn run(&self, say: impl Fn(&str)) -> Result<Figures> {
        let sandbox = Sandbox::new(self.label)?;
        let app = App::new(&sandbox, &["v1", "v2"])?;
        say(&format!("starting {} Python workers (v1) under supervisord, and nginx", self.ports.len()));
        let supervisor = Supervisor::start(&sandbox, &app, Options::ports(self.ports.clone()))?;
        supervisor.wait_up()?;
        supervisor.warm()?;
        let config = self.config.text(&sandbox, &app, &supervisor);
        // Nobody listens on a service address but the kernel; elsewhere the daemon comes into running traffic.
        let first = matches!(self.upstream, Upstream::ServiceAddress(_));
        let start = || if self.how == How::Kill { Ok(None) } else { Daemon::start(&sandbox, &config).map(Some) };
        let early = if first { start()? } else { None };
        let nginx = Nginx::start(&sandbox, &self.upstream)?;
        let load = Load { rate: self.rate, ..Load::new("run") }.start(&sandbox)?;
        say(&format!("load: {} requests a second, GET and POST, one in 200 takes 8 s", self.rate));
        sleep(self.before / 2);
        let mut daemon = if early.is_some() { early } else { start()? };
        sleep(self.before / 2);
        let mut monitor = nft_monitor(&sandbox)?;
        load.mark("during");
        let begun = monotonic_ns();
        say("deploying v2");
        let (exit, output) = match (&daemon, self.how) {
            (Some(daemon), How::Roll { show }) => roll(daemon, show)?,
            _ => kill(&app, &supervisor)?,
        };
        let seconds = (monotonic_ns() - begun) as f64 / 1e9;
        load.mark("after");
        sleep(self.after);
        monitor.kill()?;
        let nginx_errors = nginx.error_lines()?;
        let crash = if self.crash { Some(crash(&sandbox, &supervisor, &load, &say)?) } else { None };
        say("waiting for the last answers");
        let report = load.stop()?;
        let status = daemon.as_ref().map(|daemon| daemon.cli(&["status", "--json"])).transpose()?;
        let status = status.and_then(|status| serde_json::from_slice(&status.stdout).ok()).unwrap_or_default();
        daemon.as_mut().map(Daemon::stop).transpose()?;
        let journal = Journal::read(&app.journal_dir())?;
        let crash = crash.map(|crash| crash.judge(&report, &journal, &nginx.error_lines()?)).transpose()?;
        Ok(Figures {
            report,
            journal,
            seconds,
            exit,
            output,
            nginx_errors,
            nft_events: monitor.log(),
            status,
            log: daemon.as_ref().map(Daemon::log).unwrap_or_default(),
            crash,
        })
    }
}

/// A worker was killed, and its witness has yet to be heard.
struct Killed {
    kill: Kill,
    capture: Capture,
    seconds: f64,
}

/// Kills the worker with the most requests in it, and waits until it is up again.
fn crash(sandbox: &Sandbox, supervisor: &Supervisor<'_>, load: &LoadHandle, say: &impl Fn(&str)) -> Result<Killed> {
    let capture = Capture::start(sandbox, &supervisor.ports())?;
    // What is older than the capture is in the journals by then.
    sleep(Duration::from_secs(1));
    let workers = Api::of(sandbox).workers()?;
    let open = |worker: &Value| worker["open"].as_u64().unwrap_or(0);
    let (port, _) = workers.into_iter().max_by_key(|(_, worker)| open(worker)).context("no workers")?;
    let pid = supervisor.pid_of(port)?.with_context(|| format!("no worker on port {port}"))?;
    say(&format!("kill -9 {pid}, the worker at 127.0.0.1:{port}"));
    load.mark("crash");
    let (kill, begun) = (Kill::strike(port, pid, "")?, Instant::now());
    // Up, and not as it was before the kill.
    let is_up = |worker: &Value| {
        let since = worker["for_s"].as_f64().unwrap_or(f64::INFINITY);
        worker["phase"] == "up" && since < begun.elapsed().as_secs_f64()
    };
    while !Api::of(sandbox).workers()?.get(&port).is_some_and(is_up) {
        if begun.elapsed() > patient(Duration::from_secs(30)) {
            bail!("{port} was killed, and is not up again after {:?}", begun.elapsed());
        }
        sleep(Duration::from_millis(20));
    }
    Ok(Killed { kill, capture, seconds: begun.elapsed().as_secs_f64() })
}

impl Killed {
    fn judge(self, report: &Report, journal: &Journal, nginx_errors: &[String]) -> Result<Crash> {
        let Self { kill, capture, seconds } = self;
        let connections = capture.stop()?;
        let kills = std::slice::from_ref(&kill);
        let account = Account::of(Evidence { kills, report, journal, connections: &connections, nginx_errors });
        let cold = report.outcomes.iter().filter(|o| o.cold && o.start_ns > kill.span_ns.0).count();
        Ok(Crash { port: kill.port, account, cold, seconds })
    }
}

/// Prints every change of the namespace's firewall rules.
fn nft_monitor(sandbox: &Sandbox) -> Result<Process> {
    let mut command = sandbox.command(Place::Outside, "nft");
    command.arg("monitor");
    Process::start("nft monitor", command, &sandbox.dir().join("nft.log"))
}

fn roll(daemon: &Daemon<'_>, show: bool) -> Result<(i32, String)> {
    let mut command = daemon.cli_command(&["roll", "web", "--to", "v2"]);
    if show {
        let status = command.stdout(std::io::stderr()).status().context("run deployer roll")?;
        return Ok((status.code().unwrap_or(-1), String::new()));
    }
    let output = command.stderr(Stdio::piped()).output().context("run deployer roll")?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned()))
}

/// The old way: switch, kill two at a time, wait until they listen again.
fn kill(app: &App, supervisor: &Supervisor<'_>) -> Result<(i32, String)> {
    app.switch("v2")?;
    let ports: Vec<_> = supervisor.ports().collect();
    for pair in ports.chunks(2) {
        for port in pair {
            let pid = supervisor.pid_of(*port)?.with_context(|| format!("no worker on port {port}"))?;
            send(pid, Signal::KILL)?;
        }
        supervisor.wait_up_ports(pair.iter().copied())?;
    }
    Ok((0, String::new()))
}
