//! Reloads beside a deploy: what is refused changes nothing, and what is in use is changed when it is free.

use std::fs;

use anyhow::{Context, Result, ensure};
use deployer_tests::daemon::Daemon;
use deployer_tests::dial::{Caller, Dial, Server, answers};
use deployer_tests::rig::ANY_OF_ROOT_S;
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::site::{Plan, Site, ended};
use serde_json::Value;

use crate::scene::{small, until};

const HOST: &str = "127.0.0.1";

/// A second service, which comes before `web`, of plain servers at these ports.
fn other(sandbox: &Sandbox, ports: &str) -> String {
    let callers = sandbox.cgroup(Place::Callers);
    format!("[service.api]\nworkers = \"{HOST}:{ports}\"\ncallers = [{callers:?}]\nmanager = {ANY_OF_ROOT_S}\n")
}

/// Has the configuration read again by SIGHUP; what the daemon then says of it.
fn reload(site: &mut Site<'_>, plan: &Plan) -> Result<String> {
    let before = site.daemon.log().len();
    site.reload(plan)?;
    let said = |site: &Site<'_>| site.daemon.log()[before..].to_owned();
    until("the reload", || Ok(said(site).contains("configuration ")))?;
    Ok(said(site))
}

fn service(site: &Site<'_>, name: &str) -> Result<Value> {
    let status: Value = serde_json::from_str(&site.must(&["status", "--json"])?)?;
    let services = status["services"].as_array().context("services")?;
    services.iter().find(|service| service["name"] == name).cloned().with_context(|| format!("no {name}: {status}"))
}

/// The workers of `api` that the daemon knows.
fn workers(site: &Site<'_>) -> Result<usize> {
    Ok(service(site, "api")?["workers"].as_array().map_or(0, Vec::len))
}

#[test]
fn a_refused_reload_changes_nothing() -> Result<()> {
    let sandbox = Sandbox::new("reload_refused")?;
    let _servers = Server::start_all(&sandbox, HOST, 8200..=8202)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let plan =
        |ports: &str, without_deploy| Plan { bake: "1s", extra: other(&sandbox, ports), without_deploy, ..small() };
    let mut site = Site::start(&sandbox, plan("8200-8201", false))?;
    let (exit, said) = site.deploy("v2", &[])?;
    ensure!(exit == 0, "{said}");
    // Five times as many places as there are would be taken, if they were not given back.
    for ports in ["8200-8202", "8200-8455", "8200-8455", "8200-8455", "8200-8455", "8200-8455"] {
        let said = reload(&mut site, &plan(ports, true))?;
        ensure!(said.contains("its second pool is current") && said.contains("the former stays"), "{said}");
        ensure!(workers(&site)? == 2, "{}", service(&site, "api")?);
    }
    let seen = answers(&caller.once(Dial::to(HOST, 8202).times(10))?);
    ensure!(seen == [(8202, 10)].into(), "8202 is no worker, and connections to it are steered: {seen:?}");
    // The daemon does not start with that file either, for the same reason, and does with the former one.
    site.daemon.process().kill()?;
    let refused = Daemon::start(&sandbox, &plan("8200-8202", true).text(&sandbox, &site.app)).map(drop);
    let why = format!("{:#}", refused.err().context("it started with a file that a reload had refused")?);
    ensure!(why.contains("its second pool is current"), "{why}");
    site.start_daemon()?;
    let seen = answers(&caller.once(Dial::to(HOST, 8202).times(10))?);
    ensure!(seen == [(8202, 10)].into(), "after a start that was refused: {seen:?}");
    // There is still room.
    let said = reload(&mut site, &plan("8200-8202", false))?;
    ensure!(said.contains("configuration read again"), "{said}");
    ensure!(workers(&site)? == 3 && site.current()? == 1);
    Ok(())
}

/// The kernel refuses the last write of a reload: what was written before it is undone, and the next reload is as if that
/// one had never been.
#[test]
fn a_write_that_fails_is_undone() -> Result<()> {
    let sandbox = Sandbox::new("reload_undone")?;
    let _servers = Server::start_all(&sandbox, HOST, 8200..=8202)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let dir = sandbox.dir().join("failpoint");
    let reached = dir.join("reached");
    fs::create_dir(&dir)?;
    // A start writes, too, and passes.
    fs::write(&reached, "")?;
    let directory = dir.display().to_string();
    let environment = [("DEPLOYER_FAILPOINT", "tables".to_owned()), ("DEPLOYER_FAILPOINT_DIR", directory)];
    let plan = |ports: &str| Plan { without_deploy: true, extra: other(&sandbox, ports), ..small() };
    let mut site = Site::start_with(&sandbox, plan("8200-8201"), &environment)?;
    fs::remove_file(&reached)?;
    let said = reload(&mut site, &plan("8200-8202"))?;
    ensure!(said.contains("failpoint tables: nothing is changed") || said.contains("nothing is changed: "), "{said}");
    ensure!(said.contains("failpoint tables") && said.contains("the former stays"), "{said}");
    ensure!(workers(&site)? == 2, "{}", service(&site, "api")?);
    let seen = answers(&caller.once(Dial::to(HOST, 8202).times(10))?);
    ensure!(seen == [(8202, 10)].into(), "8202 is no worker, and connections to it are steered: {seen:?}");
    site.must(&["drain", "api", "8200"])?;
    let seen = answers(&caller.once(Dial::to(HOST, 8200).times(10))?);
    ensure!(seen == [(8201, 10)].into(), "the former workers are not steered: {seen:?}");
    site.must(&["enable", "api", "8200"])?;
    let said = reload(&mut site, &plan("8200-8202"))?;
    ensure!(said.contains("configuration read again"), "{said}");
    until("8202 is up", || Ok(service(&site, "api")?["workers"][2]["phase"] == "up"))
}

/// What a start would refuse is refused by a reload: a callers' cgroup that is not there.
#[test]
fn a_reload_refuses_what_a_start_would() -> Result<()> {
    let sandbox = Sandbox::new("reload_start")?;
    let plan = Plan { without_deploy: true, workers: 2, ..small() };
    let mut site = Site::start(&sandbox, plan.clone())?;
    let root = sandbox.root_cgroup().display().to_string();
    let text = plan.text(&sandbox, &site.app);
    let text = text.replace(&format!("callers = \"{root}\""), &format!("callers = \"{root}/none\""));
    Daemon::write_config(&sandbox, &text)?;
    let before = site.daemon.log().len();
    site.daemon.process().signal(rustix::process::Signal::HUP)?;
    until("the reload", || Ok(site.daemon.log()[before..].contains("configuration ")))?;
    let said = site.daemon.log()[before..].to_owned();
    ensure!(said.contains("the former stays") && said.contains(&format!("{root}/none")), "{said}");
    let (exit, said) = site.verb(&["reload"])?;
    ensure!(exit == 1 && said.contains("/none") && said.contains("former one stays"), "exit {exit}: {said}");
    // Wrong altogether.
    Daemon::write_config(&sandbox, "[kernel]\nlease = 1\n")?;
    let (exit, said) = site.verb(&["reload"])?;
    ensure!(exit == 2 && said.contains("lease"), "exit {exit}: {said}");
    site.reload(&plan)?;
    let file = Daemon::config_of(&sandbox).display().to_string();
    let said = site.must(&["reload", "--config", &file])?;
    ensure!(said.contains("no service is configured otherwise"), "{said}");
    Ok(())
}

/// A deploy of one service holds up no other; its own configuration is applied by itself when it has ended.
#[test]
fn a_service_in_use_is_changed_later() -> Result<()> {
    let sandbox = Sandbox::new("reload_later")?;
    let _servers = Server::start_all(&sandbox, HOST, 8200..=8202)?;
    let plan = |ports: &str, more: &str| Plan {
        workers: 3,
        bake: "1s",
        extra: format!("{more}\n{}", other(&sandbox, ports)),
        ..small()
    };
    let mut site = Site::start(&sandbox, plan("8200-8201", ""))?;
    let deploy = site.deploying("v2", &["--hold"])?;
    until("the deploy holds", || Ok(site.daemon.log().contains("\\\"holding\\\"")))?;
    let said = reload(&mut site, &plan("8200-8202", "min_up = 2"))?;
    ensure!(said.contains("configuration read again"), "{said}");
    until("8202 is up", || Ok(service(&site, "api")?["workers"][2]["phase"] == "up"))?;
    ensure!(service(&site, "web")?["min_up"] == 1);
    let said = site.must(&["reload"])?;
    ensure!(said.contains("deferred: web: deploy web-") && said.contains("by itself"), "{said}");
    let said = site.must(&["status"])?;
    ensure!(said.contains("the new configuration of web waits: deploy web-"), "{said}");
    // A drain by hand is no reason either, for others.
    site.must(&["drain", "api", "8202"])?;
    let said = site.must(&["reload"])?;
    ensure!(!said.contains("api"), "nothing of it is configured otherwise: {said}");
    Daemon::write_config(&sandbox, &plan("8200-8201", "min_up = 2").text(&sandbox, &site.app))?;
    let said = site.must(&["reload"])?;
    ensure!(said.contains("deferred: api: 127.0.0.1:8202 is drained by hand"), "{said}");
    site.must(&["enable", "api", "8202"])?;
    until("api is changed", || Ok(workers(&site)? == 2))?;
    site.must(&["flip", "web"])?;
    let (exit, said) = ended(deploy)?;
    ensure!(exit == 0, "{said}");
    until("web is changed", || Ok(service(&site, "web")?["min_up"] == 2))?;
    ensure!(!site.must(&["status"])?.contains("waits:"));
    ensure!(site.daemon.log().contains("the configuration that has waited is applied"), "{}", site.daemon.log());
    Ok(())
}
