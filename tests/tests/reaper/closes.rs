//! What is closed, and how both ends see it.

use anyhow::{Result, ensure};
use deployer::kernel::reaper::{Answer, Ground};
use deployer_tests::sandbox::Sandbox;

use crate::ends::{Caller, Scythe, Worker};

const ECONNABORTED: i32 = 103;

/// Idle connections, of each family of addresses: their callers see an error and have sent nothing, the worker a reset.
#[test]
fn what_is_complete() -> Result<()> {
    for address in ["127.0.0.1", "::1"] {
        let sandbox = Sandbox::new("reap")?;
        let scythe = Scythe::new(&sandbox)?;
        let mut worker = Worker::start(&sandbox, address)?;
        let mut caller = Caller::start(&sandbox, address, "idle")?;
        let other = Caller::start(&sandbox, address, "idle")?;
        let (asked, answered) = worker.told(&caller, 1)?;
        scythe.aim(&caller, Ground::Complete { asked, answered })?;
        scythe.strike_until(&caller, Answer::Closed)?;
        ensure!(caller.error()? == ECONNABORTED);
        worker.wait_reset(&caller)?;
        ensure!(scythe.reaper.targets() == 0, "what is closed is taken back");
        ensure!(!worker.has_lost(&other), "nobody aimed at the other");
    }
    Ok(())
}

/// By a socket that could speak IPv6, too.
#[test]
fn mapped_addresses() -> Result<()> {
    let sandbox = Sandbox::new("mapped")?;
    let scythe = Scythe::new(&sandbox)?;
    let mut worker = Worker::start(&sandbox, "127.0.0.1")?;
    let mut caller = Caller::start(&sandbox, "::ffff:127.0.0.1", "idle")?;
    let (asked, answered) = worker.told(&caller, 1)?;
    scythe.aim(&caller, Ground::Complete { asked, answered })?;
    scythe.strike_until(&caller, Answer::Closed)?;
    ensure!(caller.error()? == ECONNABORTED);
    Ok(())
}

/// Numbers that were right before the next request, and are again when it has been answered.
#[test]
fn numbers_that_moved_on_do_not_count() -> Result<()> {
    let sandbox = Sandbox::new("moved")?;
    let scythe = Scythe::new(&sandbox)?;
    let mut worker = Worker::start(&sandbox, "127.0.0.1")?;
    let caller = Caller::start(&sandbox, "127.0.0.1", "again")?;
    let (first, second) = (worker.told(&caller, 1)?, worker.told(&caller, 2)?);
    for (asked, answered) in [first, (second.0, first.1), (first.0, second.1), (second.0 + 1, second.1)] {
        scythe.aim(&caller, Ground::Complete { asked, answered })?;
        for _ in 0..20 {
            ensure!(scythe.strike(&caller)? == Answer::MovedOn);
        }
    }
    scythe.aim(&caller, Ground::Complete { asked: second.0, answered: second.1 })?;
    scythe.strike_until(&caller, Answer::Closed)
}

/// What is quiet for long enough, and nothing that is not.
#[test]
fn what_is_quiet() -> Result<()> {
    let sandbox = Sandbox::new("quiet")?;
    let scythe = Scythe::new(&sandbox)?;
    let _worker = Worker::start(&sandbox, "127.0.0.1")?;
    let caller = Caller::start(&sandbox, "127.0.0.1", "idle")?;
    let since = std::time::Instant::now();
    scythe.aim(&caller, Ground::Quiet { for_ms: 600_000, answered: true })?;
    for _ in 0..20 {
        ensure!(scythe.strike(&caller)? == Answer::NotQuiet);
    }
    scythe.aim(&caller, Ground::Quiet { for_ms: 1000, answered: true })?;
    scythe.strike_until(&caller, Answer::Closed)?;
    ensure!(since.elapsed().as_millis() > 700, "after {:?}", since.elapsed());
    Ok(())
}

/// Whoever strikes elsewhere meets nobody.
#[test]
fn other_namespaces_are_not_met() -> Result<()> {
    let (here, there) = (Sandbox::new("here")?, Sandbox::new("there")?);
    let scythe = Scythe::new(&there)?;
    let mut worker = Worker::start(&here, "127.0.0.1")?;
    let caller = Caller::start(&here, "127.0.0.1", "idle")?;
    let (asked, answered) = worker.told(&caller, 1)?;
    scythe.aim(&caller, Ground::Complete { asked, answered })?;
    ensure!(scythe.strike(&caller)? == Answer::Missing);
    ensure!(scythe.strike(&caller)? == Answer::Gone);
    ensure!(scythe.reaper.targets() == 0, "who is gone is taken back");
    ensure!(!worker.has_lost(&caller));
    Ok(())
}
