//! The bench by itself: its load sees no mixed version where there is none, and sees it where hosts flip each for itself.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use deployer_tests::fleet::flips::Probes;
use deployer_tests::fleet::{Fleet, Plan};
use deployer_tests::pace::is_full;

#[test]
fn five_hosts_serve_one_version() -> Result<()> {
    if !is_full() {
        eprintln!("only with --full");
        return Ok(());
    }
    let begun = Instant::now();
    let fleet = Fleet::start(Plan::alone())?;
    eprintln!(
        "all is up after {:.1} s, with {:.1} s of CPU",
        begun.elapsed().as_secs_f64(),
        fleet.cpu_time()?.as_secs_f64()
    );
    let browsers = fleet.browse("one")?;
    sleep(Duration::from_secs(2));
    let (cpu, since) = (fleet.cpu_time()?, Instant::now());
    sleep(Duration::from_secs(8));
    let share = (fleet.cpu_time()? - cpu).as_secs_f64() / since.elapsed().as_secs_f64();
    let seen = browsers.stop()?;
    eprintln!("{share:.2} of a CPU; {seen}");
    fleet.judge("one", &seen, &[])?;
    ensure!(seen.loaded.len() > 60 && seen.xhrs > 300, "too few: {seen}");
    ensure!(seen.pages.keys().eq(["v1"]), "{seen}");
    for host in &fleet.hosts {
        let journal = deployer_tests::journal::Journal::read(&host.app.journal_dir())?;
        ensure!(journal.entries.len() > 50, "{} has had {} requests only", host.name, journal.entries.len());
    }
    Ok(())
}

/// The twin: the same deploy on each host, each for itself. Their lanes have the same numbers, and yet a page of a host that
/// has flipped asks one that does not have that version.
#[test]
fn hosts_that_flip_each_for_itself_mix_pages() -> Result<()> {
    let fleet = Fleet::start(Plan::alone())?;
    let (browsers, probes) = (fleet.browse("twin")?, Probes::start(&fleet.hosts)?);
    sleep(Duration::from_secs(3));
    for host in &fleet.hosts {
        host.must(&["deploy", "web", "--to", "v2", "--detach"])?;
        sleep(Duration::from_secs(1));
    }
    for host in &fleet.hosts {
        host.wait("v2 to be current", |_| host.current().is_ok_and(|pool| pool["version"] == "v2"))?;
    }
    sleep(Duration::from_secs(3));
    let (seen, probings) = (browsers.stop()?, probes.stop()?);
    let spread = probings.flips_to("v2")?;
    eprintln!("{spread}; {seen}");
    probings.must_be_whole()?;
    ensure!(seen.failed == 0, "{seen}\n{}", fleet.log());
    ensure!(seen.mixed > 0, "the same load sees no mixed page where there are some: {seen}");
    ensure!(spread.ms() > 2000.0, "{spread}");
    Ok(())
}
