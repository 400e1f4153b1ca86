//! Rolls that come to their end.

use anyhow::{Result, ensure};
use deployer_tests::sandbox::Sandbox;
use deployer_tests::systemd::unit;

use crate::scene::{PORTS, Scene, Settings};

#[test]
fn a_roll_restarts_every_unit() -> Result<()> {
    let sandbox = Sandbox::new("sdroll")?;
    let scene = Scene::new(&sandbox, &Settings::default())?;
    let pids = || PORTS.map(|port| scene.systemd.pid_of(&unit(port))).collect::<Result<Vec<_>>>();
    let before = pids()?;
    let end = scene.roll()?.end()?;
    end.must("done", &["4 workers"])?;
    let after = pids()?;
    eprintln!("processes {before:?}, then {after:?}");
    ensure!(before.iter().zip(&after).all(|(old, new)| old != new && new.is_some()), "{before:?} {after:?}");
    for port in PORTS {
        // Not restarted by systemd itself: each stop was one that was asked for.
        let restarts = scene.systemd.property(&unit(port), "Service", "NRestarts")?;
        ensure!(restarts == "u 0", "{port}: {restarts}");
    }
    Ok(())
}

/// systemd would refuse the third start within 10 s, as a crash loop's; a roll's starts are asked for by a person.
#[test]
fn rolls_in_quick_succession_are_no_crash_loop() -> Result<()> {
    let sandbox = Sandbox::new("sdlimit")?;
    let scene = Scene::new(&sandbox, &Settings::default())?;
    scene.systemd.drop_in("web@.service", "[Unit]\nStartLimitBurst=2\nStartLimitIntervalSec=600\n")?;
    for _ in 0..3 {
        scene.roll()?.end()?.must("done", &["4 workers"])?;
    }
    Ok(())
}

/// A bus that was restarted between two rolls is found again.
#[test]
fn a_bus_that_was_restarted() -> Result<()> {
    let sandbox = Sandbox::new("sdbus")?;
    let scene = Scene::new(&sandbox, &Settings::default())?;
    scene.roll()?.end()?.must("done", &["4 workers"])?;
    let bus = scene.systemd.pid_of("dbus.service")?;
    scene.systemd.restart_bus()?;
    ensure!(scene.systemd.pid_of("dbus.service")? != bus, "the bus is the same");
    scene.roll()?.end()?.must("done", &["4 workers"])?;
    Ok(())
}

/// A unit that says itself when it is ready takes as long to start as it takes.
#[test]
fn a_unit_that_is_never_ready_is_no_obstacle_to_its_port() -> Result<()> {
    let sandbox = Sandbox::new("sdnotify")?;
    let scene = Scene::new(&sandbox, &Settings::default())?;
    // The worker listens and answers, and never sends READY=1: systemd calls it `activating` for a minute.
    scene.systemd.drop_in("web@.service", "[Service]\nType=notify\nTimeoutStartSec=60\n")?;
    scene.roll()?.end()?.must("done", &["4 workers"])?;
    scene.only_failed(&[])
}
