//! Refusals, the service address, and the order of fallbacks.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use deployer_tests::dial::{Caller, Dial, Seen, answers};
use deployer_tests::rig::{Setup, wait};
use deployer_tests::sandbox::{Place, Sandbox};

const HOST: &str = "127.0.0.1";
const ECONNREFUSED: i32 = 111;
const REFUSE: &str = "drain = { policy = \"refuse\" }";
const ADDRESS: &str = "address = \"127.0.0.1:9000\"";

/// Inside connect(), at once, whatever the socket; until all are drained, when the dialled one serves.
#[test]
fn refuse() -> Result<()> {
    let sandbox = Sandbox::new("refuse")?;
    let rig = Setup { host: "::", extra: REFUSE, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.drain(8000)?;
    let mut refused = Vec::new();
    for to in [HOST, "::1", "::ffff:127.0.0.1"] {
        let nonblocking = Dial { nonblocking: true, ..Dial::to(to, 8000).times(5) };
        refused.extend(caller.dial(&[Dial::to(to, 8000).times(5), nonblocking])?);
    }
    let slowest = refused.iter().map(|one| one.ms).fold(0.0, f64::max);
    eprintln!("refused {} times, slowest {slowest:.2} ms", refused.len());
    ensure!(refused.iter().all(|one| one.connect == ECONNREFUSED), "{refused:?}");
    let siblings = caller.dial(&[8001, 8002, 8003].map(|port| Dial::to(HOST, port).times(5)))?;
    ensure!(answers(&siblings) == [(8001, 5), (8002, 5), (8003, 5)].into(), "{siblings:?}");
    let worker = rig.worker(8000)?;
    ensure!(worker.refused == 30 && worker.fallback_draining == 0 && worker.tickets == 0, "{worker:?}");
    for port in 8001..=8003 {
        rig.drain_by_force(port)?;
    }
    let fallback = caller.once(Dial::to(HOST, 8000).times(10))?;
    let worker = rig.worker(8000)?;
    eprintln!("all drained: {:?}, fallback_draining {}", answers(&fallback), worker.fallback_draining);
    ensure!(answers(&fallback) == [(8000, 10)].into(), "{fallback:?}");
    ensure!(worker.fallback_draining == 10 && worker.refused == 30, "{worker:?}");
    Ok(())
}

/// A service address, where nobody listens: the kernel picks, and spares whoever has much open.
#[test]
fn service_address() -> Result<()> {
    let sandbox = Sandbox::new("address")?;
    let mut rig = Setup { extra: ADDRESS, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let (mut dialled, mut workers) = (0, BTreeMap::new());
    for (to, peer) in [(HOST, "127.0.0.1 9000"), ("::1", "::1 9000"), ("::ffff:127.0.0.1", "::ffff:127.0.0.1 9000")] {
        let seen = caller.once(Dial::to(to, 9000).times(100))?;
        let answers = answers(&seen);
        eprintln!("{to}:9000: {answers:?}");
        // No shares are asserted: a worker that is slow to close has more connections open, and gets fewer.
        workers.append(&mut answers.clone());
        ensure!(seen.iter().all(|one| one.peer.as_deref() == Some(peer)), "{seen:?}");
        dialled += 100;
    }
    ensure!(workers.keys().eq(&[8000, 8001, 8002, 8003]), "{workers:?}");
    let held = caller.hold(&[Dial { keep: true, ..Dial::to(HOST, 8000).times(20) }])?;
    rig.wait_worker(8000, "open 20", |worker| worker.open == 20)?;
    let seen = caller.once(Dial::to(HOST, 9000).times(100))?;
    dialled += 100;
    eprintln!("with 20 open connections to 8000: {:?}", answers(&seen));
    ensure!(answers(&seen).get(&8000).is_none_or(|n| *n <= 2), "{seen:?}");
    drop(held);
    let service = rig.service()?;
    ensure!(service.dialled == dialled && service.sum(|w| w.picked) == dialled, "{service:?}");
    for port in 8000..=8003 {
        rig.stop_worker(port)?;
    }
    let nobody = caller.dial(&[Dial::to(HOST, 9000).times(5), Dial::to(HOST, 8000).times(5)])?;
    ensure!(nobody.iter().all(|one| one.connect == ECONNREFUSED), "{nobody:?}");
    let service = rig.service()?;
    eprintln!("all down: refused; dialled {}, exhausted {}", service.dialled, service.exhausted);
    ensure!(service.dialled == dialled + 5 && service.exhausted == 10, "{service:?}");
    ensure!(service.sum(|w| w.picked) == dialled && service.sum(|w| w.tickets) == 0, "{service:?}");
    Ok(())
}

/// Up, draining, cold, refused: each only when nothing better is left, and each counted.
#[test]
fn order_of_fallbacks() -> Result<()> {
    let sandbox = Sandbox::new("order")?;
    // These servers do not speak HTTP: one that is restarted listens, fails its warm-up, and stays cold.
    let extra = "address = \"127.0.0.1:9000\"\nwarm = { requests = [\"GET /\"], within = \"2s\" }";
    let mut rig = Setup { ports: 8000..=8002, extra, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let dials = || [Dial::to(HOST, 9000).times(10), Dial::to(HOST, 8000).times(5), Dial::to(HOST, 8002).times(5)];
    let step = |what: &str, expected: &[(u16, usize)]| -> Result<()> {
        let seen = caller.dial(&dials())?;
        eprintln!("{what}: {:?}", answers(&seen));
        ensure!(answers(&seen) == expected.iter().copied().collect(), "{what}: {seen:?}");
        Ok(())
    };
    rig.stop_worker(8000)?;
    rig.start_worker(8000)?;
    wait("8000 cold", || Ok(["listening", "warming"].contains(&rig.worker(8000)?.phase.as_str())))?;
    rig.drain(8001)?;
    step("cold, draining, up", &[(8002, 20)])?;
    rig.stop_worker(8002)?;
    step("cold, draining, down", &[(8001, 20)])?;
    ensure!(rig.worker(8001)?.fallback_draining == 20, "{:?}", rig.worker(8001)?);
    // It would not be put back as it is, since it does not answer its warm-up request.
    let index = rig.servers.iter().position(|server| server.port == 8001).expect("started above");
    rig.servers.remove(index).stop()?;
    rig.verb(&["enable", "web", "8001", "--within", "500ms"])?;
    rig.wait_phase(8001, "down")?;
    step("cold, down, down", &[(8000, 20)])?;
    let cold = rig.worker(8000)?;
    ensure!(cold.fallback_cold == 20 && cold.direct == 5, "{cold:?}");
    rig.stop_worker(8000)?;
    step("down, down, down", &[(0, 20)])?;
    ensure!(rig.service()?.exhausted == 20, "{:?}", rig.service()?);
    let gone = caller.once(Dial::to(HOST, 9000))?;
    ensure!(gone.iter().all(Seen::is_refused), "{gone:?}");
    Ok(())
}

/// A worker that was drained and has died is no fallback: a cold one that lives comes before it.
#[test]
fn the_dead_are_no_fallback() -> Result<()> {
    let sandbox = Sandbox::new("dead")?;
    let extra = "warm = { requests = [\"GET /\"], within = \"2s\" }";
    let mut rig = Setup { ports: 8000..=8001, extra, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.stop_worker(8000)?;
    rig.start_worker(8000)?;
    wait("8000 cold", || Ok(["listening", "warming"].contains(&rig.worker(8000)?.phase.as_str())))?;
    rig.drain_by_force(8001)?;
    let index = rig.servers.iter().position(|server| server.port == 8001).expect("started above");
    rig.servers.remove(index).stop()?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    let seen = caller.dial(&[Dial::to(HOST, 8000).times(10), Dial::to(HOST, 8001).times(10)])?;
    eprintln!("8000 cold, 8001 drained and dead: {:?}", answers(&seen));
    ensure!(answers(&seen) == [(8000, 20)].into(), "{seen:?}");
    Ok(())
}
