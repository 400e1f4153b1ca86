//! A service with two pools of [`pages.py`](crate::pages) workers that the daemon starts itself.

use std::fs;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::app::App;
use crate::daemon::{Daemon, DeployerBin};
use crate::pace::patient;
use crate::sandbox::{Place, Sandbox};

/// The service address.
pub const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9000);
/// The first worker of each pool.
const FIRST: [u16; 2] = [8000, 8100];

/// What a site is like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Workers of each pool.
    pub workers: u16,
    /// How long both pools stand side by side, as `3s`.
    pub bake: &'static str,
    /// More keys of `deploy`, as `, gate = [..]`.
    pub deploy: String,
    /// More keys of `warm`, as `, within = "2s"`.
    pub warm: &'static str,
    /// More lines of `[daemon]`.
    pub daemon: &'static str,
    /// Whether the pools stand the other way round in the configuration.
    pub swapped: bool,
    /// Whether there is one pool only.
    pub without_deploy: bool,
    /// More lines of the service.
    pub extra: String,
    /// The page for Prometheus.
    pub metrics: Option<&'static str>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            workers: 4,
            bake: "3s",
            deploy: String::new(),
            warm: "",
            daemon: "",
            swapped: false,
            without_deploy: false,
            extra: String::new(),
            metrics: None,
        }
    }
}

/// A daemon with its service. Declare the sandbox before it.
#[derive(Debug)]
pub struct Site<'a> {
    sandbox: &'a Sandbox,
    /// The app; version v1 is what workers run that nobody has told another.
    pub app: App,
    /// The daemon.
    pub daemon: Daemon<'a>,
    plan: Plan,
}

impl Plan {
    /// The ports of a pool, 0 or 1.
    #[must_use]
    pub fn ports(&self, pool: usize) -> RangeInclusive<u16> {
        FIRST[pool]..=FIRST[pool] + self.workers - 1
    }

    /// The configuration.
    #[must_use]
    pub fn text(&self, sandbox: &Sandbox, app: &App) -> String {
        let (root, callers) = (sandbox.root_cgroup().display(), sandbox.cgroup(Place::Callers));
        let nth = |pool: usize| if self.swapped { 1 - pool } else { pool };
        let range = |pool| format!("127.0.0.1:{}-{}", self.ports(nth(pool)).start(), self.ports(nth(pool)).end());
        let Self { bake, deploy, extra, .. } = self;
        [
            format!(
                "[daemon]\nsocket = {:?}\nstate = {:?}\n{}\n",
                Daemon::socket_of(sandbox),
                sandbox.state(),
                self.daemon
            ),
            format!("[kernel]\ncallers = \"{root}\"\nworkers = \"{root}\"\npins = {:?}\n", sandbox.pins()),
            self.metrics.map(|address| format!("[metrics]\nlisten = \"{address}\"\n")).unwrap_or_default(),
            format!("[service.web]\naddress = \"{ADDRESS}\"\nworkers = {:?}\ncallers = [{callers:?}]\n", range(0)),
            format!(
                "manager = {{ command = [\"/usr/bin/python3\", \"-sE\", {:?}, \"--port={{port}}\"], cgroup = {:?}, \
                 log = \"{}/log/{{port}}.log\", restart = {{ first = \"200ms\", most = \"1s\" }}, environment = \
                 {{ APP_DIR = {:?} }} }}\n",
                app.pages(),
                sandbox.cgroup(Place::Workers),
                sandbox.dir().display(),
                app.dir()
            ),
            format!("version = {{ request = \"GET /version\" }}\nwarm = {{ requests = [\"GET /\"]{} }}\n", self.warm),
            if self.without_deploy {
                String::new()
            } else {
                format!("deploy = {{ second = {:?}, bake = {bake:?}{deploy} }}\n", range(1))
            },
            format!("{extra}\n"),
        ]
        .concat()
    }
}

impl<'a> Site<'a> {
    /// Starts the daemon, which starts the first pool; all of it is up.
    pub fn start(sandbox: &'a Sandbox, plan: Plan) -> Result<Self> {
        Self::start_with(sandbox, plan, &[])
    }

    /// The same, with more in the daemon's environment.
    pub fn start_with(sandbox: &'a Sandbox, plan: Plan, environment: &[(&str, String)]) -> Result<Self> {
        let app = App::new(sandbox, &["v1", "v2"])?;
        let text = plan.text(sandbox, &app);
        let daemon = Daemon::start_with(sandbox, DeployerBin::find()?, &text, environment)?;
        let site = Self { sandbox, app, daemon, plan };
        if site.plan.without_deploy {
            let is_up = |worker: &Value| worker["phase"] == "up";
            let all_up = |service: &Value| service["workers"].as_array().is_some_and(|all| all.iter().all(is_up));
            site.wait_service("all workers are up", all_up)?;
        } else {
            site.wait("the first pool is up", |pools| pools[0]["up"] == site.plan.workers)?;
        }
        Ok(site)
    }

    /// Kills the daemon and starts another.
    pub fn restart_daemon(&mut self) -> Result<()> {
        self.daemon.process().kill()?;
        self.start_daemon()
    }

    /// Starts a daemon in place of one that has ended.
    pub fn start_daemon(&mut self) -> Result<()> {
        self.daemon = Daemon::start(self.sandbox, &self.plan.text(self.sandbox, &self.app))?;
        Ok(())
    }

    /// Has the daemon read another configuration: its answer, `deployer reload`'s.
    pub fn reload(&mut self, plan: &Plan) -> Result<()> {
        Daemon::write_config(self.sandbox, &plan.text(self.sandbox, &self.app))?;
        self.daemon.process().signal(rustix::process::Signal::HUP)
    }

    /// The processes that listen at a worker's port.
    pub fn pids(&self, port: u16) -> Result<Vec<u32>> {
        let wanted = format!("--port={port}");
        let of = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == wanted.as_bytes())
        };
        Ok(all_below(&self.sandbox.cgroup(Place::Workers))?.into_iter().filter(of).collect())
    }

    /// Waits until something holds for the service's status.
    pub fn wait_service(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        let until = Instant::now() + patient(Duration::from_secs(30));
        loop {
            let service = self.service()?;
            if holds(&service) {
                return Ok(service);
            }
            ensure!(Instant::now() < until, "{what}: not after a long time: {service}\n{}", self.daemon.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `deployer status --json`, of the service.
    pub fn service(&self) -> Result<Value> {
        let status: Value = serde_json::from_str(&self.must(&["status", "--json"])?).context("a status in JSON")?;
        let services = status["services"].as_array().context("services")?;
        services.iter().find(|service| service["name"] == "web").cloned().with_context(|| format!("no web: {status}"))
    }

    /// The two pools, as the status has them.
    pub fn pools(&self) -> Result<[Value; 2]> {
        let service = self.service()?;
        Ok([service["pools"][0].clone(), service["pools"][1].clone()])
    }

    /// The number of the pool that is current.
    pub fn current(&self) -> Result<usize> {
        Ok(usize::from(self.pools()?[1]["current"] == true))
    }

    /// Waits until something holds for the pools.
    pub fn wait(&self, what: &str, holds: impl Fn(&[Value; 2]) -> bool) -> Result<()> {
        let until = Instant::now() + patient(Duration::from_secs(30));
        loop {
            let pools = self.pools()?;
            if holds(&pools) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{what}: not after a long time: {pools:?}\n{}", self.daemon.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A verb: its exit code, and all that it printed.
    pub fn verb(&self, words: &[&str]) -> Result<(i32, String)> {
        let output = self.daemon.cli(words)?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        Ok((output.status.code().context("deployer was killed")?, text))
    }

    /// A verb that must work; what it printed.
    pub fn must(&self, words: &[&str]) -> Result<String> {
        match self.verb(words)? {
            (0, text) => Ok(text),
            (exit, text) => bail!("deployer {}: exit {exit}: {text}\n{}", words.join(" "), self.daemon.log()),
        }
    }

    /// `deployer deploy web --to VERSION`, to its end.
    pub fn deploy(&self, version: &str, more: &[&str]) -> Result<(i32, String)> {
        self.verb(&[&["deploy", "web", "--to", version, "--json"], more].concat())
    }

    /// The same, under way.
    pub fn deploying(&self, version: &str, more: &[&str]) -> Result<Child> {
        let words = [&["deploy", "web", "--to", version, "--json"], more].concat();
        let mut command = self.daemon.cli_command(&words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().context("start deployer deploy")
    }

    /// Waits until no deploy or roll is under way.
    pub fn wait_idle(&self) -> Result<()> {
        let until = Instant::now() + patient(Duration::from_secs(60));
        while !self.service()?["roll"].is_null() {
            ensure!(Instant::now() < until, "still under way\n{}", self.daemon.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// The processes in a cgroup and in all below it.
fn all_below(cgroup: &Path) -> Result<Vec<u32>> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).context("the workers' processes")?;
    let mut pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(cgroup).context("the workers' cgroup")?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // It may have gone meanwhile.
            pids.extend(all_below(&entry.path()).unwrap_or_default());
        }
    }
    Ok(pids)
}

/// What a verb that was spawned has come to: its exit code, and all that it printed.
pub fn ended(child: Child) -> Result<(i32, String)> {
    let output = child.wait_with_output().context("wait for deployer")?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok((output.status.code().context("deployer was killed")?, text))
}

/// The first event of a kind that a verb printed with `--json`.
pub fn event(said: &str, kind: &str) -> Option<Value> {
    let events = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.into_iter().find(|event| event["event"] == kind)
}
