//! Every spelling of a worker's address, while it is up and while it is drained.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use deployer_tests::dial::{Caller, Dial, Seen, answers};
use deployer_tests::rig::Setup;
use deployer_tests::sandbox::{Place, Sandbox};

/// What is dialled, and what getpeername() then shows.
const SPELLINGS: [(&str, &str); 4] =
    [("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("::1", "::1"), ("::ffff:127.0.0.1", "::ffff:127.0.0.1")];

/// Both families at once.
const DUAL: &str = "::";

/// An up worker gets what dials it; a drained one nothing, its siblings share it; and nobody sees a difference.
#[test]
fn up_drained_enabled() -> Result<()> {
    let sandbox = Sandbox::new("spell")?;
    let rig = Setup { host: DUAL, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let mut siblings = BTreeMap::new();
    for drained in [false, true, false] {
        for (to, peer) in SPELLINGS {
            let seen = caller.once(Dial::to(to, 8000).times(40))?;
            let answers = answers(&seen);
            eprintln!("{to}, drained {drained}: {answers:?}");
            let expected = if drained { 8001..=8003 } else { 8000..=8000 };
            ensure!(answers.keys().all(|port| expected.contains(port)), "{to}: {answers:?}");
            if drained {
                siblings.append(&mut answers.clone());
            }
            let peer = format!("{peer} 8000");
            ensure!(seen.iter().all(|one| one.connect == 0 && one.peer.as_deref() == Some(&peer)), "{seen:?}");
        }
        if drained { rig.enable(8000)? } else { rig.drain(8000)? }
    }
    // No shares are asserted: a sibling that is slow to close has more connections open, and gets fewer.
    ensure!(siblings.keys().eq(&[8001, 8002, 8003]), "{siblings:?}");
    let service = rig.service()?;
    let worker = &service.workers[&8000];
    ensure!(worker.direct == 320 && worker.away == 160 && worker.steered == 0, "{worker:?}");
    ensure!(service.sum(|w| w.steered) == 160 && service.sum(|w| w.tickets) == 0, "{service:?}");
    Ok(())
}

/// A socket that refuses IPv4, and one that is bound to ::1, cannot go to a worker's IPv4 address. They dial ::1.
#[test]
fn sockets_that_speak_ipv6_only() -> Result<()> {
    let sandbox = Sandbox::new("v6only")?;
    let rig = Setup { host: DUAL, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let dials = [
        Dial { v6only: true, ..Dial::to("::1", 8000).times(6) },
        Dial { source: Some("::1"), ..Dial::to("::1", 8000).times(6) },
        Dial { v6only: true, source: Some("::1"), ..Dial::to("::1", 8000).times(6) },
    ];
    let up = caller.dial(&dials)?;
    ensure!(answers(&up) == [(8000, 18)].into(), "up: {up:?}");
    rig.drain(8000)?;
    let mut wrong = Vec::new();
    for dial in dials {
        let seen = caller.once(dial.clone())?;
        let (v6only, source) = (dial.v6only, dial.source);
        eprintln!("v6only {v6only}, bound to {source:?}: {:?} {:?}", answers(&seen), seen[0]);
        let fine = |one: &Seen| one.answer.is_some_and(|port| port != 8000) && one.peer.as_deref() == Some("::1 8000");
        wrong.extend(seen.into_iter().filter(|one| !fine(one)));
    }
    ensure!(wrong.is_empty(), "{wrong:?}");
    ensure!(rig.service()?.sum(|w| w.tickets) == 0);
    Ok(())
}

/// Linux connects to 127.0.0.1 when 0.0.0.0 is dialled, and says so; a drained worker is spared all the same.
#[test]
fn wildcard_addresses() -> Result<()> {
    let sandbox = Sandbox::new("wild")?;
    let rig = Setup { host: DUAL, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let mut peers = Vec::new();
    for drained in [false, true] {
        for to in ["0.0.0.0", "::"] {
            let seen = caller.once(Dial::to(to, 8000).times(9))?;
            eprintln!("{to}, drained {drained}: {:?}, peer {:?}", answers(&seen), seen[0].peer);
            ensure!(seen.iter().all(|one| one.answer.is_some_and(|port| (port == 8000) != drained)), "{seen:?}");
            peers.push(seen[0].peer.clone());
        }
        rig.drain(8000).or_else(|error| if drained { Ok(()) } else { Err(error) })?;
    }
    ensure!(peers[..2] == peers[2..], "getpeername() differs while drained: {peers:?}");
    Ok(())
}

/// Workers at ::1 are dialled there, and only there.
#[test]
fn workers_at_an_ipv6_address() -> Result<()> {
    let sandbox = Sandbox::new("six")?;
    let address = "address = \"[::1]:9000\"";
    let rig = Setup { host: "::1", at: "[::1]", extra: address, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.drain(8000)?;
    let seen = caller.dial(&[Dial::to("::1", 8000).times(60), Dial::to("::1", 9000).times(60)])?;
    eprintln!("[::1]:8000 {:?}, [::1]:9000 {:?}", answers(&seen[..60]), answers(&seen[60..]));
    ensure!(answers(&seen).keys().eq(&[8001, 8002, 8003]), "{seen:?}");
    ensure!(seen[..60].iter().all(|one| one.peer.as_deref() == Some("::1 8000")), "{seen:?}");
    let other = caller.once(Dial::to("127.0.0.1", 8000))?;
    let service = rig.service()?;
    ensure!(other.iter().all(Seen::is_refused), "nobody listens there: {other:?}");
    ensure!((service.sum(|w| w.established), service.sum(|w| w.tickets)) == (120, 0), "{service:?}");
    Ok(())
}
