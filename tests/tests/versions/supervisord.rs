//! Two pools under supervisord, configured as the README shows it: what the workers are told, pages that stay with their
//! version, and a boot.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer_tests::app::App;
use deployer_tests::browser::Browsers;
use deployer_tests::daemon::{Daemon, DeployerBin, ServiceConfig};
use deployer_tests::http::Request;
use deployer_tests::journal::Journal;
use deployer_tests::nginx::Nginx;
use deployer_tests::pace::patient;
use deployer_tests::pages::Said;
use deployer_tests::process;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::site::ADDRESS;
use deployer_tests::supervisor::{Options, Supervisor};
use serde_json::Value;

const WORKERS: u16 = 4;
const FIRST: [u16; 2] = [8000, 8100];

/// The README's two programs in one group, in place of whose paths there are the sandbox's.
fn programs(sandbox: &Sandbox, app: &App) -> String {
    let (dir, state, pages) = (sandbox.dir().display(), sandbox.state().display().to_string(), app.pages());
    let program = |name: &str, first: u16, autostart: bool| {
        format!(
            "[program:{name}]
command=/bin/sh -c 'set -a; f={state}/pools/web-%(process_num)d.env; test -r $f && . $f; exec /usr/bin/python3 -sE {} --port=%(process_num)d'
environment=APP_DIR=\"{}\"
process_name=web_%(process_num)d
numprocs={WORKERS}
numprocs_start={first}
autostart={autostart}
autorestart=true
redirect_stderr=true
stdout_logfile={dir}/log/web_%(process_num)d.out
",
            pages.display(),
            app.dir().display()
        )
    };
    let (a, b) = (program("web-a", FIRST[0], true), program("web-b", FIRST[1], false));
    format!("{}{a}{b}[group:web]\nprograms=web-a,web-b\n", Supervisor::head(sandbox.dir()))
}

struct Scene<'a> {
    sandbox: &'a Sandbox,
    app: App,
    supervisor: Supervisor<'a>,
    config: String,
}

impl<'a> Scene<'a> {
    fn new(sandbox: &'a Sandbox, bake: &str) -> Result<Self> {
        let app = App::new(sandbox, &["v1"])?;
        let options = Options::ports(FIRST[0]..=FIRST[0] + WORKERS - 1);
        let supervisor = Supervisor::start_text(sandbox, options, &programs(sandbox, &app))?;
        supervisor.wait_up()?;
        let config = ServiceConfig {
            address: Some(ADDRESS.to_string()),
            warm: "requests = [\"GET /\"]",
            extra: format!("deploy = {{ second = \"127.0.0.1:8100-8103\", bake = {bake:?} }}"),
            ..ServiceConfig::default()
        };
        let config = config.text(sandbox, &app, &supervisor);
        Ok(Self { sandbox, app, supervisor, config })
    }

    fn daemon(&self) -> Result<Daemon<'a>> {
        Daemon::start(self.sandbox, &self.config)
    }

    /// What the workers of a pool say they were told.
    fn are(&self, pool: usize, version: &str, lane: &str) -> Result<()> {
        for port in FIRST[pool]..FIRST[pool] + WORKERS {
            let said = Said::parse(&self.supervisor.direct(port, &Request::get("/xhr"))?.body)?;
            ensure!(said.version == version && said.lane == lane, "{port}: {version}, lane {lane}: {said:?}");
        }
        Ok(())
    }

    /// Of the other pool nothing runs.
    fn are_stopped(&self, pool: usize) -> Result<()> {
        let status = self.supervisor.ctl(&["status"])?;
        let name = |port: u16| format!("web:web_{port} ");
        let mut of = (FIRST[pool]..FIRST[pool] + WORKERS).map(|port| {
            status.lines().find(|line| line.starts_with(&name(port))).is_some_and(|line| line.contains("STOPPED"))
        });
        ensure!(of.all(|stopped| stopped), "pool {pool} is not stopped:\n{status}");
        Ok(())
    }
}

fn verb(daemon: &Daemon<'_>, words: &[&str]) -> Result<()> {
    let output = daemon.cli(words)?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success(), "{words:?}: {text}\n{}", daemon.log());
    Ok(())
}

/// A boot of the machine: all processes, all of the kernel's tables are gone, and the journal is another boot's.
fn reboot(scene: &mut Scene<'_>, mut daemon: Daemon<'_>) -> Result<()> {
    daemon.process().kill()?;
    let pins = scene.sandbox.pins().display().to_string();
    verb(&daemon, &["detach", "--force", "--pins", &pins])?;
    let file = scene.sandbox.state().join("state.json");
    let mut state: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    state["boot"] = "another".into();
    std::fs::write(&file, state.to_string())?;
    scene.supervisor.ctl(&["shutdown"])?;
    let ended = scene.supervisor.wait_gone(Duration::from_secs(20))?;
    ensure!(ended, "supervisord has not ended");
    scene.supervisor.start_again()
}

#[test]
fn two_groups_are_one_service() -> Result<()> {
    let sandbox = Sandbox::new("pools_super")?;
    let scene = Scene::new(&sandbox, "4s")?;
    let daemon = scene.daemon()?;
    scene.are(0, "v1", "")?;
    // Once, so that the pages of the workers that are older than `deploy` name a lane, too.
    verb(&daemon, &["roll", "web", "--to", "v1"])?;
    scene.are(0, "v1", "1")?;
    let config = sandbox.dir().join("deployer.toml");
    let mut lb = DeployerBin::find()?.command(&sandbox);
    let text = process::run(lb.args(["lb", "nginx", "web", "--config"]).arg(config))?;
    let nginx = Nginx::start_lanes(&sandbox, &text)?;
    let browsers = Browsers { sessions: 40, xhrs: 5, spread: Duration::from_secs(2), ..Browsers::new("super") };
    let browsers = browsers.start(&sandbox)?;
    std::thread::sleep(patient(Duration::from_secs(2)));
    verb(&daemon, &["deploy", "web", "--to", "v2"])?;
    scene.are(1, "v2", "2")?;
    scene.are_stopped(0)?;
    verb(&daemon, &["deploy", "web", "--to", "v3"])?;
    scene.are(0, "v3", "3")?;
    scene.are_stopped(1)?;
    let seen = browsers.stop()?;
    eprintln!("{seen}");
    ensure!(seen.failed == 0 && seen.mixed == 0, "{seen}");
    ensure!(seen.pages.keys().eq(["v1", "v2", "v3"]), "{seen}");
    let journal = Journal::read(&scene.app.journal_dir())?;
    ensure!(journal.doubled().is_empty(), "{:?}", journal.doubled());
    ensure!(nginx.error_lines()?.is_empty(), "{:?}", nginx.error_lines()?);
    Ok(())
}

/// supervisord does not know which pool is current: it starts the first, and the daemon the one that serves.
#[test]
fn after_a_boot_the_current_pool_serves() -> Result<()> {
    let sandbox = Sandbox::new("pools_boot")?;
    let mut scene = Scene::new(&sandbox, "1s")?;
    let daemon = scene.daemon()?;
    verb(&daemon, &["deploy", "web", "--to", "v2"])?;
    reboot(&mut scene, daemon)?;
    let daemon = scene.daemon()?;
    let until = Instant::now() + patient(Duration::from_secs(30));
    let is_up = |worker: &Value| worker["phase"] == "up";
    while !daemon.api().workers()?.iter().filter(|(port, _)| **port >= FIRST[1]).all(|(_, worker)| is_up(worker)) {
        ensure!(Instant::now() < until, "the current pool does not come\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    scene.are(1, "v2", "2")?;
    // What runs of the other pool is in nobody's way.
    scene.supervisor.wait_up()?;
    verb(&daemon, &["deploy", "web", "--to", "v3"])?;
    scene.are(0, "v3", "3")?;
    scene.are_stopped(1).context("the former pool")
}
