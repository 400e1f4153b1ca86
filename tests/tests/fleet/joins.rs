//! Hosts that come late, come back, or come while ZooKeeper is away; and what others read in the server sets.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer_tests::browser::Seen;
use deployer_tests::fleet::orders::active;
use deployer_tests::fleet::{Fleet, Plan};
use deployer_tests::journal::monotonic_ns;
use deployer_tests::pace::is_full;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);

/// No page that was asked for after that, other than copies, is of any version but this one.
fn only(seen: &Seen, since_ns: u64, version: &str) -> Result<()> {
    let stray = seen
        .loaded
        .iter()
        .find(|loaded| !loaded.cached && loaded.begin_ns > since_ns && loaded.page.version != version);
    ensure!(stray.is_none(), "not {version}: {stray:?}");
    Ok(())
}

/// A host that was off during a deploy serves the new version when it is back, and nothing else before.
#[test]
fn a_host_that_was_off_comes_back_with_the_fleets_version() -> Result<()> {
    if !is_full() {
        eprintln!("only with --full");
        return Ok(());
    }
    comes_back("off", false)
}

/// The same, when it has lost all that its daemon knew.
#[test]
fn a_host_without_its_state_comes_back_with_the_fleets_version() -> Result<()> {
    if !is_full() {
        eprintln!("only with --full");
        return Ok(());
    }
    comes_back("wiped", true)
}

fn comes_back(run: &str, is_wiped: bool) -> Result<()> {
    let mut fleet = Fleet::joined(Plan::default())?;
    let browsers = fleet.browse(run)?;
    fleet.host_mut(5).power_off()?;
    // Out of the set, and of Varnish, before anything else: its requests have failed until then.
    sleep(Duration::from_secs(5));
    let (exit, said) = fleet.deploy(1, "v2", &["--quorum", "80%"])?;
    ensure!(exit == 0, "exit {exit}: {said}\n{}", fleet.log());
    if is_wiped {
        fleet.host(5).wipe()?;
    }
    let since_ns = monotonic_ns();
    fleet.host_mut(5).start()?;
    ensure!(active(&fleet.settled(LIMIT)?) == "v2");
    let set = fleet.server_set(None)?;
    ensure!(set.values().any(|member| member.data["metadata"]["host"] == "h5"), "{set:?}");
    sleep(Duration::from_secs(4));
    let seen = browsers.stop()?;
    eprintln!("{seen}");
    only(&seen, since_ns, "v2")?;
    fleet.judge(run, &seen, &["h5"])?;
    let had = deployer_tests::journal::Journal::read(&fleet.host(5).app.journal_dir())?;
    ensure!(had.entries.iter().any(|entry| entry.begin_ns > since_ns && entry.version == "v2"), "h5 gets no requests");
    Ok(())
}

/// ZooKeeper is away, and a host boots: what is on its disk is what it serves.
#[test]
fn a_host_boots_without_zookeeper() -> Result<()> {
    let mut fleet = Fleet::joined(Plan { hosts: 3, ..Plan::default() })?;
    let (exit, said) = fleet.deploy(1, "v2", &[])?;
    ensure!(exit == 0, "exit {exit}: {said}");
    fleet.settled(LIMIT)?;
    let browsers = fleet.browse("boot")?;
    fleet.zookeeper()?.kill_all()?;
    // Longer than sessions last.
    sleep(Duration::from_secs(5));
    fleet.host_mut(3).power_off()?;
    sleep(Duration::from_secs(1));
    fleet.host_mut(3).start()?;
    fleet.host(3).wait_up(fleet.plan.workers)?;
    let current = fleet.host(3).current()?;
    ensure!(current["version"] == "v2" && current["lane"] == 2, "{current}");
    let said = fleet.host(3).fleet()?;
    ensure!(said["connected"] == false, "{said}");
    ensure!(fleet.served()?.values().all(|version| version == "v2"), "{:?}", fleet.served()?);
    sleep(Duration::from_secs(3));
    fleet.zookeeper()?.launch(0)?;
    ensure!(active(&fleet.settled(LIMIT)?) == "v2");
    fleet.wait_joined()?;
    let seen = browsers.stop()?;
    eprintln!("{seen}");
    only(&seen, 0, "v2")?;
    fleet.judge("boot", &seen, &["h3"])
}

/// Hosts that are added and drained come and go in Varnish, and nobody has edited anything.
#[test]
fn varnish_follows_hosts_that_come_and_go() -> Result<()> {
    let mut fleet = Fleet::joined(Plan { hosts: 3, ..Plan::default() })?;
    let browsers = fleet.browse("come")?;
    let (exit, said) = fleet.deploy(1, "v2", &[])?;
    ensure!(exit == 0, "exit {exit}: {said}");
    let since_ns = monotonic_ns();
    fleet.add_host()?.start()?;
    ensure!(active(&fleet.settled(LIMIT)?) == "v2");
    fleet.wait_joined()?;
    sleep(Duration::from_secs(3));
    let had = fleet.host(4).app.journal_dir();
    let had = deployer_tests::journal::Journal::read(&had)?;
    let theirs = had.entries.iter().filter(|entry| entry.id.starts_with("come-")).count();
    ensure!(theirs > 20, "{theirs} requests on the new host: {}\n{}", fleet.front.backends()?, fleet.log());
    fleet.host(1).must(&["fleet", "drain", "h4"])?;
    sleep(Duration::from_secs(3));
    let drained_ns = monotonic_ns();
    sleep(Duration::from_secs(3));
    let seen = browsers.stop()?;
    eprintln!("Varnish was given other hosts {} times; {seen}", fleet.front.reloads());
    let had = deployer_tests::journal::Journal::read(&fleet.host(4).app.journal_dir())?;
    let late = had.entries.iter().find(|entry| entry.id.starts_with("come-") && entry.begin_ns > drained_ns);
    ensure!(late.is_none(), "a drained host is asked: {late:?}");
    only(&seen, since_ns, "v2")?;
    fleet.judge("come", &seen, &[])
}

/// Most daemons die at once, and their workers do not: that is no order to take the hosts out.
#[test]
fn a_set_that_shrinks_is_not_followed() -> Result<()> {
    let mut fleet = Fleet::joined(Plan::default())?;
    let browsers = fleet.browse("shrink")?;
    for host in 2..=5 {
        fleet.host_mut(host).kill_daemon()?;
    }
    // Longer than sessions last. They do not end all at once: two hosts of five may go before less than half are left.
    sleep(Duration::from_secs(6));
    let followed = fleet.front.followed()?;
    let kept = followed.lines().filter(|line| line.starts_with("backend ")).count();
    ensure!(kept >= 3, "{followed}\n{}", fleet.front.log());
    let until = std::time::Instant::now() + LIMIT;
    let is_told = |said: &str| said.contains("accept-shrink");
    while !is_told(&fleet.host(1).must(&["fleet", "status"])?) {
        ensure!(std::time::Instant::now() < until, "nobody is told: {}", fleet.log());
        sleep(Duration::from_millis(500));
    }
    for host in 2..=5 {
        fleet.host_mut(host).start_daemon(&[])?;
    }
    fleet.wait_joined()?;
    let seen = browsers.stop()?;
    eprintln!("{seen}");
    fleet.judge("shrink", &seen, &[])
}

/// What Finagle and twitter.common want of members, read by Kazoo.
#[test]
fn others_read_the_server_sets() -> Result<()> {
    let fleet = Fleet::joined(Plan { hosts: 3, ..Plan::default() })?;
    let (exit, said) = fleet.deploy(1, "v2", &[])?;
    ensure!(exit == 0, "exit {exit}: {said}");
    let web = fleet.settled(LIMIT)?;
    let (set, of_version) = (fleet.server_set(None)?, fleet.server_set(Some("v2"))?);
    eprintln!("{}", serde_json::to_string(&set.values().map(|member| &member.data).collect::<Vec<_>>())?);
    ensure!(set.len() == 3 && of_version.len() == 3, "{set:?} {of_version:?}");
    ensure!(fleet.server_set(Some("v1"))?.is_empty(), "the old version is served no more");
    for (name, member) in set.iter().chain(&of_version) {
        let digits = name.strip_prefix("member_").with_context(|| name.clone())?;
        ensure!(digits.len() == 10 && digits.bytes().all(|byte| byte.is_ascii_digit()), "{name}");
        let (data, host) = (&member.data, &member.data["metadata"]["host"]);
        let number: u8 = host.as_str().and_then(|host| host.strip_prefix('h')).context("host")?.parse()?;
        let end = json!({ "host": format!("10.77.0.1{number}"), "port": 8080 });
        ensure!(member.ephemeral && data["status"] == "ALIVE" && data["serviceEndpoint"] == end, "{data}");
        ensure!(data["additionalEndpoints"].is_object(), "{data}");
        let meta = &data["metadata"];
        let lane = web["state"]["active"]["lane"].to_string();
        ensure!(meta["version"] == "v2" && meta["fleet"] == "shop" && meta["lane"] == lane.as_str(), "{data}");
        ensure!(meta["epoch"].is_string(), "{data}");
    }
    Ok(())
}
