//! The figures of connections go on over restarts of the daemon, also one that is killed in the middle of a roll.

use std::collections::BTreeMap;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use deployer_tests::api::{Api, Roll};
use deployer_tests::app::App;
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::journal::Journal;
use deployer_tests::load::{Load, LoadHandle};
use deployer_tests::nginx::{Nginx, Upstream};
use deployer_tests::prometheus::{self, PAGE};
use deployer_tests::rig::wait;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::supervisor::{Options, Supervisor};

const PORTS: std::ops::RangeInclusive<u16> = 8000..=8003;

/// Counters of connections by version, as they were shown last: by series.
#[derive(Default)]
struct Shown(BTreeMap<String, f64>);

impl Shown {
    /// Reads the page once more. None of them may have gone back, or be gone.
    fn again(&mut self, sandbox: &Sandbox) -> Result<()> {
        let page = prometheus::page(sandbox)?;
        let lines = page.lines().filter(|line| line.starts_with("deployer_connect") && line.contains("version="));
        let mut now = BTreeMap::new();
        for line in lines {
            let (series, value) = line.rsplit_once(' ').context("a line without a value")?;
            now.insert(series.to_owned(), value.parse()?);
        }
        for (series, before) in &self.0 {
            let value = now.get(series).with_context(|| format!("{series} is gone"))?;
            ensure!(value >= before, "{series}: {before}, and then {value}");
        }
        self.0 = now;
        Ok(())
    }

    /// A family's figures by port and version.
    fn sum(&self, family: &str) -> Result<BTreeMap<(u16, String), u64>> {
        let mut sums = BTreeMap::new();
        let begin = format!("{family}{{");
        for (series, value) in self.0.iter().filter(|(series, _)| series.starts_with(&begin)) {
            let label = |name: &str| series.split(&format!("{name}=\"")).nth(1)?.split('"').next();
            let worker = label("worker").context("no worker")?;
            let port = worker.rsplit(':').next().context("no port")?.parse()?;
            *sums.entry((port, label("version").context("no version")?.to_owned())).or_default() += *value as u64;
        }
        sums.retain(|_, sum| *sum > 0);
        Ok(sums)
    }
}

fn know_versions(sandbox: &Sandbox) -> Result<()> {
    let known = || Ok(Api::of(sandbox).workers()?.values().all(|worker| worker["version"].is_string()));
    wait("the daemon to know all versions", known).map(drop)
}

fn sent(load: &LoadHandle, more: u64) -> Result<()> {
    let before = load.sent();
    wait("the load", || Ok(load.sent() >= before + more)).map(drop)
}

#[test]
fn a_killed_daemon_loses_no_figure() -> Result<()> {
    let sandbox = Sandbox::new("figures")?;
    let app = App::new(&sandbox, &["v1", "v2"])?;
    let supervisor = Supervisor::start(&sandbox, &app, Options { import_seconds: 0.3, ..Options::ports(PORTS) })?;
    supervisor.wait_up()?;
    supervisor.warm()?;
    let _nginx = Nginx::start(&sandbox, &Upstream::workers(PORTS, ""))?;
    let config = ServiceConfig { metrics: Some(PAGE), batch: "1".to_owned(), ..ServiceConfig::default() };
    let config = config.text(&sandbox, &app, &supervisor);
    let mut daemon = Daemon::start(&sandbox, &config)?;
    know_versions(&sandbox)?;
    let (load, mut shown) =
        (Load { rate: 150.0, slow_one_in: 0, ..Load::new("load") }.start(&sandbox)?, Shown::default());
    sent(&load, 100)?;
    shown.again(&sandbox)?;
    let mut client = daemon.cli_command(&["roll", "web", "--to", "v2", "--json"]);
    let mut roll = Roll::by(client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start deployer")?)?;
    roll.until_phase(8001, "warming")?;
    shown.again(&sandbox)?;
    daemon.process().kill()?;
    // Nobody is there to look.
    sent(&load, 100)?;
    daemon = Daemon::start(&sandbox, &config)?;
    shown.again(&sandbox)?;
    let (code, printed) = roll.left()?;
    ensure!(code == Some(0), "{code:?} {printed}\n{}", daemon.log());
    shown.again(&sandbox)?;
    daemon.stop()?;
    sent(&load, 100)?;
    let daemon = Daemon::start(&sandbox, &config)?;
    know_versions(&sandbox)?;
    shown.again(&sandbox)?;
    let seen = load.stop()?;
    ensure!(seen.failed == 0, "{seen}\n{}", daemon.log());
    shown.again(&sandbox)?;
    let mut served = BTreeMap::<_, u64>::new();
    for entry in Journal::read(&app.journal_dir())?.entries {
        *served.entry((entry.port, entry.version)).or_default() += 1;
    }
    let (let_in, established) =
        (shown.sum("deployer_connections_total")?, shown.sum("deployer_connections_established_total")?);
    eprintln!("served {served:?}\nlet in {let_in:?}\nestablished {established:?}");
    ensure!(let_in == served, "let in {let_in:?}, served {served:?}");
    // Each daemon asks every worker that is up what it runs.
    let (all, asked) = (established.values().sum::<u64>(), 3 * PORTS.count() as u64);
    let served = served.values().sum::<u64>();
    ensure!(all >= served && all <= served + asked, "established {all}, served {served}");
    Ok(())
}
