//! A new version takes over, with other programs and other tables; an old one must not.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use deployer_tests::daemon::{Daemon, DeployerBin, ServiceConfig};
use deployer_tests::dial::{Caller, Dial, answers};
use deployer_tests::rig::Setup;
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::stage::Stage;

const HOST: &str = "127.0.0.1";
/// The cargo feature of the version that lays two tables out otherwise.
const NEXT: &str = "next-layout";

/// Under load through nginx: 0 failed, connections stay counted, and the new version rolls.
#[test]
fn to_a_version_with_other_tables() -> Result<()> {
    let sandbox = Sandbox::new("upgrade")?;
    let stage = Stage::new(&sandbox)?;
    let config = ServiceConfig::default();
    let mut daemon = stage.daemon(&config)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let held = caller.hold(&[Dial { keep: true, odd: Some("silent"), ..Dial::to(HOST, 8001).times(3) }])?;
    let before = counted(&stage)?;
    daemon.stop()?;
    let mut next = Daemon::start_bin(&sandbox, DeployerBin::variant(NEXT)?, &stage.config(&config))?;
    stage.all_up()?;
    let after = counted(&stage)?;
    eprintln!("established, open of 8001: {before:?}, and in the next version {after:?}");
    ensure!(after.0 >= before.0 && after.1 >= 3, "{before:?}, then {after:?}");
    ensure!(sandbox.pins().join("live/SWITCHBOARD-2").exists() && !sandbox.pins().join("live/SWITCHBOARD-1").exists());
    drop(held);
    stage.wait(Duration::from_secs(20), || Ok(counted(&stage)?.1 <= 2))?;
    stage.roll(&next, &["--to", "v2"])?.end()?.must("done", &["4 workers"])?;
    next.stop()?;
    downgrade(&stage, &config)?;
    let mut next = Daemon::start_bin(&sandbox, DeployerBin::variant(NEXT)?, &stage.config(&config))?;
    ensure!(next.cli(&["detach"])?.status.success());
    next.stop()?;
    let _daemon = stage.daemon(&config)?;
    stage.all_serve()?;
    stage.unharmed("an upgrade, a downgrade that is refused, and one after detach")?;
    Ok(())
}

/// Connections established to all workers so far, and those open now of 8001.
fn counted(stage: &Stage<'_>) -> Result<(u64, u64)> {
    let workers = stage.api().workers()?;
    let number = |port: &u16, what: &str| workers[port][what].as_u64().unwrap_or(0);
    Ok((workers.keys().map(|port| number(port, "established")).sum(), number(&8001, "open")))
}

/// Refused before anything was changed; what is there steers on.
fn downgrade(stage: &Stage<'_>, config: &ServiceConfig) -> Result<()> {
    let names = |dir: &Path| -> Result<Vec<_>> { fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect() };
    let before = (fs::read_link(stage.sandbox.pins().join("live"))?, names(&stage.sandbox.pins())?);
    let error = Daemon::start(stage.sandbox, &stage.config(config)).err().map(|error| format!("{error:#}"));
    let error = error.unwrap_or_default();
    eprintln!("downgrade: {}", error.lines().last().unwrap_or_default());
    ensure!(error.contains("made by a newer deployer") && error.contains("nothing was changed"), "{error}");
    let after = (fs::read_link(stage.sandbox.pins().join("live"))?, names(&stage.sandbox.pins())?);
    ensure!(before == after, "{before:?}, then {after:?}");
    stage.no_loss()
}

/// Back and forth between versions of the same layout under callers of the service address.
#[test]
fn programs_are_swapped_under_load() -> Result<()> {
    let sandbox = Sandbox::new("swap")?;
    let mut rig = Setup { extra: "address = \"127.0.0.1:9000\"", ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let dials = caller.start(&[Dial { pause_ms: 1, ..Dial::to(HOST, 9000).times(2500) }])?;
    let next = DeployerBin::variant(NEXT)?;
    rig.kill_daemon()?;
    rig.succeed_by(&next)?;
    for _ in 0..3 {
        rig.kill_daemon()?;
        rig.succeed_by(&next)?;
    }
    let seen = dials.finish()?;
    let established = rig.service()?.sum(|worker| worker.established);
    eprintln!("{} dialled: {:?}; established {established}", seen.len(), answers(&seen));
    ensure!(seen.iter().all(|one| one.answer.is_some()), "{:?}", answers(&seen));
    ensure!(established == seen.len() as u64, "each is counted once, over all versions: {established}");
    rig.compare("all closed", [0, 0, 0, 0])
}
