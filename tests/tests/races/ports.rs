//! Ports of outgoing connections that are the workers' own: `net.ipv4.ip_local_port_range` may have it so.
//!
//! While a worker listens, no connect() is given its port, but a bind() to another address may be. While it is being
//! restarted, its port is free for anybody, and it cannot listen again until that connection is gone.

use anyhow::{Result, ensure};
use deployer_tests::api::Ending;
use deployer_tests::daemon::ServiceConfig;
use deployer_tests::dial::{Caller, Dial, Running, Server, answers};
use deployer_tests::process::run;
use deployer_tests::sandbox::{Place, Sandbox};

use super::racer::Racer;
use super::scene::{PORTS, Scene, Setup, asking, set};

const HOST: &str = "127.0.0.1";
/// An address of the host's that is not loopback.
const OTHER: &str = "10.9.0.1";
/// A server that is nobody's worker.
const SERVER: u16 = 7000;
const WORKER: u16 = 8003;
const RANGE: &str = "net/ipv4/ip_local_port_range";

/// A namespace with another address, where outgoing connections have the workers' ports.
fn sandbox(label: &str) -> Result<(Sandbox, Server)> {
    let sandbox = Sandbox::new(label)?;
    run(sandbox.command(Place::Outside, "ip").args(["addr", "add", &format!("{OTHER}/32"), "dev", "lo"]))?;
    set(&sandbox, RANGE, "8000 8039")?;
    let server = Server::start(&sandbox, "0.0.0.0", SERVER)?;
    Ok((sandbox, server))
}

/// A connection from a worker's port at this address, kept open.
fn from<'a>(source: &'a str, to: &'a str, port: u16) -> Dial<'a> {
    Dial { source: Some(source), source_port: WORKER, keep: true, ..Dial::to(to, port) }
}

/// Neither the counts nor the drain of a worker take somebody's outgoing connection from its port for its own; of a
/// caller that calls from such a port they do.
#[test]
fn strangers_that_call_from_a_workers_port() -> Result<()> {
    let (sandbox, _server) = sandbox("source")?;
    let scene = Setup::default().start(&sandbox)?;
    let (callers, outside) = (Caller::at(&sandbox, Place::Callers), Caller::at(&sandbox, Place::Outside));
    let strangers = outside.hold(&[from("127.0.0.2", HOST, SERVER), from(OTHER, OTHER, SERVER)])?;
    ensure!(answers(&strangers.seen) == [(SERVER, 2)].into(), "{:?}", strangers.seen);
    let kept =
        callers.hold(&PORTS.map(|port| Dial { keep: true, ..asking(HOST, port).times(5) }).collect::<Vec<_>>())?;
    let open = scene.numbers("open")?;
    ensure!(open.values().all(|open| *open == 5), "with 5 callers each: {open:?}");
    drop(kept);
    let end = scene.roll()?.end()?;
    eprintln!("open {open:?}; with two strangers from port {WORKER} {} in {:.1} s", end.text, end.seconds);
    end.must("done", &["4 workers"])?;
    // The twin: a caller's.
    let caller = callers.hold(&[Dial { ask: Some("?"), ..from("127.0.0.3", HOST, WORKER) }])?;
    let mut roll = scene.roll()?;
    let held = roll.until(|event| event["event"] == "held")?;
    let by = held["by"].to_string();
    ensure!(held["worker"] == "127.0.0.1:8003" && by.contains("1 established, 127.0.0.3:8003"), "{held}");
    drop(caller);
    roll.end()?.must("done", &["4 workers"])?;
    drop(strangers);
    scene.counts_are_right("all gone").map(drop)
}

/// A roll in which somebody takes the port of a worker that is away.
fn robbed(scene: &Scene<'_>, robber: &[&str], to: &str) -> Result<Ending> {
    let robber = Racer::start(scene.sandbox, Place::Outside, robber)?;
    let end = scene.roll()?.end()?;
    eprintln!("{}", end.text);
    let who = format!("python3 (pid {}) has 127.0.0.1:{WORKER} as its end of a connection to {to}", robber.pid());
    end.must("failed", &["127.0.0.1:8003", "Its port is taken", &who, "`deployer check`"])?;
    ensure!(end.failed == [WORKER] && end.changed == 3, "{end:?}");
    drop(robber);
    let enabled = scene.daemon.cli(&["enable", "web", &WORKER.to_string()])?;
    ensure!(enabled.status.success(), "{enabled:?}");
    scene.all_up()?;
    scene.counts_are_right("all gone")?;
    Ok(end)
}

/// The roll says whose connection is in the way; once that has gone, the worker can be brought back. A connect() to the
/// port of a worker that is away may even be given that very port, and meets itself.
#[test]
fn a_port_that_is_taken_while_its_worker_is_away() -> Result<()> {
    let (sandbox, _server) = sandbox("robbed")?;
    // Wide enough that nobody else is given that port.
    set(&sandbox, RANGE, "8003 60999")?;
    let scene = Setup::default().start(&sandbox)?;
    let worker = WORKER.to_string();
    robbed(&scene, &["grab", HOST, &worker, &SERVER.to_string()], "127.0.0.1:7000")?;
    robbed(&scene, &["meet", &worker], "127.0.0.1:8003")?;
    Ok(())
}

/// The daemon's own connections, its warm-ups, are given the port of a worker that is down, too: that is not in its way.
#[test]
fn the_daemons_own_connections() -> Result<()> {
    let (sandbox, _server) = sandbox("warmups")?;
    set(&sandbox, RANGE, "8000 8039")?;
    let service = ServiceConfig { batch: "2".to_owned(), ..ServiceConfig::default() };
    let scene = Setup { service, ..Setup::default() }.start(&sandbox)?;
    for nth in 1..=3 {
        let end = scene.roll()?.end()?;
        eprintln!("{nth}: {} in {:.1} s", end.text, end.seconds);
        end.must("done", &["4 workers"])?;
    }
    Ok(())
}

/// What `deployer check` advises: with the workers' ports reserved, rolls go well beside connections from all others.
#[test]
fn reserved_ports() -> Result<()> {
    let (sandbox, _server) = sandbox("reserved")?;
    let scene = Setup::default().start(&sandbox)?;
    // Few enough that the workers' own would be met, if they were not reserved.
    set(&sandbox, RANGE, "8000 8399")?;
    let advice = scene.daemon.cli(&["check", "--config", &config(&sandbox)])?;
    let said = String::from_utf8_lossy(&advice.stdout).into_owned();
    let fix = "sysctl -w net.ipv4.ip_local_reserved_ports=8000-8003";
    ensure!(said.contains(fix), "{said}");
    set(&sandbox, "net/ipv4/ip_local_reserved_ports", "8000-8003")?;
    let dial = |place, port| {
        let one = Dial { pause_ms: 20, ..asking(HOST, port).times(0) };
        Caller::at(&sandbox, place).start(&[one])
    };
    // Somebody calls a server that is no worker, all the while.
    let mut running = PORTS.map(|port| dial(Place::Callers, port)).collect::<Result<Vec<_>>>()?;
    running.push(dial(Place::Outside, SERVER)?);
    let end = scene.roll()?.end()?;
    running.iter_mut().try_for_each(Running::tell)?;
    let seen = running.into_iter().map(Running::finish).collect::<Result<Vec<_>>>()?.concat();
    eprintln!("{:?} in {:.1} s; {}", answers(&seen), end.seconds, end.text);
    end.must("done", &["4 workers"])?;
    ensure!(seen.iter().all(|one| one.answer.is_some_and(|port| port > 0) && !one.cold), "{:?}", answers(&seen));
    scene.counts_are_right("all gone").map(drop)
}

fn config(sandbox: &Sandbox) -> String {
    sandbox.dir().join("deployer.toml").display().to_string()
}
