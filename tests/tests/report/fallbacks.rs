//! Each proof, made to fail: by a roll that an operator should not have allowed, and by hand.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer_tests::api::Roll;
use deployer_tests::daemon::ServiceConfig;
use deployer_tests::dial::{Caller, Dial, answers};
use deployer_tests::process::send;
use deployer_tests::rig::{Setup, wait};
use deployer_tests::sandbox::{Place, Sandbox};

use rustix::process::Signal;

use super::figures::{self, Scene};

/// One worker that is rolled under load without a spare: until its deadline it is drained and takes what comes all the
/// same, then it is killed, then nobody is there, then it is cold.
#[test]
fn a_roll_without_anybody_else() -> Result<()> {
    let sandbox = Sandbox::new("alone")?;
    let config = ServiceConfig {
        deadline: "2s",
        on_deadline: "kill",
        warm: "requests = [\"GET /\", \"GET /?slow=1\"], repeat = 2",
        ..ServiceConfig::default()
    };
    let scene = Scene::new(&sandbox, 1, &config)?;
    let load = scene.slow_load(100.0)?;
    scene.sent(&load, 200)?;
    let id = scene.roll("v2")?;
    let seen = load.stop()?;
    let report = scene.report(&id)?;
    eprintln!("{seen}");
    for figure in ["late", "to_cold", "fallback_draining", "fallback_cold"] {
        ensure!(report.during(figure) > 0, "{figure} is 0: {:?}", report.0["during"]);
        ensure!(report.0["total"][figure].as_u64() >= Some(report.during(figure)), "{:?}", report.0["total"]);
    }
    ensure!(report.0["during"]["exhausted"].as_u64() > Some(0), "{:?}", report.0["during"]);
    ensure!(report.by_version(&["during"], "cut").get("v1") > Some(&0), "{:?}", report.0["during"]);
    let cold = report.by_version(&["during"], "to_cold");
    ensure!(cold.get("v2") > Some(&0) && cold.get("v1").is_none_or(|cold| *cold == 0), "{cold:?}");
    let late = report.by_version(&["during"], "late");
    ensure!(late.get("v1") > Some(&0), "{late:?}");
    let text = scene.said(&["report"])?.1;
    for meaning in ["\nlate: ", "\nto cold: ", "\ndraining: ", "\ncold: ", "\nexhausted: ", "\ncut: "] {
        ensure!(text.contains(meaning), "{meaning:?}: {text}");
    }
    let worker = &scene.api().workers()?[&8000];
    for figure in ["late", "to_cold", "fallback_draining", "fallback_cold"] {
        ensure!(worker[figure].as_u64() > Some(0), "{figure}: {worker}");
    }
    Ok(())
}

/// Three of four must be up. While one is drained, held by a slow request, a sibling is killed: until that is back, the
/// one that is drained goes on to serve.
#[test]
fn a_sibling_that_dies_in_a_roll() -> Result<()> {
    let sandbox = Sandbox::new("sibling")?;
    let extra = "min_up = 3".to_owned();
    let config = ServiceConfig { batch: "1".to_owned(), extra, ..ServiceConfig::default() };
    let scene = Scene::new(&sandbox, 4, &config)?;
    let load = scene.load(150.0)?;
    scene.sent(&load, 100)?;
    // Looked up first: of the time that the slow request gives, nothing else is to be lost.
    let pid = scene.supervisor.pid_of(8001)?.context("no worker")?;
    let mut slow = sandbox.command(Place::Callers, "curl");
    slow.args([
        "-s",
        "-w",
        "%{http_code}",
        "-o",
        "/dev/null",
        "-H",
        "X-Request-Id: slow",
        "http://127.0.0.1:8000/?slow=15",
    ]);
    let slow = slow.stdout(Stdio::piped()).spawn().context("start curl")?;
    let begun = || Ok(std::fs::read_to_string(scene.app.journal_dir().join("8000.log"))?.contains("B slow "));
    figures::wait(Duration::from_secs(20), begun).context("waiting for the slow request")?;
    let mut client = scene.daemon.cli_command(&["roll", "web", "--to", "v2", "--json"]);
    let mut roll = Roll::by(client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start deployer")?)?;
    roll.until_phase(8000, "draining")?;
    send(pid, Signal::KILL)?;
    let (code, printed) = roll.left()?;
    let seen = load.stop()?;
    let report = scene.report(&roll.id()?)?;
    eprintln!("{seen}");
    ensure!(code == Some(0), "{code:?} {printed}\n{}", scene.daemon.log());
    ensure!(slow.wait_with_output()?.stdout == b"200");
    let floor = report.by_version(&["during"], "fallback_floor");
    ensure!(floor.get("v1") > Some(&0), "{:?}", report.0["during"]);
    ensure!(scene.said(&["report"])?.1.contains("\nfloor: "));
    ensure!(scene.api().workers()?[&8000]["fallback_floor"].as_u64() > Some(0));
    Ok(())
}

/// All workers drained by hand, then killed and started anew with a warm-up that fails.
#[test]
fn everybody_drained_and_everybody_cold() -> Result<()> {
    let sandbox = Sandbox::new("everybody")?;
    let extra = "warm = { requests = [\"GET /\"], within = \"1s\" }";
    let mut rig = Setup { ports: 8000..=8001, extra, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.drain(8000)?;
    rig.drain_by_force(8001)?;
    let seen = caller.once(Dial::to("127.0.0.1", 8000).times(10))?;
    ensure!(answers(&seen) == [(8000, 10)].into(), "{seen:?}");
    ensure!(rig.worker(8000)?.fallback_draining == 10);
    for port in 8000..=8001 {
        // Its warm-up cannot succeed, so that it stays out; its drain is over.
        ensure!(rig.enable(port).is_err());
        rig.stop_worker(port)?;
    }
    for port in 8000..=8001 {
        rig.start_worker(port)?;
        wait("a worker that listens", || Ok(["listening", "warming"].contains(&rig.worker(port)?.phase.as_str())))?;
    }
    // The harness itself has asked whether it listens, and is a peer like any other.
    let before = rig.worker(8000)?.to_cold;
    let seen = caller.once(Dial::to("127.0.0.1", 8000).times(10))?;
    let worker = rig.worker(8000)?;
    eprintln!("{:?}; {worker:?}", answers(&seen));
    ensure!(answers(&seen) == [(8000, 10)].into(), "{seen:?}");
    ensure!((worker.fallback_cold, worker.to_cold - before) == (10, 10), "{worker:?}");
    ensure!(worker.late == 0 && worker.failed == 0 && worker.reset == 0 && worker.cut == 0, "{worker:?}");
    Ok(())
}

/// A worker resets two connections; three more are turned away by a firewall on their way to it.
#[test]
fn reset_and_failed_connections_are_counted() -> Result<()> {
    let sandbox = Sandbox::new("broken")?;
    let rig = Setup { ports: 8000..=8000, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let held = caller.hold(&[Dial { keep: true, ask: Some("reset"), ..Dial::to("127.0.0.1", 8000).times(2) }])?;
    ensure!(answers(&held.seen) == [(8000, 2)].into(), "{:?}", held.seen);
    wait("two resets", || Ok(rig.worker(8000)?.reset == 2))?;
    ensure!(rig.worker(8000)?.failed == 0);
    let rules = "add table ip x; add chain ip x y { type filter hook input priority 0; }; \
                 add rule ip x y tcp dport 8000 reject with tcp reset";
    ensure!(sandbox.command(Place::Outside, "nft").arg(rules).status()?.success());
    let seen = caller.once(Dial::to("127.0.0.1", 8000).times(3))?;
    ensure!(seen.iter().all(|seen| seen.connect == rustix::io::Errno::CONNREFUSED.raw_os_error()), "{seen:?}");
    let worker = rig.worker(8000)?;
    ensure!((worker.failed, worker.reset) == (3, 2), "{worker:?}");
    Ok(())
}
