//! Something is wrong: Prometheus, with the shipped rules, says so, and says nothing else.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer_tests::daemon::ServiceConfig;
use deployer_tests::dial::{Caller, Dial};
use deployer_tests::process::send;
use deployer_tests::prometheus::{self, Alert, PAGE, Prometheus};
use deployer_tests::rig::{Setup, wait};
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::stage::Stage;
use rustix::process::Signal;

/// More lines of a [`Setup`]; the address is [`PAGE`].
const LISTEN: &str = "[metrics]\nlisten = \"127.0.0.1:9469\"";

/// Waits until an alert fires, and for nothing but what belongs to it; its labels and annotations.
fn fires(prometheus: &Prometheus<'_>, name: &str, related: &[&str]) -> Result<Alert> {
    let find = || {
        let firing = prometheus.alerts()?.into_iter().filter(|alert| alert.state == "firing");
        anyhow::Ok(firing.into_iter().find(|alert| alert.name() == name))
    };
    let took = wait(&format!("alert {name}"), || Ok(find()?.is_some()))
        .with_context(|| format!("there are {:?}", prometheus.alerts()))?;
    only(prometheus, &[&[name], related].concat())?;
    let alert = find()?.with_context(|| format!("{name} was there for a moment only"))?;
    eprintln!("{name} after {took:.1?}: {} | {}", alert.annotations["summary"], alert.annotations["description"]);
    let text: String = alert.annotations.values().map(String::as_str).collect();
    ensure!(!text.contains("<no value>") && !text.contains("<error"), "{alert:?}");
    Ok(alert)
}

/// Whether nothing else fires.
fn only(prometheus: &Prometheus<'_>, allowed: &[&str]) -> Result<()> {
    let others: Vec<_> = prometheus.firing()?.into_iter().filter(|name| !allowed.contains(&name.as_str())).collect();
    ensure!(others.is_empty(), "{others:?} fire beside {allowed:?}");
    Ok(())
}

fn ends(prometheus: &Prometheus<'_>, name: &str) -> Result<()> {
    wait(&format!("the end of alert {name}"), || Ok(!prometheus.firing()?.iter().any(|firing| firing == name)))
        .map(drop)
}

fn config() -> ServiceConfig {
    ServiceConfig { metrics: Some(PAGE), ..ServiceConfig::default() }
}

#[test]
fn a_worker_that_is_killed_and_one_that_is_killed_again_and_again() -> Result<()> {
    let sandbox = Sandbox::new("alertkill")?;
    let stage = Stage::new(&sandbox)?;
    let _daemon = stage.daemon(&config())?;
    let prometheus = Prometheus::start(&sandbox, &prometheus::rules()?)?;
    prometheus.settle()?;
    // The rule counts by steps of 15 s: what was before a series' first is nobody's.
    sleep(Duration::from_secs(20));
    only(&prometheus, &[])?;
    let kill = || {
        let pid = stage.supervisor.pid_of(8001)?.context("no worker on port 8001")?;
        send(pid, Signal::KILL)
    };
    kill()?;
    // What was in it is lost.
    let related = ["DeployerConnectionsCut", "DeployerWorkerCrashed"];
    let alert = fires(&prometheus, "DeployerWorkerCrashed", &related)?;
    ensure!(alert.labels["worker"] == "127.0.0.1:8001" && alert.labels["service"] == "web", "{alert:?}");
    ensure!(alert.annotations["summary"].contains("127.0.0.1:8001"), "{alert:?}");
    for _ in 0..2 {
        stage.all_up()?;
        kill()?;
        wait("the kernel to see its end", || Ok(stage.api().phases()?[&8001] != "up"))?;
    }
    let alert = fires(&prometheus, "DeployerWorkerCrashLoop", &related)?;
    ensure!(alert.annotations["description"].contains("crashes in 15 minutes"), "{alert:?}");
    stage.all_up()
}

#[test]
fn a_drain_that_does_not_end() -> Result<()> {
    let sandbox = Sandbox::new("alertdrain")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&ServiceConfig { batch: "1".to_owned(), ..config() })?;
    let rules =
        prometheus::rules_sooner(&[("DeployerDrainStuck", "5m", "3s"), ("DeployerDrainForgotten", "8h", "3s")])?;
    let prometheus = Prometheus::start(&sandbox, &rules)?;
    let _slow = stage.slow(8001, 50)?;
    let mut roll = stage.roll(&daemon, &["--to", "v2"])?;
    roll.until_phase(8001, "draining")?;
    only(&prometheus, &[])?;
    let alert = fires(&prometheus, "DeployerDrainStuck", &[])?;
    ensure!(alert.labels["worker"] == "127.0.0.1:8001", "{alert:?}");
    // The daemon's own view is the same.
    ensure!(stage.api().phases()?[&8001] == "draining");
    stage.no_loss()
}

/// By hand it is another alert, and no roll is to blame.
#[test]
fn a_drain_by_hand_that_is_forgotten() -> Result<()> {
    let sandbox = Sandbox::new("alerthand")?;
    let rig = Setup { ports: 8000..=8002, extra: LISTEN, ..Setup::default() }.start(&sandbox)?;
    let soon = [("DeployerDrainStuck", "5m", "2s"), ("DeployerDrainForgotten", "8h", "2s")];
    let prometheus = Prometheus::start(&sandbox, &prometheus::rules_sooner(&soon)?)?;
    only(&prometheus, &[])?;
    rig.drain(8001)?;
    let alert = fires(&prometheus, "DeployerDrainForgotten", &[])?;
    ensure!(alert.annotations["description"].contains("`deployer enable web 8001`"), "{alert:?}");
    rig.enable(8001)?;
    ends(&prometheus, "DeployerDrainForgotten")?;
    only(&prometheus, &[])
}

/// The callers' cgroup is removed, and the links with it; made anew, it gets others.
#[test]
fn a_hook_that_is_lost() -> Result<()> {
    let sandbox = Sandbox::new("alerthook")?;
    let setup = Setup { ports: 8000..=8001, apart: true, self_test: "1s", extra: LISTEN, ..Setup::default() };
    let rig = setup.start(&sandbox)?;
    rig.self_test("ok")?;
    let soon = [("DeployerHooksMissing", "1m", "2s"), ("DeployerSelfTestFailed", "2m", "2s")];
    let prometheus = Prometheus::start(&sandbox, &prometheus::rules_sooner(&soon)?)?;
    prometheus.settle()?;
    only(&prometheus, &[])?;
    let cgroup = sandbox.remove_cgroup(Place::Callers)?;
    let related = ["DeployerHooksMissing", "DeployerHooksLost", "DeployerSelfTestFailed"];
    fires(&prometheus, "DeployerHooksMissing", &related)?;
    fires(&prometheus, "DeployerSelfTestFailed", &related)?;
    fs::create_dir(&cgroup)?;
    ends(&prometheus, "DeployerHooksMissing")?;
    ends(&prometheus, "DeployerSelfTestFailed")?;
    fires(&prometheus, "DeployerHooksLost", &[])?;
    Ok(())
}

#[test]
fn nobody_is_left() -> Result<()> {
    let sandbox = Sandbox::new("alertnone")?;
    let mut rig = Setup { ports: 8000..=8001, extra: LISTEN, ..Setup::default() }.start(&sandbox)?;
    let rules = prometheus::rules_sooner(&[("DeployerTooFewUp", "1m", "2s")])?;
    let prometheus = Prometheus::start(&sandbox, &rules)?;
    only(&prometheus, &[])?;
    rig.stop_worker(8000)?;
    rig.stop_worker(8001)?;
    let seen = Caller::at(&sandbox, Place::Callers).once(Dial::to("127.0.0.1", 8000).times(3))?;
    ensure!(seen.iter().all(|seen| seen.is_refused()), "{seen:?}");
    let related = ["DeployerTooFewUp", "DeployerExhausted", "DeployerWorkerCrashed"];
    fires(&prometheus, "DeployerExhausted", &related)?;
    fires(&prometheus, "DeployerTooFewUp", &related)?;
    Ok(())
}

#[test]
fn a_daemon_that_does_not_steer_or_is_not_there() -> Result<()> {
    let sandbox = Sandbox::new("alertoff")?;
    let setup = Setup { ports: 8000..=8001, self_test: "1s", extra: LISTEN, ..Setup::default() };
    let mut rig = setup.start(&sandbox)?;
    let soon = [
        ("DeployerDown", "1m", "2s"),
        ("DeployerDetached", "5m", "2s"),
        ("DeployerBypassed", "30m", "2s"),
        ("DeployerSelfTestFailed", "2m", "2s"),
    ];
    let prometheus = Prometheus::start(&sandbox, &prometheus::rules_sooner(&soon)?)?;
    only(&prometheus, &[])?;
    rig.must(&["bypass"])?;
    let alert = fires(&prometheus, "DeployerBypassed", &[])?;
    ensure!(alert.annotations["description"].contains("`deployer bypass --off`"), "{alert:?}");
    rig.must(&["bypass", "--off"])?;
    ends(&prometheus, "DeployerBypassed")?;
    rig.must(&["bypass", "web"])?;
    let alert = fires(&prometheus, "DeployerBypassed", &[])?;
    ensure!(alert.annotations["description"].contains("`deployer bypass web --off`"), "{alert:?}");
    rig.must(&["bypass", "web", "--off"])?;
    ends(&prometheus, "DeployerBypassed")?;
    rig.must(&["detach"])?;
    fires(&prometheus, "DeployerDetached", &[])?;
    rig.kill_daemon()?;
    fires(&prometheus, "DeployerDown", &["DeployerDetached"])?;
    Ok(())
}
