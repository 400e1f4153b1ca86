//! A host of a fleet: a network namespace with a daemon, its two pools of workers, and nginx.

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::Plan;
use super::network::{Hub, lose_hub};
use crate::app::App;
use crate::daemon::{Daemon, DeployerBin};
use crate::nginx::Nginx;
use crate::pace::{SOON, patient};
use crate::process::{Process, run};
use crate::sandbox::{Place, Sandbox, unmount_below};

/// One host, off at first.
#[derive(Debug)]
pub struct Host {
    /// From 1.
    pub number: u8,
    /// `h1`, as in the fleet, and as its cable.
    pub name: String,
    daemon: Option<Process>,
    nginx: Option<Nginx>,
    /// The workers' app; v1 is what they run that nobody has told another.
    pub app: App,
    bin: DeployerBin,
    config: String,
    hub: Hub,
    /// Last: what runs in it goes before it.
    pub sandbox: Sandbox,
}

impl Host {
    /// Makes the host's namespace and lays its cable; nothing runs in it yet.
    pub fn new(hub: &Hub, plan: &Plan, number: u8) -> Result<Self> {
        let name = format!("h{number}");
        let sandbox = Sandbox::new(&format!("fleet_{name}"))?;
        hub.join(&name, &sandbox, address(number))?;
        let app = App::new(&sandbox, &["v1"])?;
        let config = plan.text(&sandbox, &app, &name, at(number));
        let bin = DeployerBin::find()?;
        let host = Self { number, name, daemon: None, nginx: None, app, bin, config, hub: hub.clone(), sandbox };
        host.set_clock(0, true)?;
        Ok(host)
    }

    /// Where its nginx listens, which the fleet publishes.
    #[must_use]
    pub fn published(&self) -> SocketAddr {
        at(self.number)
    }

    /// Starts what is not running of the daemon and nginx. The daemon answers; workers may not be up yet.
    pub fn start(&mut self) -> Result<()> {
        if self.daemon.is_none() {
            self.start_daemon(&[])?;
        }
        if self.nginx.is_none() {
            let mut lb = self.bin.command(&self.sandbox);
            lb.args(["lb", "nginx", "web", "--config"]).arg(Daemon::config_of(&self.sandbox));
            self.nginx = Some(Nginx::start_lanes_at(&self.sandbox, self.published(), &run(&mut lb)?)?);
        }
        Ok(())
    }

    /// Starts a daemon where none runs, with more in its environment, and waits until its socket answers.
    pub fn start_daemon(&mut self, environment: &[(&str, String)]) -> Result<()> {
        ensure!(self.daemon.is_none(), "the daemon of {} runs already", self.name);
        let file = Daemon::write_config(&self.sandbox, &self.config)?;
        let mut command = self.bin.command(&self.sandbox);
        command.env("DEPLOYER_CLOCK", self.clock_file());
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.arg("daemon").arg("--config").arg(file);
        let log = self.sandbox.dir().join("deployer.log");
        let mut process = Process::start(&format!("the daemon of {}", self.name), command, &log)?;
        let socket = Daemon::socket_of(&self.sandbox);
        process.wait_ready(SOON, || UnixStream::connect(&socket).is_ok())?;
        self.daemon = Some(process);
        Ok(())
    }

    /// `kill -9` of the daemon; all else of the host goes on.
    pub fn kill_daemon(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().with_context(|| format!("no daemon runs on {}", self.name))?;
        daemon.kill().map(drop)
    }

    /// SIGTERM to the daemon.
    pub fn stop_daemon(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().with_context(|| format!("no daemon runs on {}", self.name))?;
        daemon.stop(Duration::from_secs(30)).map(drop)
    }

    /// A signal to the daemon: SIGSTOP, SIGHUP.
    pub fn signal_daemon(&mut self, signal: Signal) -> Result<()> {
        self.daemon.as_mut().with_context(|| format!("no daemon runs on {}", self.name))?.signal(signal)
    }

    /// Whether a daemon runs.
    #[must_use]
    pub fn has_daemon(&self) -> bool {
        self.daemon.is_some()
    }

    /// As if its power were cut: all its processes go, and what was in its kernel. Its disk is as it was.
    pub fn power_off(&mut self) -> Result<()> {
        // Its cgroups first, and then the handles of what has ended.
        Place::ALL.iter().try_for_each(|place| self.sandbox.kill_place(*place))?;
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
        }
        self.nginx = None;
        unmount_below(self.sandbox.dir())
    }

    /// Takes away all that its daemon has written; only of a host that is off.
    pub fn wipe(&self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the daemon of {} runs", self.name);
        match fs::remove_dir_all(self.sandbox.state()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("remove the daemon's state"),
            _ => Ok(()),
        }
    }

    /// Pulls its plug: nobody reaches it, and it reaches nobody.
    pub fn cut(&self) -> Result<()> {
        self.hub.plug(&self.name, false)
    }

    /// Puts the plug back.
    pub fn plug(&self) -> Result<()> {
        self.hub.plug(&self.name, true)
    }

    /// Loses its packets to and from ZooKeeper only, or no more.
    pub fn lose_zookeeper(&self, is_lost: bool) -> Result<()> {
        lose_hub(&self.sandbox, is_lost)
    }

    /// What its daemon's clock says from now on: by how much the wall clock is wrong, and whether it is synchronised.
    pub fn set_clock(&self, offset_ms: i64, is_synchronised: bool) -> Result<()> {
        let (file, new) = (self.clock_file(), self.sandbox.dir().join("clock.new"));
        fs::write(&new, format!("offset_ms = {offset_ms}\nsynchronised = {is_synchronised}\n")).context("the clock")?;
        fs::rename(new, file).context("the clock")
    }

    fn clock_file(&self) -> PathBuf {
        self.sandbox.dir().join("clock")
    }

    /// What its daemons have printed.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read(self.sandbox.dir().join("deployer.log")).unwrap_or_default();
        format!("== {}\n{}", self.name, String::from_utf8_lossy(&log))
    }

    /// `deployer` with this host's socket, not yet started.
    pub fn cli(&self, words: &[&str]) -> Command {
        let mut command = self.bin.command(&self.sandbox);
        command.arg("--socket").arg(Daemon::socket_of(&self.sandbox)).args(words).stdin(Stdio::null());
        command
    }

    /// A verb, to its end: its exit code, and all that it printed.
    pub fn verb(&self, words: &[&str]) -> Result<(i32, String)> {
        let output = self.cli(words).output().context("run deployer")?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        Ok((output.status.code().context("deployer was killed")?, text))
    }

    /// A verb that must work; what it printed.
    pub fn must(&self, words: &[&str]) -> Result<String> {
        match self.verb(words)? {
            (0, text) => Ok(text),
            (exit, text) => {
                bail!("{}: deployer {}: exit {exit}: {text}\n{}", self.name, words.join(" "), self.log())
            }
        }
    }

    /// A verb under way; [`crate::site::ended`] waits for it.
    pub fn spawn(&self, words: &[&str]) -> Result<Child> {
        self.cli(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start deployer")
    }

    /// `deployer status --json`, of the service.
    pub fn service(&self) -> Result<Value> {
        let status: Value = serde_json::from_str(&self.must(&["status", "--json"])?).context("a status in JSON")?;
        Ok(status["services"][0].clone())
    }

    /// The pool that is current, as the status has it.
    pub fn current(&self) -> Result<Value> {
        let service = self.service()?;
        let pools = service["pools"].as_array().context("no pools in the status")?;
        pools
            .iter()
            .find(|pool| pool["current"] == true)
            .cloned()
            .with_context(|| format!("none is current: {service}"))
    }

    /// Waits until something holds for the service's status; up to 60 s, longer on a slow machine.
    pub fn wait(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        let until = Instant::now() + patient(Duration::from_secs(60));
        loop {
            // A daemon that has just come may be busy.
            let seen = self.service();
            match &seen {
                Ok(service) if holds(service) => return seen,
                _ => {}
            }
            ensure!(Instant::now() < until, "{}: {what}: not after a long time: {seen:?}\n{}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until all workers of the current pool are up.
    pub fn wait_up(&self, workers: u16) -> Result<()> {
        let is_up = |service: &Value| {
            let pools = service["pools"].as_array();
            pools.is_some_and(|pools| pools.iter().any(|pool| pool["current"] == true && pool["up"] == workers))
        };
        self.wait("its workers are up", is_up).map(drop)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Not asked to end: nobody wants to wait for five of them.
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().ok();
        }
    }
}

/// A host's address, 10.77.0.11 for the first.
#[must_use]
pub fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + number)
}

fn at(number: u8) -> SocketAddr {
    SocketAddr::from((address(number), 8080))
}
