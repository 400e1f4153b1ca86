//! The unit that is shipped, as `deployer unit` prints it, run by a real systemd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use deployer_tests::api::Api;
use deployer_tests::app::App;
use deployer_tests::daemon::{Daemon, DeployerBin};
use deployer_tests::process::{run, send, suspend};
use deployer_tests::rig::wait;
use deployer_tests::sandbox::{Place, Sandbox, cgroup2_mount};
use deployer_tests::systemd::Systemd;
use rustix::process::Signal;

use crate::scene::PORTS;

const UNIT: &str = "deployer.service";
/// What of the shipped file is of the machine it is installed on.
const EXEC: &str = "/usr/local/bin/deployer daemon --config /etc/deployer.toml";

/// The shipped unit, with this machine's binary and the sandbox's configuration.
fn unit(sandbox: &Sandbox) -> Result<String> {
    let bin = DeployerBin::find()?;
    let shipped = run(Command::new(bin.path()).arg("unit"))?;
    ensure!(shipped.contains(&format!("ExecStart={EXEC}\n")), "{shipped}");
    let config = sandbox.dir().join("deployer.toml");
    let here = |shipped: &str| {
        shipped
            .replace("/usr/local/bin/deployer", &bin.path().display().to_string())
            .replace("/etc/deployer.toml", &config.display().to_string())
    };
    Ok(shipped
        .lines()
        .map(|line| format!("{}\n", if line.starts_with("Exec") { here(line) } else { line.into() }))
        .collect())
}

/// There is no basic.target here, and no journal.
fn drop_in(sandbox: &Sandbox) -> String {
    let log = sandbox.dir().join("deployer.log");
    format!("[Unit]\nDefaultDependencies=no\n[Service]\nStandardError=append:{}\n", log.display())
}

fn config(sandbox: &Sandbox, systemd: &Systemd<'_>) -> Result<String> {
    let socket = Daemon::socket_of(sandbox);
    let (root, callers) = (inside(sandbox.root_cgroup())?, inside(&sandbox.cgroup(Place::Callers))?);
    Ok(format!(
        "[daemon]\nsocket = {socket:?}\n\
         [kernel]\ncallers = {root:?}\nworkers = {root:?}\npins = {:?}\nself_test = \"1s\"\n\
         [service.web]\nworkers = \"127.0.0.1:8000-8003\"\ncallers = [{callers:?}]\nmanager = {}\n",
        systemd.pins(),
        systemd.manager()
    ))
}

/// A cgroup's path where systemd has the one hierarchy, and nothing else.
fn inside(cgroup: &Path) -> Result<PathBuf> {
    Ok(Path::new("/sys/fs/cgroup").join(cgroup.strip_prefix(cgroup2_mount()?)?))
}

/// Waits until a daemon other than `former` steers, and has seen that it does; its process id in its own namespace.
fn steers(api: &Api, former: u64) -> Result<u64> {
    let pid = || api.status().map(|status| status["pid"].as_u64().unwrap_or_default());
    wait("a daemon that has tested itself", || {
        let Ok(status) = api.status() else { return Ok(false) };
        Ok(status["self_test"]["result"] == "ok" && status["pid"] != former)
    })
    .with_context(|| format!("{:?}", api.status()))?;
    let all_up = || Ok(api.phases()?.values().all(|phase| phase == "up"));
    wait("all workers up", all_up)?;
    pid()
}

#[test]
fn the_file_is_right() -> Result<()> {
    let sandbox = Sandbox::new("sdverify")?;
    let file = sandbox.dir().join(UNIT);
    fs::write(&file, unit(&sandbox)?).context("write the unit")?;
    let mut verify = Command::new("systemd-analyze");
    let output = verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(&file).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.is_empty(), "{said}");
    Ok(())
}

#[test]
fn the_daemon_runs_by_it() -> Result<()> {
    let sandbox = Sandbox::new("sdunit")?;
    let app = App::new(&sandbox, &["v1"])?;
    let systemd = Systemd::start(&sandbox, &app, PORTS)?;
    systemd.wait_up()?;
    Daemon::write_config(&sandbox, &config(&sandbox, &systemd)?)?;
    systemd.unit_file(UNIT, Some(&unit(&sandbox)?))?;
    systemd.drop_in(UNIT, &drop_in(&sandbox))?;
    systemd.call("StartUnit", &["ss", UNIT, "replace"])?;
    let (api, log) = (Api::of(&sandbox), || fs::read_to_string(sandbox.dir().join("deployer.log")).unwrap_or_default());
    let first = steers(&api, 0).with_context(log)?;
    // Type=notify: it counts as started when it is.
    ensure!(systemd.property(UNIT, "Unit", "ActiveState")? == "s \"active\"", "{}", log());
    systemd.call("ReloadUnit", &["ss", UNIT, "replace"])?;
    wait("the reload", || Ok(log().contains("configuration read again"))).with_context(log)?;

    let result = || systemd.property(UNIT, "Service", "ReloadResult");
    ensure!(result()? == "s \"success\"", "{:?}\n{}", result(), log());
    let right = fs::read_to_string(Daemon::config_of(&sandbox))?;
    Daemon::write_config(&sandbox, &right.replace("[service.web]", "[service.web]\nnonsense = 1"))?;
    systemd.call("ReloadUnit", &["ss", UNIT, "replace"])?;
    wait("the reload to fail", || Ok(result()? == "s \"exit-code\""))
        .with_context(|| format!("{:?}\n{}", result(), log()))?;
    ensure!(systemd.property(UNIT, "Unit", "ActiveState")? == "s \"active\"", "{}", log());
    Daemon::write_config(&sandbox, &right)?;

    // Killed, it is back by itself, and goes on with what steers.
    let pid = systemd.pid_of(UNIT)?.context("the daemon has no process")?;
    send(pid, Signal::KILL)?;
    let second = steers(&api, first).with_context(log)?;
    systemd.call("RestartUnit", &["ss", UNIT, "replace"])?;
    let third = steers(&api, second).with_context(log)?;
    eprintln!("daemons {first}, {second}, {third}");
    let inherited = log().matches("taken over from the daemon before").count();
    ensure!(inherited == 2, "{}", log());

    // A wrong configuration is not tried again and again.
    Daemon::write_config(&sandbox, "[kernel]\nlease = 1\n")?;
    systemd.call("RestartUnit", &["ss", UNIT, "replace"])?;
    let state = || systemd.property(UNIT, "Unit", "ActiveState");
    wait("the unit to fail", || Ok(state()? == "s \"failed\"")).with_context(|| format!("{:?}\n{}", state(), log()))?;
    let restarts = systemd.property(UNIT, "Service", "NRestarts")?;
    ensure!(restarts == "u 0" || restarts == "u 1", "{restarts}");
    Ok(())
}

/// Both kinds: a loop that stands still in a daemon that runs on, and a process that is stopped.
#[test]
fn a_daemon_that_stands_still_is_started_anew() -> Result<()> {
    let sandbox = Sandbox::new("sdwatchdog")?;
    let app = App::new(&sandbox, &["v1"])?;
    let systemd = Systemd::start(&sandbox, &app, PORTS)?;
    systemd.wait_up()?;
    Daemon::write_config(&sandbox, &config(&sandbox, &systemd)?)?;
    let shipped = unit(&sandbox)?;
    ensure!(shipped.contains("\nWatchdogSec=30s\n") && shipped.contains("\nTimeoutAbortSec=5s\n"), "{shipped}");
    systemd.unit_file(UNIT, Some(&shipped))?;
    let failpoint = sandbox.dir().join("failpoint");
    fs::create_dir(&failpoint).context("make the failpoint's directory")?;
    let sooner = format!(
        "{}WatchdogSec=4s\nTimeoutAbortSec=1s\nEnvironment=DEPLOYER_FAILPOINT=task.watch\n\
         Environment=DEPLOYER_FAILPOINT_DIR={}\n",
        drop_in(&sandbox),
        failpoint.display()
    );
    systemd.drop_in(UNIT, &sooner)?;
    systemd.call("StartUnit", &["ss", UNIT, "replace"])?;
    let (api, log) = (Api::of(&sandbox), || fs::read_to_string(sandbox.dir().join("deployer.log")).unwrap_or_default());
    // The watch of the first daemon stands still.
    wait("the first daemon to be ended", || Ok(systemd.property(UNIT, "Service", "NRestarts")? != "u 0"))
        .with_context(log)?;
    ensure!(log().contains("the watch over workers stands still"), "{}", log());
    let second = steers(&api, 0).with_context(log)?;
    let pid = systemd.pid_of(UNIT)?.context("the daemon has no process")?;
    suspend(pid)?;
    let third = steers(&api, second).with_context(log)?;
    eprintln!("daemons {second}, {third}");
    ensure!(log().contains("taken over from the daemon before"), "{}", log());
    Ok(())
}
