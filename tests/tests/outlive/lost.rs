//! What the daemon keeps in the kernel is lost, or is not what it should be.

use std::fs;

use anyhow::{Context, Result, ensure};
use deployer_tests::daemon::DeployerBin;
use deployer_tests::dial::{Caller, Dial, answers};
use deployer_tests::rig::{Rig, Setup, wait};
use deployer_tests::sandbox::{Place, Sandbox, unmount_below};

const HOST: &str = "127.0.0.1";

#[test]
fn the_file_system_is_unmounted() -> Result<()> {
    let sandbox = Sandbox::new("unmount")?;
    let mut rig = Setup { ports: 8000..=8001, lease: "60s", ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.drain(8000)?;
    unmount_below(sandbox.dir())?;
    ensure!(!rig.pins().join("live").exists());
    let still = caller.once(Dial::to(HOST, 8000).times(10))?;
    ensure!(answers(&still) == [(8001, 10)].into(), "{still:?}");
    let took = wait("the pins to be there again", || Ok(rig.pins().join("live/link-connect4").exists()))?;
    // They hold: without the daemon, too.
    rig.kill_daemon()?;
    let seen = caller.once(Dial::to(HOST, 8000).times(10))?;
    eprintln!("pinned again after {took:.1?}; without the daemon {:?}", answers(&seen));
    ensure!(answers(&seen) == [(8001, 10)].into(), "{seen:?}");
    rig.succeed()?;
    rig.wait_phase(8001, "up")
}

/// A load balancer's unit is restarted, say: its cgroup is another one of the same name.
#[test]
fn the_callers_cgroup_is_made_anew() -> Result<()> {
    let sandbox = Sandbox::new("anew")?;
    let setup = Setup { ports: 8000..=8001, lease: "60s", apart: true, ..Setup::default() };
    let mut rig = setup.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.drain(8000)?;
    let dial = || Ok::<_, anyhow::Error>(caller.once(Dial::to(HOST, 8000))?[0].answer);
    ensure!(dial()? == Some(8001));
    let cgroup = sandbox.remove_cgroup(Place::Callers)?;
    wait("status to say so", || Ok(rig.must(&["status"])?.contains("is gone")))?;
    fs::create_dir(&cgroup)?;
    ensure!(dial()? == Some(8000), "the twin: a link goes with its cgroup");
    let took = wait("steering in the new cgroup", || Ok(dial()? == Some(8001)))?;
    wait("status to be quiet again", || Ok(!rig.must(&["status"])?.contains("is gone")))?;
    rig.kill_daemon()?;
    ensure!(dial()? == Some(8001), "pinned as well");
    eprintln!("steered again {took:.1?} after the cgroup was there");
    Ok(())
}

/// `deployer check` on a rig's configuration.
fn check(sandbox: &Sandbox) -> Result<String> {
    let mut command = DeployerBin::find()?.command(sandbox);
    let output = command.arg("check").arg("--config").arg(sandbox.dir().join("web.toml")).output()?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = printed.lines().find(|line| line.contains("pins in")).unwrap_or_default();
    Ok(line.to_owned())
}

#[test]
fn leftovers_are_found_and_removed() -> Result<()> {
    let sandbox = Sandbox::new("left")?;
    let mut rig = Setup { ports: 8000..=8001, lease: "60s", ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    ensure!(check(&sandbox)?.contains("a daemon runs"), "{}", check(&sandbox)?);
    rig.drain(8000)?;
    rig.kill_daemon()?;
    let found = check(&sandbox)?;
    eprintln!("{found}");
    ensure!(found.starts_with("warn") && found.contains("steering"), "{found}");
    let pins = rig.pins();
    fs::create_dir(pins.join("g77"))?;
    fs::hard_link(pins.join("live/SWITCHBOARD-1"), pins.join("g77/SWITCHBOARD-1"))?;
    ensure!(answers(&caller.once(Dial::to(HOST, 8000).times(5))?) == [(8001, 5)].into());
    let detach = |expected: i32| -> Result<()> {
        let (exit, text) = rig.verb(&["detach", "--pins", &pins.display().to_string()])?;
        eprintln!("{}", text.trim());
        ensure!(exit == expected, "exit {exit}: {text}");
        Ok(())
    };
    detach(0)?;
    ensure!(!pins.exists() && check(&sandbox)?.is_empty());
    ensure!(answers(&caller.once(Dial::to(HOST, 8000).times(5))?) == [(8000, 5)].into());
    detach(6)
}

/// Without a daemon a service address is not given up either that is in use; and where nothing is pinned it is said what is
/// attached.
#[test]
fn an_address_in_use_is_kept_without_a_daemon() -> Result<()> {
    let sandbox = Sandbox::new("kept")?;
    let extra = "address = \"127.0.0.1:9000\"";
    let mut rig = Setup { ports: 8000..=8001, lease: "60s", extra, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let dial = || Ok::<_, anyhow::Error>(answers(&caller.once(Dial::to(HOST, 9000).times(4))?));
    ensure!(!dial()?.contains_key(&0));
    let (pins, config) = (rig.pins().display().to_string(), rig.config().display().to_string());
    let detach = |rig: &Rig<'_>, words: &[&str], expected: i32, named: &[&str]| -> Result<()> {
        let (exit, text) = rig.verb(&[&["detach"], words].concat())?;
        eprintln!("{words:?}: {}", text.trim());
        let missing = named.iter().find(|name| !text.contains(**name));
        ensure!(exit == expected && missing.is_none(), "{words:?}: exit {exit}, {missing:?}: {text}");
        Ok(())
    };
    // Another socket: the daemon is named.
    let nowhere = sandbox.dir().join("nowhere.sock").display().to_string();
    detach(&rig, &["--socket", &nowhere, "--pins", &pins], 6, &["a daemon runs that holds the pins", "--socket"])?;
    rig.kill_daemon()?;
    detach(&rig, &["--pins", &pins], 1, &["127.0.0.1:9000 is in use (last connection", "--force"])?;
    detach(&rig, &["--config", &config], 1, &["127.0.0.1:9000 is in use", "--force"])?;
    ensure!(!dial()?.contains_key(&0), "it was detached");
    let (root, wrong) = (sandbox.root_cgroup().display().to_string(), format!("{pins}-wrong"));
    let named = ["programs of deployer ARE attached", root.as_str(), &format!("deployer detach --pins {pins}")];
    detach(&rig, &["--pins", &wrong], 6, &named)?;
    detach(&rig, &["--config", &config, "--force"], 0, &["out of the kernel"])?;
    ensure!(!rig.pins().exists() && dial()? == [(0, 4)].into());
    Ok(())
}

/// What a daemon left aside that died while it was being built is in nobody's way.
#[test]
fn a_start_that_was_cut_short() -> Result<()> {
    let sandbox = Sandbox::new("short")?;
    let mut rig = Setup { ports: 8000..=8001, ..Setup::default() }.start(&sandbox)?;
    rig.kill_daemon()?;
    let pins = rig.pins();
    fs::create_dir(pins.join("g77"))?;
    std::os::unix::fs::symlink("g77", pins.join("next"))?;
    rig.succeed()?;
    rig.wait_phase(8000, "up")?;
    ensure!(!pins.join("g77").exists() && !pins.join("next").exists());
    Ok(())
}

/// Starts a daemon on pins in which something was renamed; it must refuse, naming these, and leave all as it was.
fn refused(rig: &mut Rig<'_>, named: &[&str]) -> Result<()> {
    let error = rig.succeed().err().map(|error| format!("{error:#}")).unwrap_or_default();
    eprintln!("{}", error.lines().last().unwrap_or_default());
    ensure!(named.iter().all(|name| error.contains(name)), "{error}");
    ensure!(rig.pins().join("live").exists());
    Ok(())
}

#[test]
fn tables_that_are_not_what_they_should_be() -> Result<()> {
    let sandbox = Sandbox::new("strange")?;
    let mut rig = Setup { ports: 8000..=8001, lease: "60s", ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.drain(8000)?;
    rig.kill_daemon()?;
    let live = rig.pins().join("live");
    let rename = |from: &str, to: &str| fs::rename(live.join(from), live.join(to)).with_context(|| from.to_owned());
    rename("SWITCHBOARD-1", "SWITCHBOARD-9")?;
    refused(&mut rig, &["made by a newer deployer", "SWITCHBOARD-9", "up to 1", "deployer detach"])?;
    rename("SWITCHBOARD-9", "SWITCHBOARD-1")?;
    rename("WORKER_COUNTS-1", "aside")?;
    rename("SERVICE_COUNTS-1", "WORKER_COUNTS-1")?;
    refused(&mut rig, &["WORKER_COUNTS-1", "is not the table that its name says"])?;
    rename("WORKER_COUNTS-1", "SERVICE_COUNTS-1")?;
    rename("aside", "WORKER_COUNTS-1")?;
    ensure!(answers(&caller.once(Dial::to(HOST, 8000).times(5))?) == [(8001, 5)].into(), "all the while");
    rig.succeed()?;
    rig.wait_phase(8001, "up")
}
