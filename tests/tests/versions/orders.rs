//! What may be asked of a deploy while it is under way, and what is refused.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer_tests::process::send;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::site::{Plan, Site, ended, event};
use deployer_tests::visitors::Visitors;
use rustix::process::Signal;

use crate::scene::{NEW_LANE, OLD_LANE, SITE, is_gone, is_settled, small, unix_ms, until};

/// The event by which something is known of a deploy under way.
fn holding(site: &Site<'_>) -> Result<()> {
    until("the deploy holds", || Ok(site.daemon.log().contains("\\\"holding\\\"")))
}

fn at_ms(said: &str, kind: &str, key: &str) -> Result<f64> {
    event(said, kind).and_then(|event| event[key].as_f64()).with_context(|| format!("{kind}.{key}: {said}"))
}

/// The new pool has had its try: it is gone, and nobody has met it.
fn untouched(site: &Site<'_>, plan: &Plan) -> Result<()> {
    is_settled(&site.pools()?, 0, "v1", plan.workers)?;
    is_gone(site, plan, 1)
}

#[test]
fn it_holds_until_it_is_told() -> Result<()> {
    let sandbox = Sandbox::new("hold")?;
    let plan = Plan { bake: "1s", ..small() };
    let site = Site::start(&sandbox, plan.clone())?;
    let visitors = Visitors::start(&sandbox, &[SITE])?;
    let deploy = site.deploying("v2", &["--hold"])?;
    holding(&site)?;
    sleep(Duration::from_millis(500));
    ensure!(site.current()? == 0);
    // A worker that crashes meanwhile, and comes back, changes nothing.
    let victim = *site.pids(8100)?.first().context("no worker")?;
    send(victim, Signal::KILL)?;
    site.wait("it has crashed", |pools| pools[1]["up"] != plan.workers)?;
    let asked = unix_ms();
    let flip = site.must(&["flip", "web"])?;
    let (exit, said) = ended(deploy)?;
    let visits = visitors.stop()?;
    let flipped = at_ms(&said, "flipped", "at_ms")?;
    eprintln!("{}; {:.0} ms after that; {visits}", flip.trim(), flipped - asked);
    ensure!(exit == 0, "{said}");
    visits.must_be_whole(50)?;
    ensure!(visits.versions() == ["v1", "v2"], "{visits}");
    is_settled(&site.pools()?, 1, "v2", plan.workers)?;
    let (exit, said) = site.verb(&["flip", "web"])?;
    ensure!(exit == 1 && said.contains("--hold"), "exit {exit}: {said}");
    Ok(())
}

#[test]
fn it_flips_when_it_is_told() -> Result<()> {
    let sandbox = Sandbox::new("flip_at")?;
    let site = Site::start(&sandbox, Plan { bake: "1s", ..small() })?;
    let visitors = Visitors::start(&sandbox, &[SITE])?;
    let deploy = site.deploying("v2", &["--hold"])?;
    holding(&site)?;
    let at = unix_ms() + 2000.0;
    site.must(&["flip", "web", "--at", "+2s"])?;
    let (exit, said) = site.verb(&["flip", "web"])?;
    ensure!(exit == 1, "a flip that is armed already: exit {exit}: {said}");
    let (exit, said) = ended(deploy)?;
    let visits = visitors.stop()?;
    let (flipped, first) = (at_ms(&said, "flipped", "at_ms")?, visits.first("v2").context("v2")?);
    eprintln!("asked for {at:.0}, said {flipped:.0}, first {first:.0}; {visits}");
    ensure!(exit == 0 && (flipped - at).abs() < 300.0 && (-30.0..100.0).contains(&(first - flipped)), "{said}");
    visits.must_be_whole(50)?;
    ensure!(visits.versions() == ["v1", "v2"], "{visits}");
    Ok(())
}

#[test]
fn a_deploy_at_an_instant() -> Result<()> {
    let sandbox = Sandbox::new("deploy_at")?;
    let site = Site::start(&sandbox, Plan { bake: "1s", ..small() })?;
    let visitors = Visitors::start(&sandbox, &[SITE])?;
    let at = unix_ms() + 6000.0;
    let deploy = site.deploying("v2", &["--at", "+6s"])?;
    let armed = site.wait_service("it is armed", |service| !service["pools"][1]["flips_at_ms"].is_null())?;
    let shown = site.must(&["status"])?;
    let (exit, said) = ended(deploy)?;
    let visits = visitors.stop()?;
    let (flipped, first) = (at_ms(&said, "flipped", "at_ms")?, visits.first("v2").context("v2")?);
    eprintln!("asked for {at:.0}, said {flipped:.0}, first {first:.0}; {visits}\n{shown}");
    ensure!(exit == 0 && (flipped - at).abs() < 300.0 && (-30.0..100.0).contains(&(first - flipped)), "{said}");
    let announced = armed["pools"][1]["flips_at_ms"].as_f64().context("flips_at_ms")?;
    ensure!((announced - flipped).abs() < 5.0 && shown.contains("current from"), "{announced}: {shown}");
    visits.must_be_whole(100)?;
    for (words, wanted) in [(["--at", "1000"], "past"), (["--at", "+200h"], "7 days")] {
        let (exit, said) = site.deploy("v3", &words)?;
        ensure!(exit == 2 && said.contains(wanted), "{words:?}: exit {exit}: {said}");
    }
    Ok(())
}

/// By the API and by Ctrl-C; while it holds, and while the flip is armed.
#[test]
fn stopped_before_it_flips() -> Result<()> {
    let sandbox = Sandbox::new("stop_deploy")?;
    let plan = small();
    let site = Site::start(&sandbox, plan.clone())?;
    let visitors = Visitors::start(&sandbox, &[SITE, OLD_LANE, NEW_LANE])?;
    for (how, words) in [("api", ["--hold"].as_slice()), ("client", &["--at", "+1h"])] {
        let deploy = site.deploying("v2", words)?;
        let ready = |service: &serde_json::Value| {
            let (pool, is_held) = (&service["pools"][1], words.len() == 1);
            pool["up"] == plan.workers && (is_held || !pool["flips_at_ms"].is_null())
        };
        let service = site.wait_service("it is ready", ready)?;
        if words.len() == 1 {
            holding(&site)?;
        }
        let begun = unix_ms();
        match how {
            "api" => {
                let id = service["roll"].as_str().context("id")?;
                site.daemon.api().ask("POST", &format!("/v1/rolls/{id}/stop"), "")?;
            }
            _ => send(deploy.id(), Signal::INT)?,
        }
        let (exit, said) = ended(deploy)?;
        let text = event(&said, "finished").context("finished")?["text"].clone();
        eprintln!("{words:?}: exit {exit} after {:.0} ms: {text}", unix_ms() - begun);
        ensure!(exit == 3 && text.as_str().is_some_and(|text| text.contains("untouched")), "{said}");
        ensure!(words.len() == 1 || event(&said, "disarmed").is_some(), "{said}");
        untouched(&site, &plan)?;
    }
    let visits = visitors.stop()?;
    eprintln!("{visits}");
    visits.must_be_whole(30)?;
    ensure!(visits.versions() == ["v1"], "{visits}");
    Ok(())
}

#[test]
fn not_stopped_once_it_has_flipped() -> Result<()> {
    let sandbox = Sandbox::new("stop_late")?;
    let plan = small();
    let site = Site::start(&sandbox, plan.clone())?;
    let deploy = site.deploying("v2", &[])?;
    site.wait("it has flipped", |pools| pools[1]["current"] == true)?;
    let id = site.service()?["roll"].as_str().context("id")?.to_owned();
    until("it bakes", || Ok(site.daemon.log().contains("flipped")))?;
    let answer = site.daemon.api().call("POST", &format!("/v1/rolls/{id}/stop"), b"")?;
    let (error, exit) = answer.refusal()?;
    eprintln!("{}: {exit}: {error}", answer.status);
    ensure!(exit == "failed" && error.contains("deployer rollback web"), "{answer:?}");
    send(deploy.id(), Signal::INT)?;
    let (exit, said) = ended(deploy)?;
    ensure!(exit == 0, "exit {exit}: {said}");
    is_settled(&site.pools()?, 1, "v2", plan.workers)
}

/// Rolled back while it bakes: both versions answer at their lanes until nobody needs them.
#[test]
fn rolled_back_while_it_bakes() -> Result<()> {
    let sandbox = Sandbox::new("rollback")?;
    let plan = small();
    let site = Site::start(&sandbox, plan.clone())?;
    let visitors = Visitors::start(&sandbox, &[SITE, OLD_LANE, NEW_LANE])?;
    let deploy = site.deploying("v2", &[])?;
    site.wait("it has flipped", |pools| pools[1]["current"] == true)?;
    sleep(Duration::from_millis(400));
    let asked = unix_ms();
    let (rolled, told) = site.verb(&["rollback", "web", "--json"])?;
    let took = unix_ms() - asked;
    let lingering = site.pools()?;
    let (again, twice) = site.verb(&["rollback", "web"])?;
    let (exit, said) = ended(deploy)?;
    let visits = visitors.stop()?;
    let (flipped, returned) = (at_ms(&said, "flipped", "at_ms")?, at_ms(&said, "returned", "at_ms")?);
    let gone = at_ms(&said, "retire-pool", "time_ms")?;
    eprintln!("rollback: exit {rolled} after {took:.0} ms; lane 2 for {:.0} ms more; {visits}", gone - returned);
    ensure!(rolled == 0 && took < 1000.0 && exit == 5, "{told}\n{said}");
    ensure!(again == 4, "a second rollback: exit {again}: {twice}");
    ensure!(lingering[0]["current"] == true && lingering[1]["open_lane"] == true, "{lingering:?}");
    visits.must_be_whole(150)?;
    ensure!(visits.to(SITE).versions() == ["v1", "v2", "v1"], "{visits}");
    ensure!(visits.to(OLD_LANE).versions() == ["v1"], "{visits}");
    let lane = visits.to(NEW_LANE);
    // The lane is closed a grace period of the kernel before it is told: on a busy machine that takes its time.
    ensure!(lane.between(flipped + 5.0, gone - 150.0).versions() == ["v2"], "{visits}");
    ensure!(lane.versions() == ["v1", "v2", "v1"], "{visits}");
    ensure!((2900.0..4500.0).contains(&(gone - returned)), "it was kept for {} ms", gone - returned);
    untouched(&site, &plan)?;
    let history = site.must(&["history"])?;
    eprintln!("{history}");
    ensure!(history.contains("rolled back") || history.contains("returned"), "{history}");
    let (exit, said) = site.verb(&["rollback", "web"])?;
    ensure!(exit == 1 && said.contains("--to VERSION"), "with nothing known: exit {exit}: {said}");
    Ok(())
}

/// Rolled back when the former pool is gone: another deploy, of the former version.
#[test]
fn rolled_back_after_it_is_over() -> Result<()> {
    let sandbox = Sandbox::new("rollback_late")?;
    let plan = Plan { bake: "1s", ..small() };
    let site = Site::start(&sandbox, plan.clone())?;
    let (exit, said) = site.verb(&["rollback", "web"])?;
    ensure!(exit == 1 && said.contains("--to VERSION"), "with nothing known: exit {exit}: {said}");
    let visitors = Visitors::start(&sandbox, &[SITE])?;
    let (exit, said) = site.deploy("v2", &[])?;
    ensure!(exit == 0, "{said}");
    let (exit, said) = site.verb(&["rollback", "web", "--json"])?;
    let visits = visitors.stop()?;
    eprintln!("exit {exit}; {visits}");
    ensure!(exit == 0, "{said}");
    visits.must_be_whole(100)?;
    ensure!(visits.versions() == ["v1", "v2", "v1"], "{visits}");
    is_settled(&site.pools()?, 0, "v1", plan.workers)?;
    is_gone(&site, &plan, 1)
}

/// Another deploy: refused, unless it may end the first.
#[test]
fn superseded() -> Result<()> {
    let sandbox = Sandbox::new("supersede")?;
    let plan = Plan { bake: "60s", ..small() };
    let site = Site::start(&sandbox, plan.clone())?;
    let visitors = Visitors::start(&sandbox, &[SITE, OLD_LANE])?;
    let held = site.deploying("v2", &["--hold"])?;
    holding(&site)?;
    let (exit, said) = site.deploy("v3", &[])?;
    eprintln!("{}", said.trim());
    ensure!(exit == 4 && said.contains("--supersede"), "exit {exit}: {said}");
    let (exit, said) = site.verb(&["roll", "web"])?;
    ensure!(exit == 4, "a roll: exit {exit}: {said}");
    // Before its flip: stopped.
    let second = site.deploying("v3", &["--supersede"])?;
    let (exit, said) = ended(held)?;
    ensure!(exit == 3, "exit {exit}: {said}");
    site.wait("v3 is current", |pools| pools[1]["current"] == true && pools[1]["version"] == "v3")?;
    until("it bakes", || Ok(site.daemon.log().contains("flipped")))?;
    let (exit, said) = site.verb(&["roll", "web"])?;
    ensure!(exit == 4, "a roll in the bake: exit {exit}: {said}");
    // While it bakes: its bake is over.
    let third = site.deploying("v4", &["--supersede", "--bake", "1s"])?;
    let (exit, said) = ended(second)?;
    ensure!(exit == 0 && said.contains("superseded"), "exit {exit}: {said}");
    let (exit, said) = ended(third)?;
    let visits = visitors.stop()?;
    eprintln!("exit {exit}; {visits}");
    ensure!(exit == 0, "{said}");
    visits.must_be_whole(100)?;
    ensure!(visits.to(SITE).versions() == ["v1", "v3", "v4"], "{visits}");
    is_settled(&site.pools()?, 0, "v4", plan.workers)?;
    is_gone(&site, &plan, 1)
}

/// A roll restarts the pool that is current, and leaves the other alone.
#[test]
fn a_roll_of_either_pool() -> Result<()> {
    let sandbox = Sandbox::new("roll_pool")?;
    let plan = Plan { bake: "1s", ..small() };
    let site = Site::start(&sandbox, plan.clone())?;
    let visitors = Visitors::start(&sandbox, &[SITE])?;
    for (pool, version) in [(0, "v1"), (1, "v2")] {
        if pool == 1 {
            let (exit, said) = site.deploy("v2", &[])?;
            ensure!(exit == 0, "{said}");
        }
        let pids = || -> Result<Vec<u32>> {
            Ok(plan.ports(pool).map(|port| site.pids(port)).collect::<Result<Vec<_>>>()?.concat())
        };
        let before = pids()?;
        let said = site.must(&["roll", "web", "--json"])?;
        let after = pids()?;
        eprintln!("pool {pool}: {before:?}, then {after:?}");
        ensure!(before.len() == 2 && after.len() == 2 && after.iter().all(|pid| !before.contains(pid)), "{said}");
        is_settled(&site.pools()?, pool, version, plan.workers)?;
        is_gone(&site, &plan, 1 - pool)?;
    }
    let visits = visitors.stop()?;
    eprintln!("{visits}");
    visits.must_be_whole(100)?;
    ensure!(visits.versions() == ["v1", "v2"], "{visits}");
    Ok(())
}

/// The floor of a service is that of the pool that serves: the other one comes and goes as it likes.
#[test]
fn the_floor_is_of_one_pool() -> Result<()> {
    let sandbox = Sandbox::new("deploy_floor")?;
    let plan = Plan { bake: "1s", extra: "min_up = 1".to_owned(), ..small() };
    let site = Site::start(&sandbox, plan.clone())?;
    let visitors = Visitors::start(&sandbox, &[SITE])?;
    for (version, pool) in [("v2", 1), ("v3", 0)] {
        let begun = unix_ms();
        let (exit, said) = site.deploy(version, &[])?;
        eprintln!("{version}: exit {exit} after {:.0} ms", unix_ms() - begun);
        ensure!(exit == 0, "{said}");
        is_settled(&site.pools()?, pool, version, plan.workers)?;
    }
    let visits = visitors.stop()?;
    eprintln!("{visits}");
    visits.must_be_whole(100)?;
    ensure!(visits.versions() == ["v1", "v2", "v3"], "{visits}");
    Ok(())
}

/// The pool that serves may not go.
#[test]
fn reloads_that_are_refused() -> Result<()> {
    let sandbox = Sandbox::new("reload_deploy")?;
    let plan = Plan { bake: "1s", ..small() };
    let mut site = Site::start(&sandbox, plan.clone())?;
    let deploy = site.deploying("v2", &["--hold"])?;
    holding(&site)?;
    site.must(&["flip", "web"])?;
    let (exit, said) = ended(deploy)?;
    ensure!(exit == 0, "{said}");
    let visitors = Visitors::start(&sandbox, &[SITE])?;
    let one_pool = Plan { without_deploy: true, ..plan.clone() };
    site.reload(&one_pool)?;
    until("the second reload is refused", || Ok(site.daemon.log().contains("its second pool is current")))?;
    sleep(Duration::from_millis(300));
    is_settled(&site.pools()?, 1, "v2", plan.workers)?;
    // Those who serve would be of the pool that is not current.
    site.reload(&Plan { swapped: true, ..plan.clone() })?;
    until("the third reload is refused", || {
        Ok(site.daemon.log().contains("would be of the pool that is not current"))
    })?;
    // As it was, it may.
    site.reload(&plan)?;
    until("it is read again", || Ok(site.daemon.log().contains("configuration read again")))?;
    let (exit, said) = site.deploy("v3", &[])?;
    ensure!(exit == 0, "{said}\n{}", site.daemon.log());
    site.reload(&one_pool)?;
    let service =
        site.wait_service("there is one pool", |service| service["pools"].as_array().is_none_or(Vec::is_empty))?;
    sleep(Duration::from_millis(300));
    let visits = visitors.stop()?;
    eprintln!("{visits}; {}", service["lanes"]);
    visits.must_be_whole(100)?;
    ensure!(visits.versions() == ["v2", "v3"], "{visits}");
    let (exit, said) = site.deploy("v4", &[])?;
    ensure!(exit == 2 && said.contains("second"), "exit {exit}: {said}");
    Ok(())
}
