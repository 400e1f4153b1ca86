//! Workers of one port at several addresses, and placeholders in every key of the built-in manager.

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use deployer_tests::{
    api::Api,
    daemon::Daemon,
    http::Request,
    sandbox::{Place, Sandbox},
    tls,
};
use serde_json::Value;

use super::scene::SOON;

/// Two of one port.
const TWICE: &str = "[\"127.0.0.1:8000\", \"127.0.0.4:8000\", \"127.0.0.1:8001\"]";

/// A configuration of built-in workers: `more` of the manager, and of the service.
pub(crate) fn config(sandbox: &Sandbox, workers: &str, manager: &str, service: &str) -> String {
    let (root, dir) = (sandbox.root_cgroup().display(), sandbox.dir().display());
    format!(
        "[daemon]\nsocket = {:?}\nstate = {:?}\n[kernel]\ncallers = \"{root}\"\nworkers = \"{root}\"\npins = {:?}\n\
         [service.web]\nworkers = {workers}\ncallers = [{:?}]\n{service}\n[service.web.manager]\ncgroup = {:?}\n\
         log = \"{dir}/log/{{service}}-{{address}}-{{port}}.log\"\nrestart = {{ first = \"200ms\", most = \"1s\" }}\n{manager}\n",
        Daemon::socket_of(sandbox),
        sandbox.state(),
        sandbox.pins(),
        sandbox.cgroup(Place::Callers),
        sandbox.cgroup(Place::Workers),
    )
}

/// Phase and reason of each worker of the service, by address.
pub(crate) fn phases(sandbox: &Sandbox) -> Result<Vec<(String, String, String)>> {
    let status = Api::of(sandbox).status()?;
    let workers = status["services"][0]["workers"].as_array().context("no workers")?;
    let text = |worker: &Value, key: &str| worker[key].as_str().unwrap_or_default().to_owned();
    Ok(workers.iter().map(|worker| (text(worker, "at"), text(worker, "phase"), text(worker, "reason"))).collect())
}

/// Waits until this holds of all workers.
pub(crate) fn wait(
    daemon: &Daemon<'_>,
    sandbox: &Sandbox,
    what: &str,
    holds: impl Fn(&str, &str, &str) -> bool,
) -> Result<()> {
    let begun = Instant::now();
    loop {
        let seen = phases(sandbox)?;
        if !seen.is_empty() && seen.iter().all(|(at, phase, reason)| holds(at, phase, reason)) {
            return Ok(());
        }
        ensure!(begun.elapsed() < SOON, "waited in vain until {what}: {seen:?}\n{}", daemon.log());
        sleep(Duration::from_millis(20));
    }
}

fn all_up(daemon: &Daemon<'_>, sandbox: &Sandbox) -> Result<()> {
    wait(daemon, sandbox, "all are up", |_, phase, _| phase == "up")
}

/// Runs a verb: its exit code and what it said.
fn verb(daemon: &Daemon<'_>, words: &[&str]) -> Result<(Option<i32>, String)> {
    let output = daemon.cli(words)?;
    Ok((output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()))
}

/// Verbs name a worker by its address where a port is not enough, and say so.
#[test]
fn one_port_at_two_addresses() -> Result<()> {
    let sandbox = Sandbox::new("m_twice")?;
    let manager = format!("command = {}", tls::worker(&sandbox, None)?);
    let daemon = Daemon::start(&sandbox, &config(&sandbox, TWICE, &manager, ""))?;
    all_up(&daemon, &sandbox)?;
    let drained = verb(&daemon, &["drain", "web", "127.0.0.4:8000"])?;
    ensure!(drained.0 == Some(0), "{drained:?}");
    let is_one_out = |at: &str, phase: &str, _: &str| (phase == "up") == (at != "127.0.0.4:8000");
    wait(&daemon, &sandbox, "127.0.0.4:8000 alone is out", is_one_out)?;
    for words in [&["drain", "web", "8000"][..], &["enable", "web", "8000"], &["trace", "web", "--port", "8000"]] {
        let (exit, said) = verb(&daemon, words)?;
        let named = "8000 is the port of 2 workers of web; name one by its address: 127.0.0.1:8000 127.0.0.4:8000";
        ensure!(exit == Some(2) && said.contains(named), "{words:?}: {exit:?}: {said}");
    }
    let missing = verb(&daemon, &["drain", "web", "127.0.0.9:8000"])?;
    let named = "web has no worker at 127.0.0.9:8000; it has 127.0.0.1:8000 127.0.0.4:8000 8001";
    ensure!(missing.0 == Some(2) && missing.1.contains(named), "{missing:?}");
    let traced = verb(&daemon, &["trace", "web", "--worker", "127.0.0.4:8000", "--duration", "100ms"])?;
    ensure!(traced.0 == Some(0), "{traced:?}");
    let enabled = Api::of(&sandbox).ask("POST", "/v1/services/web/enable", "{\"worker\":\"127.0.0.4:8000\"}")?;
    ensure!(enabled["done"].as_str().is_some_and(|done| done.contains("127.0.0.4:8000")), "{enabled}");
    all_up(&daemon, &sandbox)?;
    let by_port = verb(&daemon, &["drain", "web", "8001"])?;
    ensure!(by_port.0 == Some(0), "a port that only one has is enough: {by_port:?}");
    ensure!(verb(&daemon, &["enable", "web", "127.0.0.1:8001"])?.0 == Some(0));
    for name in ["127.0.0.1-8000", "127.0.0.4-8000", "127.0.0.1-8001"] {
        let log = fs::read_to_string(sandbox.dir().join(format!("log/web-{name}.log")))?;
        ensure!(log.lines().count() == 1, "{name}: {log}");
    }
    Ok(())
}

/// What the workers of two pools are told is in files by address: a port of both names neither.
#[test]
fn two_pools_of_one_port_are_told_apart() -> Result<()> {
    let sandbox = Sandbox::new("m_pools")?;
    let manager = format!("command = {}", tls::worker(&sandbox, None)?);
    let deploy = "deploy = { second = \"127.0.0.4:8000\", bake = \"1s\", gate_every = \"1s\" }\nversion = { request = \"GET /\", header = \"X-Version\" }\naddress = \"127.0.0.1:9000\"";
    let daemon = Daemon::start(&sandbox, &config(&sandbox, "\"127.0.0.1:8000\"", &manager, deploy))?;
    wait(&daemon, &sandbox, "the first pool is up", |at, phase, _| at != "127.0.0.1:8000" || phase == "up")?;
    let deployed = verb(&daemon, &["deploy", "web", "--to", "v1"])?;
    ensure!(deployed.0 == Some(0), "{deployed:?}\n{}", daemon.log());
    let pools = sandbox.state().join("pools");
    for (name, pool) in [("127.0.0.1:8000", "a"), ("127.0.0.4:8000", "b")] {
        let file = pools.join(format!("web-{name}.env"));
        let told = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        ensure!(told.contains(&format!("DEPLOYER_POOL={pool}")), "{name}: {told}");
    }
    ensure!(!pools.join("web-8000.env").exists(), "two workers would read one file");
    Ok(())
}

/// Each worker has a directory of its own.
#[test]
fn placeholders_of_the_directory_are_replaced() -> Result<()> {
    let sandbox = Sandbox::new("m_dir")?;
    for port in [8000, 8001] {
        fs::create_dir_all(sandbox.dir().join(format!("srv/web/{port}")))?;
    }
    let manager = format!(
        "command = {}\ndirectory = \"{}/srv/{{service}}/{{port}}\"",
        tls::worker(&sandbox, None)?,
        sandbox.dir().display()
    );
    let warm = "warm = { requests = [{ path = \"/{port}\", headers = { Host = \"{address}\" } }] }";
    let daemon = Daemon::start(&sandbox, &config(&sandbox, "\"127.0.0.1:8000-8001\"", &manager, warm))?;
    all_up(&daemon, &sandbox)?;
    for port in [8000_u16, 8001] {
        let ask = || Request::get("/").send(([127, 0, 0, 1], port).into(), SOON);
        let answer = sandbox.in_netns(ask)??;
        let expected = format!("v1 {}/srv/web/{port}", sandbox.dir().display());
        ensure!(answer.body == expected, "{:?}, not {expected}", answer.body);
    }
    Ok(())
}
