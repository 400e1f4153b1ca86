//! Callers that are held up between the hook in connect() and their SYN, or between connect() and their request.
//!
//! Nothing can stop a process in the middle of a system call on request: SIGSTOP, ptrace, cgroup.freeze and the limits of
//! cpu.max (since Linux 6.18) act when it returns. What can hold it there is TCP Fast Open, by design, and the scheduler:
//! the search for a local port gives way to others, and the kernel's preemption, where it has any, does so anywhere.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer_tests::api::Api;
use deployer_tests::daemon::ServiceConfig;
use deployer_tests::dial::{Caller, Dial, Running};
use deployer_tests::process::{send, suspend};
use deployer_tests::sandbox::{Place, Sandbox};
use rustix::process::Signal;

use super::racer::{Racer, end};
use super::scene::{FAST_OPEN, Scene, Setup, asking, set};

const HOST: &str = "127.0.0.1";
/// The worker that is called.
const CALLED: u16 = 8001;
/// When a caller loses the processor, and for how long, is for the scheduler to say.
const PATIENCE: Duration = Duration::from_secs(120);

/// A connect() that is done as far as its caller can tell; its SYN waits for the first write.
fn deferred(scene: &Scene<'_>) -> Result<Running> {
    set(scene.sandbox, "net/ipv4/tcp_fastopen", &FAST_OPEN.to_string())?;
    let one = Dial { fastopen: true, told: true, ..asking(HOST, CALLED) };
    calls(scene, one, "tickets")
}

/// Starts a caller; it has dialled, and the worker's status has one of `key`. (The daemon's own warm-ups count there, too,
/// but not as *direct*.)
fn calls(scene: &Scene<'_>, dial: Dial<'_>, key: &str) -> Result<Running> {
    let before = scene.numbers("direct")?[&CALLED];
    let running = Caller::at(scene.sandbox, Place::Callers).start(&[dial])?;
    scene.wait(&format!("{key} 1"), || {
        let worker = scene.worker(CALLED)?;
        Ok(worker["direct"] == before + 1 && worker[key] == 1)
    })?;
    Ok(running)
}

/// A roll waits for it, and says so; the old process answers.
#[test]
fn a_syn_that_waits_for_the_first_write() -> Result<()> {
    let sandbox = Sandbox::new("deferred")?;
    let scene = Setup::default().start(&sandbox)?;
    let old = scene.pids()?[&CALLED];
    let mut caller = deferred(&scene)?;
    let mut roll = scene.roll()?;
    let held = roll.until(|event| event["event"] == "held")?;
    ensure!(held["worker"] == "127.0.0.1:8001" && held["tickets"] == 1 && held["open"] == 0, "{held}");
    caller.tell()?;
    let seen = caller.finish()?;
    let end = roll.end()?;
    eprintln!("held by {} connect(); then {:?}, of pid {old}; {}", held["tickets"], seen, end.text);
    ensure!(seen[0].pid == Some(old) && !seen[0].cold && seen[0].answer == Some(CALLED), "{seen:?}");
    end.must("done", &["4 workers"])?;
    ensure!(scene.pids()?[&CALLED] != old);
    scene.counts_are_right("after the roll").map(drop)
}

/// It is not waited for longer than for anything else, and then the worker that it is on the way to is there as before.
#[test]
fn a_syn_that_never_comes() -> Result<()> {
    let sandbox = Sandbox::new("never")?;
    let service = ServiceConfig { batch: "1".to_owned(), deadline: "5s", ..ServiceConfig::default() };
    let scene = Setup { service, ..Setup::default() }.start(&sandbox)?;
    let old = scene.pids()?[&CALLED];
    let mut caller = deferred(&scene)?;
    let end = scene.roll()?.end()?;
    eprintln!("{end:?}");
    end.must("stopped", &["127.0.0.1:8001", "not empty after 5 s", "1 connect() call"])?;
    caller.tell()?;
    let seen = caller.finish()?;
    ensure!(seen[0].pid == Some(old) && !seen[0].cold, "{seen:?}");
    scene.roll()?.end()?.must("done", &["4 workers"])
}

/// Between connect() and its request a caller stands still, by SIGSTOP and by its cgroup: its worker waits for it.
#[test]
fn a_caller_that_stands_still_before_it_asks() -> Result<()> {
    let sandbox = Sandbox::new("still")?;
    let scene = Setup::default().start(&sandbox)?;
    for by in ["SIGSTOP", "cgroup.freeze"] {
        let old = scene.pids()?[&CALLED];
        let mut caller = calls(&scene, Dial { told: true, ..asking(HOST, CALLED) }, "open")?;
        stand(&scene, by, caller.pid(), true)?;
        caller.tell()?;
        let mut roll = scene.roll()?;
        let held = roll.until(|event| event["event"] == "held")?;
        ensure!(held["worker"] == "127.0.0.1:8001" && held["open"] == 1, "{held}");
        stand(&scene, by, caller.pid(), false)?;
        let (seen, end) = (caller.finish()?, roll.end()?);
        eprintln!("{by}: held by {}; then {seen:?}, of pid {old}; {}", held["by"], end.text);
        ensure!(seen[0].pid == Some(old) && !seen[0].cold, "{by}: {seen:?}");
        end.must("done", &["4 workers"])?;
    }
    Ok(())
}

/// Has a caller stand still, or go on.
fn stand(scene: &Scene<'_>, by: &str, pid: u32, still: bool) -> Result<()> {
    if by == "SIGSTOP" {
        return if still { suspend(pid) } else { send(pid, Signal::CONT) };
    }
    let cgroup = scene.sandbox.cgroup(Place::Callers);
    fs::write(cgroup.join("cgroup.freeze"), if still { "1" } else { "0" }).context("cgroup.freeze")?;
    let wanted = format!("frozen {}", u8::from(still));
    let events = || fs::read_to_string(cgroup.join("cgroup.events")).context("cgroup.events");
    scene.wait(&wanted, || Ok(events()?.lines().any(|line| line == wanted))).map(drop)
}

/// How often a ticket was seen to be out, and for how long at a time.
#[derive(Default)]
struct Held {
    over: AtomicBool,
    looks: AtomicUsize,
    longest_ms: AtomicU64,
}

impl Held {
    /// Looks every few milliseconds until it is over.
    fn look(&self, api: &Api) -> Result<()> {
        let mut since = None;
        while !self.over.load(Ordering::SeqCst) {
            sleep(Duration::from_millis(5));
            if api.workers()?.values().all(|worker| worker["tickets"] == 0) {
                since = None;
                continue;
            }
            self.looks.fetch_add(1, Ordering::SeqCst);
            let time = since.get_or_insert_with(Instant::now).elapsed();
            self.longest_ms.fetch_max(time.as_millis() as u64, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// Callers of the lowest class, with a busy loop on their processor, that search long for a local port: they lose the
/// processor between the hook and the SYN, for tens or hundreds of milliseconds. Rolls go on meanwhile; nobody is lost.
#[test]
fn callers_that_are_preempted_inside_connect() -> Result<()> {
    let sandbox = Sandbox::new("lowest")?;
    // They may be away for very long on a machine that has more to do.
    let service = ServiceConfig { batch: "1".to_owned(), deadline: "300s", ..ServiceConfig::default() };
    let scene = Setup { service, ..Setup::default() }.start(&sandbox)?;
    let crowd = Racer::start(&sandbox, Place::Outside, &["crowd", "10000", "12"])?;
    // All others find a port at once.
    set(&sandbox, "net/ipv4/ip_local_port_range", "10000 60999")?;
    let busy = Racer::start(&sandbox, Place::Outside, &["busy"])?;
    let start = |port| Racer::start(&sandbox, Place::Callers, &["lowest", port, "10000", &crowd.said]);
    // Many, so that where the scheduler seldom interrupts one there is another.
    let mut callers =
        ["8001", "8002", "8001", "8002", "8001", "8002"].map(start).into_iter().collect::<Result<Vec<_>>>()?;
    let held = Arc::new(Held::default());
    let (api, theirs) = (scene.api(), Arc::clone(&held));
    let looking = spawn(move || theirs.look(&api));
    let (begun, mut rolls) = (Instant::now(), 0);
    while rolls < 2 || held.looks.load(Ordering::SeqCst) < 3 && begun.elapsed() < PATIENCE {
        scene.roll()?.end()?.must("done", &["4 workers"])?;
        rolls += 1;
    }
    held.over.store(true, Ordering::SeqCst);
    looking.join().map_err(|panic| anyhow::anyhow!("{panic:?}"))??;
    // Beside it, callers of the lowest class would take long to come to their end.
    drop(busy);
    let seen = end(&mut callers)?;
    let (looks, longest) = (held.looks.load(Ordering::SeqCst), held.longest_ms.load(Ordering::SeqCst));
    let begun = seen.begun;
    eprintln!("{rolls} rolls, {begun} connects: {looks} looks met a ticket, one for {longest} ms");
    ensure!(seen.harmed().is_empty(), "lost or served cold: {:?}", seen.harmed());
    ensure!(looks >= 3 && begun > 0, "nobody was held up: {looks} looks met a ticket, of {begun} connects");
    scene.counts_are_right("at the end").map(drop)
}
