//! Among many sockets of others: what a strike costs, and how soon a worker is known to be empty.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer::kernel::diag::{self, holders};
use deployer::kernel::reaper::{Answer, Ground};
use deployer_tests::dial::PYTHON;
use deployer_tests::process::Process;
use deployer_tests::sandbox::{Place, Sandbox};
use rustix::time::{ClockId, clock_gettime};

use crate::ends::{Caller, PORT, Scythe, Worker};

const HOST: &str = "127.0.0.1";
const WORKER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), PORT);

/// Open connections and TIME_WAIT sockets of others.
fn size() -> (u32, u32) {
    if std::env::var_os("DEPLOYER_FULL").is_some() { (50_000, 200_000) } else { (2_000, 10_000) }
}

fn gather(sandbox: &Sandbox, (open, waiting): (u32, u32)) -> Result<Process> {
    let script = sandbox.dir().join("crowd.py");
    fs::write(&script, include_str!("../../app/crowd.py")).context("write crowd.py")?;
    let mut command = sandbox.command(Place::Outside, PYTHON);
    command.args(["-s", "-S"]).arg(&script).args([open.to_string(), waiting.to_string()]);
    let mut crowd = Process::start("crowd", command, &sandbox.dir().join("crowd.log"))?;
    let log = sandbox.dir().join("crowd.log");
    crowd.wait_ready(Duration::from_secs(120), || fs::read_to_string(&log).is_ok_and(|log| log.contains("ready")))?;
    Ok(crowd)
}

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
    let crowd = gather(&sandbox, size())?;
    measure(&sandbox, &scythe, &format!("among {:?}", size()))?;
    scythe.aim(&caller, Ground::Complete { asked, answered })?;
    scythe.strike_until(&caller, Answer::Closed)?;
    drop(crowd);
    Ok(())
}
