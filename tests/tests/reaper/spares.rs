//! What is left alone, and why: whoever could be in the middle of something.

use anyhow::{Context, Result, ensure};
use deployer::kernel::reaper::{Answer, Ground};
use deployer_tests::sandbox::Sandbox;

use crate::ends::{Caller, Scythe, Worker};

const HOST: &str = "127.0.0.1";
/// A request, its answer, and nothing since: their callers alone are why they are left alone.
const OWNERS: [(&str, Answer); 9] = [
    ("busy", Answer::Awake),
    ("recv", Answer::NotPolled),
    ("poll", Answer::NotPolled),
    ("nobody", Answer::NotPolled),
    ("output", Answer::NotPolled),
    ("twin", Answer::NotPolled),
    ("threads", Answer::Threads),
    ("dup", Answer::Shared),
    ("fork", Answer::Shared),
];
/// Strikes at each.
const STRIKES: usize = 50;

/// Struck again and again, a connection is still there.
fn is_spared(scythe: &Scythe<'_>, worker: &Worker, caller: &Caller, why: Answer) -> Result<()> {
    scythe.strike_until(caller, why)?;
    for _ in 0..STRIKES {
        let answer = scythe.strike(caller)?;
        ensure!(answer == why, "{answer}, then {why}");
    }
    ensure!(!worker.has_lost(caller));
    scythe.reaper.spare(&caller.pair);
    Ok(())
}

#[test]
fn callers_that_do_not_sleep_in_epoll_wait_alone() -> Result<()> {
    let sandbox = Sandbox::new("awake")?;
    let scythe = Scythe::new(&sandbox)?;
    let mut worker = Worker::start(&sandbox, HOST)?;
    for (how, why) in OWNERS {
        let caller = Caller::start(&sandbox, HOST, how)?;
        let (asked, answered) = worker.told(&caller, 1)?;
        for ground in [Ground::Complete { asked, answered }, Ground::Quiet { for_ms: 0, answered: true }] {
            scythe.aim(&caller, ground)?;
            is_spared(&scythe, &worker, &caller, why).with_context(|| format!("{how}, {ground:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn requests_that_wait_for_their_answer() -> Result<()> {
    let sandbox = Sandbox::new("pending")?;
    let scythe = Scythe::new(&sandbox)?;
    let mut worker = Worker::start(&sandbox, HOST)?;
    let caller = Caller::start(&sandbox, HOST, "wait")?;
    let (first, second) = (worker.told(&caller, 1)?, worker.told(&caller, 2)?);
    scythe.aim(&caller, Ground::Complete { asked: first.0, answered: first.1 })?;
    is_spared(&scythe, &worker, &caller, Answer::MovedOn)?;
    scythe.aim(&caller, Ground::Quiet { for_ms: 0, answered: true })?;
    is_spared(&scythe, &worker, &caller, Answer::Unanswered)?;
    // The twin: who says that this is the end of an answer is believed.
    scythe.aim(&caller, Ground::Complete { asked: second.0, answered: second.1 })?;
    scythe.strike_until(&caller, Answer::Closed)
}

#[test]
fn answers_that_nobody_has_read() -> Result<()> {
    let sandbox = Sandbox::new("unread")?;
    let scythe = Scythe::new(&sandbox)?;
    let mut worker = Worker::start(&sandbox, HOST)?;
    let caller = Caller::start(&sandbox, HOST, "twice")?;
    let (asked, answered) = worker.told(&caller, 2)?;
    for ground in [Ground::Complete { asked, answered }, Ground::Quiet { for_ms: 0, answered: false }] {
        scythe.aim(&caller, ground)?;
        is_spared(&scythe, &worker, &caller, Answer::Unread)?;
    }
    Ok(())
}
