//! The time of day is set while something lasts: nothing ends early for that, and nothing late.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer_tests::daemon::{Daemon, DeployerBin};
use deployer_tests::pace::patient;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::site::{Plan, Site, ended};

use crate::scene::{is_settled, small, until};

const HOUR_MS: i64 = 3_600_000;

/// A daemon's time of day, which a test may set.
struct Clock<'a>(&'a Sandbox);

impl Clock<'_> {
    fn set(&self, offset_ms: i64) -> Result<()> {
        fs::write(self.0.dir().join("clock"), format!("offset_ms = {offset_ms}\n")).context("set the clock")
    }

    fn environment(&self) -> [(&'static str, String); 1] {
        [("DEPLOYER_CLOCK", self.0.dir().join("clock").display().to_string())]
    }

    fn site(&self, plan: &Plan) -> Result<Site<'_>> {
        self.set(0)?;
        Site::start_with(self.0, plan.clone(), &self.environment())
    }
}

/// Kills the daemon, and starts another by the same clock.
fn restart<'a>(site: &mut Site<'a>, clock: &Clock<'a>, plan: &Plan) -> Result<()> {
    site.daemon.process().kill()?;
    let text = plan.text(clock.0, &site.app);
    site.daemon = Daemon::start_with(clock.0, DeployerBin::find()?, &text, &clock.environment())?;
    Ok(())
}

/// How many of the old pool are up.
fn old_ones(site: &Site<'_>) -> Result<u64> {
    site.pools()?[0]["up"].as_u64().context("up")
}

#[test]
fn an_hour_ahead_ends_no_bake() -> Result<()> {
    let sandbox = Sandbox::new("ahead")?;
    let (clock, plan) = (Clock(&sandbox), Plan { bake: "5s", ..small() });
    let mut site = clock.site(&plan)?;
    let deploy = site.deploying("v2", &[])?;
    until("the flip", || Ok(site.current()? == 1))?;
    let flipped = Instant::now();
    clock.set(HOUR_MS)?;
    sleep(Duration::from_secs(1));
    ensure!(old_ones(&site)? == 2, "the old pool is retired early\n{}", site.daemon.log());
    // The next daemon has it from the journal.
    restart(&mut site, &clock, &plan)?;
    until("the end of the bake", || Ok(old_ones(&site)? < 2))?;
    let baked = flipped.elapsed();
    ensure!(baked > Duration::from_secs(4) && baked < patient(Duration::from_secs(12)), "baked for {baked:.1?}");
    let (exit, said) = ended(deploy)?;
    ensure!(exit == 0, "exit {exit}: {said}");
    is_settled(&site.pools()?, 1, "v2", plan.workers)
}

#[test]
fn an_hour_back_prolongs_no_bake() -> Result<()> {
    let sandbox = Sandbox::new("back")?;
    let (clock, plan) = (Clock(&sandbox), Plan { bake: "2s", ..small() });
    let site = clock.site(&plan)?;
    let mut deploy = site.deploying("v2", &[])?;
    until("the flip", || Ok(site.current()? == 1))?;
    let flipped = Instant::now();
    clock.set(-HOUR_MS)?;
    let limit = patient(Duration::from_secs(12));
    while old_ones(&site)? == 2 {
        if flipped.elapsed() > limit {
            deploy.kill().ok();
            deploy.wait().ok();
            ensure!(false, "a bake of 2 s still lasts after {:.1?}", flipped.elapsed());
        }
        sleep(Duration::from_millis(50));
    }
    ensure!(ended(deploy)?.0 == 0);
    Ok(())
}

/// A drain for a while, over a restart of the daemon.
#[test]
fn an_hour_ahead_ends_no_drain() -> Result<()> {
    let sandbox = Sandbox::new("drains")?;
    let (clock, plan) = (Clock(&sandbox), small());
    let mut site = clock.site(&plan)?;
    site.must(&["drain", "web", "8000", "--for", "600s", "--force"])?;
    clock.set(HOUR_MS)?;
    restart(&mut site, &clock, &plan)?;
    sleep(Duration::from_millis(500));
    let phase = site.service()?["workers"][0]["phase"].clone();
    ensure!(phase == "draining", "the worker is {phase}\n{}", site.daemon.log());
    site.must(&["enable", "web", "8000"])?;
    Ok(())
}
