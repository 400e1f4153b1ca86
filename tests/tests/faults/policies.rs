//! What a roll does about failures: `max_failures`, `on_failure`, a switch command that fails.

use anyhow::{Result, ensure};

use deployer_tests::app::Fault;
use deployer_tests::daemon::ServiceConfig;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::stage::{PORTS, Stage};

const TO_V2: &[&str] = &["--to", "v2"];

fn one_by_one() -> ServiceConfig {
    ServiceConfig { batch: "1".to_owned(), ..ServiceConfig::default() }
}

#[test]
fn two_failures_are_the_limit() -> Result<()> {
    let sandbox = Sandbox::new("limit")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&ServiceConfig { max_failures: 2, ..one_by_one() })?;
    stage.app.set_fault("v2", 8001, Some(Fault::Status500))?;
    let end = stage.roll(&daemon, TO_V2)?.end()?;
    eprintln!("one of two: {end:?}");
    end.must("failed", &["127.0.0.1:8001", "all others are restarted"])?;
    ensure!(end.failed == [8001] && end.changed == 3, "{end:?}");
    stage.only_failed(&[8001])?;
    stage.is_out(8001)?;
    stage.app.set_fault("v2", 8002, Some(Fault::OldVersion))?;
    let end = stage.roll(&daemon, TO_V2)?.end()?;
    eprintln!("two of two: {end:?}");
    end.must("failed", &["127.0.0.1:8001", "127.0.0.1:8002", "1 of 4 workers are changed, 2 failed"])?;
    ensure!(end.failed == [8001, 8002] && end.changed == 1, "{end:?}");
    stage.only_failed(&[8001, 8002])?;
    stage.is_out(8002)?;
    stage.unharmed("two failures are the limit")?;
    Ok(())
}

#[test]
fn a_failure_is_rolled_back() -> Result<()> {
    let sandbox = Sandbox::new("back")?;
    let stage = Stage::new(&sandbox)?;
    let unswitch_to = Some("v1".to_owned());
    let daemon = stage.daemon(&ServiceConfig { on_failure: "rollback", unswitch_to, ..one_by_one() })?;
    stage.app.set_fault("v2", 8001, Some(Fault::Status500))?;
    let end = stage.roll(&daemon, TO_V2)?.end()?;
    eprintln!("{end:?}");
    end.must("rolled-back", &["127.0.0.1:8001", "500", "has been rolled back"])?;
    ensure!(end.failed.is_empty() && end.changed == 0, "{end:?}");
    ensure!(stage.app.current_version()? == "v1");
    stage.only_failed(&[])?;
    let versions = stage.api().workers()?;
    ensure!([8000, 8001].iter().all(|port| versions[port]["version"] == "v1"), "{versions:?}");
    stage.load.mark("back");
    stage.all_serve()?;
    // Worse: what was there before does not come up any more either.
    stage.app.set_fault("v1", 8001, Some(Fault::Status500))?;
    let end = stage.roll(&daemon, TO_V2)?.end()?;
    eprintln!("{end:?}");
    end.must("failed", &["127.0.0.1:8001", "rolling back"])?;
    stage.only_failed(&[8001])?;
    let report = stage.unharmed("a failure is rolled back")?;
    ensure!(report.by_version.contains_key("v2"), "8000 had been on v2: {report}");
    Ok(())
}

#[test]
fn a_switch_that_fails_touches_nobody() -> Result<()> {
    let sandbox = Sandbox::new("switch")?;
    let stage = Stage::new(&sandbox)?;
    let pids = || PORTS.map(|port| stage.supervisor.pid_of(port)).collect::<Result<Vec<_>>>();
    let before = pids()?;
    let daemon = stage.daemon(&one_by_one())?;
    for (command, why) in [
        (r#"["sh", "-c", "echo disk full >&2; exit 3"]"#, &["disk full", "exit status: 3"][..]),
        (r#"["/nonexistent/switch"]"#, &["/nonexistent/switch", "No such file"]),
        (r#"["sleep", "30"], switch_within = "500ms""#, &["still running after 0.5 s"]),
    ] {
        let text = stage.config(&one_by_one());
        let (head, tail) = text.split_once("switch = [").expect("a switch");
        let (_, tail) = tail.split_once("]").expect("its end");
        stage.reload(&daemon, &format!("{head}switch = {command}{tail}"))?;
        let end = stage.roll(&daemon, TO_V2)?.end()?;
        eprintln!("{end:?}");
        end.must("failed", &["the switch command failed", "no worker was touched"])?;
        end.must("failed", why)?;
        ensure!(end.changed == 0 && end.failed.is_empty(), "{end:?}");
    }
    ensure!(pids()? == before, "workers have been restarted");
    stage.only_failed(&[])?;
    stage.unharmed("a switch that fails")?;
    Ok(())
}
