//! Workers that listen in other ways than at their configured address by plain TCP: each dies as quietly as any other. The
//! killed process is a large one, for which the kernel goes on accepting connections for 20 ms and more.

use anyhow::{Result, ensure};
use deployer_tests::dial::{Caller, Dial, Seen, Server};
use deployer_tests::process::{run, send};
use deployer_tests::rig::{Rig, Setup};
use deployer_tests::sandbox::{Place, Sandbox};
use rustix::process::Signal;

/// The worker that is killed, and one that serves on.
const PORT: u16 = 8000;
const OTHER: u16 = 8001;
/// Its size.
const MEMORY: &str = "memory=300";
const KILLS: u64 = 4;
/// An address of the host that is not on 127/8, where the tests need one.
const HOST_ADDRESS: &str = "10.9.9.9";
const HOST_ADDRESS6: &str = "fd09::9";

/// A worker is killed several times while steered callers dial it without pause. Of each caller's connections none may come
/// to nothing but one a kill: the one that was inside `connect()` at that moment, or in the accept queue.
fn is_missed_by_none(label: &str, host: &'static str, at: &'static str, words: &[&str]) -> Result<()> {
    let sandbox = Sandbox::new(label)?;
    let ip = |address: &str| run(sandbox.command(Place::Outside, "ip").args(["addr", "add", address, "dev", "lo"]));
    ip(&format!("{HOST_ADDRESS}/32"))?;
    ip(&format!("{HOST_ADDRESS6}/128"))?;
    let large: Vec<_> = words.iter().copied().chain([MEMORY]).collect();
    let first = Server::start_kind(&sandbox, host, PORT, &large)?;
    let second = Server::start_kind(&sandbox, host, OTHER, words)?;
    let setup = Setup { host, at, ports: PORT..=OTHER, ..Setup::default() };
    let mut rig = setup.attach(&sandbox, vec![first, second])?;
    for nth in 0..KILLS {
        if nth > 0 {
            rig.servers.insert(0, Server::start_kind(&sandbox, host, PORT, &large)?);
        }
        let callers = kill_under_fire(&mut rig, &sandbox, at.trim_matches(['[', ']']))?;
        ensure!(callers.iter().flatten().any(|one| one.answer == Some(PORT)), "hardly dialled: {callers:?}");
        for dialled in callers {
            let lost: Vec<_> = dialled.iter().filter(|one| one.answer.is_none_or(|port| port == 0)).collect();
            eprintln!("{label}, kill {}: {} of {} came to nothing: {lost:?}", nth + 1, lost.len(), dialled.len());
            ensure!(lost.len() <= 1, "{label}, kill {}: {lost:?} of {} came to nothing", nth + 1, dialled.len());
        }
    }
    ensure!(rig.worker(PORT)?.crashes == KILLS, "{:?}", rig.worker(PORT)?);
    Ok(())
}

/// What each of two callers saw that dialled the worker all the while, from before it was killed until it was known to be
/// down.
fn kill_under_fire(rig: &mut Rig<'_>, sandbox: &Sandbox, to: &str) -> Result<Vec<Vec<Seen>>> {
    rig.wait_phase(PORT, "up")?;
    let caller = Caller::at(sandbox, Place::Callers);
    let mut running = (0..2).map(|_| caller.start(&[Dial::to(to, PORT).times(0)])).collect::<Result<Vec<_>>>()?;
    let established = rig.worker(PORT)?.established;
    rig.wait_worker(PORT, "is dialled", |worker| worker.established > established + 50)?;
    send(rig.servers[0].pid(), Signal::KILL)?;
    rig.wait_phase(PORT, "down")?;
    rig.servers.remove(0).stop()?;
    running.iter_mut().try_for_each(|one| one.tell())?;
    running.into_iter().map(|one| one.finish()).collect()
}

#[test]
fn by_a_wildcard_at_another_address_of_the_host() -> Result<()> {
    is_missed_by_none("wild", "0.0.0.0", HOST_ADDRESS, &[])
}

#[test]
fn by_a_wildcard_of_both_families() -> Result<()> {
    is_missed_by_none("dual", "::", HOST_ADDRESS, &[])?;
    is_missed_by_none("dual_six", "::", "[fd09::9]", &[])
}

#[test]
fn by_multipath_tcp() -> Result<()> {
    is_missed_by_none("multi", "127.0.0.1", "127.0.0.1", &["mptcp"])?;
    is_missed_by_none("multi_dual", "::", HOST_ADDRESS, &["mptcp", "reuseport"])
}

/// Connections by Multipath TCP and by plain TCP to a worker that listens by Multipath TCP are counted alike. What it has
/// open when it is killed is over as soon as the callers have closed their ends, too.
#[test]
fn connections_by_multipath_tcp_are_counted() -> Result<()> {
    let sandbox = Sandbox::new("multi_counts")?;
    let servers = (PORT..=OTHER).map(|port| Server::start_kind(&sandbox, "127.0.0.1", port, &["mptcp"]));
    let setup = Setup { ports: PORT..=OTHER, ..Setup::default() };
    let mut rig = setup.attach(&sandbox, servers.collect::<Result<Vec<_>>>()?)?;
    let kept = Dial { keep: true, ..Dial::to("127.0.0.1", PORT).times(3) };
    let caller = Caller::at(&sandbox, Place::Callers);
    let held = caller.hold(&[kept.clone(), Dial { mptcp: true, ..kept.clone() }])?;
    rig.compare("three of each kind", [6, 0])?;
    drop(held);
    rig.compare("all closed", [0, 0])?;
    let held = caller.hold(&[kept.clone(), Dial { mptcp: true, ..kept }])?;
    rig.stop_worker(PORT)?;
    ensure!(rig.worker(PORT)?.crashes == 1, "{:?}", rig.worker(PORT)?);
    drop(held);
    rig.wait_worker(PORT, "its connections are over", |worker| worker.open == 0)
}
