//! Two versions side by side, under browsers: a deploy, a second one that is turned back while it bakes, and beside them
//! what a rolling restart does to the same pages.

use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::app::App;
use crate::browser::{Browsers, BrowsersHandle, Loaded, Seen};
use crate::daemon::{Daemon, DeployerBin, ServiceConfig};
use crate::journal::{Journal, monotonic_ns};
use crate::nginx::{Nginx, Upstream};
use crate::pace::patient;
use crate::process;
use crate::sandbox::{Place, Sandbox};
use crate::site::{ADDRESS, Plan, Site};

/// What a page's caches and its last answer may take, beyond the time in which it makes its XHRs.
const SLACK: Duration = Duration::from_secs(2);
/// The version that is turned back has been current for so long.
const UNTIL_REGRET: Duration = Duration::from_millis(1500);

/// Browsers through nginx, before a service whose pages must be answered by the version that made them.
pub struct SideBySide {
    /// Workers of each pool.
    pub workers: u16,
    /// Sessions of the browsers.
    pub sessions: u32,
    /// XHRs of each page.
    pub xhrs: u32,
    /// For how long a page makes XHRs.
    pub life: Duration,
}

/// What the browsers and the workers have seen.
#[derive(Debug)]
pub struct Traffic {
    /// The browsers.
    pub seen: Seen,
    /// Requests that were begun more than once, by the workers' journals.
    pub doubled: usize,
    /// nginx's error log.
    pub nginx_errors: Vec<String>,
}

/// What came of the two deploys.
#[derive(Debug)]
pub struct Deploys {
    /// Pages and XHRs.
    pub traffic: Traffic,
    /// Exit codes of the deploy, of the one that was turned back, of `deployer rollback`.
    pub exits: [i32; 3],
    /// Seconds from the start of `deployer rollback` to the first page of the former version; `None`: there was none.
    pub back_seconds: Option<f64>,
}

/// What a rolling restart has done.
#[derive(Debug)]
pub struct Twin {
    /// Pages and XHRs.
    pub traffic: Traffic,
    /// Exit code of `deployer roll`.
    pub exit: i32,
}

impl Deploys {
    /// Whether nothing was lost, doubled or mixed, and everything ended as it was meant to.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let Traffic { seen, doubled, .. } = &self.traffic;
        self.exits == [0, 5, 0] && seen.mixed == 0 && seen.failed == 0 && *doubled == 0 && self.back_seconds.is_some()
    }
}

impl SideBySide {
    fn browsers(&self, run: &str) -> Browsers {
        Browsers { sessions: self.sessions, xhrs: self.xhrs, spread: self.life, cache_seconds: 1, ..Browsers::new(run) }
    }

    /// As long as pages of the former version may ask for more.
    fn bake(&self) -> String {
        format!("{}s", (patient(self.life) + SLACK).as_secs())
    }

    /// Deploys v2, then v3, and turns v3 back. `say` hears what is going on; what deployer prints goes to standard error.
    ///
    /// # Errors
    /// When a part does not start; a verb that fails is told in [`Deploys::exits`].
    pub fn deploys(&self, say: impl Fn(&str)) -> Result<Deploys> {
        let sandbox = Sandbox::new("sides")?;
        say(&format!(
            "two versions side by side: 2 pools of {} Python workers, started by deployer, and nginx",
            self.workers
        ));
        let site = Site::start(&sandbox, Plan { workers: self.workers, ..Plan::default() })?;
        let config = sandbox.dir().join("deployer.toml");
        let mut lb = DeployerBin::find()?.command(&sandbox);
        lb.args(["lb", "nginx", "web", "--config"]).arg(config);
        let nginx = Nginx::start_lanes(&sandbox, &process::run(&mut lb)?)?;
        let browsers = self.browsers("sides").start(&sandbox)?;
        say(&format!("browsers: {} sessions, whose pages make XHRs for {} s each", self.sessions, self.life.as_secs()));
        sleep(patient(self.life));
        say(&format!("deployer deploy web --to v2 --bake {}", self.bake()));
        let exit = code(shown(self.deploy(&site, "v2")).spawn().context("start deployer deploy")?)?;
        say("deployer deploy web --to v3, and then deployer rollback web");
        let (third, back, since) = self.regret(&site)?;
        let traffic = traffic(browsers, &site.app, &nginx)?;
        let back_seconds = first_since(&traffic.seen.loaded, "v2", since).map(|at| (at - since) as f64 / 1e9);
        Ok(Deploys { traffic, exits: [exit, third, back], back_seconds })
    }

    fn deploy(&self, site: &Site<'_>, version: &str) -> Command {
        site.daemon.cli_command(&["deploy", "web", "--to", version, "--bake", &self.bake()])
    }

    /// A deploy of v3 that is turned back: its exit code, that of `deployer rollback`, and when that was started.
    fn regret(&self, site: &Site<'_>) -> Result<(i32, i32, u64)> {
        let former = site.current()?;
        let mut deploy = shown(self.deploy(site, "v3")).spawn().context("start deployer deploy")?;
        let until = Instant::now() + patient(Duration::from_secs(60));
        while site.current()? == former {
            if let Some(status) = deploy.try_wait()? {
                bail!("the deploy of v3 ended before it had flipped: {status}\n{}", site.daemon.log());
            }
            ensure!(Instant::now() < until, "v3 has not become current\n{}", site.daemon.log());
            sleep(Duration::from_millis(50));
        }
        sleep(UNTIL_REGRET);
        let since = monotonic_ns();
        // Quiet: whoever follows the deploy is told the same.
        let (back, said) = site.verb(&["rollback", "web"])?;
        ensure!(back == 0, "deployer rollback: exit {back}: {said}");
        Ok((code(deploy)?, back, since))
    }

    /// The same load over a rolling restart of one pool to v2: a page's XHRs are answered by whoever is next.
    ///
    /// # Errors
    /// When a part does not start; a roll that fails is told in [`Twin::exit`].
    pub fn twin(&self, say: impl Fn(&str)) -> Result<Twin> {
        let sandbox = Sandbox::new("sides_twin")?;
        say("the same pages, and a plain rolling restart of one pool");
        let app = App::new(&sandbox, &["v1", "v2"])?;
        let daemon = Daemon::start(&sandbox, &self.one_pool(&sandbox, &app))?;
        let until = Instant::now() + patient(Duration::from_secs(60));
        while !daemon.api().workers()?.values().all(|worker| worker["phase"] == "up") {
            ensure!(Instant::now() < until, "the workers are not up\n{}", daemon.log());
            sleep(Duration::from_millis(50));
        }
        let nginx = Nginx::start(&sandbox, &Upstream::ServiceAddress(ADDRESS))?;
        let browsers = self.browsers("twin").start(&sandbox)?;
        sleep(patient(self.life));
        say("deployer roll web --to v2");
        let exit =
            code(shown(daemon.cli_command(&["roll", "web", "--to", "v2"])).spawn().context("start deployer roll")?)?;
        sleep(patient(self.life) / 2);
        Ok(Twin { traffic: traffic(browsers, &app, &nginx)?, exit })
    }

    fn one_pool(&self, sandbox: &Sandbox, app: &App) -> String {
        let config = ServiceConfig {
            address: Some(ADDRESS.to_string()),
            batch: (self.workers / 4).max(1).to_string(),
            warm: "requests = [\"GET /\"]",
            ..ServiceConfig::default()
        };
        let plan = Plan { workers: self.workers, ..Plan::default() };
        let workers = format!("127.0.0.1:{}-{}", plan.ports(0).start(), plan.ports(0).end());
        config.text_of(sandbox, app, &workers, &manager(sandbox, app))
    }
}

/// The built-in manager of pages.py, in TOML.
fn manager(sandbox: &Sandbox, app: &App) -> String {
    format!(
        "{{ command = [\"/usr/bin/python3\", \"-sE\", {:?}, \"--port={{port}}\"], cgroup = {:?}, \
         log = \"{}/log/{{port}}.log\", environment = {{ APP_DIR = {:?} }} }}",
        app.pages(),
        sandbox.cgroup(Place::Workers),
        sandbox.dir().display(),
        app.dir()
    )
}

/// Ends the load, and says what has come of it.
fn traffic(browsers: BrowsersHandle, app: &App, nginx: &Nginx) -> Result<Traffic> {
    let seen = browsers.stop()?;
    let doubled = Journal::read(&app.journal_dir())?.doubled().len();
    Ok(Traffic { seen, doubled, nginx_errors: nginx.error_lines()? })
}

/// When the first page of a version was there that came after an instant.
fn first_since(loaded: &[Loaded], version: &str, since: u64) -> Option<u64> {
    let of = loaded.iter().filter(|loaded| loaded.page.version == version && loaded.end_ns > since);
    of.map(|loaded| loaded.end_ns).min()
}

/// What it prints goes to standard error: standard output is for the result.
fn shown(mut command: Command) -> Command {
    command.stdout(std::io::stderr());
    command
}

fn code(mut child: Child) -> Result<i32> {
    let status = child.wait().context("wait for deployer")?;
    Ok(status.code().unwrap_or(-1))
}
