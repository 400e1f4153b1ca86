//! Workers that crash when no roll is about.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use deployer_tests::daemon::ServiceConfig;
use deployer_tests::process::send;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::stage::Stage;

#[test]
fn a_crashed_worker_comes_back_warm() -> Result<()> {
    let sandbox = Sandbox::new("crash")?;
    // Back before anybody could look twice; and nginx is not to bench for 10 s whom it found dead once.
    let stage = Stage::with(&sandbox, 0.0, "max_fails=0")?;
    let daemon = stage.daemon(&ServiceConfig::default())?;
    for round in 1..=4 {
        let port = 8000 + round % 4;
        let phase = || anyhow::Ok(stage.api().phases()?.remove(&port).context("no such worker")?);
        let pid = stage.supervisor.pid_of(port)?.context("no worker")?;
        let begun = Instant::now();
        send(pid, Signal::KILL)?;
        stage.wait(Duration::from_secs(20), || Ok(phase()? != "up"))?;
        let noticed = begun.elapsed();
        stage.wait(Duration::from_secs(30), || Ok(phase()? == "up"))?;
        ensure!(stage.supervisor.pid_of(port)? != Some(pid));
        eprintln!("crash {round} of {port}: noticed after {noticed:.2?}, up after {:.2?}", begun.elapsed());
    }
    stage.all_serve()?;
    let journal = stage.journal()?;
    let report = stage.load.stop()?;
    let (cold, cut) = (journal.cold().len(), journal.cut().len());
    eprintln!("a crashed worker comes back warm: {cold} cold, {cut} cut by the kills; {report}");
    ensure!(report.cold == 0 && cold == 0, "{report}");
    // What was inside a worker when it was killed is lost, or sent again by nginx: nobody else's requests.
    ensure!(report.failed <= cut + 4, "{report}");
    let log = daemon.log();
    ensure!(log.contains("its process has ended") && log.contains("warm after it had started by itself"), "{log}");
    Ok(())
}
