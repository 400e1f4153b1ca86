//! Clocks that are wrong, jump, or are not known to be right; and ZooKeeper gone between GO and confirm.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use deployer_tests::fleet::flips::Probes;
use deployer_tests::fleet::orders::{active, marks, result};
use deployer_tests::fleet::{Fleet, Plan};
use deployer_tests::pace::is_full;
use deployer_tests::site::ended;
use rustix::process::Signal;

const LIMIT: Duration = Duration::from_secs(60);
/// By how much each host's clock is wrong, ms.
const OFFSETS: [i64; 5] = [0, 200, -200, 200, -200];

fn skewed(plan: Plan) -> Result<Fleet> {
    let fleet = Fleet::joined(plan)?;
    for (host, offset_ms) in fleet.hosts.iter().zip(OFFSETS) {
        host.set_clock(offset_ms, true)?;
    }
    Ok(fleet)
}

/// Hosts flip up to 400 ms apart; since all serve both lanes by then, nobody notices.
#[test]
fn clocks_that_are_200_ms_off_mix_nothing() -> Result<()> {
    let fleet = skewed(Plan::default())?;
    let (browsers, probes) = (fleet.browse("skew")?, Probes::start(&fleet.hosts)?);
    sleep(Duration::from_secs(2));
    let (exit, said) = fleet.deploy(1, "v2", &[])?;
    ensure!(exit == 0, "exit {exit}: {said}\n{}", fleet.log());
    ensure!(active(&fleet.settled(LIMIT)?) == "v2");
    let (seen, probings) = (browsers.stop()?, probes.stop()?);
    let spread = probings.flips_to("v2")?;
    eprintln!("{spread}; {seen}");
    probings.must_be_whole()?;
    ensure!(spread.ms() > 300.0 && spread.least_ms() < 500.0, "{spread}");
    fleet.judge("skew", &seen, &[])
}

/// ZooKeeper goes when some hosts have read GO and confirmed, and others, which stand still just then, have not. Who has
/// confirmed flips on time, without ZooKeeper; nobody else does.
#[test]
fn who_has_not_confirmed_does_not_flip() -> Result<()> {
    let mut fleet = skewed(Plan { is_gated: true, ..Plan::default() })?;
    let rounds: &[&[usize]] = if is_full() { &[&[3, 4], &[2, 5], &[2, 3, 4, 5], &[5]] } else { &[&[2, 3, 4, 5]] };
    for (nth, still) in rounds.iter().enumerate() {
        unconfirmed(&mut fleet, still, &format!("u{nth}"))
            .with_context(|| format!("round {nth}, {still:?} stand still"))?;
    }
    Ok(())
}

fn unconfirmed(fleet: &mut Fleet, still: &[usize], version: &str) -> Result<()> {
    let (browsers, probes) = (fleet.browse(version)?, Probes::start(&fleet.hosts)?);
    fleet.hold(1, true)?;
    let deploy = fleet.deploying(1, version, &["--lead", "4s", "--wait", "120s"])?;
    fleet.wait_marks(version, "ready", 4)?;
    for host in still {
        fleet.host_mut(*host).signal_daemon(Signal::STOP)?;
    }
    // The last one is ready, and GO is out, well before the sessions of those that stand still have ended.
    fleet.hold(1, false)?;
    let said = fleet.wait_phase(version, "go");
    fleet.zookeeper()?.kill_all()?;
    for host in still {
        fleet.host_mut(*host).signal_daemon(Signal::CONT)?;
    }
    let flip_at_ms = said?["state"]["flip_at_ms"].as_u64().context("flip_at_ms")?;
    sleep(Duration::from_millis(flip_at_ms.saturating_sub(unix_ms()) + 2000));
    let served = fleet.served()?;
    let flipped: BTreeSet<_> =
        served.iter().filter(|(_, served)| *served == version).map(|(host, _)| host.clone()).collect();
    let zookeeper = fleet.zookeeper()?;
    (0..zookeeper.count()).try_for_each(|nth| zookeeper.launch(nth))?;
    // Read before the deploy ends: the confirmations of its epoch are there for good.
    let web = fleet.wait_web("ZooKeeper is back", LIMIT, |web| {
        ["flipped", "retire", "idle", "back"].iter().any(|phase| web["state"]["phase"] == *phase)
            || web["state"]["flip_at_ms"].as_u64().is_some_and(|at| at != flip_at_ms)
    })?;
    let confirmed: BTreeSet<_> = marks(&web, "confirmed").into_iter().collect();
    eprintln!("confirmed {confirmed:?}; flipped while ZooKeeper was away: {flipped:?}; then {}", web["state"]["phase"]);
    ensure!(
        flipped.is_subset(&confirmed),
        "an unconfirmed flip: {flipped:?}, confirmed {confirmed:?}\n{}",
        fleet.log()
    );
    ensure!(still.iter().all(|host| !flipped.contains(&format!("h{host}"))), "{flipped:?}");
    if web["state"]["flip_at_ms"] == flip_at_ms {
        ensure!(
            confirmed.is_subset(&flipped),
            "confirmed, and not flipped: {flipped:?}, {confirmed:?}\n{}",
            fleet.log()
        );
    }
    let end = fleet.settled(Duration::from_secs(120))?;
    let (exit, said) = ended(deploy)?;
    let (seen, _) = (browsers.stop()?, probes.stop()?);
    eprintln!("{version}: {}, exit {exit}, {} serves; {seen}", result(&end), active(&end));
    ensure!(result(&end) == "done" || flipped.is_empty(), "{end}: {said}");
    fleet.judge(version, &seen, &[])
}

/// A host that does not know what time it is holds the fleet up, unless the operator lets it.
#[test]
fn an_unsynchronised_host_is_refused() -> Result<()> {
    let fleet = Fleet::joined(Plan { hosts: 3, ..Plan::default() })?;
    fleet.host(3).set_clock(0, false)?;
    let browsers = fleet.browse("sync")?;
    let (exit, said) = fleet.deploy(1, "v2", &[])?;
    ensure!(exit != 0 && said.contains("h3") && said.contains("synchronised"), "exit {exit}: {said}");
    let web = fleet.settled(LIMIT)?;
    ensure!(active(&web) == "v1" && result(&web) == "aborted", "{web}");
    ensure!(browsers.so_far().pages.keys().eq(["v1"]), "{}", browsers.so_far());
    let (exit, said) = fleet.deploy(1, "v2", &["--allow-unsynchronised"])?;
    ensure!(exit == 0, "exit {exit}: {said}\n{}", fleet.log());
    ensure!(active(&fleet.settled(LIMIT)?) == "v2");
    let seen = browsers.stop()?;
    eprintln!("{seen}");
    fleet.judge("sync", &seen, &[])
}

/// The wall clocks of two hosts jump while their flips are armed: one too early by its true time, one that would be late
/// follows the others.
#[test]
fn clocks_that_jump_while_armed_mix_nothing() -> Result<()> {
    if !is_full() {
        eprintln!("only with --full");
        return Ok(());
    }
    let fleet = Fleet::joined(Plan::default())?;
    let (browsers, probes) = (fleet.browse("step")?, Probes::start(&fleet.hosts)?);
    sleep(Duration::from_secs(1));
    let deploy = fleet.deploying(1, "v2", &["--lead", "5s"])?;
    fleet.wait_marks("v2", "confirmed", fleet.hosts.len())?;
    fleet.host(2).set_clock(2000, true)?;
    fleet.host(3).set_clock(-2000, true)?;
    let (exit, said) = ended(deploy)?;
    ensure!(exit == 0, "exit {exit}: {said}\n{}", fleet.log());
    ensure!(active(&fleet.settled(LIMIT)?) == "v2");
    let (seen, probings) = (browsers.stop()?, probes.stop()?);
    eprintln!("{}; {seen}", probings.flips_to("v2")?);
    probings.must_be_whole()?;
    fleet.judge("step", &seen, &[])
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
