//! Rolls and deploys of one host that wait for barriers of others.

use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer_tests::pace::patient;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::site::{Plan, Site, ended, event};
use deployer_tests::visitors::Visitors;
use deployer_tests::zookeeper::ZooKeeper as Servers;

use crate::kazoo::Kazoo;
use crate::scene::SOON;

const PATH: &str = "/release/monday";
const SITE: &str = "127.0.0.1:9000";
/// What does not happen within this time does not happen.
const QUIET: Duration = Duration::from_secs(1);

fn plan(servers: &Servers<'_>) -> Plan {
    let fleet = format!(
        "[fleet]\nconnect = \"{}\"\nname = \"shop\"\nhost = \"app17\"\nbarrier_root = \"/release\"\n",
        servers.connect()
    );
    Plan { workers: 2, bake: "1s", extra: fleet, ..Plan::default() }
}

fn rolling(site: &Site<'_>, more: &[&str]) -> Result<Child> {
    let mut command = site.daemon.cli_command(&[&["roll", "web", "--json"], more].concat());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start deployer roll")
}

/// Waits until Kazoo has said this.
fn says(kazoo: &Kazoo, word: &str) -> Result<()> {
    let deadline = Instant::now() + patient(SOON);
    while !kazoo.has_said(word) {
        ensure!(Instant::now() < deadline, "Kazoo does not say {word}: {:?}", kazoo.lines());
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn waits(site: &Site<'_>) -> Result<()> {
    let deadline = Instant::now() + patient(SOON);
    while !site.daemon.log().contains("\\\"waiting\\\"") {
        ensure!(Instant::now() < deadline, "it does not wait: {}", site.daemon.log());
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
fn a_deploy_flips_when_kazoo_releases_the_barrier() -> Result<()> {
    let sandbox = Sandbox::new("zkflip")?;
    let servers = Servers::start(&sandbox, 1)?;
    let site = Site::start(&sandbox, plan(&servers))?;
    let mut kazoo = Kazoo::start(&sandbox, &servers, 20, &["hold", PATH])?;
    says(&kazoo, "held")?;
    let visitors = Visitors::start(&sandbox, &[SITE])?;
    let deploy = site.deploying("v2", &["--barrier", PATH])?;
    waits(&site)?;
    site.wait("the new pool is up", |pools| pools[1]["up"] == 2)?;
    sleep(QUIET);
    ensure!(site.current()? == 0, "the barrier is held");
    kazoo.go_on()?;
    let (exit, said) = ended(deploy)?;
    ensure!(exit == 0 && site.current()? == 1, "exit {exit}: {said}");
    let order: Vec<_> = ["waiting", "passed", "armed", "flipped"].map(|kind| event(&said, kind).is_some()).into();
    ensure!(order == [true; 4], "{said}");
    let events = site.daemon.cli(&["events"])?;
    let events = String::from_utf8_lossy(&events.stdout);
    let told = [&format!("waits for the barrier {PATH}"), "barrier passed"].map(|text| events.find(text));
    ensure!(told[0].is_some() && told[0] < told[1], "{events}");
    visitors.stop()?.must_be_whole(20)
}

#[test]
fn a_stop_ends_the_wait_of_a_deploy_and_of_a_roll() -> Result<()> {
    let sandbox = Sandbox::new("zkstop")?;
    let servers = Servers::start(&sandbox, 1)?;
    let site = Site::start(&sandbox, plan(&servers))?;
    let kazoo = Kazoo::start(&sandbox, &servers, 20, &["hold", PATH])?;
    says(&kazoo, "held")?;
    let double = ["--double-barrier", "/release/all", "--parties", "2"];
    for (nth, words) in [&["--barrier", PATH][..], &["--barrier", PATH], &double].into_iter().enumerate() {
        let under_way = if nth == 0 { site.deploying("v2", words)? } else { rolling(&site, words)? };
        let (exit, said) = ended_by_interrupt(under_way)?;
        ensure!(exit != 0 && event(&said, "waiting").is_some(), "exit {exit}: {said}");
        ensure!(said.contains("stopped on request") && event(&said, "passed").is_none(), "{said}");
        site.wait_idle()?;
        ensure!(site.current()? == 0);
    }
    // Nobody is left behind in the double one.
    let mut third = Kazoo::start(&sandbox, &servers, 20, &["double", "/release/all", "2"])?;
    sleep(QUIET);
    ensure!(!third.has_said("entered"), "the stopped roll has withdrawn");
    third.kill()
}

/// Ctrl-C, as soon as it waits; its exit code and words.
fn ended_by_interrupt(child: Child) -> Result<(i32, String)> {
    sleep(QUIET * 3);
    deployer_tests::process::send(child.id(), rustix::process::Signal::INT)?;
    ended(child)
}

#[test]
fn a_roll_enters_and_leaves_a_double_barrier_with_kazoo() -> Result<()> {
    let sandbox = Sandbox::new("zkroll")?;
    let servers = Servers::start(&sandbox, 1)?;
    let site = Site::start(&sandbox, plan(&servers))?;
    let before = site.pids(8000)?;
    let roll = rolling(&site, &["--double-barrier", PATH, "--parties", "2"])?;
    waits(&site)?;
    sleep(QUIET);
    ensure!(site.pids(8000)? == before, "nobody is touched before all are there");
    let mut kazoo = Kazoo::start(&sandbox, &servers, 20, &["double", PATH, "2"])?;
    says(&kazoo, "entered")?;
    site.wait("rolled", |_| site.pids(8001).is_ok_and(|pids| !pids.is_empty()))?;
    let deadline = Instant::now() + patient(SOON);
    while site.pids(8000)? == before {
        ensure!(Instant::now() < deadline, "no roll: {}", site.daemon.log());
        sleep(Duration::from_millis(50));
    }
    kazoo.go_on()?;
    let (exit, said) = ended(roll)?;
    ensure!(exit == 0, "exit {exit}: {said}");
    says(&kazoo, "left")
}

#[test]
fn a_deploy_leaves_the_double_barrier_after_the_flip_while_it_bakes() -> Result<()> {
    let sandbox = Sandbox::new("zkbake")?;
    let servers = Servers::start(&sandbox, 1)?;
    let site = Site::start(&sandbox, Plan { bake: "6s", ..plan(&servers) })?;
    let mut kazoo = Kazoo::start(&sandbox, &servers, 20, &["double", PATH, "2"])?;
    let deploy = site.deploying("v2", &["--double-barrier", PATH, "--parties", "2"])?;
    says(&kazoo, "entered")?;
    site.wait("it flips", |pools| pools[1]["current"] == true)?;
    kazoo.go_on()?;
    says(&kazoo, "left")?;
    ensure!(site.pools()?[0]["up"] == 2, "both versions stand, and Kazoo does not wait for that");
    let (exit, said) = ended(deploy)?;
    ensure!(exit == 0, "exit {exit}: {said}");
    Ok(())
}

#[test]
fn a_wait_goes_on_after_a_restart_of_the_daemon() -> Result<()> {
    let sandbox = Sandbox::new("zkdaemon")?;
    let servers = Servers::start(&sandbox, 1)?;
    let mut site = Site::start(&sandbox, plan(&servers))?;
    let begun = site.must(&["deploy", "web", "--to", "v2", "--detach", "--double-barrier", PATH, "--parties", "3"])?;
    waits(&site)?;
    sleep(QUIET);
    site.restart_daemon()?;
    sleep(QUIET * 2);
    // Twice there, with the session of the daemon before, it would be counted for two.
    let mut first = Kazoo::start(&sandbox, &servers, 20, &["double", PATH, "3"])?;
    sleep(QUIET);
    ensure!(site.current()? == 0 && !first.has_said("entered"), "two are not three; {begun}");
    let mut second = Kazoo::start(&sandbox, &servers, 20, &["double", PATH, "3"])?;
    site.wait("it flips", |pools| pools[1]["current"] == true)?;
    for kazoo in [&mut first, &mut second] {
        says(kazoo, "entered")?;
        kazoo.go_on()?;
    }
    says(&first, "left")?;
    says(&second, "left")?;
    site.wait_idle()
}

#[test]
fn without_a_zookeeper_a_barrier_is_refused() -> Result<()> {
    let sandbox = Sandbox::new("zknone")?;
    let site = Site::start(&sandbox, Plan { workers: 2, ..Plan::default() })?;
    for words in [&["--barrier", PATH][..], &["--double-barrier", PATH, "--parties", "3"]] {
        for verb in [&["roll", "web"][..], &["deploy", "web", "--to", "v2"]] {
            let (exit, said) = site.verb(&[verb, words].concat())?;
            ensure!(exit == 2 && said.contains("[fleet]") && said.contains("connect"), "exit {exit}: {said}");
        }
    }
    let (exit, said) = site.verb(&["roll", "web", "--barrier", "release"])?;
    ensure!(exit == 2 && said.contains("release"), "exit {exit}: {said}");
    let (exit, said) = site.verb(&["roll", "web", "--double-barrier", PATH, "--parties", "0"])?;
    ensure!(exit == 2 && said.contains("parties"), "exit {exit}: {said}");
    Ok(())
}
