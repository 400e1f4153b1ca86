//! What goes wrong between the daemon, the bus and systemd.

use std::time::Instant;

use anyhow::{Result, ensure};
use deployer_tests::daemon::Daemon;
use deployer_tests::process::send;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::systemd::unit;
use rustix::process::Signal;

use crate::scene::{Scene, Settings};

/// Ends on SIGKILL only, which systemd sends after a minute.
const STUBBORN: &str = "[Service]\nKillSignal=SIGURG\nTimeoutStopSec=60\n";

fn refused(scene: &Scene<'_>, named: &[&str]) -> Result<()> {
    let (error, exit) = scene.api.call("POST", "/v1/services/web/roll", br#"{"to":"v2"}"#)?.refusal()?;
    eprintln!("{error}");
    ensure!(exit == "failed" && error.contains("no worker was touched"), "{exit}: {error}");
    ensure!(named.iter().all(|part| error.contains(part)), "{error}, where {named:?} should be named");
    scene.only_failed(&[])
}

#[test]
fn units_that_are_not_there() -> Result<()> {
    let sandbox = Sandbox::new("sdnone")?;
    let settings = Settings { unit: "wab@{port}.service", ..Settings::default() };
    let scene = Scene::new(&sandbox, &settings)?;
    // A look at the host finds it before a roll does.
    let check = scene.daemon.cli(&["check", "--config", &Daemon::config_of(&sandbox).display().to_string()])?;
    let check = String::from_utf8_lossy(&check.stdout).into_owned();
    let line = check.lines().find(|line| line.contains(" service.web.manager.unit: ")).unwrap_or_default();
    ensure!(line.starts_with("FAIL ") && line.contains("wab@8000.service: there is no such unit"), "{check}");
    refused(&scene, &["systemd refused", "wab@8000.service: there is no such unit", "manager.unit", "wab@8003"])?;
    scene.systemd.unit_file("wab@.service", Some("[Unit]\nDefaultDependencies=no\n[Service]\nType=simple\n"))?;
    refused(&scene, &["wab@8000.service: its file is wrong", "systemd-analyze verify"])?;
    scene.systemd.unit_file("wab@.service", None)?;
    scene.systemd.mask("wab@.service")?;
    refused(&scene, &["wab@8000.service: it is masked", "systemctl unmask"])
}

#[test]
fn a_stop_that_takes_too_long_keeps_the_worker_out() -> Result<()> {
    let sandbox = Sandbox::new("sdstubborn")?;
    let scene = Scene::new(&sandbox, &Settings { stop_within: "1s", ..Settings::default() })?;
    scene.systemd.drop_in("web@8000.service", STUBBORN)?;
    let end = scene.roll()?.end()?;
    eprintln!("{end:?}");
    end.must("failed", &["systemd did not stop web@8000.service within 1 s", "stopping", "stays out"])?;
    scene.only_failed(&[8000])
}

#[test]
fn a_stop_that_somebody_cancels_keeps_the_worker_out() -> Result<()> {
    let sandbox = Sandbox::new("sdcancel")?;
    let scene = Scene::new(&sandbox, &Settings::default())?;
    scene.systemd.drop_in("web@8000.service", STUBBORN)?;
    let mut roll = scene.roll()?;
    roll.until_phase(8000, "stopping")?;
    let state = || scene.systemd.property(&unit(8000), "Unit", "ActiveState");
    deployer_tests::rig::wait("systemd to begin the stop", || Ok(state()? == "s \"deactivating\""))?;
    scene.systemd.call("StartUnit", &["ss", &unit(8000), "replace"])?;
    let end = roll.end()?;
    eprintln!("{end:?}");
    end.must("failed", &["web@8000.service", "canceled", "stays out", "systemctl list-jobs"])?;
    scene.only_failed(&[8000])
}

#[test]
fn a_unit_whose_program_is_missing() -> Result<()> {
    let sandbox = Sandbox::new("sdexec")?;
    let scene = Scene::new(&sandbox, &Settings::default())?;
    scene.systemd.drop_in("web@8001.service", "[Service]\nExecStart=\nExecStart=/nonexistent/worker\n")?;
    let end = scene.roll()?.end()?;
    eprintln!("{end:?}");
    end.must("failed", &["web@8001.service", "exit status 203", "1 of 4 workers are changed, 1 failed"])?;
    scene.only_failed(&[8001])
}

#[test]
fn a_unit_whose_dependency_fails() -> Result<()> {
    let sandbox = Sandbox::new("sddep")?;
    let scene = Scene::new(&sandbox, &Settings::default())?;
    scene.systemd.unit_file(
        "broken.service",
        Some("[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nExecStart=/bin/false\n"),
    )?;
    scene.systemd.drop_in("web@8001.service", "[Unit]\nRequires=broken.service\nAfter=broken.service\n")?;
    let end = scene.roll()?.end()?;
    eprintln!("{end:?}");
    end.must("failed", &["systemd refused to start web@8001.service", "`dependency`", "list-dependencies"])?;
    scene.only_failed(&[8001])
}

#[test]
fn the_bus_dies_in_mid_roll() -> Result<()> {
    let sandbox = Sandbox::new("sddies")?;
    let scene = Scene::new(&sandbox, &Settings::default())?;
    let mut roll = scene.roll()?;
    roll.until_phase(8001, "warming")?;
    scene.systemd.stop_bus()?;
    let end = roll.end()?;
    eprintln!("{end:?}");
    let bus = scene.systemd.bus();
    end.must("stopped", &["127.0.0.1:8002", "systemd cannot be reached at", &bus, "2 of 4 workers are changed"])?;
    scene.only_failed(&[])?;
    // Without it no roll even begins.
    refused(&scene, &["systemd cannot be reached at", &bus, "start dbus"])
}

#[test]
fn systemd_hangs_in_mid_roll() -> Result<()> {
    let sandbox = Sandbox::new("sdhangs")?;
    let scene = Scene::new(&sandbox, &Settings::default())?;
    let mut roll = scene.roll()?;
    roll.until_phase(8001, "warming")?;
    let (pid, begun) = (scene.systemd.pid()?, Instant::now());
    send(pid, Signal::STOP)?;
    let end = roll.end();
    send(pid, Signal::CONT)?;
    let end = end?;
    eprintln!("after {:.1?}: {end:?}", begun.elapsed());
    end.must("stopped", &["127.0.0.1:8002", "systemd cannot be reached at", "hangs", "2 of 4 workers are changed"])?;
    scene.only_failed(&[])?;
    // It goes on as if nothing had been, and so does a roll.
    scene.roll()?.end()?.must("done", &["4 workers"])
}
