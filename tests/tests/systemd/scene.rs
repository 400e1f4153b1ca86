//! Four workers under systemd, and a daemon that knows them.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use deployer_tests::api::{Api, Roll};
use deployer_tests::app::App;
use deployer_tests::daemon::Daemon;
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::systemd::{Systemd, TEMPLATE};

pub(crate) const PORTS: std::ops::RangeInclusive<u16> = 8000..=8003;

pub(crate) struct Scene<'a> {
    pub(crate) systemd: Systemd<'a>,
    pub(crate) daemon: Daemon<'a>,
    pub(crate) api: Api,
}

/// What differs between scenes.
pub(crate) struct Settings {
    pub(crate) unit: &'static str,
    pub(crate) stop_within: &'static str,
    pub(crate) warm_within: &'static str,
}

impl Default for Settings {
    fn default() -> Self {
        Self { unit: TEMPLATE, stop_within: "20s", warm_within: "20s" }
    }
}

impl<'a> Scene<'a> {
    pub(crate) fn new(sandbox: &'a Sandbox, settings: &Settings) -> Result<Self> {
        let app = App::new(sandbox, &["v1", "v2"])?;
        let systemd = Systemd::start(sandbox, &app, PORTS)?;
        systemd.wait_up()?;
        let daemon = Daemon::start(sandbox, &text(sandbox, &app, &systemd, settings))?;
        let scene = Self { systemd, daemon, api: Api::of(sandbox) };
        deployer_tests::rig::wait("all workers up", || Ok(scene.api.phases()?.values().all(|phase| phase == "up")))?;
        Ok(scene)
    }

    /// Begins a roll to v2.
    pub(crate) fn roll(&self) -> Result<Roll> {
        let mut command = self.daemon.cli_command(&["roll", "web", "--json", "--to", "v2"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Roll::by(command.spawn().context("start deployer roll")?)
    }

    /// Whether these workers are out for having failed, and all others up.
    pub(crate) fn only_failed(&self, ports: &[u16]) -> Result<()> {
        let phases = self.api.phases()?;
        let right = |(port, phase): (&u16, &String)| phase == if ports.contains(port) { "failed" } else { "up" };
        ensure!(phases.iter().all(right), "{phases:?}, where {ports:?} should be out\n{}", self.daemon.log());
        Ok(())
    }
}

fn text(sandbox: &Sandbox, app: &App, systemd: &Systemd<'_>, settings: &Settings) -> String {
    let (socket, root) = (Daemon::socket_of(sandbox), sandbox.root_cgroup());
    let (callers, switch) = (sandbox.cgroup(Place::Callers), app.switch_command());
    let Settings { unit, stop_within, warm_within } = settings;
    format!(
        "[daemon]\nsocket = {socket:?}\nstate = {:?}\n\
         [kernel]\ncallers = {root:?}\nworkers = {root:?}\npins = {:?}\n\
         [service.web]\nworkers = \"127.0.0.1:8000-8003\"\ncallers = [{callers:?}]\n\
         manager = {{ kind = \"systemd\", unit = {unit:?}, bus = {:?}, stop_within = {stop_within:?} }}\n\
         roll = {{ batch = 1, switch = {switch:?} }}\n\
         warm = {{ requests = [\"GET /\"], within = {warm_within:?} }}\nversion = {{ request = \"GET /version\" }}\n",
        sandbox.state(),
        sandbox.pins(),
        systemd.bus()
    )
}
