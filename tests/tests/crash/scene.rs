//! Eight workers, two of them with much memory, under supervisord, which restarts them at once; nginx, load, and witnesses.

use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use deployer_tests::api::Api;
use deployer_tests::app::App;
use deployer_tests::capture::Capture;
use deployer_tests::crash::{Account, Evidence, Kill, Row};
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::journal::{Journal, monotonic_ns};
use deployer_tests::load::{Load, LoadHandle};
use deployer_tests::nginx::{Nginx, Upstream};
use deployer_tests::process::run;
use deployer_tests::rig::wait;
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::supervisor::{Options, Supervisor};
use serde_json::Value;

/// The workers.
pub(crate) const PORTS: RangeInclusive<u16> = 8000..=8007;
/// Those with much memory, which the kernel takes long to give back: meanwhile it accepts connections for the dead.
pub(crate) const LARGE: RangeInclusive<u16> = 8000..=8001;
/// What they hold, if the machine has it.
const LARGE_MB: u32 = 500;
/// Of a process that ran before the programs were attached.
pub(crate) const OLDER: &str = "older than the daemon";

/// All that runs, in the order in which it is to end.
pub(crate) struct Scene<'a> {
    sandbox: &'a Sandbox,
    load: LoadHandle,
    capture: Capture,
    nginx: Nginx,
    daemon: Option<Daemon<'a>>,
    pub(crate) supervisor: Supervisor<'a>,
    app: App,
    /// The first processes.
    first: BTreeMap<u16, u32>,
    pub(crate) megabytes: u32,
}

impl<'a> Scene<'a> {
    /// With deployer; nginx with these parameters of its `server` lines and directives.
    pub(crate) fn steered(sandbox: &'a Sandbox, nginx: (&str, &str)) -> Result<Self> {
        Self::new(sandbox, nginx, |text| Daemon::start(sandbox, text).map(Some))
    }

    /// Without.
    pub(crate) fn unsteered(sandbox: &'a Sandbox, nginx: (&str, &str)) -> Result<Self> {
        Self::new(sandbox, nginx, |_| Ok(None))
    }

    fn new(
        sandbox: &'a Sandbox,
        (parameters, directives): (&str, &str),
        daemon: impl FnOnce(&str) -> Result<Option<Daemon<'a>>>,
    ) -> Result<Self> {
        let app = App::new(sandbox, &["v1"])?;
        let megabytes = megabytes()?;
        let options = Options {
            import_seconds: 0.2,
            memory: LARGE.map(|port| (port, megabytes)).collect(),
            // Restarted at once, always.
            start_seconds: 0,
            ..Options::ports(PORTS)
        };
        let supervisor = Supervisor::start(sandbox, &app, options)?;
        supervisor.wait_up()?;
        supervisor.warm()?;
        let pid = |port| Ok((port, supervisor.pid_of(port)?.with_context(|| format!("no worker on {port}"))?));
        let first = PORTS.map(pid).collect::<Result<_>>()?;
        let daemon = daemon(&ServiceConfig::default().text(sandbox, &app, &supervisor))?;
        let nginx = Nginx::start_with(sandbox, &Upstream::workers(PORTS, parameters), directives)?;
        let capture = Capture::start(sandbox, &PORTS)?;
        // Each worker has two or three slow requests in hand, whenever it is killed.
        let load = Load { rate: 240.0, slow_one_in: 12, slow_seconds: 1, ..Load::new("load") }.start(sandbox)?;
        let scene = Self { sandbox, load, capture, nginx, daemon, supervisor, app, first, megabytes };
        scene.recover_from(&[])?;
        Ok(scene)
    }

    /// Whether a process ran before the daemon.
    pub(crate) fn is_older(&self, port: u16, pid: u32) -> bool {
        self.daemon.is_some() && self.first.get(&port) == Some(&pid)
    }

    /// Waits until every worker is up, those that were killed again.
    pub(crate) fn recover_from(&self, kills: &[Kill]) -> Result<()> {
        self.wait("all workers to be up", || Ok(self.up(kills)?.len() == PORTS.count()))
    }

    /// Waits for something, a minute at most.
    pub(crate) fn wait(&self, what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is()? {
            if Instant::now() >= deadline {
                let log = self.daemon.as_ref().map(Daemon::log).unwrap_or_default();
                bail!("waited in vain for {what}; workers: {:?}\n{log}", Api::of(self.sandbox).phases());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The workers that are in rotation, with their processes; those that were killed, only once they are back.
    pub(crate) fn up(&self, kills: &[Kill]) -> Result<BTreeMap<u16, u32>> {
        let ports = if self.daemon.is_some() { self.up_for_the_daemon(kills)? } else { self.listening()? };
        let mut up = BTreeMap::new();
        for port in ports {
            let pid = self.supervisor.pid_of(port)?;
            let died = |pid: &u32| kills.iter().any(|kill| kill.pids.contains(pid));
            up.extend(pid.filter(|pid| !died(pid)).map(|pid| (port, pid)));
        }
        Ok(up)
    }

    /// What the daemon says, which may not have noticed the last kill yet.
    fn up_for_the_daemon(&self, kills: &[Kill]) -> Result<Vec<u16>> {
        let now = monotonic_ns();
        let mut up = Vec::new();
        // While it starts, it does not answer.
        for (port, worker) in Api::of(self.sandbox).workers().unwrap_or_default() {
            let for_ns = worker["for_s"].as_f64().context("for_s")? * 1e9;
            let killed = kills.iter().rfind(|kill| kill.port == port).map_or(0, |kill| kill.span_ns.1);
            if worker["phase"] == "up" && now as f64 - for_ns >= killed as f64 {
                up.push(port);
            }
        }
        Ok(up)
    }

    /// The workers that listen, without asking them: their first request is to be one of the load's.
    fn listening(&self) -> Result<Vec<u16>> {
        let sockets = fs::read_to_string(format!("/proc/{}/net/tcp", self.supervisor.pid())).context("sockets")?;
        let listens = |port: &u16| sockets.contains(&format!(":{port:04X} 00000000:0000 0A"));
        Ok(PORTS.filter(listens).collect())
    }

    /// Ends the load, and draws up the account; with a daemon, all workers must serve.
    pub(crate) fn end(self, kills: Vec<Kill>) -> Result<Account> {
        let Self { sandbox, load, capture, nginx, daemon, supervisor, app, .. } = self;
        let account = draw_up(load, capture, &nginx, &app, &kills)?;
        if let Some(daemon) = &daemon {
            for port in PORTS {
                serves(sandbox, port)?;
            }
            let cut = told(&Api::of(sandbox).status()?, &account)?;
            named(daemon, cut)?;
            ensure!(!daemon.log().contains("panicked"), "{}", daemon.log());
        }
        drop(supervisor);
        Ok(account)
    }
}

/// Ends the load, and asks all witnesses.
pub(crate) fn draw_up(load: LoadHandle, capture: Capture, nginx: &Nginx, app: &App, kills: &[Kill]) -> Result<Account> {
    let report = load.stop()?;
    // A worker writes an answer's end down just after it has sent it.
    std::thread::sleep(Duration::from_millis(200));
    let (journal, connections) = (Journal::read(&app.journal_dir())?, capture.stop()?);
    let nginx_errors = &nginx.error_lines()?;
    let evidence = Evidence { kills, report: &report, journal: &journal, connections: &connections, nginx_errors };
    let account = Account::of(evidence);
    eprintln!("{account}");
    let contradictions = journal.contradictions(&report);
    ensure!(contradictions.is_empty(), "{contradictions:?}");
    Ok(account)
}

/// What a large worker can hold: twice as many may be there for a moment, as the dead give their memory back.
fn megabytes() -> Result<u32> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    let available: u32 =
        line.trim().trim_end_matches(" kB").parse::<u64>().context("MemAvailable")?.div_ceil(1024).try_into()?;
    let fit = available.saturating_sub(1000) / (2 * LARGE.count() as u32);
    if fit < LARGE_MB {
        eprintln!("{available} MB of memory are available: large workers have {fit} MB instead of {LARGE_MB}");
    }
    Ok(fit.min(LARGE_MB))
}

/// A steered caller dials a worker, which must answer itself, and be warm; the process that has answered.
pub(crate) fn serves(sandbox: &Sandbox, port: u16) -> Result<u32> {
    let mut curl = sandbox.command(Place::Callers, "curl");
    curl.args(["-s", "-i", "-m", "10", &format!("http://127.0.0.1:{port}/")]).stdin(Stdio::null());
    let answer = run(&mut curl)?;
    let says = |line: &str| answer.lines().any(|said| said.eq_ignore_ascii_case(line));
    ensure!(says(&format!("X-Port: {port}")) && says("X-Cold: 0"), "{port} was dialled: {answer}");
    let pid = answer.lines().find_map(|line| line.strip_prefix("X-Pid: "));
    pid.and_then(|pid| pid.trim().parse().ok()).with_context(|| format!("no X-Pid: {answer}"))
}

/// The crashes are told: in `deployer status` each worker has the number of its `crashes`, and of the connections that
/// were `cut` by them. Of those a few had been answered and were not closed yet, which cost nobody anything.
fn told(status: &Value, account: &Account) -> Result<u64> {
    let workers = status["services"][0]["workers"].as_array().context("workers")?;
    let sum = |key: &str| workers.iter().map(|worker| worker[key].as_u64()).sum::<Option<u64>>();
    let (crashes, cut) = (sum("crashes").context("crashes")?, sum("cut").context("cut")?);
    eprintln!("the daemon has counted {crashes} crashes, and {cut} connections cut by them");
    let (kills, inside) = (account.rows.len() as u64, account.sum(Row::inside) as u64);
    ensure!(
        crashes == kills && (inside..=inside + 2 * kills).contains(&cut),
        "{crashes} crashes, {cut} cut: {account}"
    );
    Ok(cut)
}

/// The log names each of them, by its caller, once the dead have closed their files.
fn named(daemon: &Daemon<'_>, cut: u64) -> Result<()> {
    let number = |line: &str| line.split_once(" cut=")?.1.split_whitespace().next()?.parse::<u64>().ok();
    let is_named = |line: &&str| line.contains("has ended: its process") && line.contains("callers=\"127.0.0.1:");
    let sum = || daemon.log().lines().filter(is_named).filter_map(number).sum::<u64>();
    wait("the cut connections to be named", || Ok(sum() == cut)).with_context(|| format!("{} of {cut}", sum()))?;
    Ok(())
}

/// Whether a process is still there, if only as what its parent has not asked about.
pub(crate) fn exists(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}
