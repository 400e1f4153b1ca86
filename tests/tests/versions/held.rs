//! Deploys that wait: for somebody, beside workers that end, and with a gate that hangs.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer_tests::pace::patient;
use deployer_tests::rig::wait;
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::site::{Plan, Site};
use rustix::process::{Pid, Signal, kill_process};

/// Kills the process that listens at a port of the sandbox.
fn kill(sandbox: &Sandbox, port: u16) -> Result<()> {
    let words = ["-Hltnp".to_owned(), format!("sport = :{port}")];
    let output = sandbox.command(Place::Outside, "ss").args(words).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let pid = text.split("pid=").nth(1).and_then(|rest| rest.split(',').next()).with_context(|| text.clone())?;
    let pid = Pid::from_raw(pid.parse()?).context("pid 0")?;
    kill_process(pid, Signal::KILL).context("kill a worker")
}

/// A worker that ends while its deploy holds is no reason never to flip again: it is waited for, and the flip armed when it
/// is back.
#[test]
fn a_held_deploy_flips_to_workers_that_are_up_alone() -> Result<()> {
    let sandbox = Sandbox::new("held")?;
    let site = Site::start(&sandbox, Plan { bake: "1s", ..Plan::default() })?;
    for (version, is_back) in [("v2", true), ("v3", false)] {
        let (new, mut deploy) = (1 - site.current()?, site.deploying(version, &["--hold"])?);
        let first = if new == 0 { 8000 } else { 8100 };
        site.wait("the new pool is up", |pools| pools[new]["up"] == 4)?;
        kill(&sandbox, first)?;
        site.wait("one is gone", |pools| pools[new]["up"] != 4)?;
        if is_back {
            site.wait("it is back", |pools| pools[new]["up"] == 4)?;
        }
        // It may have come to hold only just now.
        wait("it is told to flip", || Ok(site.verb(&["flip", "web"])?.0 == 0))?;
        let code = deploy.wait()?.code();
        ensure!(code == Some(0), "{version}: {code:?}\n{}", site.daemon.log());
        ensure!(site.current()? == new && site.pools()?[new]["up"] == 4, "{version}");
    }
    Ok(())
}

#[test]
fn a_gate_that_hangs_delays_no_rollback() -> Result<()> {
    let sandbox = Sandbox::new("hangs")?;
    let hangs = sandbox.dir().join("hangs");
    let gate = format!(", gate = [\"/bin/sh\", \"-c\", \"test ! -e {} || sleep 100\"]", hangs.display());
    let deploy = format!("{gate}, gate_every = \"1s\", within = \"100s\"");
    let site = Site::start(&sandbox, Plan { bake: "200s", deploy, ..Plan::default() })?;
    let mut client = site.deploying("v2", &[])?;
    site.wait("it has flipped", |pools| pools[1]["current"] == true)?;
    fs::write(&hangs, "")?;
    std::thread::sleep(Duration::from_secs(2));
    let begun = Instant::now();
    site.must(&["rollback", "web"])?;
    site.wait("the old pool is current", |pools| pools[0]["current"] == true)?;
    ensure!(begun.elapsed() < patient(Duration::from_secs(5)), "after {:?}", begun.elapsed());
    client.kill()?;
    client.wait()?;
    Ok(())
}
