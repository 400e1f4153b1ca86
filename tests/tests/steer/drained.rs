//! A drained worker, and sockets that do odd things.

use std::fs;

use anyhow::{Result, ensure};
use deployer_tests::dial::{Caller, Dial, Server, answers};
use deployer_tests::rig::{Setup, wait};
use deployer_tests::sandbox::{Place, Sandbox};

const HOST: &str = "127.0.0.1";
const ENETUNREACH: i32 = 101;
const EADDRNOTAVAIL: i32 = 99;
const EINPROGRESS: i32 = 115;

#[test]
fn nonblocking_udp_and_other_ports() -> Result<()> {
    let sandbox = Sandbox::new("other")?;
    let rig = Setup::default().start(&sandbox)?;
    let _other = Server::start(&sandbox, HOST, 7000)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.drain(8000)?;
    let nonblocking = caller.once(Dial { nonblocking: true, ..Dial::to(HOST, 8000).times(100) })?;
    let udp = caller.once(Dial { udp: true, ..Dial::to(HOST, 8000).times(10) })?;
    let other = caller.once(Dial::to(HOST, 7000).times(10))?;
    let nobody = caller.once(Dial::to(HOST, 7001))?;
    eprintln!("non-blocking {:?}, UDP {:?}, port 7000 {:?}", answers(&nonblocking), answers(&udp), answers(&other));
    ensure!(answers(&nonblocking).keys().eq(&[8001, 8002, 8003]), "{nonblocking:?}");
    ensure!(nonblocking.iter().all(|one| one.connect == EINPROGRESS), "{nonblocking:?}");
    ensure!(nonblocking.iter().all(|one| one.peer.as_deref() == Some("127.0.0.1 8000")), "{nonblocking:?}");
    ensure!(answers(&udp) == [(8000, 10)].into(), "{udp:?}");
    ensure!(answers(&other) == [(7000, 10)].into() && nobody[0].is_refused(), "{other:?} {nobody:?}");
    let service = rig.service()?;
    ensure!(service.workers[&8000].away == 100 && service.sum(|w| w.tickets) == 0, "{service:?}");
    Ok(())
}

/// getpeername() of a socket that was steered, and is then connected elsewhere, shows where it is now.
#[test]
fn a_socket_connected_again() -> Result<()> {
    let sandbox = Sandbox::new("again")?;
    let rig = Setup { ports: 8000..=8001, ..Setup::default() }.start(&sandbox)?;
    let _other = Server::start(&sandbox, HOST, 7000)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.drain(8000)?;
    // 8001 is where the first connection really went: only a note that was forgotten tells them apart.
    for then in [7000, 8001] {
        let seen = caller.once(Dial { odd: Some("elsewhere"), then, ..Dial::to(HOST, 8000) })?;
        let peers: Vec<_> = seen.iter().filter_map(|one| one.peer.as_deref()).collect();
        eprintln!("8000, then {then}: {:?} {peers:?}", answers(&seen));
        ensure!(seen[0].answer == Some(8001) && seen[1].answer == Some(then), "{seen:?}");
        ensure!(peers == ["127.0.0.1 8000".to_owned(), format!("127.0.0.1 {then}")], "{seen:?}");
    }
    ensure!(rig.service()?.sum(|w| w.tickets) == 0);
    Ok(())
}

/// connect() that fails after the hook leaves no ticket, whether the socket is closed or tries again.
#[test]
fn failed_connects_leave_no_ticket() -> Result<()> {
    let sandbox = Sandbox::new("fails")?;
    let rig = Setup::default().start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    for drained in [false, true] {
        let lost = Dial { source: Some("203.0.113.5"), freebind: true, ..Dial::to(HOST, 8000).times(5) };
        let lost = caller.once(lost)?;
        ensure!(lost.iter().all(|one| one.connect == ENETUNREACH), "{lost:?}");
        let retried = caller.once(Dial { odd: Some("retried"), ..Dial::to(HOST, 8000).times(5) })?;
        let (first, second): (Vec<_>, Vec<_>) = retried.chunks(2).map(|pair| (&pair[0], &pair[1])).unzip();
        ensure!(first.iter().all(|one| one.connect == EADDRNOTAVAIL), "{retried:?}");
        ensure!(second.iter().all(|one| one.answer.is_some_and(|port| (port == 8000) != drained)), "{retried:?}");
        if !drained {
            rig.drain(8000)?;
        }
    }
    let service = rig.service()?;
    let tickets: Vec<_> = service.workers.values().map(|worker| worker.tickets).collect();
    eprintln!("10 failed and closed, 10 failed and tried again: tickets {tickets:?}");
    ensure!(tickets == [0; 4], "{service:?}");
    let (direct, away) = (service.workers[&8000].direct, service.workers[&8000].away);
    ensure!((direct, away) == (15, 15), "direct {direct}, away {away}: were the hooks run at all?");
    Ok(())
}

/// The twin of the test above: a connect() that is on its way holds a ticket. With TCP Fast Open the SYN waits for the
/// first write, which this caller never does.
#[test]
fn a_connect_on_its_way_holds_a_ticket() -> Result<()> {
    let sandbox = Sandbox::new("ticket")?;
    let rig = Setup::default().start(&sandbox)?;
    // Client and server, without cookies (Documentation/networking/ip-sysctl.rst).
    sandbox.in_netns(|| fs::write("/proc/sys/net/ipv4/tcp_fastopen", (0x1 | 0x2 | 0x4 | 0x200).to_string()))??;
    let caller = Caller::at(&sandbox, Place::Callers);
    let one = Dial { fastopen: true, odd: Some("silent"), ..Dial::to(HOST, 8000) };
    let held = caller.hold(&[one])?;
    let during = rig.worker(8000)?.tickets;
    drop(held);
    let after = wait("the ticket", || Ok(rig.worker(8000)?.tickets == 0))?;
    eprintln!("tickets: {during} while the SYN is not out, 0 {after:.1?} after the close");
    ensure!(during == 1, "{during}");
    Ok(())
}

/// Who restarts a drained worker and enables it too early has refused nobody: siblings serve until it listens.
#[test]
fn a_worker_that_dies_while_it_is_drained() -> Result<()> {
    let sandbox = Sandbox::new("dies")?;
    let mut rig = Setup { ports: 8000..=8001, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.drain(8000)?;
    let index = rig.servers.iter().position(|server| server.port == 8000).expect("started above");
    rig.servers.remove(index).stop()?;
    let steady = caller.start(&[Dial { pause_ms: 2, ..Dial::to(HOST, 8000).times(250) }])?;
    std::thread::sleep(std::time::Duration::from_millis(150));
    let _ = rig.verb(&["enable", "web", "8000", "--within", "300ms"])?;
    let seen = steady.finish()?;
    eprintln!("enabled while nothing listens: {:?}", answers(&seen));
    ensure!(answers(&seen) == [(8001, 250)].into(), "{:?}", answers(&seen));
    rig.start_worker(8000)?;
    rig.wait_phase(8000, "up")?;
    ensure!(answers(&caller.once(Dial::to(HOST, 8000).times(10))?) == [(8000, 10)].into());
    Ok(())
}

/// Callers in a hurry, while workers are drained and enabled again and again: nobody is lost.
#[test]
fn drained_and_enabled_in_a_hurry() -> Result<()> {
    let sandbox = Sandbox::new("hurry")?;
    let rig = Setup { extra: "address = \"127.0.0.1:9000\"", ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let dials = [8000, 9000].map(|port| Dial { pause_ms: 1, ..Dial::to(HOST, port).times(700) });
    let running = dials.map(|dial| caller.start(&[dial]));
    let mut drains = 0;
    for port in (8000..=8003).cycle().take(60) {
        rig.drain(port)?;
        rig.enable(port)?;
        drains += 1;
    }
    let mut seen = Vec::new();
    for one in running {
        seen.extend(one?.finish()?);
    }
    let service = rig.service()?;
    eprintln!("{drains} drains: {:?}, away {}", answers(&seen), service.sum(|w| w.away));
    ensure!(!answers(&seen).contains_key(&0) && seen.len() == 1400, "{:?}", answers(&seen));
    ensure!(service.sum(|w| w.away) > 0 && service.sum(|w| w.tickets) == 0 && service.exhausted == 0, "{service:?}");
    Ok(())
}

/// Where the kernel refuses socket storage, connections are steered all the same; no ticket is left behind, and what could
/// not be noted is counted, and told. `getpeername()` shows where they went.
#[test]
fn refused_socket_storage_leaves_no_tickets() -> Result<()> {
    let sandbox = Sandbox::new("storage")?;
    let rig = Setup::default().start(&sandbox)?;
    let optmem = |bytes: &'static str| sandbox.in_netns(move || fs::write("/proc/sys/net/core/optmem_max", bytes));
    optmem("16")??;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.drain(8000)?;
    let seen = caller.once(Dial::to(HOST, 8000).times(10))?;
    ensure!(!answers(&seen).contains_key(&8000) && !answers(&seen).contains_key(&0), "{:?}", answers(&seen));
    let service = rig.service()?;
    ensure!(service.sum(|worker| worker.tickets) == 0, "{service:?}");
    let told = || Ok(rig.status()?.trouble.iter().any(|text| text.contains("net.core.optmem_max")));
    wait("the trouble", told)?;
    let status: serde_json::Value = serde_json::from_str(&rig.must(&["status", "--json"])?)?;
    let workers = status["services"][0]["workers"].as_array().cloned().unwrap_or_default();
    let unnoted: u64 = workers.iter().filter_map(|worker| worker["unnoted"].as_u64()).sum();
    eprintln!("10 connections without storage: {unnoted} notes refused");
    // At both ends.
    ensure!(unnoted == 20, "{status}");
    optmem("131072")??;
    let seen = caller.once(Dial::to(HOST, 8000).times(10))?;
    ensure!(seen.iter().all(|one| one.peer.as_deref() == Some("127.0.0.1 8000")), "{seen:?}");
    Ok(())
}
