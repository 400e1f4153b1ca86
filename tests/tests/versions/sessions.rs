//! Two hundred sessions through five deploys, one of which is turned back: no page ever meets another version than its own.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer_tests::browser::{Browsers, Seen};
use deployer_tests::daemon::{Daemon, DeployerBin};
use deployer_tests::haproxy::Haproxy;
use deployer_tests::journal::Journal;
use deployer_tests::nginx::{ADDRESS, Nginx};
use deployer_tests::pace::is_full;
use deployer_tests::probe::{Probe, Probed};
use deployer_tests::process;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::site::{self, Plan, Site};
use deployer_tests::varnish::Varnish;
use serde_json::Value;

use crate::lb::FRONT;

/// By how much the clocks of a flip may differ that are compared here: both are read in milliseconds.
const CLOCKS_NS: u64 = 3_000_000;

/// How long pages live, and how long both versions stand side by side after a flip: longer than a page and what caches have
/// of it.
struct Pace {
    sessions: u32,
    xhrs: u32,
    spread: Duration,
    cache_seconds: u32,
    bake: &'static str,
    between: Duration,
}

fn pace() -> Pace {
    let seconds = Duration::from_secs;
    if is_full() {
        Pace { sessions: 200, xhrs: 20, spread: seconds(30), cache_seconds: 5, bake: "45s", between: seconds(5) }
    } else {
        Pace { sessions: 120, xhrs: 6, spread: seconds(4), cache_seconds: 2, bake: "10s", between: seconds(1) }
    }
}

/// Where pools became current, and which version; ns of `CLOCK_MONOTONIC`.
struct Flip {
    at_ns: u64,
    before: String,
    after: String,
}

/// What `deployer lb` prints for the service.
fn printed(sandbox: &Sandbox, balancer: &str, more: &[&str]) -> Result<String> {
    let mut command = DeployerBin::find()?.command(sandbox);
    let config = Daemon::config_of(sandbox);
    process::run(command.args(["lb", balancer, "web", "--config"]).arg(config).args(more))
}

/// The events of a deploy that has ended.
fn flips(site: &Site<'_>, version: &str, back_after: Option<Duration>) -> Result<Vec<Flip>> {
    let before = site.pools()?[site.current()?]["version"].as_str().unwrap_or_default().to_owned();
    let child = site.deploying(version, &[])?;
    if let Some(after) = back_after {
        site.wait("flipped", |pools| pools.iter().any(|pool| pool["current"] == true && pool["version"] == version))?;
        sleep(after);
        site.must(&["rollback", "web"])?;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let wanted = if back_after.is_some() { 5 } else { 0 };
    ensure!(output.status.code() == Some(wanted), "{}: {said}\n{}", output.status, site.daemon.log());
    // Both clocks now, to tell the one from the other.
    let (unix, monotonic) = clocks();
    let mut flips = Vec::new();
    for line in said.lines() {
        let event: Value = serde_json::from_str(line)?;
        let (from, to) = match event["event"].as_str() {
            Some("flipped") => (before.clone(), version.to_owned()),
            Some("returned") => (version.to_owned(), before.clone()),
            _ => continue,
        };
        let at_ms = event["at_ms"].as_u64().context("when it flipped")?;
        flips.push(Flip { at_ns: monotonic - (unix - at_ms * 1_000_000), before: from, after: to });
    }
    ensure!(flips.len() == 1 + usize::from(back_after.is_some()), "{said}");
    Ok(flips)
}

/// `CLOCK_REALTIME` and `CLOCK_MONOTONIC`, ns.
fn clocks() -> (u64, u64) {
    use rustix::time::{ClockId, clock_gettime};
    let ns = |clock| {
        let now = clock_gettime(clock);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    };
    (ns(ClockId::Realtime), ns(ClockId::Monotonic))
}

/// Who dialled before a flip met the version before, who dialled after it the one after.
fn judge(flips: &[Flip], probed: &Probed) -> Result<usize> {
    ensure!(probed.failed.is_empty(), "{:?}", &probed.failed[..probed.failed.len().min(5)]);
    let mut judged = 0;
    for dialled in &probed.dialled {
        let version = match flips.iter().rposition(|flip| flip.at_ns <= dialled.begun_ns.saturating_sub(CLOCKS_NS)) {
            None => "v1",
            Some(nth) => &flips[nth].after,
        };
        // A flip within the call, or too near to tell.
        if flips
            .iter()
            .any(|flip| dialled.begun_ns < flip.at_ns + CLOCKS_NS && flip.at_ns < dialled.done_ns + CLOCKS_NS)
        {
            continue;
        }
        ensure!(dialled.version == version, "{dialled:?}, and {version} was current");
        judged += 1;
    }
    Ok(judged)
}

/// Five deploys, the third of which is turned back. Returns what the browsers saw, and the flips.
fn play(sandbox: &Sandbox, site: &Site<'_>, target: SocketAddr) -> Result<(Seen, Vec<Flip>)> {
    let Pace { sessions, xhrs, spread, cache_seconds, between, .. } = pace();
    let probe = Probe::start(sandbox, &site::ADDRESS.to_string(), 10)?;
    let browsers =
        Browsers { target, sessions, xhrs, spread, cache_seconds, ..Browsers::new("page") }.start(sandbox)?;
    sleep(spread / 2);
    let mut all = Vec::new();
    for nth in 2..=6 {
        let back = (nth == 4).then_some(between);
        all.extend(flips(site, &format!("v{nth}"), back)?);
        sleep(between);
    }
    let seen = browsers.stop()?;
    let judged = judge(&all, &probe.stop()?)?;
    eprintln!("{seen}\n{judged} connections judged at the workers, {} flips", all.len());
    ensure!(judged > 300, "{judged}");
    Ok((seen, all))
}

fn holds(site: &Site<'_>, seen: &Seen, flips: &[Flip]) -> Result<()> {
    ensure!(seen.mixed == 0 && seen.failed == 0, "{seen}\n{}", site.daemon.log());
    ensure!(seen.pages.keys().eq(["v1", "v2", "v3", "v4", "v5", "v6"]), "{:?}", seen.pages);
    let journal = Journal::read(&site.app.journal_dir())?;
    ensure!(journal.doubled().is_empty() && journal.cut().is_empty(), "{:?} {:?}", journal.doubled(), journal.cut());
    // Pages that no cache had, seen from their browsers: nothing of a version before it was current, or long after.
    for loaded in seen.loaded.iter().filter(|loaded| !loaded.cached) {
        let is_over = flips.iter().rposition(|flip| flip.at_ns + CLOCKS_NS < loaded.begin_ns);
        let wanted = is_over.map_or("v1", |nth| flips[nth].after.as_str());
        let within = |flip: &&Flip| loaded.begin_ns < flip.at_ns + CLOCKS_NS && flip.at_ns < loaded.end_ns + CLOCKS_NS;
        let is_either =
            flips.iter().find(within).is_some_and(|flip| [&flip.before, &flip.after].contains(&&loaded.page.version));
        ensure!(is_either || loaded.page.version == wanted, "{loaded:?}: {wanted} was current");
    }
    let service = site.service()?;
    eprintln!("lanes: {}", service["lanes"]);
    ensure!(service["lanes"]["stale"] == 0, "a page outlived its version: {}", service["lanes"]);
    Ok(())
}

fn site(sandbox: &Sandbox) -> Result<Site<'_>> {
    Site::start(sandbox, Plan { bake: pace().bake, ..Plan::default() })
}

#[test]
fn nginx_and_workers() -> Result<()> {
    let sandbox = Sandbox::new("sess_nginx")?;
    let site = site(&sandbox)?;
    let nginx = Nginx::start_lanes(&sandbox, &printed(&sandbox, "nginx", &[])?)?;
    let (seen, flips) = play(&sandbox, &site, ADDRESS)?;
    holds(&site, &seen, &flips)?;
    let errors = nginx.error_lines()?;
    ensure!(errors.is_empty(), "{errors:?}");
    Ok(())
}

#[test]
fn varnish_nginx_and_workers() -> Result<()> {
    let sandbox = Sandbox::new("sess_varnish")?;
    let site = site(&sandbox)?;
    let _nginx = Nginx::start_lanes(&sandbox, &printed(&sandbox, "nginx", &[])?)?;
    let text = printed(&sandbox, "varnish", &["--via", &ADDRESS.to_string()])?;
    let _varnish = Varnish::start_caching(&sandbox, FRONT, &text, &[])?;
    let (seen, flips) = play(&sandbox, &site, FRONT)?;
    ensure!(seen.loaded.iter().any(|loaded| loaded.cached), "no page came out of a cache");
    holds(&site, &seen, &flips)
}

/// In `--full`, HAProxy, and Varnish that dials the lanes itself.
#[test]
fn others_and_workers() -> Result<()> {
    if !is_full() {
        eprintln!("only with --full");
        return Ok(());
    }
    {
        let sandbox = Sandbox::new("sess_haproxy")?;
        let site = site(&sandbox)?;
        let _haproxy = Haproxy::start(&sandbox, &printed(&sandbox, "haproxy", &[])?)?;
        let (seen, flips) = play(&sandbox, &site, ADDRESS)?;
        holds(&site, &seen, &flips)?;
    }
    let sandbox = Sandbox::new("sess_direct")?;
    let site = site(&sandbox)?;
    let _varnish = Varnish::start_caching(&sandbox, FRONT, &printed(&sandbox, "varnish", &[])?, &[])?;
    let (seen, flips) = play(&sandbox, &site, FRONT)?;
    holds(&site, &seen, &flips)
}

/// The twin: workers restarted one by one, in one pool.
#[test]
fn a_plain_roll_mixes_pages() -> Result<()> {
    let sandbox = Sandbox::new("sess_twin")?;
    let site = Site::start(&sandbox, Plan::default())?;
    let _nginx = Nginx::start_lanes(&sandbox, &printed(&sandbox, "nginx", &[])?)?;
    let spread = Duration::from_secs(4);
    let browsers = Browsers { sessions: 60, xhrs: 10, spread, ..Browsers::new("twin") }.start(&sandbox)?;
    sleep(Duration::from_secs(3));
    for version in ["v2", "v3"] {
        site.must(&["roll", "web", "--to", version, "--batch", "1"])?;
        sleep(Duration::from_secs(2));
    }
    let seen = browsers.stop()?;
    eprintln!("{seen}");
    ensure!(seen.failed == 0, "{seen}");
    ensure!(seen.mixed > 0, "the same load sees no mixed page where there are some: {seen}");
    Ok(())
}
