//! Connections that are never quiet: the next request follows the answer at once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer_tests::load::Load;

use crate::scene::{Balancer, Scene};

/// Four clients, always busy, and workers that answer faster than anybody could find their connections quiet.
#[test]
fn hot_connections_are_closed_within_moments() -> Result<()> {
    let scene = Scene::new("kept_hot", Balancer::Nginx);
    let load = Load { clients: 4, ..scene.load.clone() };
    let figures = Scene { load, fast: true, ..scene }.run()?;
    // The deadline is 60 s. One that was used just before the roll, and not since, is waited for for 45 s.
    figures.lost_nothing(Duration::from_secs(55))?;
    let drains = figures.drains();
    let median = drains[drains.len() / 2];
    let before = figures.report.phase("before").context("no phase")?;
    let rate = before.requests as f64 / before.seconds;
    eprintln!("hot: {rate:.0} requests a second by four clients; drains, s: {drains:.3?}, median {median:.3}");
    ensure!(rate > 200.0, "{rate:.0} requests a second keep nothing hot");
    // 0.2 s on a machine that is busy with other things, too.
    ensure!(median < 2.0, "{drains:.2?}");
    Ok(())
}
