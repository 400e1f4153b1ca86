//! Clients of a roll that are interrupted, leave, or lose their terminal: the daemon goes on.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use deployer_tests::api::Roll;
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::process::send;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::stage::Stage;

const TO_V2: &[&str] = &["--to", "v2"];

/// A roll whose first batch is in hand, and held for a second.
fn begun(stage: &Stage<'_>, daemon: &Daemon<'_>) -> Result<Roll> {
    let slow = stage.slow(8001, 1)?;
    let mut roll = stage.roll(daemon, TO_V2)?;
    roll.until_phase(8001, "draining")?;
    drop(slow);
    Ok(roll)
}

#[test]
fn one_interrupt_stops_after_the_batch() -> Result<()> {
    let sandbox = Sandbox::new("int")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&ServiceConfig::default())?;
    let roll = begun(&stage, &daemon)?;
    send(roll.client()?, Signal::INT)?;
    let end = roll.end()?;
    eprintln!("{end:?}");
    end.must("stopped", &["stopped on request", "2 of 4 workers are changed"])?;
    stage.only_failed(&[])?;
    stage.all_serve()?;
    let report = stage.unharmed("one interrupt")?;
    ensure!(report.by_version.len() == 2, "{report}");
    Ok(())
}

#[test]
fn clients_that_go() -> Result<()> {
    let sandbox = Sandbox::new("go")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&ServiceConfig::default())?;
    twice(&stage, &daemon)?;
    for signal in [Signal::HUP, Signal::TERM] {
        let mut roll = begun(&stage, &daemon)?;
        let id = roll.id()?;
        send(roll.client()?, signal)?;
        let (code, printed) = roll.left()?;
        eprintln!("{signal:?}: exit {code:?} {printed}");
        ensure!(code == Some(7), "{signal:?}: {code:?} {printed}");
        goes_on(&stage, &id)?;
    }
    let mut roll = begun(&stage, &daemon)?;
    let id = roll.id()?;
    send(roll.client()?, Signal::KILL)?;
    roll.left()?;
    goes_on(&stage, &id)?;
    let roll = begun(&stage, &daemon)?;
    let id = roll.id()?;
    let output = roll.deaf()?.wait_with_output()?;
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    eprintln!("closed output: {} {printed}", output.status);
    ensure!(output.status.code() == Some(7) && !printed.contains("panicked"), "{output:?}");
    goes_on(&stage, &id)?;
    stage.all_serve()?;
    stage.unharmed("clients that go")?;
    ensure!(!daemon.log().contains("panicked"), "{}", daemon.log());
    Ok(())
}

/// A second interrupt detaches. The stop that the first has asked for stays asked for.
fn twice(stage: &Stage<'_>, daemon: &Daemon<'_>) -> Result<()> {
    let mut roll = begun(stage, daemon)?;
    send(roll.client()?, Signal::INT)?;
    roll.until(|event| event["event"] == "stop-asked")?;
    send(roll.client()?, Signal::INT)?;
    let (code, printed) = roll.left()?;
    eprintln!("two interrupts: exit {code:?} {printed}");
    ensure!(code == Some(7) && printed.contains("goes on in the daemon"), "{code:?} {printed}");
    let end = stage.api().follow(&roll.id()?)?.end()?;
    end.must("stopped", &["2 of 4 workers are changed"])?;
    stage.only_failed(&[])
}

fn goes_on(stage: &Stage<'_>, id: &str) -> Result<()> {
    let end = stage.api().follow(id)?.end().with_context(|| format!("following {id}"))?;
    end.must("done", &["4 workers"])?;
    stage.only_failed(&[])
}
