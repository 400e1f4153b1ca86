//! Drains by hand under load: what is closed is what a roll would close.

use std::ops::Range;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use deployer_tests::daemon::Daemon;
use deployer_tests::load::Load;

use crate::scene::{Balancer, Rolled, Scene};

/// The deadline of a drain by hand, for which there is none.
const DRAIN_LIMIT: Duration = Duration::from_secs(40);

/// Workers are drained and enabled by hand, over and over, two of four at a time: that closes more connections in a second
/// than a roll, which spends its time on starting workers. (The suite `reaper` has a storm of closings.)
#[test]
fn closings_by_hand() -> Result<()> {
    let spell = Duration::from_secs(if crate::full() { 300 } else { 8 });
    // Clients that are always busy, most of them with POSTs, and answers that take 40 ms, so that nginx keeps many
    // connections to each worker, but has time to sleep.
    let scene = Scene::new("kept_closings", Balancer::Nginx);
    let load = Load { clients: 32, wait_ms: 40, post_share: 0.8, ..scene.load.clone() };
    let scene = Scene { load, fast: true, kept: 512, ..scene };
    let figures = scene.play(|daemon| {
        scope(|scope| {
            let halves = [8000..8002, 8002..8004].map(|ports| scope.spawn(move || around(daemon, ports, spell)));
            halves
                .into_iter()
                .map(|half| half.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    })?;
    figures.lost_nothing(DRAIN_LIMIT)?;
    let closed = figures.sum("closed");
    ensure!(closed > 10, "hardly a connection was closed: {figures}");
    Ok(())
}

/// Drains and enables workers in turn until the time is over.
fn around(daemon: &Daemon<'_>, ports: Range<u16>, spell: Duration) -> Result<Rolled> {
    let (begun, mut drains) = (Instant::now(), Vec::new());
    for port in ports.cycle() {
        if begun.elapsed() > spell {
            break;
        }
        drains.push(drain(daemon, port)?);
    }
    Ok(Rolled { exit: Some(0), seconds: begun.elapsed().as_secs_f64(), drains, output: String::new() })
}

/// Drains a worker, enables it when it is empty, and lets it gather connections anew. Returns the seconds until it was
/// empty.
fn drain(daemon: &Daemon<'_>, port: u16) -> Result<f64> {
    let begun = Instant::now();
    let api = daemon.api();
    let by_hand = |verb| api.ask("POST", &format!("/v1/services/web/{verb}"), &format!("{{\"port\":{port}}}"));
    by_hand("drain")?;
    while api.workers()?[&port]["open"] != 0 {
        if begun.elapsed() > DRAIN_LIMIT {
            bail!("{port} is not empty: {}", daemon.log());
        }
        sleep(Duration::from_millis(5));
    }
    let seconds = begun.elapsed().as_secs_f64();
    by_hand("enable")?;
    sleep(Duration::from_millis(100));
    Ok(seconds)
}
