//! What goes wrong with a new version: before the flip nobody notices, after it the old one serves again by itself.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer_tests::app::Fault;
use deployer_tests::process::{run, send};
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::site::{Plan, Site, ended, event};
use deployer_tests::visitors::Visitors;
use rustix::process::Signal;

use crate::scene::{OLD_LANE, SITE, is_gone, is_settled, small, unix_ms, until};

/// The new pool is gone, the old one serves, and the end says so.
fn untouched(site: &Site<'_>, plan: &Plan, exit: i32, said: &str, named: &[&str]) -> Result<()> {
    let text = event(said, "finished").with_context(|| said.to_owned())?["text"].to_string();
    eprintln!("exit {exit}: {text}");
    ensure!(exit == 1 && named.iter().all(|word| text.contains(word)), "exit {exit}, {named:?}: {text}");
    is_settled(&site.pools()?, 0, "v1", plan.workers)?;
    is_gone(site, plan, 1)
}

/// A new version that does not come up, in each of the ways, and then does.
fn does_not_come_up(label: &str, fault: Fault, named: &[&str]) -> Result<()> {
    let sandbox = Sandbox::new(label)?;
    let plan = Plan { warm: ", within = \"3s\"", bake: "1s", ..small() };
    let site = Site::start(&sandbox, plan.clone())?;
    let visitors = Visitors::start(&sandbox, &[SITE, OLD_LANE])?;
    site.app.set_fault("v2", 8101, Some(fault))?;
    let (exit, said) = site.deploy("v2", &[])?;
    untouched(&site, &plan, exit, &said, &[&["8101", "untouched"], named].concat())?;
    let after = unix_ms();
    site.app.set_fault("v2", 8101, None)?;
    let (exit, said) = site.deploy("v2", &[])?;
    let visits = visitors.stop()?;
    eprintln!("{visits}");
    ensure!(exit == 0, "once more: {said}");
    visits.must_be_whole(100)?;
    ensure!(visits.between(0.0, after).versions() == ["v1"], "{visits}");
    ensure!(visits.to(SITE).versions() == ["v1", "v2"], "{visits}");
    is_settled(&site.pools()?, 1, "v2", plan.workers)
}

#[test]
fn a_worker_does_not_start() -> Result<()> {
    does_not_come_up("fail_crash", Fault::Crash, &[])
}

#[test]
fn a_worker_does_not_listen() -> Result<()> {
    does_not_come_up("fail_hang", Fault::Hang, &["listened"])
}

#[test]
fn a_worker_says_another_version() -> Result<()> {
    does_not_come_up("fail_version", Fault::OldVersion, &["v1"])
}

#[test]
fn a_worker_does_not_warm_up() -> Result<()> {
    does_not_come_up("fail_warm", Fault::Status500, &["500"])
}

#[test]
fn prepare_fails() -> Result<()> {
    let sandbox = Sandbox::new("fail_prepare")?;
    let seen = sandbox.dir().join("prepared");
    let script = format!("echo $0 $1 $2 $3 >> {}; echo no release to be found >&2; exit 3", seen.display());
    let deploy = format!(
        ", prepare = [\"/bin/sh\", \"-c\", {script:?}, \"{{version}}\", \"{{pool}}\", \"{{lane}}\", \"{{service}}\"]"
    );
    let plan = Plan { deploy, ..small() };
    let site = Site::start(&sandbox, plan.clone())?;
    let visitors = Visitors::start(&sandbox, &[SITE, "127.77.0.2:9000"])?;
    for _ in 0..2 {
        let (exit, said) = site.deploy("v2", &[])?;
        untouched(&site, &plan, exit, &said, &["prepare", "no release to be found"])?;
    }
    let (seen, visits) = (fs::read_to_string(&seen).context("prepared")?, visitors.stop()?);
    eprintln!("{seen}{visits}");
    ensure!(seen.lines().next() == Some("v2 b 2 web"), "{seen}");
    visits.must_be_whole(5)?;
    ensure!(visits.versions() == ["v1"], "{visits}");
    Ok(())
}

/// A gate's command: it reaches the new pool, and nothing but the new pool, by DEPLOYER_URL.
#[test]
fn a_gate_tries_the_new_pool() -> Result<()> {
    let sandbox = Sandbox::new("gate")?;
    let (script, verdict) = (sandbox.dir().join("gate.py"), sandbox.dir().join("verdict"));
    let text = "import os, sys, urllib.request\n\
        ask = lambda url: urllib.request.urlopen(url + '/version', timeout=5).read().decode()\n\
        names = [os.environ['DEPLOYER_' + name] for name in ('SERVICE', 'VERSION', 'LANE', 'POOL', 'WORKERS')]\n\
        said = [ask(os.environ['DEPLOYER_URL']) for _ in range(8)]\n\
        print(*names, *sorted(set(said)), sys.argv[1])\n\
        sys.exit(open(os.path.join(os.path.dirname(sys.argv[0]), 'verdict')).read() != 'pass')\n";
    fs::write(&script, text).context("write gate.py")?;
    fs::write(&verdict, "fail").context("write the verdict")?;
    let deploy = format!(", gate = [\"/usr/bin/python3\", \"-sS\", {script:?}, \"{{version}}-{{lane}}\"]");
    let plan = Plan { bake: "1s", deploy, ..small() };
    let site = Site::start(&sandbox, plan.clone())?;
    let visitors = Visitors::start(&sandbox, &[SITE])?;
    let (exit, said) = site.deploy("v2", &[])?;
    let wanted = "web v2 2 b 127.0.0.1:8100 127.0.0.1:8101 v2 v2-2";
    untouched(&site, &plan, exit, &said, &["gate", wanted, "untouched"])?;
    fs::write(&verdict, "pass").context("write the verdict")?;
    let (exit, said) = site.deploy("v2", &[])?;
    let visits = visitors.stop()?;
    eprintln!("{visits}");
    ensure!(exit == 0 && event(&said, "gate").is_some_and(|gate| gate["error"].is_null()), "{said}");
    visits.must_be_whole(100)?;
    ensure!(visits.versions() == ["v1", "v2"], "{visits}");
    Ok(())
}

#[test]
fn a_gate_of_one_request() -> Result<()> {
    let sandbox = Sandbox::new("gate_http")?;
    let gate = |status: u16| format!(", gate = {{ path = \"/ready\", status = {status} }}");
    let plan = Plan { bake: "1s", deploy: gate(204), ..small() };
    let mut site = Site::start(&sandbox, plan.clone())?;
    let (exit, said) = site.deploy("v2", &[])?;
    untouched(&site, &plan, exit, &said, &["GET /ready", "2 of 2", "8100", "200", "untouched"])?;
    site.reload(&Plan { deploy: gate(200), ..plan })?;
    until("it is read again", || Ok(site.daemon.log().contains("configuration read again")))?;
    let (exit, said) = site.deploy("v2", &[])?;
    ensure!(exit == 0, "{said}");
    Ok(())
}

/// Turned back by itself: why, and how long after `cause`.
fn turned_back(site: &Site<'_>, plan: &Plan, cause_ms: f64, (exit, said): (i32, String), named: &[&str]) -> Result<()> {
    let returned = event(&said, "returned").with_context(|| format!("{said}\n{}", site.daemon.log()))?;
    let why = returned["why"].as_str().context("why")?;
    let after = returned["at_ms"].as_f64().context("at_ms")? - cause_ms;
    eprintln!("exit {exit}, turned back after {after:.0} ms: {why}");
    ensure!(exit == 5 && named.iter().all(|word| why.contains(word)), "exit {exit}, {named:?}: {why}");
    ensure!((-1.0..2500.0).contains(&after), "turned back after {after} ms");
    is_settled(&site.pools()?, 0, "v1", plan.workers)?;
    is_gone(site, plan, 1)
}

#[test]
fn the_gate_fails_while_it_bakes() -> Result<()> {
    let sandbox = Sandbox::new("gate_bake")?;
    let bad = sandbox.dir().join("bad");
    let deploy = format!(
        ", gate = [\"/bin/sh\", \"-c\", \"! test -e {} || {{ echo all is lost; exit 1; }}\"], gate_every = \"1s\"",
        bad.display()
    );
    let plan = Plan { deploy, bake: "4s", ..small() };
    let site = Site::start(&sandbox, plan.clone())?;
    let visitors = Visitors::start(&sandbox, &[SITE, OLD_LANE])?;
    let deploy = site.deploying("v2", &[])?;
    site.wait("it has flipped", |pools| pools[1]["current"] == true)?;
    sleep(Duration::from_millis(300));
    let begun = unix_ms();
    fs::write(&bad, "").context("make it bad")?;
    let ended = ended(deploy)?;
    let visits = visitors.stop()?;
    eprintln!("{visits}");
    turned_back(&site, &plan, begun, ended, &["gate", "all is lost"])?;
    visits.must_be_whole(100)?;
    ensure!(visits.to(SITE).versions() == ["v1", "v2", "v1"], "{visits}");
    Ok(())
}

/// A rollback does not wait for a gate that takes its time.
#[test]
fn a_slow_gate_holds_up_nothing() -> Result<()> {
    let sandbox = Sandbox::new("gate_slow")?;
    let (slow, asked) = (sandbox.dir().join("slow"), sandbox.dir().join("asked"));
    let script = format!("! test -e {} || {{ touch {}; sleep 50; }}", slow.display(), asked.display());
    let plan = Plan {
        deploy: format!(", gate = [\"/bin/sh\", \"-c\", {script:?}], gate_every = \"1s\""),
        bake: "4s",
        ..small()
    };
    let site = Site::start(&sandbox, plan.clone())?;
    let deploy = site.deploying("v2", &[])?;
    site.wait("it has flipped", |pools| pools[1]["current"] == true)?;
    fs::write(&slow, "").context("make it slow")?;
    until("the gate is asked", || Ok(asked.exists()))?;
    let begun = unix_ms();
    site.must(&["rollback", "web"])?;
    let took = unix_ms() - begun;
    eprintln!("rolled back within {took:.0} ms");
    ensure!(took < 1500.0, "rolled back within {took} ms");
    turned_back(&site, &plan, begun, ended(deploy)?, &["on request"])
}

#[test]
fn a_worker_crashes_while_it_bakes() -> Result<()> {
    let sandbox = Sandbox::new("bake_crash")?;
    let plan = small();
    let site = Site::start(&sandbox, plan.clone())?;
    let visitors = Visitors::start(&sandbox, &[SITE, OLD_LANE])?;
    let deploy = site.deploying("v2", &[])?;
    site.wait("it has flipped", |pools| pools[1]["current"] == true)?;
    sleep(Duration::from_millis(400));
    let (begun, victim) = (unix_ms(), *site.pids(8100)?.first().context("no worker")?);
    send(victim, Signal::KILL)?;
    let ended = ended(deploy)?;
    let visits = visitors.stop()?;
    eprintln!("{visits}");
    turned_back(&site, &plan, begun, ended, &["crash", "max_crashes = 0"])?;
    // What was inside the worker is lost.
    let failed = visits.0.iter().filter(|visit| visit.error.is_some()).count();
    ensure!(failed <= 1, "{visits}");
    visits.to(OLD_LANE).must_be_whole(50)?;
    let history = site.must(&["history"])?;
    eprintln!("{history}");
    ensure!(history.contains("crash"), "{history}");
    Ok(())
}

/// Crashes that are allowed.
#[test]
fn a_crash_that_is_borne() -> Result<()> {
    let sandbox = Sandbox::new("bake_crash_ok")?;
    let plan = Plan { deploy: ", max_crashes = 1".to_owned(), ..small() };
    let site = Site::start(&sandbox, plan.clone())?;
    let deploy = site.deploying("v2", &[])?;
    site.wait("it has flipped", |pools| pools[1]["current"] == true)?;
    sleep(Duration::from_millis(300));
    send(*site.pids(8100)?.first().context("no worker")?, Signal::KILL)?;
    let (exit, said) = ended(deploy)?;
    eprintln!("exit {exit}");
    ensure!(exit == 0, "{said}");
    is_settled(&site.pools()?, 1, "v2", plan.workers)
}

/// A firewall that nobody has told of the second pool's ports.
#[test]
fn connections_to_the_new_pool_fail() -> Result<()> {
    let sandbox = Sandbox::new("bake_failed")?;
    let plan = Plan { deploy: ", max_failed = \"10%\", max_crashes = 100".to_owned(), bake: "6s", ..small() };
    let site = Site::start(&sandbox, plan.clone())?;
    let visitors = Visitors::start(&sandbox, &[SITE, OLD_LANE])?;
    let deploy = site.deploying("v2", &[])?;
    site.wait("it has flipped", |pools| pools[1]["current"] == true)?;
    sleep(Duration::from_millis(200));
    let begun = unix_ms();
    let rule =
        ["-A", "INPUT", "-p", "tcp", "--syn", "--dport", "8100:8101", "-j", "REJECT", "--reject-with", "tcp-reset"];
    run(sandbox.command(Place::Outside, "iptables").args(rule))?;
    let ended = ended(deploy)?;
    let visits = visitors.stop()?;
    eprintln!("{visits}");
    turned_back(&site, &plan, begun, ended, &["failed", "max_failed = 10.00%"])?;
    ensure!(visits.to(SITE).versions().ends_with(&["v1"]), "{visits}");
    visits.to(OLD_LANE).must_be_whole(50)
}

/// The new pool falls to pieces after its flip was armed, and does not come back: it is not flipped to.
#[test]
fn a_pool_that_is_gone_is_not_flipped_to() -> Result<()> {
    let sandbox = Sandbox::new("armed_gone")?;
    let plan = Plan { warm: ", within = \"3s\"", ..small() };
    let site = Site::start(&sandbox, plan.clone())?;
    let visitors = Visitors::start(&sandbox, &[SITE])?;
    let deploy = site.deploying("v2", &["--at", "+6s"])?;
    site.wait("it is armed", |pools| !pools[1]["flips_at_ms"].is_null())?;
    site.app.set_fault("v2", 8101, Some(Fault::Crash))?;
    send(*site.pids(8101)?.first().context("no worker")?, Signal::KILL)?;
    let (exit, said) = ended(deploy)?;
    let visits = visitors.stop()?;
    eprintln!("{visits}");
    ensure!(event(&said, "disarmed").is_some() && event(&said, "flipped").is_none(), "{said}\n{}", site.daemon.log());
    untouched(&site, &plan, exit, &said, &["8101", "not up", "untouched"])?;
    visits.must_be_whole(100)?;
    ensure!(visits.versions() == ["v1"], "{visits}");
    Ok(())
}
