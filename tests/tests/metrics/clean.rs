//! A roll that goes well, scraped all the while: what Prometheus has is what nginx and the workers have written down.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer_tests::api::{Api, Roll};
use deployer_tests::app::App;
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::journal::Journal;
use deployer_tests::load::{Load, LoadHandle};
use deployer_tests::nginx::{Nginx, Upstream};
use deployer_tests::prometheus::{self, PAGE, Prometheus};
use deployer_tests::rig::wait;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::supervisor::{Options, Supervisor};

use crate::{deploys, page, shipped};

const PORTS: std::ops::RangeInclusive<u16> = 8000..=8003;

/// Only while the kernel measures programs, which is the machine's business.
const MEASURED: [&str; 2] = ["deployer_bpf_program_run_seconds_total", "deployer_bpf_program_runs_total"];

/// Connections by worker and version.
type Counts = BTreeMap<(u16, String), u64>;

/// Workers, nginx that writes down whom it dials, a daemon that knows all versions, Prometheus; no load yet.
struct Scene<'a> {
    sandbox: &'a Sandbox,
    app: App,
    _supervisor: Supervisor<'a>,
    nginx: Nginx,
    daemon: Daemon<'a>,
    prometheus: Prometheus<'a>,
}

impl<'a> Scene<'a> {
    fn new(sandbox: &'a Sandbox) -> Result<Self> {
        let app = App::new(sandbox, &["v1", "v2"])?;
        let options = Options { import_seconds: 0.3, cold_seconds: 0.05, ..Options::ports(PORTS) };
        let supervisor = Supervisor::start(sandbox, &app, options)?;
        supervisor.wait_up()?;
        supervisor.warm()?;
        let nginx = Nginx::start_logged(sandbox, &Upstream::workers(PORTS, ""))?;
        let config = ServiceConfig { metrics: Some(PAGE), ..ServiceConfig::default() };
        let daemon = Daemon::start(sandbox, &config.text(sandbox, &app, &supervisor))?;
        let known = || Ok(Api::of(sandbox).workers()?.values().all(|worker| worker["version"].is_string()));
        wait("the daemon to know all versions", known)?;
        let prometheus = Prometheus::start(sandbox, &prometheus::rules()?)?;
        Ok(Self { sandbox, app, _supervisor: supervisor, nginx, daemon, prometheus })
    }

    /// Waits until so many more requests have been sent.
    fn sent(&self, load: &LoadHandle, more: u64) -> Result<()> {
        let before = load.sent();
        wait("the load", || Ok(load.sent() >= before + more)).map(drop)
    }

    /// A roll to v2, in the middle of which the page is looked at.
    fn roll(&self) -> Result<()> {
        let mut client = self.daemon.cli_command(&["roll", "web", "--to", "v2", "--json"]);
        let client = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start deployer")?;
        let mut roll = Roll::by(client)?;
        roll.until_phase(8001, "warming")?;
        page::read(self.sandbox)?;
        self.prometheus.settle()?;
        ensure!(self.prometheus.value("max_over_time(deployer_roll_running[1m])")? == 1.0);
        roll.end()?.must("done", &["4 workers"])
    }

    /// What has been added to a counter since then, by worker and version, whatever its other labels.
    fn grown(&self, counter: &str, since: f64) -> Result<Counts> {
        let sum = |at: &str| format!("sum by (worker, version) ({counter}{at})");
        let (now, then) = (sum(""), sum(&format!(" @ {since:.3}")));
        // Series that were not there then have begun with 0.
        let samples = self.prometheus.query(&format!("{now} - ({then} or 0 * {now})"))?;
        let mut counts = Counts::new();
        for sample in samples.iter().filter(|sample| sample.value != 0.0) {
            let port = sample.label("worker").rsplit(':').next().context("no port")?.parse()?;
            ensure!(sample.value > 0.0 && sample.value.fract() == 0.0, "{counter}: {sample:?}");
            counts.insert((port, sample.label("version").to_owned()), sample.value as u64);
        }
        Ok(counts)
    }

    /// Requests, each on a connection of its own, as the workers have them.
    fn served(&self) -> Result<Counts> {
        let mut counts = Counts::new();
        for entry in Journal::read(&self.app.journal_dir())?.entries {
            *counts.entry((entry.port, entry.version)).or_default() += 1;
        }
        Ok(counts)
    }

    fn compare(&self, since: f64) -> Result<()> {
        let (served, tries) = (self.served()?, self.nginx.tries()?);
        let grown = |counter: &str| self.grown(counter, since);
        let established = grown("deployer_connections_established_total")?;
        let let_in = grown("deployer_connections_total")?;
        eprintln!("served {served:?}\nestablished {established:?}\nlet in {let_in:?}\nnginx {tries:?}");
        ensure!(let_in == served, "decided, and the workers' journals");
        ensure!(established == served, "established, and the workers' journals");
        for counter in [
            "deployer_connections_closed_total",
            "deployer_connection_lifetime_seconds_count",
            "deployer_connect_latency_seconds_count",
        ] {
            ensure!(grown(counter)? == served, "{counter}: {:?}", grown(counter)?);
        }
        let connected: u64 = tries.values().map(|tries| tries.connected).sum();
        ensure!(sum(&established) == connected, "established {}, by nginx {connected}", sum(&established));
        let kept = grown("deployer_connections_total{outcome=\"direct\"}")?;
        let away = grown("deployer_connections_diverted_total")?;
        for (port, tries) in tries {
            let of =
                |counts: &Counts| counts.iter().filter(|((at, _), _)| *at == port).map(|(_, count)| count).sum::<u64>();
            let dialled = of(&kept) + of(&away);
            ensure!(dialled == tries.dialled, "{port}: {} and {}, by nginx {tries:?}", of(&kept), of(&away));
        }
        let steered = grown("deployer_connections_total{outcome=\"steered\"}")?;
        ensure!(sum(&steered) > 0 && sum(&steered) == sum(&away), "{steered:?} {away:?}");
        Ok(())
    }

    /// What is 0 where all went well, and what a roll of four workers adds.
    fn whole_figures(&self) -> Result<()> {
        let value = |expression: &str| self.prometheus.value(expression);
        for counter in ["late", "to_cold", "fallback", "cut", "reset", "failed"] {
            ensure!(value(&format!("sum(deployer_connections_{counter}_total)"))? == 0.0, "{counter}");
        }
        for (expression, expected) in [
            ("sum(deployer_worker_crashes_total)", 0.0),
            ("sum(deployer_worker_restarts_total)", 4.0),
            ("sum(deployer_rolls_total)", 1.0),
            ("sum(deployer_rolls_total{result=\"done\"})", 1.0),
            ("sum(deployer_roll_running)", 0.0),
            ("sum(deployer_drain_seconds_count)", 4.0),
            ("sum(deployer_warmup_seconds_count)", 4.0),
            ("count(deployer_worker_info{version=\"v2\", spare=\"false\"})", 4.0),
            ("sum(deployer_worker_phase{phase=\"up\"})", 4.0),
            ("sum(deployer_worker_phase)", 4.0),
            ("sum(deployer_worker_open_connections)", 0.0),
            ("sum(deployer_worker_listeners)", 4.0),
            ("deployer_self_test_success", 1.0),
            ("deployer_attached", 1.0),
            ("deployer_trouble", 0.0),
        ] {
            ensure!(value(expression)? == expected, "{expression}: {:?}", self.prometheus.query(expression)?);
        }
        Ok(())
    }

    /// No alert has fired at any evaluation.
    fn quiet(&self) -> Result<()> {
        let fired = self.prometheus.query("count_over_time(ALERTS{alertstate=\"firing\"}[1h])")?;
        ensure!(fired.is_empty(), "{fired:?}");
        let scraped = self.prometheus.value("avg_over_time(up{job=\"deployer\"}[1h])")?;
        ensure!(scraped > 0.5, "{scraped} of the scrapes have come to something");
        Ok(())
    }
}

fn sum(counts: &Counts) -> u64 {
    counts.values().sum()
}

/// nginx keeps no connection to a worker, so each request is one.
#[test]
fn a_roll_is_counted_connection_for_connection_and_raises_nothing() -> Result<()> {
    let sandbox = Sandbox::new("counted")?;
    let scene = Scene::new(&sandbox)?;
    page::read(&sandbox)?;
    let since = scene.prometheus.settle()?;
    let load = Load { rate: 150.0, slow_one_in: 0, ..Load::new("load") }.start(&sandbox)?;
    scene.sent(&load, 300)?;
    scene.roll()?;
    scene.sent(&load, 300)?;
    let seen = load.stop()?;
    // The last of them may be closed a moment later at the worker's end.
    std::thread::sleep(Duration::from_millis(200));
    scene.prometheus.settle()?;
    eprintln!("{seen}");
    ensure!(seen.failed == 0 && scene.nginx.error_lines()?.is_empty(), "{seen}");
    scene.compare(since)?;
    scene.whole_figures()?;
    scene.quiet()?;
    let mut unknown = page::unknown(&page::read(&sandbox)?, &shipped::asked_for()?);
    // Every caller is steered.
    unknown.retain(|name| name != "deployer_unsteered_connections");
    // This host is alone.
    unknown.retain(|name| !name.starts_with("deployer_fleet_"));
    unknown.retain(|name| !MEASURED.contains(&name.as_str()) && !deploys::is_of_two_pools(name));
    ensure!(unknown.is_empty(), "not on the page: {unknown:?}");
    Ok(())
}
