//! Other ways to connect than connect(): TCP Fast Open, Multipath TCP, io_uring. The hook sits where all of them meet, in
//! the protocol's own connect, and finds their caller: also in the threads that io_uring starts for it.

use std::fs;

use anyhow::{Result, ensure};
use deployer_tests::dial::{Caller, Dial, answers};
use deployer_tests::rig::{Rig, Setup};
use deployer_tests::sandbox::{Place, Sandbox};

use super::scene::{FAST_OPEN, set};

const HOST: &str = "127.0.0.1";
const DRAINED: u16 = 8000;
const ENETUNREACH: i32 = 101;

/// Those that this kernel has: io_uring is switched off on many a host.
fn kinds() -> Vec<(&'static str, Dial<'static>)> {
    let has_uring = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|value| value.trim() != "2");
    if !has_uring {
        eprintln!("no io_uring here: not tried");
    }
    let to = |to| Dial::to(to, DRAINED).times(12);
    let mut kinds = vec![
        ("sendto(MSG_FASTOPEN)", Dial { via: Some("sendto"), ..to(HOST) }),
        ("MPTCP", Dial { mptcp: true, ..to(HOST) }),
        ("MPTCP, non-blocking", Dial { mptcp: true, nonblocking: true, ..to(HOST) }),
        ("io_uring", Dial { via: Some("uring"), ..to(HOST) }),
        ("io_uring, IPv6", Dial { via: Some("uring"), ..to("::1") }),
        ("io_uring, by a worker thread", Dial { via: Some("uring-async"), ..to(HOST) }),
        ("io_uring, by a polling thread", Dial { via: Some("uring-sqpoll"), ..to(HOST) }),
    ];
    kinds.retain(|(kind, _)| has_uring || !kind.starts_with("io_uring"));
    kinds
}

/// Whoever is steered reaches the worker while it is up, and its siblings while it is drained; `stranger` always itself.
fn are_steered(rig: &Rig<'_>, caller: &Caller<'_>, stranger: &Caller<'_>) -> Result<()> {
    for drained in [false, true] {
        for (kind, dial) in kinds() {
            let (seen, other) = (caller.once(dial.clone())?, stranger.once(dial)?);
            let peer = seen[0].peer.as_deref().unwrap_or_default();
            eprintln!("{kind}, drained {drained}: {:?}, peer {peer}; unsteered {:?}", answers(&seen), answers(&other));
            ensure!(
                seen.iter().all(|one| one.answer.is_some_and(|port| (port == DRAINED) != drained)),
                "{kind}: {seen:?}"
            );
            let dialled = format!("{} {DRAINED}", if kind.contains("IPv6") { "::1" } else { HOST });
            ensure!(seen.iter().all(|one| one.peer.as_deref() == Some(&dialled)), "{kind}: {seen:?}");
            ensure!(answers(&other) == [(DRAINED, 12)].into(), "{kind}: {other:?}");
        }
        if !drained {
            rig.drain(DRAINED)?;
        }
    }
    let service = rig.service()?;
    ensure!(service.sum(|w| w.tickets) == 0, "tickets are left: {service:?}");
    ensure!(service.workers[&DRAINED].away == 12 * kinds().len() as u64, "{service:?}");
    rig.compare("afterwards", [0; 4])
}

#[test]
fn callers_by_their_cgroup() -> Result<()> {
    let sandbox = Sandbox::new("kinds")?;
    set(&sandbox, "net/ipv4/tcp_fastopen", &FAST_OPEN.to_string())?;
    let rig = Setup { host: "::", ..Setup::default() }.start(&sandbox)?;
    are_steered(&rig, &Caller::at(&sandbox, Place::Callers), &Caller::at(&sandbox, Place::Outside))
}

#[test]
fn callers_by_their_executable() -> Result<()> {
    let sandbox = Sandbox::new("kindsexe")?;
    set(&sandbox, "net/ipv4/tcp_fastopen", &FAST_OPEN.to_string())?;
    let caller = Caller::at(&sandbox, Place::Outside).copied("balancer")?;
    let stranger = Caller::at(&sandbox, Place::Outside).copied("checker")?;
    let callers = Some(vec![caller.executable().to_owned()]);
    let rig = Setup { host: "::", callers, ..Setup::default() }.start(&sandbox)?;
    are_steered(&rig, &caller, &stranger)
}

/// A connect() that fails after the hook: its ticket is handed back when the socket is closed, of whatever kind it is.
#[test]
fn tickets_of_those_that_fail() -> Result<()> {
    let sandbox = Sandbox::new("kindsfail")?;
    let rig = Setup::default().start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let fails = |dial| Dial { source: Some("203.0.113.5"), freebind: true, ..dial };
    for (kind, dial) in kinds().into_iter().filter(|(_, dial)| dial.to == HOST) {
        let seen = caller.once(fails(dial))?;
        let tickets = rig.worker(DRAINED)?.tickets;
        eprintln!("{kind}: {} failed, {tickets} tickets are left", seen.len());
        ensure!(seen.iter().all(|one| one.connect == ENETUNREACH), "{kind}: {seen:?}");
        ensure!(tickets == 0, "{kind}: {tickets} tickets are left");
    }
    Ok(())
}
