//! How rare a loss could be and not be seen: very many closings.

use std::time::Duration;

use anyhow::{Result, ensure};
use deployer_tests::daemon::ServiceConfig;
use deployer_tests::load::Load;

use crate::scene::{Balancer, Scene};

/// Closings that `--full` is to see.
const MANY: u64 = 100_000;

/// Each roll takes every worker once, and with it the connections of very many clients that are always busy; nginx keeps
/// more of them than usual.
#[test]
fn closings_by_the_thousand() -> Result<()> {
    let mut closed = 0;
    while closed < if crate::full() { MANY } else { 100 } {
        closed += some()?;
        eprintln!("closings: {closed}, and nothing lost");
    }
    Ok(())
}

/// Rolls of fast workers; returns how many connections were closed.
fn some() -> Result<u64> {
    let scene = Scene::new("kept_closings", Balancer::Nginx);
    let load = Load { clients: 128, post_share: 0.8, ..scene.load.clone() };
    let config = ServiceConfig { warm: "requests = [\"GET /\"]", ..scene.config.clone() };
    let rolls = if crate::full() { 20 } else { 2 };
    let figures = Scene { load, config, rolls, fast: true, workers: 8, kept: 512, ..scene }.run()?;
    figures.lost_nothing(Duration::from_secs(40))?;
    let closed = figures.sum("closed");
    ensure!(closed > 0, "no connection was closed: {figures}");
    Ok(closed)
}
