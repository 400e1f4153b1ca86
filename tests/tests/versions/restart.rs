//! The daemon is killed at every place in a deploy; the next one goes on, and no caller notices.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer_tests::process::send;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::site::{Plan, Site, ended, event};
use deployer_tests::visitors::Visitors;
use rustix::process::Signal;

use crate::scene::{Failpoint, OLD_LANE, SITE, is_gone, is_settled, small, unix_ms};

/// The daemon is killed there, and the deploy comes to its end all the same.
fn killed_at(label: &str, point: &str) -> Result<()> {
    let sandbox = Sandbox::new(label)?;
    let (failpoint, environment) = Failpoint::at(&sandbox, point)?;
    let plan = Plan { deploy: ", prepare = [\"/bin/true\"], gate = [\"/bin/true\"]".to_owned(), bake: "2s", ..small() };
    let mut site = Site::start_with(&sandbox, plan.clone(), &environment)?;
    let visitors = Visitors::start(&sandbox, &[SITE, OLD_LANE])?;
    let deploy = site.deploying("v2", &[])?;
    failpoint.wait(&site)?;
    site.daemon.process().kill()?;
    sleep(Duration::from_millis(300));
    site.start_daemon()?;
    let (exit, said) = ended(deploy)?;
    site.wait_idle()?;
    let visits = visitors.stop()?;
    eprintln!("{point}: exit {exit}; {visits}");
    ensure!(exit == 0, "{point}: exit {exit}: {said}\n{}", site.daemon.log());
    visits.must_be_whole(100)?;
    ensure!(visits.to(SITE).versions() == ["v1", "v2"], "{point}: {visits}");
    is_settled(&site.pools()?, 1, "v2", plan.workers).with_context(|| point.to_owned())?;
    is_gone(&site, &plan, 0)?;
    lanes_keep(&said, &visits).with_context(|| format!("{point}: {said}"))
}

/// The old version answered at its lane as long as it was to stay.
fn lanes_keep(said: &str, visits: &deployer_tests::visitors::Visits) -> Result<()> {
    let flipped = event(said, "flipped").context("nobody was told of the flip")?;
    let (at, until) = (flipped["at_ms"].as_f64().context("at_ms")?, flipped["until_ms"].as_f64().context("until_ms")?);
    ensure!(until - at == 2000.0, "{flipped}");
    let lane = visits.to(OLD_LANE).between(0.0, until - 50.0);
    ensure!(lane.versions() == ["v1"], "the old version's lane: {lane}");
    // One that began before the flip may be late.
    let former = visits.to(SITE).between(at + 5.0, f64::MAX);
    ensure!(former.versions() == ["v2"], "after the flip: {former}");
    let early = visits.to(SITE).between(0.0, at - 30.0);
    ensure!(early.versions() == ["v1"], "before the flip: {early}");
    Ok(())
}

macro_rules! killed {
    ($($name:ident: $point:literal,)+) => {
        $(#[test]
        fn $name() -> Result<()> {
            killed_at(stringify!($name), $point)
        })+
    };
}

killed! {
    at_begun: "begun",
    at_switch_journaled: "switch.journaled",
    at_switch_done: "switch.done",
    at_batch: "batch",
    at_starting: "starting.journaled@8101",
    at_listening: "listening@8100",
    at_warm: "warm@8101",
    at_up: "up@8100",
    at_flip_before: "flip.before",
    at_flip_journaled: "flip.journaled",
    at_flip_armed: "flip.armed",
    at_flipped: "flipped",
    at_flip_done: "flip.done",
    at_old_drained: "drained@8000",
    at_old_stopped: "stopped@8001",
}

/// The kernel flips; nobody has to be there.
#[test]
fn a_flip_needs_no_daemon() -> Result<()> {
    let sandbox = Sandbox::new("flip_alone")?;
    let (failpoint, environment) = Failpoint::at(&sandbox, "flip.armed")?;
    let plan = small();
    let mut site = Site::start_with(&sandbox, plan.clone(), &environment)?;
    let visitors = Visitors::start(&sandbox, &[SITE, OLD_LANE])?;
    let at = unix_ms() + 6000.0;
    let deploy = site.deploying("v2", &["--at", "+6s"])?;
    failpoint.wait(&site)?;
    site.daemon.process().kill()?;
    ensure!(unix_ms() < at, "too slow a machine");
    sleep(Duration::from_millis((at - unix_ms()).max(0.0) as u64 + 1500));
    let halfway = unix_ms();
    site.start_daemon()?;
    let (exit, said) = ended(deploy)?;
    site.wait_idle()?;
    let visits = visitors.stop()?;
    let armed = event(&said, "armed").context("it was not armed")?["at_ms"].as_f64().context("at_ms")?;
    let first = visits.to(SITE).first("v2").context("no v2")?;
    eprintln!("asked for within {:.1} ms, first {:.1} ms after the instant; {visits}", armed - at, first - armed);
    ensure!(exit == 0, "{said}\n{}", site.daemon.log());
    visits.must_be_whole(200)?;
    ensure!(first < halfway && first >= armed - 30.0 && first <= armed + 1000.0, "first {first}, armed {armed}");
    ensure!(visits.to(SITE).versions() == ["v1", "v2"], "{visits}");
    ensure!(visits.to(OLD_LANE).between(0.0, armed + 2900.0).versions() == ["v1"], "{visits}");
    is_settled(&site.pools()?, 1, "v2", plan.workers)?;
    is_gone(&site, &plan, 0)
}

/// A daemon that comes back before the instant lets it be.
#[test]
fn an_armed_flip_is_taken_over() -> Result<()> {
    let sandbox = Sandbox::new("flip_taken_over")?;
    let plan = small();
    let mut site = Site::start(&sandbox, plan.clone())?;
    let visitors = Visitors::start(&sandbox, &[SITE, OLD_LANE])?;
    let deploy = site.deploying("v2", &["--at", "+12s"])?;
    for how in ["kill -9", "SIGTERM"] {
        site.wait("it is armed", |pools| !pools[1]["flips_at_ms"].is_null())?;
        match how {
            "SIGTERM" => drop(site.daemon.stop()?),
            _ => drop(site.daemon.process().kill()?),
        }
        site.start_daemon()?;
    }
    let at = site.pools()?[1]["flips_at_ms"].as_f64().context("it is armed no more")?;
    let (exit, said) = ended(deploy)?;
    let visits = visitors.stop()?;
    let first = visits.to(SITE).first("v2").context("no v2")?;
    eprintln!("announced {:.0} ms before; first {:.1} ms after it; {visits}", at - unix_ms(), first - at);
    ensure!(exit == 0, "{said}\n{}", site.daemon.log());
    ensure!((-30.0..1000.0).contains(&(first - at)), "first {first}, armed {at}");
    visits.must_be_whole(100)?;
    is_settled(&site.pools()?, 1, "v2", plan.workers)
}

/// Where rolls are not gone on with, an armed flip is taken back: somebody has to look first.
#[test]
fn an_armed_flip_is_taken_back_where_rolls_are_held() -> Result<()> {
    let sandbox = Sandbox::new("flip_held")?;
    let plan = Plan { daemon: "on_start = \"hold\"", ..small() };
    let mut site = Site::start(&sandbox, plan.clone())?;
    let visitors = Visitors::start(&sandbox, &[SITE, OLD_LANE])?;
    let deploy = site.deploying("v2", &["--at", "+20s"])?;
    site.wait("it is armed", |pools| !pools[1]["flips_at_ms"].is_null())?;
    site.restart_daemon()?;
    let (exit, said) = ended(deploy)?;
    let text = event(&said, "finished").context("finished")?["text"].to_string();
    let visits = visitors.stop()?;
    eprintln!("exit {exit}: {text}; {visits}");
    ensure!(exit == 3 && text.contains("held") && event(&said, "disarmed").is_some(), "{said}");
    visits.must_be_whole(50)?;
    ensure!(visits.versions() == ["v1"], "{visits}");
    is_settled(&site.pools()?, 0, "v1", plan.workers)?;
    is_gone(&site, &plan, 1)
}

/// A deploy that holds goes on holding, and flips when it is told.
#[test]
fn the_next_daemon_goes_on_holding() -> Result<()> {
    let sandbox = Sandbox::new("hold_on")?;
    let plan = Plan { bake: "1s", ..small() };
    let mut site = Site::start(&sandbox, plan.clone())?;
    let visitors = Visitors::start(&sandbox, &[SITE])?;
    let deploy = site.deploying("v2", &["--hold"])?;
    for how in ["kill -9", "SIGTERM"] {
        let holds = |service: &serde_json::Value| service["pools"][1]["up"] == plan.workers;
        site.wait_service("all is ready", holds)?;
        sleep(Duration::from_millis(300));
        match how {
            "SIGTERM" => drop(site.daemon.stop()?),
            _ => drop(site.daemon.process().kill()?),
        }
        site.start_daemon()?;
    }
    sleep(Duration::from_millis(300));
    ensure!(site.current()? == 0, "it has flipped by itself");
    site.must(&["flip", "web"])?;
    let (exit, said) = ended(deploy)?;
    let visits = visitors.stop()?;
    eprintln!("exit {exit}; {visits}");
    ensure!(exit == 0, "{said}\n{}", site.daemon.log());
    visits.must_be_whole(100)?;
    ensure!(visits.versions() == ["v1", "v2"], "{visits}");
    is_settled(&site.pools()?, 1, "v2", plan.workers)
}

/// The daemon is told to go while the new pool bakes.
#[test]
fn the_next_daemon_goes_on_baking() -> Result<()> {
    let sandbox = Sandbox::new("bake_on")?;
    let plan = Plan { bake: "4s", ..small() };
    let mut site = Site::start(&sandbox, plan.clone())?;
    let visitors = Visitors::start(&sandbox, &[SITE, OLD_LANE])?;
    let deploy = site.deploying("v2", &[])?;
    site.wait("it has flipped", |pools| pools[1]["current"] == true)?;
    sleep(Duration::from_millis(500));
    let begun = unix_ms();
    let status = site.daemon.stop()?;
    let took = unix_ms() - begun;
    ensure!(status.success() && took < 2000.0, "{status}, after {took:.0} ms");
    sleep(Duration::from_millis(500));
    site.start_daemon()?;
    let (exit, said) = ended(deploy)?;
    let over = unix_ms();
    let visits = visitors.stop()?;
    let flipped = event(&said, "flipped").context("flipped")?;
    let until = flipped["until_ms"].as_f64().context("until_ms")?;
    let retired = event(&said, "retire-pool").context("retired")?["time_ms"].as_f64().context("time_ms")?;
    eprintln!("ended by SIGTERM within {took:.0} ms; retired {:.0} ms after its time; {visits}", retired - until);
    ensure!(exit == 0, "{said}\n{}", site.daemon.log());
    ensure!((-1.0..5000.0).contains(&(retired - until)), "until {until}, retired {retired}, over {over}");
    visits.must_be_whole(200)?;
    ensure!(visits.to(OLD_LANE).between(0.0, until - 50.0).versions() == ["v1"], "{visits}");
    is_settled(&site.pools()?, 1, "v2", plan.workers)?;
    is_gone(&site, &plan, 0)
}

/// The new version crashes while no daemon is there; the next one knows what the limits count from.
#[test]
fn a_crash_that_no_daemon_saw_turns_it_back() -> Result<()> {
    let sandbox = Sandbox::new("crash_unseen")?;
    let plan = Plan { bake: "6s", ..small() };
    let mut site = Site::start(&sandbox, plan.clone())?;
    let deploy = site.deploying("v2", &[])?;
    site.wait("it has flipped", |pools| pools[1]["current"] == true)?;
    sleep(Duration::from_millis(300));
    let victims = site.pids(8100)?;
    site.daemon.process().kill()?;
    ensure!(victims.len() == 1, "{victims:?}");
    send(victims[0], Signal::KILL)?;
    sleep(Duration::from_millis(300));
    site.start_daemon()?;
    let (exit, said) = ended(deploy)?;
    let returned = event(&said, "returned").with_context(|| format!("{said}\n{}", site.daemon.log()))?;
    eprintln!("exit {exit}; {returned}");
    ensure!(exit == 5 && returned["why"].as_str().is_some_and(|why| why.contains("crash")), "{returned}");
    is_settled(&site.pools()?, 0, "v1", plan.workers)?;
    is_gone(&site, &plan, 1)
}

/// Killed when it has just turned a deploy back: nothing of that is undone, and it is not done twice.
#[test]
fn killed_when_it_has_returned() -> Result<()> {
    let sandbox = Sandbox::new("returned")?;
    let (failpoint, environment) = Failpoint::at(&sandbox, "returned")?;
    let plan = small();
    let mut site = Site::start_with(&sandbox, plan.clone(), &environment)?;
    let visitors = Visitors::start(&sandbox, &[SITE, OLD_LANE])?;
    let deploy = site.deploying("v2", &[])?;
    site.wait("it has flipped", |pools| pools[1]["current"] == true)?;
    let rollback = site.daemon.cli_spawn(&["rollback", "web"])?;
    failpoint.wait(&site)?;
    site.daemon.process().kill()?;
    sleep(Duration::from_millis(200));
    site.start_daemon()?;
    let (rolled, told) = ended(rollback)?;
    let (exit, said) = ended(deploy)?;
    site.wait_idle()?;
    let visits = visitors.stop()?;
    eprintln!("rollback: exit {rolled}, deploy: exit {exit}; {visits}");
    ensure!(rolled == 0 && exit == 5, "{told}\n{said}\n{}", site.daemon.log());
    visits.must_be_whole(100)?;
    ensure!(visits.to(SITE).versions() == ["v1", "v2", "v1"], "{visits}");
    ensure!(visits.to(OLD_LANE).versions() == ["v1"], "{visits}");
    is_settled(&site.pools()?, 0, "v1", plan.workers)?;
    is_gone(&site, &plan, 1)
}
