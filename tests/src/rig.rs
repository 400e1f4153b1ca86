//! A service of small servers ([`crate::dial`]) under a daemon: enough to see what the kernel does with connections.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::ops::RangeInclusive;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::daemon::DeployerBin;
use crate::dial::Server;
use crate::http::{Request, Response};
use crate::pace::{SOON, patient};
use crate::process::{Process, run};
use crate::sandbox::{Place, Sandbox};

/// A manager that says of every worker that it runs, and names no process: whatever root has started is a worker.
pub const ANY_OF_ROOT_S: &str = "{ start = [\"/bin/true\", \"{port}\"], stop = [\"/bin/true\", \"{port}\"], \
                                 status = [\"/bin/true\", \"{port}\"] }";

/// What a daemon is told about its one service.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its name; also that of the daemon's socket and log.
    pub name: &'static str,
    /// Where the servers listen: `127.0.0.1`, or `::` for both families.
    pub host: &'static str,
    /// The workers' address in the configuration.
    pub at: &'static str,
    /// Whether the programs are attached to the cgroups of callers and workers, instead of to one above both.
    pub apart: bool,
    /// Ports of the workers.
    pub ports: RangeInclusive<u16>,
    /// Name of the journal's directory, if it is not to be the service's own.
    pub state: Option<&'static str>,
    /// `kernel.lease`.
    pub lease: &'static str,
    /// Who is steered; `None`: the sandbox's callers.
    pub callers: Option<Vec<PathBuf>>,
    /// `kernel.self_test`.
    pub self_test: &'static str,
    /// Its process manager, in TOML.
    pub manager: &'static str,
    /// More lines of the service.
    pub extra: &'static str,
    /// The daemon runs in a mount namespace of its own, in which these words for a shell are done first.
    pub mounts: Option<&'static str>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            name: "web",
            host: "127.0.0.1",
            at: "127.0.0.1",
            apart: false,
            ports: 8000..=8003,
            state: None,
            lease: "10s",
            callers: None,
            self_test: "60s",
            manager: ANY_OF_ROOT_S,
            extra: "",
            mounts: None,
        }
    }
}

impl Setup {
    /// The daemon's socket.
    fn socket(&self, sandbox: &Sandbox) -> PathBuf {
        sandbox.dir().join(format!("{}.sock", self.name))
    }

    /// The directory of the daemon's journal.
    fn state(&self, sandbox: &Sandbox) -> PathBuf {
        sandbox.dir().join(self.state.map_or_else(|| format!("state-{}", self.name), str::to_owned))
    }

    /// The configuration.
    fn text(&self, sandbox: &Sandbox) -> String {
        let cgroup = |place| if self.apart { sandbox.cgroup(place) } else { sandbox.root_cgroup().to_owned() };
        let callers = self.callers.clone().unwrap_or_else(|| vec![sandbox.cgroup(Place::Callers)]);
        let Self { name, at, ports, lease, self_test, manager, extra, .. } = self;
        format!(
            "[daemon]\nsocket = {:?}\nstate = {:?}\n[kernel]\ncallers = {:?}\nworkers = {:?}\nlease = {lease:?}\n\
             pins = {:?}\nself_test = {self_test:?}\n\
             [service.{name}]\nworkers = \"{at}:{}-{}\"\ncallers = {callers:?}\n\
             manager = {manager}\n{extra}\n",
            self.socket(sandbox),
            self.state(sandbox),
            cgroup(Place::Callers),
            cgroup(Place::Workers),
            self.pins(sandbox),
            ports.start(),
            ports.end(),
        )
    }

    /// Starts the servers, then the daemon, and waits until it steers.
    pub fn start(self, sandbox: &Sandbox) -> Result<Rig<'_>> {
        let servers = Server::start_all(sandbox, self.host, self.ports.clone())?;
        self.attach(sandbox, servers)
    }

    /// Starts the daemon of servers that run already.
    pub fn attach(self, sandbox: &Sandbox, servers: Vec<Server>) -> Result<Rig<'_>> {
        let daemon = self.daemon(sandbox, &DeployerBin::find()?)?;
        Ok(Rig { sandbox, setup: self, daemon, servers })
    }

    /// Where its daemon pins programs and tables.
    pub fn pins(&self, sandbox: &Sandbox) -> PathBuf {
        sandbox.pins().with_file_name(self.name)
    }

    /// The configuration file.
    fn file(&self, sandbox: &Sandbox) -> PathBuf {
        sandbox.dir().join(format!("{}.toml", self.name))
    }

    fn daemon(&self, sandbox: &Sandbox, bin: &DeployerBin) -> Result<Process> {
        let file = self.file(sandbox);
        std::fs::write(&file, self.text(sandbox)).context("write the configuration")?;
        let mut command = match self.mounts {
            None => bin.command(sandbox),
            Some(words) => {
                let mut command = sandbox.command(Place::Daemon, "unshare");
                command.args(["--mount", "--propagation", "private", "sh", "-e", "-c"]);
                command.arg(format!("{words}\nexec \"$@\"")).arg(sandbox.dir()).arg(bin.path());
                command
            }
        };
        command.arg("daemon").arg("--config").arg(file);
        let log = sandbox.dir().join(format!("{}.log", self.name));
        let mut process = Process::start("deployer daemon", command, &log)?;
        let socket = self.socket(sandbox);
        process.wait_ready(SOON, || status(&socket).is_ok())?;
        Ok(process)
    }
}

/// A service that runs. Declare the sandbox before it.
#[derive(Debug)]
pub struct Rig<'a> {
    sandbox: &'a Sandbox,
    setup: Setup,
    /// The daemon.
    pub daemon: Process,
    /// The workers, in the order of their ports.
    pub servers: Vec<Server>,
}

impl Rig<'_> {
    /// The daemon's status.
    pub fn status(&self) -> Result<Status> {
        status(&self.setup.socket(self.sandbox))
    }

    /// The service's status.
    pub fn service(&self) -> Result<Service> {
        self.status()?.services.into_iter().next().context("no service")
    }

    /// Waits for a self-test that ended like this, and is not one of those before.
    pub fn self_test(&self, result: &str) -> Result<SelfTest> {
        let runs = self.status()?.self_test.map_or(0, |test| test.runs);
        let last = || Ok::<_, anyhow::Error>(self.status()?.self_test);
        let is = |test: &SelfTest| test.result == result && test.runs > runs;
        wait(&format!("a self-test that ends as {result}"), || Ok(last()?.as_ref().is_some_and(is)))
            .with_context(|| format!("{:?}\n{}", last(), self.daemon.log_tail()))?;
        last()?.context("no self-test")
    }

    /// A worker's status.
    pub fn worker(&self, port: u16) -> Result<Worker> {
        self.service()?.workers.remove(&port).with_context(|| format!("no worker {port}"))
    }

    /// `deployer VERB ...`, to be started.
    pub fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = DeployerBin::find()?.command(self.sandbox);
        command.arg("--socket").arg(self.setup.socket(self.sandbox)).args(words);
        Ok(command)
    }

    /// The same: its exit code, and all that it printed.
    pub fn verb(&self, words: &[&str]) -> Result<(i32, String)> {
        let output = self.command(words)?.output().context("run deployer")?;
        let text = [output.stdout, output.stderr].concat();
        let exit = output.status.code().context("deployer was killed")?;
        Ok((exit, String::from_utf8_lossy(&text).into_owned()))
    }

    /// A verb that must work; what it printed.
    pub fn must(&self, words: &[&str]) -> Result<String> {
        match self.verb(words)? {
            (0, text) => Ok(text),
            (exit, text) => bail!("deployer {}: exit {exit}: {text}", words.join(" ")),
        }
    }

    /// `deployer drain`, which must work.
    pub fn drain(&self, port: u16) -> Result<()> {
        self.must(&["drain", self.setup.name, &port.to_string()]).map(drop)
    }

    /// The same where too few others would be up.
    pub fn drain_by_force(&self, port: u16) -> Result<()> {
        self.must(&["drain", self.setup.name, &port.to_string(), "--force"]).map(drop)
    }

    /// `deployer enable`, which must work.
    pub fn enable(&self, port: u16) -> Result<()> {
        self.must(&["enable", self.setup.name, &port.to_string()]).map(drop)
    }

    /// Waits until a worker is in a phase.
    pub fn wait_phase(&self, port: u16, phase: &str) -> Result<()> {
        self.wait_worker(port, phase, |worker| worker.phase == phase)
    }

    /// Waits until something holds for a worker.
    pub fn wait_worker(&self, port: u16, what: &str, holds: impl Fn(&Worker) -> bool) -> Result<()> {
        wait(&format!("worker {port}: {what}"), || Ok(holds(&self.worker(port)?))).map(drop)
    }

    /// The open connections of the workers, in the order of their ports, as the status and as `ss` see them: both as
    /// expected, as soon as the kernel has shut what was closed.
    pub fn compare(&self, what: &str, expected: impl AsRef<[u64]>) -> Result<()> {
        let expected = expected.as_ref();
        let open = || Ok::<Vec<u64>, anyhow::Error>(self.service()?.workers.values().map(|w| w.open).collect());
        let took = wait(&format!("{what}: {expected:?} open"), || Ok(open()? == expected));
        let seen = self.setup.ports.clone().map(|port| ss(self.sandbox, port)).collect::<Result<Vec<_>>>()?;
        let open = open()?;
        eprintln!("{what}: open {open:?}, ss {seen:?}, {took:.0?}");
        ensure!(open == expected && seen == expected, "{what}: open {open:?}, ss {seen:?}, expected {expected:?}");
        Ok(())
    }

    /// Does something in the daemon's mount namespace.
    pub fn in_mounts(&self, words: &str) -> Result<()> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.daemon.pid())).args(["sh", "-e", "-c", words]);
        run(command.arg(self.sandbox.dir())).map(drop)
    }

    /// Kills the daemon (SIGKILL). What it has put into the kernel stays.
    pub fn kill_daemon(&mut self) -> Result<()> {
        self.daemon.kill().map(drop)
    }

    /// Starts a daemon in place of one that has ended, and waits until it answers.
    pub fn succeed(&mut self) -> Result<()> {
        self.succeed_by(&DeployerBin::find()?)
    }

    /// The same, differently configured.
    pub fn succeed_with(&mut self, change: impl FnOnce(&mut Setup)) -> Result<()> {
        change(&mut self.setup);
        self.succeed()
    }

    /// The same, of another version.
    pub fn succeed_by(&mut self, bin: &DeployerBin) -> Result<()> {
        self.daemon = self.setup.daemon(self.sandbox, bin)?;
        Ok(())
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.setup.file(self.sandbox)
    }

    /// The pins of its daemon.
    pub fn pins(&self) -> PathBuf {
        self.setup.pins(self.sandbox)
    }

    /// The directory of the daemon's journal.
    pub fn state(&self) -> PathBuf {
        self.setup.state(self.sandbox)
    }

    /// Takes out of the kernel what a daemon that has ended has left there.
    pub fn detach_offline(&self) -> Result<()> {
        self.must(&["detach", "--pins", &self.setup.pins(self.sandbox).display().to_string()]).map(drop)
    }

    /// Kills a worker and waits until the daemon has noticed.
    pub fn stop_worker(&mut self, port: u16) -> Result<()> {
        let index = self.servers.iter().position(|server| server.port == port).context("no such server")?;
        self.servers.remove(index).stop()?;
        self.wait_phase(port, "down")
    }

    /// Starts a worker, and does not wait for the daemon.
    pub fn start_worker(&mut self, port: u16) -> Result<()> {
        self.servers.push(Server::start(self.sandbox, self.setup.host, port)?);
        Ok(())
    }
}

/// Tries until it holds, 30 s at most, longer on a slow machine; says how long that took.
pub fn wait(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let (begun, limit) = (Instant::now(), patient(Duration::from_secs(30)));
    while !holds()? {
        if begun.elapsed() > limit {
            bail!("waited {limit:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(begun.elapsed())
}

/// Connections at a worker's end, as `ss` sees them.
pub fn ss(sandbox: &Sandbox, port: u16) -> Result<u64> {
    let mut command = sandbox.command(Place::Outside, "ss");
    command.args(["-tnH", "state", "established", "state", "close-wait", "sport", "=", &format!(":{port}")]);
    Ok(run(&mut command)?.lines().count() as u64)
}

/// The status, asked as the command line does, without starting a process: it is asked often.
fn status(socket: &Path) -> Result<Status> {
    let mut stream = UnixStream::connect(socket).context("connect to the daemon")?;
    stream.set_read_timeout(Some(patient(Duration::from_secs(10))))?;
    stream.write_all(&Request::get("/v1/status").encode()).context("send to the daemon")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("the daemon's answer")?;
    let answer = Response::parse(&answer)?;
    serde_json::from_str(&answer.body).with_context(|| format!("status {}", answer.body))
}

/// What `deployer status --json` says, as far as it is looked at here.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// Whether programs are attached.
    pub attached: bool,
    /// Whether all services are bypassed.
    pub bypassed: bool,
    /// The last self-test.
    pub self_test: Option<SelfTest>,
    /// What must not be overlooked.
    pub trouble: Vec<String>,
    services: Vec<Service>,
}

/// A self-test.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[expect(missing_docs, reason = "named and explained in the daemon's api.rs")]
pub struct SelfTest {
    pub result: String,
    pub detail: String,
    pub runs: u64,
    pub failures: u64,
}

/// A service.
#[derive(Clone, Debug, Deserialize)]
pub struct Service {
    /// `enforce`, `observe`, `bypass`.
    pub mode: String,
    /// By port.
    #[serde(deserialize_with = "by_port")]
    pub workers: BTreeMap<u16, Worker>,
    /// Refused, since nobody was left.
    pub exhausted: u64,
    /// Of callers that are not steered.
    pub unsteered: u64,
    /// To the service address.
    pub dialled: u64,
    /// Observed only.
    pub would_change: u64,
}

impl Service {
    /// A counter over all workers.
    pub fn sum(&self, counter: impl Fn(&Worker) -> u64) -> u64 {
        self.workers.values().map(counter).sum()
    }
}

/// A worker.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[expect(missing_docs, reason = "named and explained in the daemon's api.rs")]
pub struct Worker {
    pub at: std::net::SocketAddr,
    pub phase: String,
    pub reason: String,
    pub open: u64,
    pub tickets: u64,
    pub established: u64,
    pub direct: u64,
    pub away: u64,
    pub steered: u64,
    pub picked: u64,
    pub refused: u64,
    pub fallback_draining: u64,
    pub fallback_cold: u64,
    pub fallback_floor: u64,
    #[serde(default)]
    pub closed_port: u64,
    pub late: u64,
    pub to_cold: u64,
    pub failed: u64,
    pub reset: u64,
    pub crashes: u64,
    pub cut: u64,
}

fn by_port<'de, D: serde::Deserializer<'de>>(input: D) -> Result<BTreeMap<u16, Worker>, D::Error> {
    let workers = Vec::<Worker>::deserialize(input)?;
    Ok(workers.into_iter().map(|worker| (worker.at.port(), worker)).collect())
}
