//! The main thing: rolls in a row under each load balancer, GET and POST, fast requests and such of 8 s.

use std::time::Duration;

use anyhow::{Result, ensure};
use deployer_tests::daemon::ServiceConfig;
use deployer_tests::load::Load;

use crate::scene::{Balancer, Scene};

/// Requests of 5 ms. The deadline is 60 s; a drain takes about 0.1 s where the machine is its own. On a busy one the workers
/// left are overrun for a while; and a connection that was used just before the roll, and not since, is waited for for 45 s.
const FAST: Duration = Duration::from_secs(55);
/// Some requests take 8 s, and may have come just before the drain.
const SLOW: Duration = Duration::from_secs(55);

fn fast(label: &'static str, balancer: Balancer) -> Scene {
    Scene::new(label, balancer)
}

fn slow(label: &'static str, balancer: Balancer) -> Scene {
    let scene = Scene::new(label, balancer);
    let load = Load { slow_one_in: 60, ..scene.load.clone() };
    // One such roll takes as long as ten of the others.
    let rolls = if crate::full() { scene.rolls } else { 1 };
    Scene { load, rolls, ..scene }
}

#[test]
fn nginx_with_fast_requests() -> Result<()> {
    let figures = fast("kept_nginx", Balancer::Nginx).run()?;
    figures.lost_nothing(FAST)?;
    ensure!(figures.sum("closed") > 0, "no connection was kept, or none was closed: {figures}");
    Ok(())
}

#[test]
fn nginx_with_requests_of_8_s() -> Result<()> {
    slow("kept_nginx_slow", Balancer::Nginx).run()?.lost_nothing(SLOW)
}

/// A closed connection and a refused one are one and the same to nginx: it goes to the next server.
#[test]
fn nginx_with_refused_connections() -> Result<()> {
    let scene = fast("kept_refuse", Balancer::Nginx);
    let config = ServiceConfig { policy: "refuse", ..scene.config.clone() };
    Scene { config, rolls: 1, ..scene }.run()?.lost_nothing(FAST)
}

#[test]
fn haproxy_with_fast_requests() -> Result<()> {
    fast("kept_haproxy", Balancer::Haproxy).run()?.lost_nothing(FAST)
}

#[test]
fn haproxy_with_requests_of_8_s() -> Result<()> {
    slow("kept_haproxy_slow", Balancer::Haproxy).run()?.lost_nothing(SLOW)
}

#[test]
fn haproxy_with_refused_connections() -> Result<()> {
    let scene = fast("kept_hrefuse", Balancer::Haproxy);
    let config = ServiceConfig { policy: "refuse", ..scene.config.clone() };
    Scene { config, rolls: 1, ..scene }.run()?.lost_nothing(FAST)
}

#[test]
fn haproxy_with_one_thread() -> Result<()> {
    let figures = fast("kept_hone", Balancer::HaproxyOneThread).run()?;
    figures.lost_nothing(FAST)?;
    ensure!(figures.sum("closed") > 0, "no connection was kept, or none was closed: {figures}");
    Ok(())
}

#[test]
fn varnish_with_fast_requests() -> Result<()> {
    fast("kept_varnish", Balancer::Varnish).run()?.lost_nothing(FAST)
}

#[test]
fn varnish_with_requests_of_8_s() -> Result<()> {
    slow("kept_varnish_slow", Balancer::Varnish).run()?.lost_nothing(SLOW)
}
