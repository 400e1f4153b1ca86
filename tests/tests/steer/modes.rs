//! Trust on day one: observe, bypass, detach.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer_tests::app::App;
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::dial::{Caller, Dial, Seen, answers};
use deployer_tests::load::Load;
use deployer_tests::nginx::{Nginx, Upstream};
use deployer_tests::rig::Setup;
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::supervisor::{Options, Supervisor};
use serde_json::Value;

const HOST: &str = "127.0.0.1";

/// Decides and counts, changes nothing.
#[test]
fn observe() -> Result<()> {
    let sandbox = Sandbox::new("observe")?;
    let mut rig = Setup { ports: 8000..=8001, extra: "mode = \"observe\"", ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let (exit, text) = rig.verb(&["drain", "web", "8000"])?;
    ensure!(exit == 1 && text.contains("observe"), "exit {exit}: {text}");
    let up = caller.once(Dial::to(HOST, 8000).times(10))?;
    rig.stop_worker(8000)?;
    let down = caller.once(Dial::to(HOST, 8000).times(10))?;
    let service = rig.service()?;
    let worker = &service.workers[&8000];
    eprintln!("up {:?}, down {:?}, would_change {}", answers(&up), answers(&down), service.would_change);
    ensure!(answers(&up) == [(8000, 10)].into(), "{up:?}");
    ensure!(down.iter().all(Seen::is_refused), "{down:?}");
    ensure!(service.mode == "observe" && service.would_change == 10, "{service:?}");
    ensure!((worker.direct, worker.away, worker.tickets) == (10, 0, 0), "{worker:?}");
    Ok(())
}

/// Off and on again: where connections to a drained worker go, and that its drain outlives it.
#[test]
fn bypass() -> Result<()> {
    let sandbox = Sandbox::new("bypass")?;
    let rig = Setup { ports: 8000..=8001, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let answer = || Ok::<_, anyhow::Error>(answers(&caller.once(Dial::to(HOST, 8000).times(10))?));
    rig.drain(8000)?;
    for which in [&["bypass"][..], &["bypass", "web"]] {
        rig.must(which)?;
        let (bypassed, (exit, text)) = (answer()?, rig.verb(&["drain", "web", "8001"])?);
        ensure!(exit == 1 && text.contains("bypass"), "a drain that does nothing: exit {exit}: {text}");
        rig.must(&[which, &["--off"]].concat())?;
        let steered = answer()?;
        eprintln!("{which:?}: {bypassed:?}, off: {steered:?}");
        ensure!(bypassed == [(8000, 10)].into() && steered == [(8001, 10)].into());
    }
    ensure!(rig.service()?.sum(|w| w.tickets) == 0);
    Ok(())
}

/// Not while a service address is in use, unless by force.
#[test]
fn detach_with_a_service_address() -> Result<()> {
    let sandbox = Sandbox::new("detach")?;
    let address = "address = \"127.0.0.1:9000\"";
    let rig = Setup { ports: 8000..=8001, extra: address, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let before = caller.once(Dial::to(HOST, 9000).times(10))?;
    for verb in ["detach", "bypass"] {
        let (exit, text) = rig.verb(&[verb])?;
        ensure!(exit == 1 && text.contains("--force") && text.contains("127.0.0.1:9000"), "exit {exit}: {text}");
    }
    let refused = caller.once(Dial::to(HOST, 9000).times(10))?;
    ensure!(rig.status()?.attached && refused.iter().all(|one| one.answer.is_some()), "{refused:?}");
    rig.must(&["detach", "--force"])?;
    let (after, direct) = (caller.once(Dial::to(HOST, 9000).times(10))?, caller.once(Dial::to(HOST, 8000).times(10))?);
    eprintln!("before {:?}, after {:?}, direct {:?}", answers(&before), answers(&after), answers(&direct));
    ensure!(!rig.status()?.attached && after.iter().all(Seen::is_refused), "{after:?}");
    ensure!(answers(&direct) == [(8000, 10)].into(), "{direct:?}");
    let (exit, text) = rig.verb(&["drain", "web", "8000"])?;
    ensure!(exit == 1 && text.contains("detached"), "exit {exit}: {text}");
    Ok(())
}

/// What was in use long ago is not, whatever the counters say; what is open is.
#[test]
fn an_address_that_is_no_longer_used() -> Result<()> {
    let sandbox = Sandbox::new("unused")?;
    let address = "address = \"127.0.0.1:9000\"";
    let rig = Setup { ports: 8000..=8001, extra: address, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    caller.once(Dial::to(HOST, 9000).times(10))?;
    let held = caller.hold(&[Dial { keep: true, ..Dial::to(HOST, 9000) }])?;
    let begun = Instant::now();
    let refused = |named: &str| -> Result<()> {
        let (exit, text) = rig.verb(&["bypass", "web"])?;
        ensure!(exit == 1 && text.contains(named) && text.contains("bypass web --force"), "exit {exit}: {text}");
        Ok(())
    };
    refused("in use (last connection")?;
    std::thread::sleep(Duration::from_millis(10_200).saturating_sub(begun.elapsed()));
    refused("1 open")?;
    held.kill()?;
    let limit = deployer_tests::pace::patient(Duration::from_secs(5));
    let begun = Instant::now();
    loop {
        let (exit, text) = rig.verb(&["bypass", "web"])?;
        if exit == 0 {
            return Ok(());
        }
        ensure!(begun.elapsed() < limit, "exit {exit}: {text}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Steering, bypassed, steering again, detached; nginx and its callers notice none of it.
#[test]
fn under_load() -> Result<()> {
    let sandbox = Sandbox::new("load")?;
    let app = App::new(&sandbox, &["v1"])?;
    let supervisor = Supervisor::start(&sandbox, &app, Options { import_seconds: 0.1, ..Options::ports(8000..=8003) })?;
    supervisor.wait_up()?;
    supervisor.warm()?;
    let nginx = Nginx::start(&sandbox, &Upstream::workers(8000..=8003, ""))?;
    let load = Load { rate: 200.0, slow_one_in: 100, slow_seconds: 1, ..Load::new("modes") }.start(&sandbox)?;
    std::thread::sleep(Duration::from_millis(500));
    let daemon = Daemon::start(&sandbox, &ServiceConfig::default().text(&sandbox, &app, &supervisor))?;
    let mut away = Vec::new();
    for words in [&["drain", "web", "8000"][..], &["bypass"], &["bypass", "--off"], &["detach"]] {
        load.mark(&words.join(" "));
        let begun = Instant::now();
        let output = daemon.cli(words)?;
        eprintln!("{words:?} took {:.0?}", begun.elapsed());
        ensure!(output.status.success(), "{words:?}: {output:?}");
        std::thread::sleep(Duration::from_millis(1500));
        away.push(counter(&daemon, "away")?);
    }
    let report = load.stop()?;
    let steered: Vec<_> = away.windows(2).map(|pair| pair[1] - pair[0]).collect();
    eprintln!("{report}  steered away while draining {}, then {steered:?}", away[0]);
    ensure!(report.requests > 1000 && report.failed == 0, "{report}");
    ensure!(nginx.error_lines()?.is_empty(), "{:?}", nginx.error_lines());
    // A quarter of 200 a second. What was on its way at a switch may still be counted on its other side.
    ensure!(away[0] > 40 && steered[0] < 15 && steered[1] > 40 && steered[2] < 15, "{away:?}");
    Ok(())
}

/// A counter over all workers.
fn counter(daemon: &Daemon<'_>, name: &str) -> Result<u64> {
    let output = daemon.cli(&["status", "--json"])?;
    let status: Value = serde_json::from_slice(&output.stdout).context("status --json")?;
    let workers = status["services"][0]["workers"].as_array().context("workers")?;
    Ok(workers.iter().filter_map(|worker| worker[name].as_u64()).sum())
}
