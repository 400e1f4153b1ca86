//! Callers that keep their connections: those of the time before a flip do not go on to the old version.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer_tests::load::Load;
use deployer_tests::nginx::Nginx;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::site::{Plan, Site, ended, event};

use crate::scene::{is_settled, small, unix_ms};

/// nginx with connections that it keeps to the service address.
fn nginx(sandbox: &Sandbox) -> Result<Nginx> {
    let upstream = "  upstream web { server 127.0.0.1:9000; keepalive 32; }\n";
    Nginx::start_text(sandbox, upstream, "proxy_http_version 1.1; proxy_set_header Connection \"\";")
}

/// Nothing is left of former connections, and none is open.
const GONE: (Option<u64>, Option<u64>) = (Some(0), Some(0));

/// What is not answered when the flip comes is answered by the version that has it.
#[test]
fn kept_connections_follow_a_flip() -> Result<()> {
    let sandbox = Sandbox::new("kept_flip")?;
    let plan = Plan { workers: 2, bake: "6s", ..Plan::default() };
    let site = Site::start(&sandbox, plan.clone())?;
    let nginx = nginx(&sandbox)?;
    let load = Load { post_share: 0.0, rate: 200.0, slow_one_in: 40, slow_seconds: 1, ..Load::new("kept") };
    let load = load.start(&sandbox)?;
    sleep(Duration::from_millis(1500));
    let deploy = site.deploying("v2", &[])?;
    site.wait("it has flipped", |pools| pools[1]["current"] == true)?;
    let (seen, mut left) = (unix_ms(), Vec::new());
    // Slow ones last a second; all that before the bake is over.
    while unix_ms() < seen + 5000.0 && left.last().is_none_or(|(_, former, open)| (*former, *open) != GONE) {
        let pools = site.pools()?;
        left.push((unix_ms() - seen, pools[0]["former"].as_u64(), pools[0]["open"].as_u64()));
        sleep(Duration::from_millis(100));
    }
    let (exit, said) = ended(deploy)?;
    let report = load.stop()?;
    let flipped = event(&said, "flipped").context("flipped")?["at_ms"].as_f64().context("at_ms")?;
    // Requests have CLOCK_MONOTONIC, flips the other one.
    let off = unix_ms() - deployer_tests::journal::monotonic_ns() as f64 / 1e6;
    let begun = |outcome: &deployer_tests::report::Outcome| outcome.start_ns as f64 / 1e6 + off - flipped;
    let late: Vec<_> = report.outcomes.iter().filter(|o| o.version == "v1" && begun(o) > 0.0).map(begun).collect();
    let last = late.iter().copied().fold(0.0, f64::max);
    let across = report.outcomes.iter().filter(|o| o.slow && o.version == "v1" && begun(o) > -900.0).count();
    eprintln!(
        "{} requests, {} failed; after the flip {} went to v1, the last {last:.0} ms after it; {across} slow ones were under \
         way; left (ms, former, open): {left:.0?}",
        report.requests,
        report.failed,
        late.len()
    );
    ensure!(exit == 0, "{said}");
    ensure!(report.failed == 0, "{report}");
    ensure!(report.requests > 500 && across > 0, "too few: {report}");
    // 0.2 s where the processors are not shared: a connection is closed when its owner sleeps, and has nothing to read.
    ensure!(last < 2500.0, "{} requests went to v1, the last {last} ms after the flip", late.len());
    ensure!(nginx.error_lines()?.is_empty(), "{:?}", nginx.error_lines()?);
    ensure!(left.iter().any(|(_, former, _)| former.is_some()), "status tells nothing of them: {left:?}");
    ensure!(left.last().is_some_and(|(_, former, open)| (*former, *open) == GONE), "{left:?}");
    is_settled(&site.pools()?, 1, "v2", plan.workers)
}

/// Nobody asks for anything when the flip comes; the connections are closed all the same. Those that were last used before
/// the deploy began (`is_older`) are known by nothing but their silence.
fn idle_connections(label: &str, is_older: bool, extra: &str, within_ms: f64) -> Result<()> {
    let sandbox = Sandbox::new(label)?;
    let plan = Plan { bake: "4s", extra: extra.to_owned(), ..small() };
    let site = Site::start(&sandbox, plan.clone())?;
    let nginx = nginx(&sandbox)?;
    let load = |run| Load { post_share: 0.0, rate: 200.0, slow_one_in: 0, ..Load::new(run) }.start(&sandbox);
    let use_them = || -> Result<_> {
        let load = load("busy")?;
        sleep(Duration::from_millis(500));
        load.stop()
    };
    let older = if is_older { Some(use_them()?) } else { None };
    let deploy = site.deploying("v2", &["--hold"])?;
    crate::scene::until("the deploy holds", || Ok(site.daemon.log().contains("\\\"holding\\\"")))?;
    let busy = older.map_or_else(use_them, Ok)?;
    let kept = site.pools()?[0]["open"].as_u64().context("open")?;
    site.must(&["flip", "web"])?;
    site.wait("it has flipped", |pools| pools[1]["current"] == true)?;
    let begun = unix_ms();
    site.wait("they are closed", |pools| pools[0]["open"] == 0)?;
    let took = unix_ms() - begun;
    let load = load("after")?;
    let (exit, said) = ended(deploy)?;
    let after = load.stop()?;
    let versions: std::collections::BTreeSet<_> = after.outcomes.iter().map(|o| o.version.as_str()).collect();
    eprintln!(
        "{kept} kept, closed within {took:.0} ms; {} and {} requests, {versions:?}",
        busy.requests, after.requests
    );
    ensure!(exit == 0, "{said}");
    ensure!(kept > 0 && took < within_ms, "{kept} kept, closed within {took} ms");
    ensure!(busy.failed == 0 && after.failed == 0 && versions == ["v2"].into(), "{after}");
    ensure!(nginx.error_lines()?.is_empty(), "{:?}", nginx.error_lines()?);
    is_settled(&site.pools()?, 1, "v2", plan.workers)
}

#[test]
fn idle_connections_are_closed() -> Result<()> {
    idle_connections("kept_idle", false, "", 1500.0)
}

/// Without `quiet_after` that is 45 s of silence (ARCHITECTURE.md).
#[test]
fn also_those_of_before_the_deploy() -> Result<()> {
    idle_connections("kept_older", true, "drain = { quiet_after = \"1s\" }", 3500.0)
}
