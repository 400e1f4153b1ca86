//! Orders of a fleet in which a host cannot act, and nodes that another program has written: what is in them is checked.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer::fleet::coordinator::{Coordinator, Kind};
use deployer_tests::pace::patient;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::site::{Plan, Site, ended};
use deployer_tests::zookeeper::ZooKeeper as Servers;
use serde_json::{Value, json};

use crate::scene::{SOON, client, create, insist, run, settings};

const ROOT: &str = "/deployer/shop";
const STATE: &str = "/deployer/shop/services/web/state";

fn plan(servers: &Servers<'_>) -> Plan {
    let fleet = format!("[fleet]\nconnect = \"{}\"\nname = \"shop\"\nhost = \"app17\"\n", servers.connect());
    Plan { workers: 2, bake: "1s", extra: fleet, ..Plan::default() }
}

/// What a host says of itself that has this service.
fn host(service: &str) -> String {
    let about = json!({ "lane": 0, "epoch": 0, "stage": "idle", "up": 2, "workers": 2, "published": false });
    let services = json!({ service: about });
    json!({ "boot_id": "x", "deployer": "1", "services": services, "synchronised": true, "clock_error_us": 0 })
        .to_string()
}

fn rolling(site: &Site<'_>, more: &[&str]) -> Result<Child> {
    let mut command = site.daemon.cli_command(&[&["roll", "web", "--fleet"], more].concat());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start deployer roll")
}

/// The service in the fleet's status, as soon as it is so.
fn wait_web(site: &Site<'_>, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    let until = Instant::now() + patient(SOON);
    loop {
        let status: Value = serde_json::from_str(&site.must(&["fleet", "status", "--json"])?)?;
        let web = status["services"][0].clone();
        if is(&web) {
            return Ok(web);
        }
        ensure!(Instant::now() < until, "{what}: not so: {status}\n{}", site.daemon.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Another host in the roster, and there, that does nothing.
fn with_another<T: Send>(
    sandbox: &Sandbox,
    servers: &Servers<'_>,
    has: &str,
    then: impl FnOnce() -> Result<T> + Send,
) -> Result<()> {
    run(sandbox, || async {
        let zk = client(settings(servers)).await?;
        let enrolled = json!({ "state": "enabled", "by": "me", "at_ms": 1 }).to_string();
        zk.ensure(&format!("{ROOT}/hosts")).await?;
        zk.ensure(&format!("{ROOT}/roster")).await?;
        zk.transact(vec![
            create(&format!("{ROOT}/hosts/app00"), &host(has), Kind::Ephemeral),
            create(&format!("{ROOT}/roster/app00"), &enrolled, Kind::Persistent),
        ])
        .await?;
        tokio::task::block_in_place(then).map(drop)
    })
}

fn enrolled(site: &Site<'_>) -> Result<()> {
    let until = Instant::now() + patient(SOON);
    loop {
        let status: Value = serde_json::from_str(&site.must(&["fleet", "status", "--json"])?)?;
        let hosts = status["hosts"].as_array().context("hosts")?;
        let is_ours = |host: &Value| host["host"] == "app17" && host["roster"] == "enabled" && host["alive"] == true;
        if hosts.iter().any(is_ours) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "not enrolled: {status}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn an_abort_ends_a_roll_whose_turn_does_not_act() -> Result<()> {
    let sandbox = Sandbox::new("zkabort")?;
    let servers = Servers::start(&sandbox, 1)?;
    let site = Site::start(&sandbox, plan(&servers))?;
    enrolled(&site)?;
    with_another(&sandbox, &servers, "web", || {
        let roll = rolling(&site, &["--host-batch", "1"])?;
        wait_web(&site, "its turn", |web| web["state"]["turn"] == json!(["app00"]))?;
        let begun = Instant::now();
        site.must(&["fleet", "abort", "web"])?;
        let web = wait_web(&site, "the end", |web| web["state"]["phase"] == "idle")?;
        ensure!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());
        let outcome = web["state"]["outcome"].clone();
        ensure!(outcome["result"] == "stopped", "{outcome}");
        ensure!(
            outcome["text"].as_str().is_some_and(|text| text.contains("no answer within 10 s: app00")),
            "{outcome}"
        );
        let (exit, said) = ended(roll)?;
        ensure!(exit == 3, "exit {exit}: {said}");
        Ok(())
    })
}

#[test]
fn hosts_without_the_service_take_no_turn() -> Result<()> {
    let sandbox = Sandbox::new("zkturn")?;
    let servers = Servers::start(&sandbox, 1)?;
    let site = Site::start(&sandbox, plan(&servers))?;
    enrolled(&site)?;
    with_another(&sandbox, &servers, "another", || {
        // Past callers that are not steered, too.
        let (exit, said) = ended(rolling(&site, &["--force"])?)?;
        ensure!(exit == 0 && !said.contains("app00"), "exit {exit}: {said}");
        let web = wait_web(&site, "the end", |web| web["state"]["phase"] == "idle")?;
        ensure!(web["state"]["outcome"]["result"] == "done", "{web}");
        ensure!(web["state"]["expected"] == json!(["app17"]) && web["state"]["order"]["force"] == true, "{web}");
        Ok(())
    })
}

#[test]
fn numbers_of_another_program_are_refused_by_the_name_of_their_node() -> Result<()> {
    let sandbox = Sandbox::new("zknumbers")?;
    let servers = Servers::start(&sandbox, 1)?;
    let site = Site::start(&sandbox, plan(&servers))?;
    enrolled(&site)?;
    // An epoch of which only marks are left.
    let mark = format!("{ROOT}/services/web/epochs/{}", u64::MAX);
    run(&sandbox, || async { Ok(client(settings(&servers)).await?.ensure(&mark).await?) })?;
    let (exit, said) = site.verb(&["roll", "web", "--fleet"])?;
    ensure!(exit == 1 && said.contains(&format!("{mark} says epoch {}", u64::MAX)), "exit {exit}: {said}");
    run(&sandbox, || async {
        let zk = client(settings(&servers)).await?;
        zk.transact(vec![crate::scene::delete(&mark, None)]).await?;
        Ok(())
    })?;
    let (exit, said) = ended(rolling(&site, &[])?)?;
    ensure!(exit == 0, "exit {exit}: {said}");
    let web = wait_web(&site, "the end", |web| web["state"]["phase"] == "idle")?;
    let known = web["state"]["epoch"].as_u64().context("epoch")?;
    // An epoch that is none, one that is far ahead, and another number that is none.
    for (key, number) in [("epoch", u64::MAX), ("epoch", known + 2_000_000), ("since_ms", u64::MAX)] {
        let mut state = web["state"].clone();
        state[key] = number.into();
        run(&sandbox, || async { insist(&client(settings(&servers)).await?, STATE, &state.to_string()).await })?;
        let until = Instant::now() + patient(SOON);
        loop {
            let trouble = site.must(&["status", "--json"])?;
            let status: Value = serde_json::from_str(&trouble)?;
            if status["trouble"].to_string().contains(&format!("{STATE} ")) {
                break;
            }
            ensure!(Instant::now() < until, "{key} = {number} is not told: {}", status["trouble"]);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    run(&sandbox, || async { insist(&client(settings(&servers)).await?, STATE, &web["state"].to_string()).await })?;
    let (exit, said) = ended(rolling(&site, &[])?)?;
    ensure!(exit == 0, "exit {exit}: {said}");
    Ok(())
}

#[test]
fn a_double_barrier_makes_nodes_in_its_own_place_only() -> Result<()> {
    let sandbox = Sandbox::new("zkplace")?;
    let servers = Servers::start(&sandbox, 1)?;
    let site = Site::start(&sandbox, plan(&servers))?;
    enrolled(&site)?;
    for path in ["/elsewhere/monday", "/deployer/shop/hosts", "/deployer/shop/services/web", "/zookeeper/quota/x"] {
        for verb in [&["roll", "web"][..], &["deploy", "web", "--to", "v2"]] {
            let (exit, said) = site.verb(&[verb, &["--double-barrier", path, "--parties", "1"]].concat())?;
            ensure!(exit == 2 && said.contains("is not below /deployer/shop/barriers"), "exit {exit}: {said}");
        }
    }
    for path in ["/deployer/shop/barriers/../hosts", "deployer/shop/barriers/x", "/deployer/shop/barriers//x"] {
        let (exit, said) = site.verb(&["roll", "web", "--double-barrier", path, "--parties", "1"])?;
        ensure!(exit == 2, "{path}: exit {exit}: {said}");
    }
    run(&sandbox, || async {
        let zk = client(settings(&servers)).await?;
        ensure!(zk.get("/elsewhere").await?.is_none(), "a node was made");
        ensure!(zk.children("/deployer/shop/hosts").await? == ["app17"], "a node was made among the hosts");
        Ok(())
    })?;
    let (exit, said) =
        site.verb(&["roll", "web", "--double-barrier", "/deployer/shop/barriers/x", "--parties", "1"])?;
    ensure!(exit == 0, "exit {exit}: {said}");
    Ok(())
}
