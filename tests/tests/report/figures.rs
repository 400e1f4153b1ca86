//! A service, a load, and the report as any program may read it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer_tests::api::Api;
use deployer_tests::app::App;
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::journal::Journal;
use deployer_tests::load::{Load, LoadHandle};
use deployer_tests::nginx::{Nginx, Upstream};
use deployer_tests::sandbox::Sandbox;
use deployer_tests::supervisor::{Options, Supervisor};
use serde_json::Value;

/// Workers under supervisord, nginx, a daemon that knows all versions; no load yet.
pub(crate) struct Scene<'a> {
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) app: App,
    pub(crate) supervisor: Supervisor<'a>,
    pub(crate) nginx: Nginx,
    pub(crate) daemon: Daemon<'a>,
    pub(crate) config: String,
}

impl<'a> Scene<'a> {
    pub(crate) fn new(sandbox: &'a Sandbox, workers: u16, config: &ServiceConfig) -> Result<Self> {
        let ports = 8000..=8000 + workers - 1;
        let app = App::new(sandbox, &["v1", "v2"])?;
        let options = Options { import_seconds: 0.3, cold_seconds: 0.05, ..Options::ports(ports.clone()) };
        let supervisor = Supervisor::start(sandbox, &app, options)?;
        supervisor.wait_up()?;
        supervisor.warm()?;
        let nginx = Nginx::start(sandbox, &Upstream::workers(ports, ""))?;
        let config = config.text(sandbox, &app, &supervisor);
        let daemon = Daemon::start(sandbox, &config)?;
        let scene = Self { sandbox, app, supervisor, nginx, daemon, config };
        scene.know_versions()?;
        Ok(scene)
    }

    pub(crate) fn api(&self) -> Api {
        Api::of(self.sandbox)
    }

    /// Waits until the daemon has asked every worker what it runs.
    pub(crate) fn know_versions(&self) -> Result<()> {
        let known =
            || Ok::<_, anyhow::Error>(self.api().workers()?.values().all(|worker| worker["version"].is_string()));
        wait(Duration::from_secs(30), || Ok(known().unwrap_or(false))).context("waiting for versions")
    }

    /// Connections that the workers have had so far, by the kernel's count.
    pub(crate) fn established(&self) -> Result<u64> {
        Ok(self.api().workers()?.values().filter_map(|worker| worker["established"].as_u64()).sum())
    }

    /// A load of quick requests.
    pub(crate) fn load(&self, rate: f64) -> Result<LoadHandle> {
        Load { rate, slow_one_in: 0, ..Load::new("load") }.start(self.sandbox)
    }

    /// One of which there is always a request of 2 s under way.
    pub(crate) fn slow_load(&self, rate: f64) -> Result<LoadHandle> {
        Load { rate, slow_one_in: 20, slow_seconds: 2, ..Load::new("load") }.start(self.sandbox)
    }

    /// Waits until so many more requests have been sent.
    pub(crate) fn sent(&self, load: &LoadHandle, more: u64) -> Result<()> {
        let before = load.sent();
        wait(Duration::from_secs(60), || Ok(load.sent() >= before + more)).context("waiting for the load")
    }

    /// Requests by version, as the workers have them.
    pub(crate) fn served(&self) -> Result<BTreeMap<String, u64>> {
        let journal = Journal::read(&self.app.journal_dir())?;
        let by_version = journal.begins_by_version().into_iter();
        Ok(by_version.map(|(version, begins)| (version.to_owned(), begins.len() as u64)).collect())
    }

    /// `deployer roll web --to VERSION`, which must work; its id.
    pub(crate) fn roll(&self, to: &str) -> Result<String> {
        let output = self.daemon.cli(&["roll", "web", "--to", to, "--json"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{text}\n{}", self.daemon.log());
        let first: Value = serde_json::from_str(text.lines().next().context("no events")?)?;
        Ok(first["roll"].as_str().context("no id")?.to_owned())
    }

    /// `deployer report ID --json`; the text goes to the test's output.
    pub(crate) fn report(&self, id: &str) -> Result<Figures> {
        eprintln!("{}", self.said(&["report", id])?.1);
        let (code, text) = self.said(&["report", id, "--json"])?;
        ensure!(code == Some(0), "{text}");
        Ok(Figures(serde_json::from_str(&text)?))
    }

    /// A verb: its exit code, and what it printed.
    pub(crate) fn said(&self, verb: &[&str]) -> Result<(Option<i32>, String)> {
        let output = self.daemon.cli(verb)?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&text).into_owned()))
    }
}

/// A report.
#[derive(Debug)]
pub(crate) struct Figures(pub(crate) Value);

/// Its parts.
pub(crate) const WINDOWS: [&str; 3] = ["before", "during", "after"];

impl Figures {
    /// A figure by version, over some parts.
    pub(crate) fn by_version(&self, windows: &[&str], figure: &str) -> BTreeMap<String, u64> {
        let mut by_version = BTreeMap::new();
        for tally in windows.iter().flat_map(|window| self.0[*window]["versions"].as_array().into_iter().flatten()) {
            let version = tally["version"].as_str().unwrap_or("-").to_owned();
            *by_version.entry(version).or_insert(0) += tally[figure].as_u64().unwrap_or(0);
        }
        by_version
    }

    /// A figure over all versions, during the roll.
    pub(crate) fn during(&self, figure: &str) -> u64 {
        self.by_version(&["during"], figure).values().sum()
    }

    /// What is zero where all went well, in the three parts and in total, as far as it is not zero.
    pub(crate) fn not_zero(&self) -> Vec<String> {
        let proofs = ["late", "to_cold", "fallback_draining", "fallback_cold", "fallback_floor", "refused"];
        let harm = ["failed", "reset", "cut"];
        let by_version =
            proofs.iter().chain(&harm).map(|of| (*of, self.by_version(&WINDOWS, of).values().sum::<u64>()));
        let exhausted = WINDOWS.map(|window| ("exhausted", self.0[window]["exhausted"].as_u64().unwrap_or(u64::MAX)));
        let total = self.0["total"].as_object().into_iter().flatten();
        let total = total.map(|(name, value)| (name.as_str(), value.as_u64().unwrap_or(u64::MAX)));
        let all = by_version.chain(exhausted).chain(total).filter(|(_, value)| *value > 0);
        all.map(|(name, value)| format!("{name}: {value}")).collect()
    }
}

/// Looks every 20 ms whether it is so.
pub(crate) fn wait(limit: Duration, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !is()? {
        ensure!(Instant::now() < deadline, "not so after {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
