//! systemd: a user's, whose process ids are everybody's. The suite `systemd` has the system's.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use deployer::workers::{ProcessManager, Systemd};
use deployer_tests::{
    process::Process,
    sandbox::Sandbox,
    systemd::{TEMPLATE, of_user},
};

use super::scene::{Fixture, STOP_WITHIN, at, play};

/// A systemd that has the workers as units of a template.
pub(crate) struct Real {
    _process: Process,
    bus: String,
}

impl Real {
    fn systemd(&self, unit: &str) -> Systemd {
        Systemd::new(unit.to_owned(), Some(self.bus.clone()), Duration::from_secs(30))
    }
}

impl Fixture for Real {
    const RESTARTS: bool = true;
    const KILLS: bool = true;

    fn new(sandbox: &Sandbox, worker: &[String], directory: &Path) -> Result<Self> {
        let (at, words, stop) = (directory.display(), worker.join(" "), STOP_WITHIN.as_secs());
        let template = format!(
            "[Unit]\nDefaultDependencies=no\nStartLimitIntervalSec=60\nStartLimitBurst=3\n\
             [Service]\nExecStart={words} %i {at}\nRestart=always\nRestartSec=100ms\nTimeoutStopSec={stop}\n\
             StandardOutput=append:{at}/%i.out\nStandardError=inherit\n"
        );
        let (process, bus) = of_user(sandbox, &template)?;
        Ok(Self { _process: process, bus })
    }

    fn manager(&self) -> Result<Box<dyn ProcessManager>> {
        Ok(Box::new(self.systemd(TEMPLATE)))
    }
}

super::cases::suite!(Real);

#[test]
fn an_unknown_worker() -> Result<()> {
    play::<Real>(async |scene| {
        let manager = scene.fixture.systemd("wab@{port}.service");
        for result in [manager.check(&[at(8000), at(9000)]).await, manager.start(at(9000)).await] {
            let Err(error) = result else { anyhow::bail!("9000 is known") };
            ensure!(error.to_string().contains("wab@9000.service: there is no such unit"), "{error}");
            ensure!(!error.may_come_yet(), "{error}");
        }
        // What is not there does not run.
        Ok(manager.stop(at(9000)).await?)
    })
}

#[test]
fn not_there() -> Result<()> {
    play::<Real>(async |scene| {
        let bus = format!("{}.gone", scene.fixture.bus);
        let manager = Systemd::new(TEMPLATE.to_owned(), Some(bus), Duration::from_secs(30));
        let Err(error) = manager.check(&[at(8000)]).await else { anyhow::bail!("reached") };
        ensure!(error.to_string().contains("cannot be reached at") && !error.may_come_yet(), "{error}");
        Ok(())
    })
}
