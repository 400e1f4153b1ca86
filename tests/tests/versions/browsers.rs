//! The harness's browsers against themselves, without anything of the deployer's in the kernel: they must see no mixed
//! version where there is none, and see it where there is.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer_tests::app::App;
use deployer_tests::browser::{Browsers, Seen};
use deployer_tests::journal::Journal;
use deployer_tests::nginx::{ADDRESS, Nginx, Upstream};
use deployer_tests::pages::{Pages, lane_address};
use deployer_tests::sandbox::Sandbox;
use deployer_tests::varnish::Varnish;

use crate::lb::{FRONT, PORT, printed};

/// 48 tabs, some 130 requests a second.
fn browsers(run: &str, target: SocketAddr) -> Browsers {
    Browsers { target, sessions: 40, xhrs: 10, spread: Duration::from_secs(4), ..Browsers::new(run) }
}

/// What they see in 8 s: each tab has a second page by then.
fn browse(sandbox: &Sandbox, target: SocketAddr) -> Result<Seen> {
    let browsers = browsers("self", target).start(sandbox)?;
    sleep(Duration::from_secs(8));
    let seen = browsers.stop()?;
    eprintln!("{seen}");
    ensure!(seen.failed == 0, "{seen}");
    ensure!(seen.loaded.len() > 60 && seen.xhrs > 300, "too few: {seen}");
    Ok(seen)
}

/// Every XHR is in a worker's journal, once, and every worker has written its connections down.
fn agrees(app: &App, seen: &Seen) -> Result<Journal> {
    let journal = Journal::read(&app.journal_dir())?;
    let xhrs = journal.entries.iter().filter(|entry| entry.asked.contains("/xhr?id=self-")).count();
    ensure!(xhrs == seen.xhrs, "{xhrs} XHRs at the workers: {seen}");
    ensure!(journal.doubled().is_empty() && journal.cut().is_empty(), "{:?}", journal.doubled());
    let stray = journal.entries.iter().find(|entry| {
        let of =
            |peer: u16| journal.connections.iter().any(|c| (c.port, c.pid, c.peer) == (entry.port, entry.pid, peer));
        !of(entry.peer)
    });
    ensure!(stray.is_none(), "a request on no connection: {stray:?}");
    Ok(journal)
}

#[test]
fn one_version_is_not_mixed() -> Result<()> {
    let sandbox = Sandbox::new("browse_one")?;
    let app = App::new(&sandbox, &["v1"])?;
    let worker = Pages::start(&sandbox, &app, "127.0.0.1:8000".parse()?, "v1", 0)?;
    let seen = browse(&sandbox, worker.address)?;
    ensure!(seen.mixed == 0 && seen.pages.keys().eq(["v1"]), "{seen}");
    agrees(&app, &seen).map(drop)
}

#[test]
fn two_versions_taken_in_turn_are() -> Result<()> {
    let sandbox = Sandbox::new("browse_two")?;
    let app = App::new(&sandbox, &["v1", "v2"])?;
    let start = |port, version| Pages::start(&sandbox, &app, ([127, 0, 0, 1], port).into(), version, 0);
    let _workers = [start(8000, "v1")?, start(8001, "v2")?];
    let _nginx = Nginx::start(&sandbox, &Upstream::workers(8000..=8001, ""))?;
    let seen = browse(&sandbox, ADDRESS)?;
    ensure!(seen.mixed > seen.xhrs / 4 && !seen.first_mixed.is_empty(), "{seen}");
    ensure!(seen.pages.keys().eq(["v1", "v2"]), "{seen}");
    agrees(&app, &seen).map(drop)
}

/// Lane 0 is one version and the other in turn: the worst of deploys. Header, prefix, tabs, reloads and Varnish's copies.
#[test]
fn two_versions_on_lanes_are_not() -> Result<()> {
    let sandbox = Sandbox::new("browse_lanes")?;
    let app = App::new(&sandbox, &["v1", "v2"])?;
    let start = |lane: u8| Pages::start(&sandbox, &app, lane_address(lane, PORT), &format!("v{lane}"), lane);
    let _workers = [start(1)?, start(2)?];
    let in_turn = format!(
        "upstream both {{ server {}; server {}; }}
  server {{ listen {}; location / {{ proxy_pass http://both; }} }}\n",
        lane_address(1, PORT),
        lane_address(2, PORT),
        lane_address(0, PORT)
    );
    let nginx = Nginx::start_lanes(&sandbox, &format!("{in_turn}{}", printed(&sandbox, &["nginx"])?))?;
    let text = printed(&sandbox, &["varnish", "--via", &ADDRESS.to_string()])?;
    let _varnish = Varnish::start_caching(&sandbox, FRONT, &text, &[])?;
    let seen = browse(&sandbox, FRONT)?;
    ensure!(seen.mixed == 0, "{seen}");
    ensure!(seen.pages.keys().eq(["v1", "v2"]), "{seen}");
    let journal = agrees(&app, &seen)?;
    let made = journal.entries.iter().filter(|entry| entry.asked.contains("/page?cache=")).count();
    let loaded = seen.loaded.iter().filter(|loaded| loaded.cached).count();
    ensure!(made < loaded, "{made} of {loaded} pages were made: Varnish had no copies");
    let errors = nginx.error_lines().context("nginx")?;
    ensure!(errors.is_empty(), "{errors:?}");
    Ok(())
}
