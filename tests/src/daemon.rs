//! The `deployer` binary: its daemon and its command line, both in the sandbox.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::api::Api;
use crate::app::App;
use crate::pace::{SOON, patient};
use crate::process::Process;
use crate::sandbox::{Place, Sandbox};
use crate::supervisor::Supervisor;

/// Where the binary under test is.
#[derive(Clone, Debug)]
pub struct DeployerBin(PathBuf);

impl DeployerBin {
    /// `$DEPLOYER_BIN`, or `deployer` beside this executable, or one directory up (tests run in `deps/`).
    pub fn find() -> Result<Self> {
        if let Some(path) = std::env::var_os("DEPLOYER_BIN") {
            let path = PathBuf::from(path);
            if !path.is_file() {
                bail!("DEPLOYER_BIN={}: no such file", path.display());
            }
            return Ok(Self(path));
        }
        let this = std::env::current_exe().context("this executable")?;
        let found = this.ancestors().skip(1).take(2).map(|dir| dir.join("deployer")).find(|path| path.is_file());
        found.map(Self).with_context(|| {
            let this = this.display();
            format!("no `deployer` near {this}: run `cargo build -p deployer` or set DEPLOYER_BIN")
        })
    }

    /// The same source, built with a feature of crate deployer: `deployer-FEATURE` beside the binary under test.
    pub fn variant(feature: &str) -> Result<Self> {
        let usual = Self::find()?.0;
        let path = usual.with_file_name(format!("deployer-{feature}"));
        if !path.is_file() {
            let (shown, usual) = (path.display(), usual.display());
            bail!("no {shown}: cargo build -p deployer --features {feature}, and copy what it makes ({usual}) there");
        }
        Ok(Self(path))
    }

    /// This very file.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A command that runs the binary in [`Place::Daemon`].
    pub fn command(&self, sandbox: &Sandbox) -> Command {
        sandbox.command(Place::Daemon, &self.0)
    }
}

/// The usual warm-up: each page of the app, three times.
const WARM: &str = "requests = [\"GET /\", \"GET /pin/1\"], repeat = 3";

/// A running daemon.
#[derive(Debug)]
pub struct Daemon<'a> {
    sandbox: &'a Sandbox,
    bin: DeployerBin,
    process: Process,
}

impl<'a> Daemon<'a> {
    /// Where the daemon of a sandbox has its socket.
    pub fn socket_of(sandbox: &Sandbox) -> PathBuf {
        sandbox.dir().join("deployer.sock")
    }

    /// Starts `deployer daemon` with this configuration and waits until its socket answers.
    pub fn start(sandbox: &'a Sandbox, config: &str) -> Result<Self> {
        Self::start_bin(sandbox, DeployerBin::find()?, config)
    }

    /// Like [`Self::start`], with another binary: for upgrades, and for the harness's own tests.
    pub fn start_bin(sandbox: &'a Sandbox, bin: DeployerBin, config: &str) -> Result<Self> {
        Self::start_with(sandbox, bin, config, &[])
    }

    /// Like [`Self::start_bin`], with more in its environment.
    pub fn start_with(
        sandbox: &'a Sandbox,
        bin: DeployerBin,
        config: &str,
        environment: &[(&str, String)],
    ) -> Result<Self> {
        let file = Self::write_config(sandbox, config)?;
        let mut command = bin.command(sandbox);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.arg("daemon").arg("--config").arg(file);
        let log = sandbox.dir().join("deployer.log");
        let mut process = Process::start("deployer daemon", command, &log)?;
        let socket = Self::socket_of(sandbox);
        process.wait_ready(SOON, || UnixStream::connect(&socket).is_ok())?;
        Ok(Self { sandbox, bin, process })
    }

    /// Where the configuration file is.
    #[must_use]
    pub fn config_of(sandbox: &Sandbox) -> PathBuf {
        sandbox.dir().join("deployer.toml")
    }

    /// Writes the configuration file, for a reload (SIGHUP) too, and returns its path.
    pub fn write_config(sandbox: &Sandbox, config: &str) -> Result<PathBuf> {
        let file = Self::config_of(sandbox);
        fs::write(&file, config).context("write deployer.toml")?;
        Ok(file)
    }

    /// The daemon's process, for signals, its exit and its log.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its API.
    pub fn api(&self) -> Api {
        Api::of(self.sandbox)
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What the daemon has printed.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// `deployer --socket SOCKET ARGUMENTS...`, not yet started.
    pub fn cli_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.bin.command(self.sandbox);
        command.arg("--socket").arg(Self::socket_of(self.sandbox)).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a verb to its end.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        self.cli_command(arguments).output().context("run deployer")
    }

    /// Starts a verb, with its output in pipes; `wait_with_output()` ends it.
    pub fn cli_spawn(&self, arguments: &[&str]) -> Result<Child> {
        let mut command = self.cli_command(arguments);
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().context("start deployer")
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.stop(Duration::from_secs(30))
    }
}

/// The configuration of the usual service, `web`; fields hold TOML values where they are strings for TOML.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// More lines of `[daemon]`, `[kernel]` comes after them.
    pub daemon_extra: String,
    /// Where Prometheus finds the daemon's figures, if it does.
    pub metrics: Option<SocketAddr>,
    /// The service address, if it has one.
    pub address: Option<String>,
    /// `mode`: `observe`, say.
    pub mode: Option<String>,
    /// `drain.policy`.
    pub policy: &'static str,
    /// `drain.deadline`.
    pub deadline: &'static str,
    /// `drain.on_deadline`.
    pub on_deadline: &'static str,
    /// More of `drain`: `leave_max`, `quiet_after`.
    pub drain: &'static str,
    /// `roll.batch` in TOML: `2` or `"25%"`.
    pub batch: String,
    /// `roll.surge`; the spares are in `extra`.
    pub surge: usize,
    /// `roll.max_failures`.
    pub max_failures: u32,
    /// `roll.on_failure`.
    pub on_failure: &'static str,
    /// The version that `roll.unswitch` goes back to, if there is one.
    pub unswitch_to: Option<String>,
    /// `warm.within`; longer on a slow machine.
    pub warm_within: Duration,
    /// What else of `warm`.
    pub warm: &'static str,
    /// More lines of `[service.web]`.
    pub extra: String,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            daemon_extra: String::new(),
            metrics: None,
            address: None,
            mode: None,
            policy: "steer",
            deadline: "60s",
            on_deadline: "stop-roll",
            drain: "",
            batch: "2".to_owned(),
            surge: 0,
            max_failures: 1,
            on_failure: "stop",
            unswitch_to: None,
            warm_within: Duration::from_secs(20),
            warm: WARM,
            extra: String::new(),
        }
    }
}

impl ServiceConfig {
    /// The file's text. Programs are attached to the sandbox's cgroup only.
    pub fn text(&self, sandbox: &Sandbox, app: &App, supervisor: &Supervisor<'_>) -> String {
        let ports = supervisor.ports();
        let workers = format!("{}-{}", supervisor.address(*ports.start()), ports.end());
        let (socket, program) = (supervisor.socket(), supervisor.program_pattern());
        let manager = format!("{{ supervisord = {socket:?}, program = {program:?} }}");
        self.text_of(sandbox, app, &workers, &manager)
    }

    /// The same for workers 127.0.0.1:8000 to 8003 that the daemon starts itself, in [`Place::Workers`].
    pub fn text_built_in(&self, sandbox: &Sandbox, app: &App) -> String {
        let (worker, cgroup, dir) = (app.worker(), sandbox.cgroup(Place::Workers), sandbox.dir().display());
        let manager = format!(
            "{{ command = [\"/usr/bin/python3\", \"-sE\", {worker:?}, \"--port={{port}}\"], cgroup = {cgroup:?}, \
             log = \"{dir}/log/{{port}}.log\", restart = {{ first = \"200ms\", most = \"1s\" }}, environment = \
             {{ APP_DIR = {:?}, IMPORT_SECONDS = \"0.3\", COLD_SECONDS = \"0.05\" }} }}",
            app.dir()
        );
        self.text_of(sandbox, app, "127.0.0.1:8000-8003", &manager)
    }

    /// The same for workers that supervisord has nothing to do with; `workers` as `127.0.0.1:8000-8003`, `manager` in TOML.
    pub fn text_of(&self, sandbox: &Sandbox, app: &App, workers: &str, manager: &str) -> String {
        let socket = Daemon::socket_of(sandbox);
        let root = sandbox.root_cgroup().display();
        let callers = sandbox.cgroup(Place::Callers);
        let line = |key: &str, value: &Option<String>| match value {
            Some(value) => format!("{key} = {value:?}\n"),
            None => String::new(),
        };
        let lines = [
            format!("[daemon]\nsocket = {socket:?}\nstate = {:?}\n{}", sandbox.state(), self.daemon_extra),
            format!("[kernel]\ncallers = \"{root}\"\nworkers = \"{root}\"\npins = {:?}\n", sandbox.pins()),
            self.metrics.map(|address| format!("[metrics]\nlisten = \"{address}\"\n")).unwrap_or_default(),
            "[service.web]\n".to_owned(),
            line("address", &self.address),
            line("mode", &self.mode),
            format!("workers = {workers:?}\n"),
            format!("callers = [{callers:?}]\n"),
            format!("manager = {manager}\n"),
            self.drain_line(),
            self.roll_line(app),
            self.warm_lines(),
            format!("{}\n", self.extra),
        ];
        lines.concat()
    }

    fn drain_line(&self) -> String {
        let (policy, deadline, on_deadline) = (self.policy, self.deadline, self.on_deadline);
        let more = if self.drain.is_empty() { String::new() } else { format!(", {}", self.drain) };
        format!("drain = {{ policy = {policy:?}, deadline = {deadline:?}, on_deadline = {on_deadline:?}{more} }}\n")
    }

    fn roll_line(&self, app: &App) -> String {
        let (batch, max_failures, on_failure) = (&self.batch, self.max_failures, self.on_failure);
        let switch = app.switch_command();
        let surge = if self.surge > 0 { format!(", surge = {}", self.surge) } else { String::new() };
        let unswitch = self.unswitch_to.as_ref().map(|version| {
            let command = switch.clone().map(|word| word.replace("{version}", version));
            format!(", unswitch = {command:?}")
        });
        let unswitch = unswitch.unwrap_or_default();
        format!(
            "roll = {{ batch = {batch}, max_failures = {max_failures}, on_failure = {on_failure:?}, \
             switch = {switch:?}{unswitch}{surge} }}\n"
        )
    }

    fn warm_lines(&self) -> String {
        let (within, warm) = (patient(self.warm_within).as_secs(), self.warm);
        format!(
            "warm = {{ {warm}, within = \"{within}s\" }}\n\
             version = {{ request = \"GET /version\" }}\n"
        )
    }
}
