//! Deploys: what the page says of two pools is what status says, before a flip, beside it and after it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer_tests::dial::{Caller, Dial};
use deployer_tests::pace::patient;
use deployer_tests::prometheus;
use deployer_tests::rig::wait;
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::site::{Plan, Site};
use serde_json::Value;

use crate::{page, shipped};

/// Families of which a service with one pool has no series.
const OF_TWO_POOLS: [&str; 5] =
    ["deployer_pool_", "deployer_lane_", "deployer_deploy", "deployer_flips_", "deployer_rollbacks_"];

/// Whether only services with two pools have such a family.
pub(crate) fn is_of_two_pools(name: &str) -> bool {
    OF_TWO_POOLS.iter().any(|of| name.starts_with(of))
}

/// What the page says, series by series.
fn series(sandbox: &Sandbox) -> Result<BTreeMap<String, f64>> {
    let text = prometheus::page(sandbox)?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').context("a line without a value")?;
            Ok((name.to_owned(), value.parse().with_context(|| line.to_owned())?))
        })
        .collect()
}

/// What of the service's status is on the page, as it must be there; missing is what must not be.
fn of_status(service: &Value) -> Result<BTreeMap<String, Option<f64>>> {
    let mut all = BTreeMap::new();
    let number = |value: &Value| value.as_f64().or_else(|| value.as_bool().map(|it| f64::from(u8::from(it))));
    for pool in service["pools"].as_array().context("no pools")? {
        let labels = format!("service=\"web\",pool=\"{}\"", pool["pool"].as_str().context("a pool without a name")?);
        for (key, family) in [
            ("current", "current"),
            ("lane", "lane"),
            ("open_lane", "lane_open"),
            ("up", "workers_up"),
            ("workers", "workers"),
            ("former", "former_connections"),
        ] {
            all.insert(format!("deployer_pool_{family}{{{labels}}}"), number(&pool[key]));
        }
    }
    for way in ["lane", "preview", "stale", "unopened", "moved"] {
        let name = format!("deployer_lane_connections_total{{service=\"web\",way=\"{way}\"}}");
        all.insert(name, number(&service["lanes"][way]));
    }
    all.insert(
        "deployer_roll_running{service=\"web\"}".to_owned(),
        Some(f64::from(u8::from(!service["roll"].is_null()))),
    );
    Ok(all)
}

/// Waits until page and status say the same; they are not of one instant. Returns what the page says, which promtool has
/// nothing against.
fn agree(sandbox: &Sandbox, site: &Site<'_>, when: &str) -> Result<BTreeMap<String, f64>> {
    let until = Instant::now() + patient(Duration::from_secs(10));
    loop {
        let (status, found) = (of_status(&site.service()?)?, series(sandbox)?);
        let differ: Vec<_> = status.iter().filter(|(name, value)| found.get(*name) != value.as_ref()).collect();
        if differ.is_empty() {
            page::read(sandbox)?;
            return Ok(found);
        }
        ensure!(Instant::now() < until, "{when}: the status has {differ:?}\n{}", prometheus::page(sandbox)?);
    }
}

fn is(found: &BTreeMap<String, f64>, name: &str, value: f64) -> Result<()> {
    ensure!(found.get(name) == Some(&value), "{name}: {:?} instead of {value}", found.get(name));
    Ok(())
}

/// A caller's connections to each of these, one by one.
fn dial(sandbox: &Sandbox, all: &[(&str, u16)]) -> Result<()> {
    for (host, port) in all {
        let seen = Caller::at(sandbox, Place::Callers).once(Dial::to(host, *port))?;
        ensure!(!seen.iter().any(|seen| seen.is_refused()), "{host}:{port}: {seen:?}");
    }
    Ok(())
}

#[test]
fn the_page_says_of_pools_what_status_says() -> Result<()> {
    let sandbox = Sandbox::new("pools")?;
    let plan = Plan { metrics: Some("127.0.0.1:9469"), bake: "60s", ..Plan::default() };
    let site = Site::start(&sandbox, plan)?;
    let found = agree(&sandbox, &site, "before")?;
    is(&found, "deployer_pool_current{service=\"web\",pool=\"a\"}", 1.0)?;
    is(&found, "deployer_deploy_baking{service=\"web\"}", 0.0)?;
    is(&found, "deployer_service_workers{service=\"web\"}", 4.0)?;
    // Lane 1 is the first pool's; 9 was never given; 8100 is of the second, where nobody listens.
    dial(&sandbox, &[("127.77.0.1", 9000), ("127.77.0.9", 9000), ("127.0.0.1", 8100)])?;
    let mut deploy = site.deploying("v2", &["--hold"])?;
    site.wait("the second pool is up", |pools| pools[1]["up"] == 4)?;
    dial(&sandbox, &[("127.77.0.2", 9000)])?;
    let found = agree(&sandbox, &site, "the second pool is up")?;
    for (way, count) in [("lane", 1.0), ("stale", 1.0), ("moved", 1.0), ("unopened", 1.0), ("preview", 0.0)] {
        is(&found, &format!("deployer_lane_connections_total{{service=\"web\",way=\"{way}\"}}"), count)?;
    }
    is(&found, "deployer_pool_lane_open{service=\"web\",pool=\"b\"}", 0.0)?;
    armed_and_flipped(&sandbox, &site)?;
    site.must(&["rollback", "web"])?;
    site.wait("pool a is current again", |pools| pools[0]["current"] == true)?;
    let found = agree(&sandbox, &site, "rolled back")?;
    is(&found, "deployer_rollbacks_total{service=\"web\"}", 1.0)?;
    is(&found, "deployer_deploys_total{service=\"web\",result=\"rolled-back\"}", 0.0)?;
    // Another in its place, which is done.
    let (exit, said) = site.deploy("v3", &["--supersede", "--bake", "1s"])?;
    ensure!(exit == 0, "{said}\n{}", site.daemon.log());
    deploy.wait()?;
    let found = agree(&sandbox, &site, "done")?;
    for (name, value) in [
        ("deployer_flips_total{service=\"web\"}", 2.0),
        ("deployer_deploys_total{service=\"web\",result=\"rolled-back\"}", 1.0),
        ("deployer_deploys_total{service=\"web\",result=\"done\"}", 1.0),
        ("deployer_rolls_total{service=\"web\",result=\"done\"}", 0.0),
        ("deployer_deploy_baking{service=\"web\"}", 0.0),
        ("deployer_pool_current{service=\"web\",pool=\"b\"}", 1.0),
        ("deployer_pool_lane{service=\"web\",pool=\"a\"}", 0.0),
    ] {
        is(&found, name, value)?;
    }
    Ok(())
}

/// The deploy that holds is told to flip some seconds ahead, and bakes.
fn armed_and_flipped(sandbox: &Sandbox, site: &Site<'_>) -> Result<()> {
    let told = || site.verb(&["flip", "web", "--at", "+4s"]).map(|(exit, _)| exit == 0);
    wait("the deploy holds", told)?;
    let at = "deployer_pool_flip_timestamp_seconds{service=\"web\",pool=\"b\"}";
    wait("the flip is armed", || Ok(series(sandbox)?.contains_key(at)))?;
    let said = site.pools()?[1]["flips_at_ms"].as_f64().context("status says nothing of the flip")? / 1000.0;
    // Reckoned from another clock, each time anew.
    let found = series(sandbox)?.get(at).copied().context("it has flipped meanwhile")?;
    ensure!((said - found).abs() < 0.1, "{said} and {found}");
    let unknown = page::unknown(
        &page::read(sandbox)?,
        &shipped::asked_for()?.into_iter().filter(|name| is_of_two_pools(name)).collect(),
    );
    ensure!(unknown.iter().all(|name| name.contains("former")), "not on the page: {unknown:?}");
    site.wait("it has flipped", |pools| pools[1]["current"] == true)?;
    wait("it bakes", || Ok(series(sandbox)?.get("deployer_deploy_baking{service=\"web\"}") == Some(&1.0)))?;
    let found = agree(sandbox, site, "both versions side by side")?;
    is(&found, "deployer_pool_lane_open{service=\"web\",pool=\"a\"}", 1.0)?;
    is(&found, "deployer_flips_total{service=\"web\"}", 1.0)?;
    ensure!(!found.contains_key(at), "a flip is still to come");
    is(&found, "deployer_roll_workers{service=\"web\",state=\"done\"}", 4.0)
}
