//! The emergency exits while a deploy or a roll is under way: they work, and say what becomes of it.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer_tests::sandbox::Sandbox;
use deployer_tests::site::{Plan, Site, ended, event};

use crate::scene::{Failpoint, is_settled, small, until};

/// A deploy that bakes for long; its client.
fn baking(site: &Site<'_>) -> Result<std::process::Child> {
    let client = site.deploying("v2", &[])?;
    site.wait("it has flipped", |pools| pools[1]["current"] == true)?;
    until("it bakes", || Ok(site.daemon.log().contains("\\\"flipped\\\"")))?;
    Ok(client)
}

/// A verb that must work, and say this.
fn says(site: &Site<'_>, words: &[&str], named: &[&str]) -> Result<()> {
    let said = site.must(words)?;
    eprintln!("{words:?}: {}", said.trim());
    named.iter().try_for_each(|name| {
        ensure!(said.contains(name), "{words:?}: {name:?} is missing in {said}");
        Ok(())
    })
}

#[test]
fn every_exit_works_during_a_bake() -> Result<()> {
    let sandbox = Sandbox::new("exits")?;
    let site = Site::start(&sandbox, Plan { bake: "100s", ..small() })?;
    let mut client = baking(&site)?;
    for port in ["8100", "8000"] {
        says(&site, &["drain", "web", port], &["out of rotation"])?;
        says(&site, &["enable", "web", port], &["back in rotation"])?;
    }
    let kept = ["deploy web-", "of web is kept: both pools stay up"];
    says(&site, &["bypass", "web", "--force"], &[&["web is bypassed"], &kept[..]].concat())?;
    says(&site, &["bypass", "web", "--off"], &["steered again"])?;
    says(&site, &["bypass", "--force"], &[&["every service is bypassed"], &kept[..]].concat())?;
    says(&site, &["bypass", "--off"], &["steered again"])?;
    says(&site, &["detach", "--force"], &[&["out of the kernel"], &kept[..]].concat())?;
    ensure!(!site.service()?["roll"].is_null(), "the deploy goes on");
    client.kill()?;
    let said = String::from_utf8_lossy(&client.wait_with_output()?.stdout).into_owned();
    let asked = event(&said, "asked").with_context(|| said.clone())?;
    ensure!(asked["what"].as_str().is_some_and(|what| what.starts_with("bypass web: it is kept")), "{asked}");
    Ok(())
}

/// While connections go where they are dialled, no pool is retired; when they are steered again, the old one is. A drain by
/// hand does not keep it.
#[test]
fn a_bake_does_not_end_unsteered() -> Result<()> {
    let sandbox = Sandbox::new("unsteered_bake")?;
    let plan = Plan { bake: "2s", ..small() };
    let site = Site::start(&sandbox, plan.clone())?;
    let client = baking(&site)?;
    site.must(&["bypass", "web", "--force"])?;
    sleep(Duration::from_secs(3));
    let pools = site.pools()?;
    ensure!(pools[0]["up"] == plan.workers && !site.service()?["roll"].is_null(), "{pools:?}\n{}", site.daemon.log());
    site.must(&["bypass", "web", "--off"])?;
    let (exit, said) = ended(client)?;
    ensure!(exit == 0, "exit {exit}: {said}");
    is_settled(&site.pools()?, 1, "v2", plan.workers)
}

/// What is to be retired is not kept by an operator's drain.
#[test]
fn a_drained_worker_is_retired() -> Result<()> {
    let sandbox = Sandbox::new("drained_bake")?;
    let plan = Plan { bake: "3s", ..small() };
    let site = Site::start(&sandbox, plan.clone())?;
    let client = baking(&site)?;
    site.must(&["drain", "web", "8000"])?;
    let (exit, said) = ended(client)?;
    ensure!(exit == 0, "exit {exit}: {said}");
    is_settled(&site.pools()?, 1, "v2", plan.workers)
}

/// A roll stops, and its record says why.
#[test]
fn a_roll_is_stopped_by_a_bypass() -> Result<()> {
    let sandbox = Sandbox::new("bypassed_roll")?;
    let (failpoint, environment) = Failpoint::at(&sandbox, "draining.published")?;
    let plan = Plan { without_deploy: true, extra: "roll = { batch = 1 }".to_owned(), workers: 3, ..Plan::default() };
    let site = Site::start_with(&sandbox, plan, &environment)?;
    let mut roll = site.daemon.cli_command(&["roll", "web", "--json"]);
    let roll = roll.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn()?;
    failpoint.wait(&site)?;
    let (exit, said) = site.verb(&["bypass", "web"])?;
    ensure!(
        exit == 4 && said.contains("bypass web --force") && said.contains("stops after the batch"),
        "{exit}: {said}"
    );
    says(&site, &["bypass", "web", "--force"], &["roll web-", "of web stops after the batch in hand"])?;
    failpoint.go()?;
    let (exit, said) = ended(roll)?;
    ensure!(exit == 3 && said.contains("not steered any more (bypass web by uid 0"), "exit {exit}: {said}");
    until("all are up", || {
        let service = site.service()?;
        Ok(service["workers"].as_array().is_some_and(|all| all.iter().all(|worker| worker["phase"] == "up")))
    })
}
