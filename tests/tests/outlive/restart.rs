//! A daemon ends, however it ends, and another begins.

use std::time::Duration;

use anyhow::{Result, ensure};
use deployer_tests::app::Fault;
use deployer_tests::daemon::ServiceConfig;
use deployer_tests::dial::{Caller, Dial, answers};
use deployer_tests::rig::{Setup, wait};
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::stage::Stage;

const HOST: &str = "127.0.0.1";

fn keep(port: u16, times: u32) -> Dial<'static> {
    Dial { keep: true, ..Dial::to(HOST, port).times(times) }
}

/// Connections come and go while no daemon runs: the kernel goes on counting them.
#[test]
fn open_counts_go_on_without_a_daemon() -> Result<()> {
    let sandbox = Sandbox::new("counts")?;
    let mut rig = Setup { ports: 8000..=8002, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let first = caller.hold(&[keep(8000, 5), keep(8001, 2)])?;
    rig.compare("before", [5, 2, 0])?;
    let established = rig.service()?.sum(|worker| worker.established);
    rig.kill_daemon()?;
    let _second = caller.hold(&[keep(8001, 3), keep(8002, 4)])?;
    drop(first);
    rig.succeed()?;
    rig.compare("after kill -9, 7 closed and 7 opened, and a new daemon", [0, 3, 4])?;
    let now = rig.service()?.sum(|worker| worker.established);
    ensure!(established == 7 && now == 14, "established {established}, then {now}");
    Ok(())
}

/// The service address, at which nobody listens, answers all the while: daemons are killed, stopped and started, and nobody
/// who dials notices. The twin: detached, all of them are refused.
#[test]
fn nobody_notices_daemons_coming_and_going() -> Result<()> {
    let sandbox = Sandbox::new("coming")?;
    let mut rig = Setup { extra: "address = \"127.0.0.1:9000\"", ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let dials = caller.start(&[Dial { pause_ms: 1, ..Dial::to(HOST, 9000).times(4000) }])?;
    let mut changes = 0;
    for _ in 0..3 {
        rig.kill_daemon()?;
        rig.succeed()?;
        rig.daemon.stop(Duration::from_secs(10))?;
        rig.succeed()?;
        changes += 2;
    }
    let seen = dials.finish()?;
    eprintln!("{} dialled the service address over {changes} changes of daemon: {:?}", seen.len(), answers(&seen));
    ensure!(seen.iter().all(|one| one.answer.is_some()), "{:?}", answers(&seen));
    rig.daemon.stop(Duration::from_secs(10))?;
    let without = caller.once(Dial::to(HOST, 9000).times(10))?;
    ensure!(without.iter().all(|one| one.answer.is_some()), "no daemon: {without:?}");
    rig.succeed()?;
    rig.must(&["detach", "--force"])?;
    let detached = caller.once(Dial::to(HOST, 9000).times(10))?;
    ensure!(answers(&detached) == [(0, 10)].into(), "{detached:?}");
    Ok(())
}

/// A worker ends while no daemon runs, and another is gone from the configuration's services: found out at the start.
#[test]
fn facts_are_looked_at_again() -> Result<()> {
    let sandbox = Sandbox::new("facts")?;
    let mut rig = Setup { ports: 8000..=8002, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.stop_worker(8001)?;
    rig.kill_daemon()?;
    rig.servers.remove(0).stop()?;
    rig.start_worker(8001)?;
    let unseen = caller.once(Dial::to(HOST, 8001).times(10))?;
    ensure!(unseen.iter().all(|one| one.answer != Some(8001)), "it has not been warmed: {unseen:?}");
    rig.succeed()?;
    rig.wait_phase(8000, "down")?;
    rig.wait_phase(8001, "up")?;
    let seen = caller.dial(&[Dial::to(HOST, 8000).times(10), Dial::to(HOST, 8001).times(10)])?;
    ensure!(seen[10..].iter().all(|one| one.answer == Some(8001)), "{seen:?}");
    ensure!(seen[..10].iter().all(|one| matches!(one.answer, Some(8001 | 8002))), "{seen:?}");
    Ok(())
}

/// The app is stopped, then the daemon, and the app is started again: the kernel's last word on each worker is that it is
/// down, and nobody is there to see that it is not. Who dials it gets it all the same.
#[test]
fn the_app_is_back_without_a_daemon() -> Result<()> {
    let sandbox = Sandbox::new("back")?;
    let mut rig = Setup { ports: 8000..=8001, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let dial = || caller.dial(&[Dial::to(HOST, 8000).times(5), Dial::to(HOST, 8001).times(5)]);
    rig.stop_worker(8000)?;
    rig.stop_worker(8001)?;
    rig.kill_daemon()?;
    let down = dial()?;
    ensure!(down.iter().all(deployer_tests::dial::Seen::is_refused), "{down:?}");
    rig.start_worker(8000)?;
    rig.start_worker(8001)?;
    let back = dial()?;
    ensure!(answers(&back) == [(8000, 5), (8001, 5)].into(), "{:?}", answers(&back));
    rig.succeed()?;
    rig.wait_phase(8000, "up")?;
    rig.wait_phase(8001, "up")
}

/// A load balancer runs on in an executable that has been replaced: it is steered by the next daemon, too. One that is no
/// longer configured is not.
#[test]
fn callers_of_before() -> Result<()> {
    let sandbox = Sandbox::new("callers")?;
    let caller = Caller::at(&sandbox, Place::Outside).copied("balancer")?;
    let callers = Some(vec![caller.executable().to_owned()]);
    let mut rig = Setup { ports: 8000..=8001, lease: "60s", callers, ..Setup::default() }.start(&sandbox)?;
    rig.drain(8000)?;
    let old = caller.start(&[Dial { pause_ms: 10, ..Dial::to(HOST, 8000).times(800) }])?;
    wait("the old file to be in use", || Ok(rig.service()?.sum(|worker| worker.established) > 0))?;
    let new = caller.clone().copied("balancer")?;
    wait("the new file to be steered", || Ok(new.once(Dial::to(HOST, 8000))?[0].answer == Some(8001)))?;
    wait("the journal to know", || Ok(std::fs::read_to_string(rig.state().join("state.json"))?.contains("balancer")))?;
    rig.kill_daemon()?;
    rig.succeed()?;
    let old = old.finish()?;
    eprintln!("by the old file, over a change of daemon: {:?}", answers(&old));
    ensure!(answers(&old) == [(8001, 800)].into(), "{:?}", answers(&old));
    rig.kill_daemon()?;
    let other = Caller::at(&sandbox, Place::Outside).copied("other")?;
    rig.succeed_with(|setup| setup.callers = Some(vec![other.executable().to_owned()]))?;
    let (left, new) = (new.once(Dial::to(HOST, 8000))?, other.once(Dial::to(HOST, 8000))?);
    ensure!(left[0].answer == Some(8000) && new[0].answer == Some(8001), "{left:?} {new:?}");
    Ok(())
}

#[test]
fn two_daemons_on_the_same_pins() -> Result<()> {
    let sandbox = Sandbox::new("same")?;
    let rig = Setup::default().start(&sandbox)?;
    let text = std::fs::read_to_string(sandbox.dir().join("web.toml"))?
        .replace("web.sock", "other.sock")
        .replace("state-web", "state-other");
    let file = sandbox.dir().join("other.toml");
    std::fs::write(&file, text)?;
    let mut command = deployer_tests::daemon::DeployerBin::find()?.command(&sandbox);
    let output = command.arg("daemon").arg("--config").arg(file).output()?;
    let printed = String::from_utf8_lossy(&output.stderr);
    let by = format!("process {}", rig.daemon.pid());
    ensure!(output.status.code() == Some(1) && printed.contains("another deployer"), "{printed}");
    ensure!(printed.contains(&by), "{printed}");
    rig.wait_phase(8000, "up")
}

/// A failed worker stays out, and who held a drain before the daemon's start is named: from /proc.
#[test]
fn failed_workers_and_older_callers() -> Result<()> {
    let sandbox = Sandbox::new("older")?;
    let stage = Stage::new(&sandbox)?;
    let config = ServiceConfig { batch: "1".to_owned(), ..ServiceConfig::default() };
    let mut daemon = stage.daemon(&config)?;
    stage.app.set_fault("v2", 8000, Some(Fault::Status500))?;
    stage.roll(&daemon, &["--to", "v2"])?.end()?.must("failed", &["127.0.0.1:8000"])?;
    let slow = stage.slow(8001, 15)?;
    daemon.process().kill()?;
    stage.is_out(8000)?;
    let daemon = deployer_tests::daemon::Daemon::start(&sandbox, &stage.config(&config))?;
    stage.only_failed(&[8000])?;
    stage.is_out(8000)?;
    stage.app.set_fault("v2", 8000, None)?;
    let mut roll = stage.roll(&daemon, &["--to", "v2"])?;
    let held = roll.until(|event| event["event"] == "held")?;
    eprintln!("{held}");
    ensure!(held["by"][0].as_str().is_some_and(|by| by.contains("curl")), "{held}");
    roll.end()?.must("done", &["4 workers"])?;
    ensure!(slow.status()? == 200);
    stage.unharmed("a failed worker, and an older caller")?;
    Ok(())
}
