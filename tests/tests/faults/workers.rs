//! New versions that do not come up.

use std::time::Duration;

use anyhow::{Result, ensure};

use deployer_tests::app::Fault;
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::sandbox::Sandbox;
use deployer_tests::stage::Stage;

const TO_V2: &[&str] = &["--to", "v2"];

/// Rolls to v2, in which the worker on 8001 has this fault; batches are 8000 + 8001, 8002 + 8003.
fn rolls_into(stage: &Stage<'_>, daemon: &Daemon<'_>, fault: Fault, named: &[&str]) -> Result<()> {
    stage.app.set_fault("v2", 8001, Some(fault))?;
    let end = stage.roll(daemon, TO_V2)?.end()?;
    eprintln!("{fault:?}: {end:?}");
    end.must("failed", &["127.0.0.1:8001"])?;
    end.must("failed", named)?;
    ensure!(end.failed == [8001] && end.changed == 1, "{end:?}");
    stage.only_failed(&[8001])?;
    let reason = stage.api().workers()?[&8001]["reason"].to_string();
    ensure!(named.iter().all(|name| reason.contains(name)), "status says {reason}");
    stage.is_out(8001)?;
    stage.no_loss()
}

#[test]
fn new_versions_that_do_not_come_up() -> Result<()> {
    let sandbox = Sandbox::new("faulty")?;
    let stage = Stage::new(&sandbox)?;
    let config = ServiceConfig { warm_within: Duration::from_secs(6), ..ServiceConfig::default() };
    let daemon = stage.daemon(&config)?;
    rolls_into(&stage, &daemon, Fault::Status500, &["GET /", "500"])?;
    rolls_into(&stage, &daemon, Fault::OldVersion, &["says it runs v1, not v2"])?;
    rolls_into(&stage, &daemon, Fault::Crash, &["web:web_8001", "Exited too quickly"])?;
    rolls_into(&stage, &daemon, Fault::Hang, &["web:web_8001", "nothing listened within 6 s"])?;
    rolls_into(&stage, &daemon, Fault::WrongPort, &["web:web_8001", "nothing listened within 6 s", "127.0.0.1:9001"])?;
    // Once its fault is gone, a roll brings it back.
    stage.app.set_fault("v2", 8001, None)?;
    stage.roll(&daemon, TO_V2)?.end()?.must("done", &["4 workers"])?;
    stage.only_failed(&[])?;
    stage.all_serve()?;
    let report = stage.unharmed("new versions that do not come up")?;
    ensure!(report.by_version.contains_key("v2"), "{report}");
    ensure!(!daemon.log().contains("panicked"), "{}", daemon.log());
    Ok(())
}

/// The import takes longer than supervisord's startsecs: it believes that the worker has started, again and again.
#[test]
fn a_new_version_that_ends_after_its_start() -> Result<()> {
    let sandbox = Sandbox::new("crashlate")?;
    let stage = Stage::with_import(&sandbox, 1.2)?;
    let config =
        ServiceConfig { warm_within: Duration::from_secs(8), batch: "1".to_owned(), ..ServiceConfig::default() };
    let daemon = stage.daemon(&config)?;
    stage.app.set_fault("v2", 8000, Some(Fault::CrashLate))?;
    let end = stage.roll(&daemon, TO_V2)?.end()?;
    eprintln!("{end:?}");
    end.must("failed", &["127.0.0.1:8000", "web:web_8000", "crashes at start", "0 of 4 workers are changed"])?;
    stage.only_failed(&[8000])?;
    stage.is_out(8000)?;
    stage.unharmed("a new version that ends after its start")?;
    Ok(())
}
