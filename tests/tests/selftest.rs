//! The self-test: a real connection through the hooks, at start and then again and again. Run with `--test-threads=1`.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use deployer_tests::process::run;
use deployer_tests::rig::{Rig, Setup, wait};
use deployer_tests::sandbox::{Place, Sandbox};

/// Attached to the callers' cgroup, in which the daemon is not.
fn apart() -> Setup {
    Setup { apart: true, self_test: "1s", ..Setup::default() }
}

/// The addresses and places of a test are gone when it has ended: a service's worth of counters is all that may move.
fn no_trace(rig: &Rig<'_>) -> Result<()> {
    let service = rig.service()?;
    ensure!(service.unsteered == 0 && service.sum(|worker| worker.established) == 0, "{service:?}");
    Ok(())
}

#[test]
fn it_is_fine_at_start_and_stays_so() -> Result<()> {
    for setup in [apart(), Setup { apart: false, ..apart() }, Setup { extra: "mode = \"observe\"", ..apart() }] {
        let sandbox = Sandbox::new("selfok")?;
        let rig = setup.start(&sandbox)?;
        let test = rig.self_test("ok")?;
        let later = rig.self_test("ok")?;
        eprintln!("{test:?}, {later:?}");
        ensure!(test.failures == 0 && later.runs > test.runs && later.detail.is_empty(), "{test:?}, {later:?}");
        ensure!(!rig.must(&["status"])?.contains("!!!"), "{}", rig.must(&["status"])?);
        ensure!(rig.must(&["status", "--json"])?.contains(r#""self_test":{"result":"ok""#));
        let (_, check) = rig.verb(&["check"])?;
        ensure!(check.contains("self-test: a connection of the daemon's own was steered"), "{check}");
        no_trace(&rig)?;
        // Between two tests.
        wait("nothing to be left among the callers", || {
            let left = fs::read_dir(sandbox.cgroup(Place::Callers))?.flatten().any(|entry| entry.path().is_dir());
            Ok(!left && sandbox.pids(Place::Callers)?.is_empty())
        })?;
        let log = rig.daemon.log();
        ensure!(log.matches("self-test").count() == 1, "{log}");
    }
    Ok(())
}

#[test]
fn bypassed_and_detached_are_no_failures() -> Result<()> {
    let sandbox = Sandbox::new("selfoff")?;
    let rig = apart().start(&sandbox)?;
    rig.self_test("ok")?;
    rig.must(&["bypass"])?;
    ensure!(rig.self_test("bypassed")?.failures == 0);
    rig.must(&["bypass", "--off"])?;
    rig.self_test("ok")?;
    rig.must(&["detach"])?;
    let test = rig.self_test("detached")?;
    ensure!(test.failures == 0, "{test:?}");
    ensure!(!rig.must(&["status"])?.contains("SELF-TEST"), "{}", rig.must(&["status"])?);
    Ok(())
}

#[test]
fn a_cgroup_that_is_gone_is_said_aloud() -> Result<()> {
    let sandbox = Sandbox::new("selfgone")?;
    let rig = apart().start(&sandbox)?;
    rig.self_test("ok")?;
    fs::remove_dir(sandbox.cgroup(Place::Callers)).context("remove the callers' cgroup")?;
    let test = rig.self_test("failed")?;
    eprintln!("{test:?}");
    ensure!(test.detail.contains("is gone"), "{test:?}");
    ensure!(rig.self_test("failed")?.failures > test.failures);
    let log = rig.daemon.log();
    ensure!(log.matches("SELF-TEST FAILED").count() == 1, "{log}");
    let status = rig.must(&["status"])?;
    ensure!(status.contains("!!! SELF-TEST FAILED: the callers' cgroup"), "{status}");
    let (exit, check) = rig.verb(&["check"])?;
    ensure!(exit == 1 && check.contains("FAIL  self-test: the callers' cgroup"), "{check}");
    // It comes back, with it the programs, and the test says so.
    fs::create_dir(sandbox.cgroup(Place::Callers)).context("make the callers' cgroup again")?;
    rig.self_test("ok")?;
    Ok(())
}

/// The hook does its part, and a firewall rule sends the connection elsewhere all the same.
#[test]
fn a_connection_that_lands_elsewhere_is_said_aloud() -> Result<()> {
    let sandbox = Sandbox::new("selfnat")?;
    let rig = apart().start(&sandbox)?;
    rig.self_test("ok")?;
    let nft = |text: &str| run(Command::new("ip").args(["netns", "exec", sandbox.name(), "nft", text]));
    nft("add table ip t; add chain ip t out { type nat hook output priority -100; }; \
         add rule ip t out ip daddr 127.83.84.1 meta l4proto tcp redirect to :8000")?;
    let test = rig.self_test("failed")?;
    eprintln!("{test:?}");
    ensure!(test.detail.contains("127.83.84.1:") && test.detail.contains("instead of at"), "{test:?}");
    nft("delete table ip t")?;
    ensure!(rig.self_test("ok")?.failures > 0);
    ensure!(rig.daemon.log().matches("SELF-TEST FAILED").count() == 1, "{}", rig.daemon.log());
    Ok(())
}

/// The test's own caller is steered by rules, made as those of the services are: if that cannot be done, the test fails.
#[test]
fn a_look_up_that_fails_is_said_aloud() -> Result<()> {
    let sandbox = Sandbox::new("selflook")?;
    let rig = Setup { mounts: Some(":"), ..apart() }.start(&sandbox)?;
    rig.self_test("ok")?;
    let hide = format!("mount --bind /dev/null /proc/{}/mountinfo", rig.daemon.pid());
    rig.in_mounts(&hide)?;
    let test = rig.self_test("failed")?;
    eprintln!("{test:?}");
    ensure!(test.detail.contains("no rule of `callers` can be made"), "{test:?}");
    ensure!(rig.must(&["status"])?.contains("!!! SELF-TEST FAILED: no rule"), "{}", rig.must(&["status"])?);
    rig.in_mounts(&format!("umount /proc/{}/mountinfo", rig.daemon.pid()))?;
    rig.self_test("ok")?;
    Ok(())
}

/// More files of one name run than there is room for: what has no rule is named.
#[test]
fn a_process_without_a_rule_is_said_aloud() -> Result<()> {
    let sandbox = Sandbox::new("selfmany")?;
    let balancer = sandbox.dir().join("balancer");
    let mut running = Vec::new();
    for _ in 0..10 {
        let aside = balancer.with_extension("new");
        fs::copy("/usr/bin/sleep", &aside).context("copy sleep")?;
        fs::rename(&aside, &balancer).context("put the copy in place")?;
        let child = Ended(sandbox.command(Place::Outside, &balancer).arg("60").spawn().context("start it")?);
        let exe = format!("/proc/{}/exe", child.0.id());
        wait("it to run", || Ok(fs::read_link(&exe).is_ok_and(|link| link == balancer)))?;
        running.push(child);
    }
    let rig = Setup { callers: Some(vec![balancer.clone()]), apart: false, ..apart() }.start(&sandbox)?;
    let test = rig.self_test("failed")?;
    eprintln!("{test:?}");
    ensure!(test.detail.contains("no published rule fits it") && test.detail.contains("balancer"), "{test:?}");
    let trouble = rig.status()?.trouble;
    ensure!(trouble.iter().any(|what| what.contains("no room for its rule")), "{trouble:?}");
    let (_, check) = rig.verb(&["check"])?;
    ensure!(check.contains("no published rule fits") && check.contains("FAIL"), "{check}");
    running.truncate(7);
    rig.self_test("ok")?;
    Ok(())
}

/// A process that is ended with the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).ok();
    }
}
