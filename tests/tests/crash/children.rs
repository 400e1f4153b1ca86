//! Workers of several processes: children that share their master's listener, and two that listen on one port
//! (SO_REUSEPORT). Such a worker serves on while one of them can, and is down the moment the last is killed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use deployer_tests::api::Api;
use deployer_tests::app::App;
use deployer_tests::capture::Capture;
use deployer_tests::crash::{Account, Kill, Row};
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::http::Request;
use deployer_tests::load::{Load, LoadHandle};
use deployer_tests::nginx::{Nginx, Upstream};
use deployer_tests::process::{Process, send};
use deployer_tests::sandbox::{Place, Sandbox};
use rustix::process::Signal;

use crate::STRICT;
use crate::scene::{draw_up, serves};

/// The worker of several processes, and the first of three others.
const PORT: u16 = 8000;
const PORTS: std::ops::RangeInclusive<u16> = PORT..=8003;
/// Requests a second.
const RATE: f64 = 150.0;
/// How long a worker is watched after a process of it was killed.
const WATCHED: Duration = Duration::from_millis(700);

#[test]
fn children_that_share_a_listener() -> Result<()> {
    let sandbox = Sandbox::new("children")?;
    let mut family = Family::new(&sandbox)?;
    let prefork = family.app.prefork();
    family.start(&prefork, PORT, &[])?;
    family.all_up()?;
    family.load()?;

    family.kill(family.children()?[0], "a child")?;
    family.stays_up()?;
    family.wait("a child in its place", |family| Ok(family.children()?.len() == 3))?;
    family.kill(family.master()?, "the master")?;
    family.stays_up()?;
    for left in [2, 1] {
        family.kill(family.children()?[0], &format!("a child: {left} left"))?;
        family.stays_up()?;
    }
    family.kill(family.children()?[0], "the last child")?;
    family.goes_down()?;

    family.start(&prefork, PORT, &[])?;
    family.all_up()?;
    family.kill_cgroup("all at once: cgroup.kill")?;
    family.goes_down()?;
    let account = family.end()?;
    account.must_be_clean()?;
    ensure!(account.sum(|row| row.failed) == account.sum(Row::inside) && account.sum(|row| row.hand) > 0, "{account}");
    Ok(())
}

#[test]
fn two_listeners_on_one_port() -> Result<()> {
    let sandbox = Sandbox::new("reuse")?;
    let mut family = Family::new(&sandbox)?;
    let worker = family.app.worker();
    for _ in 0..2 {
        family.start(&worker, PORT, &[("WORKER_REUSE_PORT", "1")])?;
    }
    family.all_up()?;
    // The daemon knows of one worker, and may have warmed one of its processes only.
    family.warm_both()?;
    family.load()?;

    let (first, second) = (family.pids()?[0], family.pids()?[1]);
    family.kill(first, "one of two")?;
    family.stays_up()?;
    for _ in 0..10 {
        ensure!(serves(&sandbox, PORT)? == second, "answered by another than {second}");
    }
    family.kill(second, "the other one")?;
    family.goes_down()?;
    let mut account = family.end()?;
    // Until its files are closed, the kernel gives half of the worker's connections to the listener of the dead. For a
    // second they make a detour around the worker, so that only callers that were inside connect() may be among them, a
    // few. One that is short of processor time may be longer in dying: after the detour, all that the load sends may be.
    let [one, other] = account.rows.as_mut_slice() else { bail!("{account}") };
    let after_detour = Duration::from_nanos(one.gone_ns).saturating_sub(Duration::from_millis(800));
    let most = 5 + (after_detour.as_secs_f64() * RATE).ceil() as usize;
    ensure!(one.late + one.way <= most, "more than {most} came late: {account}");
    ensure!(one.hand + other.hand > 0, "{account}");
    (one.late, one.way) = (0, 0);
    account.must_be_clean()
}

/// A worker of several processes in a cgroup of its own, beside three plain ones, all started by no manager; and a daemon.
struct Family<'a> {
    sandbox: &'a Sandbox,
    load: Option<(LoadHandle, Capture)>,
    nginx: Nginx,
    daemon: Daemon<'a>,
    processes: Vec<Process>,
    app: App,
    cgroup: PathBuf,
    kills: Vec<Kill>,
}

impl<'a> Family<'a> {
    /// The three, warm, and the daemon.
    fn new(sandbox: &'a Sandbox) -> Result<Self> {
        let app = App::new(sandbox, &["v1"])?;
        let cgroup = sandbox.cgroup(Place::Workers).join("family");
        fs::create_dir(&cgroup).with_context(|| format!("make cgroup {}", cgroup.display()))?;
        let manager = deployer_tests::rig::ANY_OF_ROOT_S;
        let workers = format!("127.0.0.1:{}-{}", PORTS.start(), PORTS.end());
        let config = ServiceConfig::default().text_of(sandbox, &app, &workers, manager);
        let daemon = Daemon::start(sandbox, &config)?;
        let nginx = Nginx::start_with(sandbox, &Upstream::workers(PORTS, STRICT.0), STRICT.1)?;
        let mut family =
            Self { sandbox, load: None, nginx, daemon, processes: Vec::new(), app, cgroup, kills: Vec::new() };
        let worker = family.app.worker();
        PORTS.skip(1).try_for_each(|port| family.start(&worker, port, &[]))?;
        Ok(family)
    }

    /// Starts a process of the worker on a port; that of the worker of several in its cgroup.
    fn start(&mut self, script: &Path, port: u16, environment: &[(&str, &str)]) -> Result<()> {
        let cgroup = if port == PORT { self.cgroup.clone() } else { self.sandbox.cgroup(Place::Workers) };
        let mut command = self.sandbox.command(Place::Workers, "sh");
        command.args(["-c", r#"echo 0 > "$0/cgroup.procs" && exec "$@""#]).arg(cgroup);
        command.args(["/usr/bin/python3", "-s", "-E"]).arg(script).arg(format!("--port={port}"));
        command.env("APP_DIR", self.app.dir()).env("IMPORT_SECONDS", "0.1").env("COLD_SECONDS", "0.05");
        command.envs(environment.iter().copied());
        let log = self.sandbox.dir().join(format!("worker-{port}.log"));
        self.processes.push(Process::start("a worker", command, &log)?);
        Ok(())
    }

    /// Sends each page of the app to the worker until both of its processes have had it.
    fn warm_both(&self) -> Result<()> {
        let headers = [("User-Agent", "deployer-warm/harness")];
        for path in ["/", "/pin/1"] {
            let mut seen = BTreeSet::new();
            let request = Request { headers: &headers, ..Request::get(path) };
            self.wait("both processes to be warm", |_| {
                let answer = self.sandbox.in_netns(|| request.send(([127, 0, 0, 1], PORT).into(), WATCHED * 10))??;
                seen.insert(answer.header("X-Pid").map(str::to_owned));
                Ok(seen.len() == 2)
            })?;
        }
        Ok(())
    }

    /// Begins to watch, and the load: each worker has three or four slow requests in hand.
    fn load(&mut self) -> Result<()> {
        let capture = Capture::start(self.sandbox, &PORTS)?;
        let load = Load { rate: RATE, slow_one_in: 10, slow_seconds: 1, ..Load::new("load") }.start(self.sandbox)?;
        self.load = Some((load, capture));
        std::thread::sleep(WATCHED);
        Ok(())
    }

    /// The worker's processes that have not been killed.
    fn pids(&self) -> Result<Vec<u32>> {
        let text = fs::read_to_string(self.cgroup.join("cgroup.procs")).context("processes of the worker")?;
        let pids = text.lines().map(|line| Ok(line.parse()?)).collect::<Result<BTreeSet<u32>>>()?;
        let killed = |pid: &u32| self.kills.iter().any(|kill| kill.pids.contains(pid));
        Ok(pids.into_iter().filter(|pid| !killed(pid)).collect())
    }

    /// Those of them that are children, or are not.
    fn pids_named(&self, child: bool) -> Result<Vec<u32>> {
        let name = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Ok(self.pids()?.into_iter().filter(|pid| (name(pid) == "child\n") == child).collect())
    }

    fn children(&self) -> Result<Vec<u32>> {
        self.pids_named(true)
    }

    /// Not a child that has only just been made.
    fn master(&self) -> Result<u32> {
        self.pids_named(false)?.first().copied().context("no master")
    }

    fn kill(&mut self, pid: u32, what: &str) -> Result<()> {
        self.kills.push(Kill::by(PORT, vec![pid], what, || send(pid, Signal::KILL))?);
        Ok(())
    }

    fn kill_cgroup(&mut self, what: &str) -> Result<()> {
        let file = self.cgroup.join("cgroup.kill");
        self.kills.push(Kill::by(PORT, self.pids()?, what, || fs::write(&file, "1").context("cgroup.kill"))?);
        Ok(())
    }

    fn phase(&self) -> Result<String> {
        Api::of(self.sandbox).phases()?.remove(&PORT).context("no such worker")
    }

    fn wait(&self, what: &str, mut is: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is(self)? {
            if Instant::now() >= deadline {
                bail!("waited in vain for {what}; {:?}\n{}", Api::of(self.sandbox).phases(), self.daemon.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn all_up(&self) -> Result<()> {
        self.wait("all workers to be up", |family| {
            Ok(Api::of(family.sandbox).phases()?.values().all(|phase| phase == "up"))
        })
    }

    /// The worker is up all the while, and serves who dials it.
    fn stays_up(&self) -> Result<()> {
        let end = Instant::now() + WATCHED;
        let what = || self.kills.last().map(|kill| kill.what.as_str()).unwrap_or_default();
        while Instant::now() < end {
            let phase = self.phase()?;
            ensure!(phase == "up", "{phase} after the death of {}\n{}", what(), self.daemon.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        let by = serves(self.sandbox, PORT)?;
        ensure!(self.pids()?.contains(&by), "answered by {by}, not one of {:?}", self.pids()?);
        Ok(())
    }

    /// The daemon knows that nobody is left. That nobody was refused, the account will tell.
    fn goes_down(&self) -> Result<()> {
        self.wait("the worker to be down", |family| Ok(family.phase()? == "down"))?;
        std::thread::sleep(WATCHED);
        Ok(())
    }

    fn end(mut self) -> Result<Account> {
        let (load, capture) = self.load.take().context("no load")?;
        draw_up(load, capture, &self.nginx, &self.app, &self.kills)
    }
}
