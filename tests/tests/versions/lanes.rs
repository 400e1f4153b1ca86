//! Who reaches which version, by which address; and that it is counted.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::site::{Plan, Site, ended};
use deployer_tests::visitors::Visitors;
use serde_json::Value;

use crate::scene::{NEW_LANE, OLD_LANE, SITE, is_settled, small, until};

/// A worker of each pool.
const OLD_WORKER: &str = "127.0.0.1:8000";
const NEW_WORKER: &str = "127.0.0.1:8101";

/// What the status counts: lane, preview, stale, unopened, moved.
type Counts = [u64; 5];

fn counts(service: &Value) -> Result<Counts> {
    let lanes = &service["lanes"];
    let names = ["lane", "preview", "stale", "unopened", "moved"];
    let counts: Option<Vec<_>> = names.iter().map(|name| lanes[name].as_u64()).collect();
    counts.and_then(|counts| counts.try_into().ok()).with_context(|| format!("no counts: {service}"))
}

/// Asks at each address once: who must answer, and how that must be counted, all together.
fn ask(site: &Site<'_>, sandbox: &Sandbox, who: &Path, wanted: &[(&str, &str)], counted: Counts) -> Result<()> {
    let before = counts(&site.service()?)?;
    let targets: Vec<_> = wanted.iter().map(|(target, _)| *target).collect();
    let visits = Visitors::once(sandbox, who, &targets)?;
    let after = counts(&site.service()?)?;
    let more: Vec<_> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    let got: BTreeMap<_, _> = visits.0.iter().map(|visit| (visit.target.as_str(), visit)).collect();
    let shown: Vec<_> = visits.0.iter().map(|visit| format!("{} {}", visit.target, visit.version)).collect();
    eprintln!("{}: {}; counted {more:?}", who.display(), shown.join(", "));
    for (target, version) in wanted {
        let visit = got.get(target).context("not asked")?;
        ensure!(visit.error.is_none() && visit.version == *version, "{target}: not {version}: {visit:?}");
        ensure!(visit.peer == *target, "getpeername() of {target}: {}", visit.peer);
    }
    ensure!(more == counted, "counted {more:?}, not {counted:?}");
    Ok(())
}

/// A cgroup below another place's.
fn below(sandbox: &Sandbox, place: Place) -> Result<PathBuf> {
    let cgroup = sandbox.cgroup(place).join("testers");
    fs::create_dir(&cgroup).context("make a cgroup")?;
    Ok(cgroup)
}

/// Through a whole deploy, under one policy of drains.
fn through_a_deploy(label: &str, policy: &str) -> Result<()> {
    let sandbox = Sandbox::new(label)?;
    let testers = below(&sandbox, Place::Callers)?;
    let plan = Plan {
        deploy: format!(", preview = [{testers:?}]"),
        extra: format!("drain = {{ policy = {policy:?} }}"),
        ..small()
    };
    let site = Site::start(&sandbox, plan.clone())?;
    let everybody = sandbox.cgroup(Place::Callers);
    let by = |who: &Path, wanted: &[(&str, &str)], counted| ask(&site, &sandbox, who, wanted, counted);
    let forged = "127.77.0.99:9000";
    // One version.
    by(&everybody, &[(SITE, "v1"), ("127.77.0.0:9000", "v1"), (OLD_LANE, "v1"), (forged, "v1")], [1, 0, 1, 0, 0])?;
    by(&everybody, &[(OLD_WORKER, "v1"), ("127.77.200.1:9000", "v1"), (NEW_LANE, "v1")], [1, 0, 1, 0, 0])?;
    by(&everybody, &[(NEW_WORKER, "v1")], [0, 0, 0, 0, 1])?;
    // The second is up, and nobody has been led to it.
    let deploy = site.deploying("v2", &["--hold"])?;
    until("the deploy holds", || Ok(site.daemon.log().contains("\\\"holding\\\"")))?;
    by(&everybody, &[(SITE, "v1"), (OLD_LANE, "v1"), (NEW_LANE, "v1"), (forged, "v1")], [1, 0, 1, 1, 0])?;
    by(&everybody, &[(NEW_WORKER, "v1"), (OLD_WORKER, "v1")], [0, 0, 0, 0, 1])?;
    by(&testers, &[(SITE, "v1"), (OLD_LANE, "v1"), (OLD_WORKER, "v1"), (forged, "v1")], [1, 0, 1, 0, 0])?;
    by(&testers, &[(NEW_LANE, "v2"), (NEW_WORKER, "v2"), ("127.77.9.2:9000", "v2")], [0, 3, 0, 0, 0])?;
    // It is current, the first is still there.
    site.must(&["flip", "web"])?;
    site.wait("it has flipped", |pools| pools[1]["current"] == true)?;
    by(&everybody, &[(SITE, "v2"), (OLD_LANE, "v1"), (NEW_LANE, "v2"), (forged, "v2")], [2, 0, 1, 0, 0])?;
    by(&everybody, &[(NEW_WORKER, "v2"), (OLD_WORKER, "v2")], [0, 0, 0, 0, 1])?;
    by(&testers, &[(OLD_WORKER, "v2"), (OLD_LANE, "v1")], [1, 0, 0, 0, 1])?;
    // The first is retired.
    let (exit, said) = ended(deploy)?;
    ensure!(exit == 0, "{said}");
    by(&everybody, &[(SITE, "v2"), (OLD_LANE, "v2"), (NEW_LANE, "v2"), (OLD_WORKER, "v2")], [1, 0, 1, 0, 1])?;
    is_settled(&site.pools()?, 1, "v2", plan.workers)
}

#[test]
fn everybody_reaches_what_is_theirs() -> Result<()> {
    through_a_deploy("lanes", "steer")
}

#[test]
fn also_where_drained_workers_refuse() -> Result<()> {
    through_a_deploy("lanes_refuse", "refuse")
}

/// As IPv6 sockets dial IPv4 addresses.
#[test]
fn mapped_into_ipv6() -> Result<()> {
    let sandbox = Sandbox::new("lanes_mapped")?;
    let site = Site::start(&sandbox, small())?;
    let deploy = site.deploying("v2", &[])?;
    site.wait("it has flipped", |pools| pools[1]["current"] == true)?;
    let wanted = [
        ("::ffff:127.77.0.1:9000", "v1"),
        ("::ffff:127.77.0.2:9000", "v2"),
        ("::ffff:127.77.0.7:9000", "v2"),
        ("::ffff:127.0.0.1:9000", "v2"),
        ("::ffff:127.0.0.1:8000", "v2"),
    ];
    ask(&site, &sandbox, &sandbox.cgroup(Place::Callers), &wanted, [2, 0, 1, 0, 1])?;
    let (exit, said) = ended(deploy)?;
    ensure!(exit == 0, "{said}");
    Ok(())
}

/// Somebody who may look at a new version need not be one of the callers: lane addresses work for them, too. All else goes
/// where they dial it, as for every stranger.
#[test]
fn previewers_beside_the_callers() -> Result<()> {
    let sandbox = Sandbox::new("lanes_preview")?;
    let testers = below(&sandbox, Place::Outside)?;
    let plan = Plan { deploy: format!(", preview = [{testers:?}]"), bake: "1s", ..small() };
    let site = Site::start(&sandbox, plan)?;
    let deploy = site.deploying("v2", &["--hold"])?;
    until("the deploy holds", || Ok(site.daemon.log().contains("\\\"holding\\\"")))?;
    let visits = Visitors::once(&sandbox, &testers, &[NEW_LANE, OLD_LANE, SITE, NEW_WORKER])?;
    eprintln!("{visits}");
    let versions: Vec<_> = visits.0.iter().map(|visit| visit.version.as_str()).collect();
    ensure!(versions == ["v2", "v1", "", "v2"], "{visits:?}");
    let others = Visitors::once(&sandbox, &sandbox.cgroup(Place::Outside), &[NEW_LANE, OLD_LANE, SITE, NEW_WORKER])?;
    eprintln!("strangers: {others}");
    ensure!(others.0[..3].iter().all(|visit| visit.error.is_some()) && others.0[3].version == "v2", "{others:?}");
    let now = counts(&site.service()?)?;
    ensure!(now == [1, 1, 0, 0, 0], "counted {now:?}");
    site.must(&["flip", "web"])?;
    let (exit, said) = ended(deploy)?;
    ensure!(exit == 0, "{said}");
    Ok(())
}

/// Where nothing is steered, nobody listens at a lane address: a plain refusal, and everything is as before afterwards.
#[test]
fn not_steered() -> Result<()> {
    let sandbox = Sandbox::new("lanes_bypass")?;
    let site = Site::start(&sandbox, small())?;
    let callers = sandbox.cgroup(Place::Callers);
    let refused = |what: &str| -> Result<()> {
        let visits = Visitors::once(&sandbox, &callers, &[OLD_LANE, "127.77.0.0:9000", SITE, OLD_WORKER])?;
        eprintln!("{what}: {visits}");
        let errors: Vec<_> = visits.0.iter().map(|visit| visit.error.clone().unwrap_or_default()).collect();
        ensure!(errors[..3].iter().all(|error| error.contains("Refused")) && errors[3].is_empty(), "{visits:?}");
        Ok(())
    };
    let all = [(OLD_LANE, "v1"), ("127.77.0.0:9000", "v1"), (SITE, "v1")];
    ask(&site, &sandbox, &callers, &all, [1, 0, 0, 0, 0])?;
    let (exit, said) = site.verb(&["bypass", "web"])?;
    ensure!(exit == 1 && said.contains("--force"), "exit {exit}: {said}");
    site.must(&["bypass", "web", "--force"])?;
    refused("bypass")?;
    let (exit, said) = site.deploy("v2", &[])?;
    ensure!(exit == 1 && said.contains("bypass"), "exit {exit}: {said}");
    site.must(&["bypass", "web", "--off"])?;
    ask(&site, &sandbox, &callers, &all, [1, 0, 0, 0, 0])
}
