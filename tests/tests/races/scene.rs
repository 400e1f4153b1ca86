//! Workers that say whether they are warm (`racer.py`), run by the daemon's own manager, so that they can be rolled.

use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer_tests::api::{Api, Roll};
use deployer_tests::app::App;
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::dial::{Dial, PYTHON};
use deployer_tests::rig::ss;
use deployer_tests::sandbox::{Place, Sandbox};
use serde_json::Value;

use super::racer::script;

/// The workers' ports.
pub(crate) const PORTS: RangeInclusive<u16> = 8000..=8003;
/// Given to everything that should happen soon: a slow machine, with others at work.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// `tcp_fastopen`: client and server, without cookies (Documentation/networking/ip-sysctl.rst).
pub(crate) const FAST_OPEN: u32 = 0x1 | 0x2 | 0x4 | 0x200;

/// How the workers are run, and who is steered.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Where they listen.
    pub(crate) host: &'static str,
    /// Their address in the configuration.
    pub(crate) at: &'static str,
    /// More words for `racer.py serve`.
    pub(crate) words: &'static [&'static str],
    /// Who is steered.
    pub(crate) callers: &'static [Place],
    /// The service.
    pub(crate) service: ServiceConfig,
}

impl Default for Setup {
    fn default() -> Self {
        let service = ServiceConfig { batch: "1".to_owned(), ..ServiceConfig::default() };
        Self { host: "127.0.0.1", at: "127.0.0.1", words: &[], callers: &[Place::Callers], service }
    }
}

/// A service that can be rolled. Declare the sandbox before it.
pub(crate) struct Scene<'a> {
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) daemon: Daemon<'a>,
}

impl Setup {
    /// Starts the daemon, which starts the workers; waits until all are up.
    pub(crate) fn start(self, sandbox: &Sandbox) -> Result<Scene<'_>> {
        let app = App::new(sandbox, &["v1", "v2"])?;
        let workers = format!("{}:{}-{}", self.at, PORTS.start(), PORTS.end());
        let text = self.service.text_of(sandbox, &app, &workers, &self.manager(sandbox, &app)?);
        let usual = format!("callers = [{:?}]", sandbox.cgroup(Place::Callers));
        let callers: Vec<_> = self.callers.iter().map(|place| sandbox.cgroup(*place)).collect();
        let scene = Scene {
            sandbox,
            daemon: Daemon::start(sandbox, &text.replace(&usual, &format!("callers = {callers:?}")))?,
        };
        scene.all_up().with_context(|| scene.daemon.log())?;
        Ok(scene)
    }

    fn manager(&self, sandbox: &Sandbox, app: &App) -> Result<String> {
        let script = script(sandbox)?.display().to_string();
        let words = [PYTHON, "-s", "-S", &script, "serve", self.host, "{port}"];
        let command: Vec<_> = words.iter().chain(self.words).collect();
        let (cgroup, dir, app) = (sandbox.cgroup(Place::Workers), sandbox.dir().display(), app.dir());
        Ok(format!(
            "{{ command = {command:?}, cgroup = {cgroup:?}, log = \"{dir}/log/{{port}}.log\", \
             restart = {{ first = \"200ms\", most = \"1s\" }}, environment = {{ APP_DIR = {app:?} }} }}"
        ))
    }
}

/// A connection on which a worker is asked who it is.
pub(crate) fn asking(to: &str, port: u16) -> Dial<'_> {
    Dial { ask: Some("?"), ..Dial::to(to, port) }
}

impl Scene<'_> {
    /// The daemon's API.
    pub(crate) fn api(&self) -> Api {
        Api::of(self.sandbox)
    }

    /// What the status says of a worker.
    pub(crate) fn worker(&self, port: u16) -> Result<Value> {
        self.api().workers()?.remove(&port).with_context(|| format!("no worker {port}"))
    }

    /// A number that the status has of each worker, by port.
    pub(crate) fn numbers(&self, key: &str) -> Result<BTreeMap<u16, u64>> {
        let number = |(port, worker): (u16, Value)| Ok((port, worker[key].as_u64().with_context(|| key.to_owned())?));
        self.api().workers()?.into_iter().map(number).collect()
    }

    /// Waits until it is so.
    pub(crate) fn wait(&self, what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<Duration> {
        let begun = Instant::now();
        while !is()? {
            ensure!(begun.elapsed() < SOON, "waited in vain for {what}: {:?}", self.api().workers());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(begun.elapsed())
    }

    /// Waits until every worker is up.
    pub(crate) fn all_up(&self) -> Result<()> {
        self.wait("all to be up", || {
            // A daemon that is only just starting says nothing yet.
            let phases = self.api().phases().unwrap_or_default();
            Ok(phases.len() == PORTS.count() && phases.values().all(|phase| phase == "up"))
        })
        .map(drop)
    }

    /// Waits until connections are counted as `ss` sees them, and nobody is on the way.
    pub(crate) fn counts_are_right(&self, what: &str) -> Result<BTreeMap<u16, u64>> {
        let seen = || PORTS.map(|port| Ok((port, ss(self.sandbox, port)?))).collect::<Result<BTreeMap<_, _>>>();
        let took = self.wait("counts as ss has them", || Ok(self.numbers("open")? == seen()?))?;
        let (open, tickets) = (self.numbers("open")?, self.numbers("tickets")?);
        eprintln!("{what}: open {open:?}, as ss sees them after {took:.0?}; tickets {:?}", tickets.values());
        ensure!(tickets.values().all(|tickets| *tickets == 0), "tickets {tickets:?}");
        Ok(open)
    }

    /// `deployer drain` or `deployer enable`, by the API.
    pub(crate) fn by_hand(&self, verb: &str, port: u16) -> Result<()> {
        self.api().ask("POST", &format!("/v1/services/web/{verb}"), &format!("{{\"port\": {port}}}")).map(drop)
    }

    /// Begins `deployer roll web --to v2`.
    pub(crate) fn roll(&self) -> Result<Roll> {
        let mut command = self.daemon.cli_command(&["roll", "web", "--to", "v2", "--json"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Roll::by(command.spawn().context("start deployer roll")?)
    }

    /// The process ids of the workers, by port.
    pub(crate) fn pids(&self) -> Result<BTreeMap<u16, u32>> {
        let pid = |port: u16| {
            let procs = self.sandbox.cgroup(Place::Workers).join(format!("web/{port}/cgroup.procs"));
            let text = fs::read_to_string(&procs).with_context(|| procs.display().to_string())?;
            Ok((port, text.trim().parse().with_context(|| format!("processes of {port}: {text:?}"))?))
        };
        PORTS.map(pid).collect()
    }
}

/// Writes a setting of a network namespace, `net/ipv4/tcp_fastopen` say.
pub(crate) fn set(sandbox: &Sandbox, name: &str, value: &str) -> Result<()> {
    let file = Path::new("/proc/sys").join(name);
    sandbox.in_netns(|| fs::write(&file, value))?.with_context(|| format!("{name} = {value}"))
}
