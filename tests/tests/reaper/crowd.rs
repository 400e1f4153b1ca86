//! Among many sockets of others: what a look at a worker costs, and a strike.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use deployer::kernel::diag::{self, holders};
use deployer::kernel::reaper::{Answer, Ground};
use deployer_tests::crowd;
use deployer_tests::sandbox::Sandbox;
use rustix::time::{ClockId, clock_gettime};

use crate::ends::{Caller, PORT, Scythe, Worker};

const HOST: &str = "127.0.0.1";
const WORKER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), PORT);

/// The processor time of this thread.
fn spent() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The processor time that the middle of several runs takes, and what the last one returned.
fn timed<T>(mut work: impl FnMut() -> Result<T>) -> Result<(Duration, T)> {
    let mut times = Vec::new();
    loop {
        let start = spent();
        let result = work()?;
        times.push(spent() - start);
        if times.len() == 15 {
            times.sort_unstable();
            return Ok((times[7], result));
        }
    }
}

/// Looks at the worker by sock_diag and by the iterator.
fn measure(sandbox: &Sandbox, scythe: &Scythe<'_>, what: &str) -> Result<()> {
    sandbox.in_netns(|| {
        let (dump, found) = timed(|| Ok(holders(WORKER, false)?))?;
        let (look, activity) = timed(|| Ok(diag::activity(WORKER.port(), None)?))?;
        let (strike, answers) = timed(|| Ok(scythe.reaper.strike()?))?;
        let (holders, known) = (found.len(), activity.len());
        eprintln!("{what}: holders {dump:?}, activity {look:?}, strike {strike:?}");
        ensure!((holders, known) == (2, 2) && answers.len() == 1, "{found:?} {answers:?}");
        Ok(())
    })?
}

#[test]
fn looks_among_many_sockets() -> Result<()> {
    let sandbox = Sandbox::new("crowd")?;
    let scythe = Scythe::new(&sandbox)?;
    let mut worker = Worker::start(&sandbox, HOST)?;
    let caller = Caller::start(&sandbox, HOST, "idle")?;
    let (asked, answered) = worker.told(&caller, 1)?;
    scythe.aim(&caller, Ground::Complete { asked: asked.wrapping_add(1), answered })?;
    let start = spent();
    for _ in 0..1000 {
        scythe.aim(&caller, Ground::Complete { asked: asked.wrapping_add(1), answered })?;
    }
    eprintln!("aiming: {:?}", (spent() - start) / 1000);
    measure(&sandbox, &scythe, "alone")?;
    let crowd = crowd::gather(&sandbox)?;
    measure(&sandbox, &scythe, &format!("among {:?}", crowd::size()))?;
    scythe.aim(&caller, Ground::Complete { asked, answered })?;
    scythe.strike_until(&caller, Answer::Closed)?;
    drop(crowd);
    Ok(())
}
