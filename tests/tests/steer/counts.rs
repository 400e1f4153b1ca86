//! Open connections as the kernel counts them, against `ss`.

use anyhow::{Result, ensure};
use deployer_tests::dial::{Caller, Dial, Server};
use deployer_tests::rig::Setup;
use deployer_tests::sandbox::{Place, Sandbox};

const HOST: &str = "127.0.0.1";

#[test]
fn open_is_what_ss_sees() -> Result<()> {
    let sandbox = Sandbox::new("open")?;
    let setup = Setup { host: "::", ports: 8000..=8002, ..Setup::default() };
    let servers = Server::start_all(&sandbox, "::", 8000..=8002)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let keep = |to, port, times| Dial { keep: true, ..Dial::to(to, port).times(times) };
    let old = caller.hold(&[keep(HOST, 8000, 5), keep("::1", 8001, 3)])?;
    let old_too = caller.hold(&[keep(HOST, 8001, 2)])?;
    let mut rig = setup.attach(&sandbox, servers)?;
    rig.compare("older than the programs", [5, 5, 0])?;
    let new = caller.hold(&[keep(HOST, 8000, 7), keep("::1", 8001, 2), keep("::ffff:127.0.0.1", 8002, 4)])?;
    let outside = Caller::at(&sandbox, Place::Outside).hold(&[keep(HOST, 8002, 1)])?;
    rig.compare("and newer ones", [12, 7, 5])?;
    caller.dial(&[Dial::to(HOST, 8000).times(20), Dial { reset: true, ..Dial::to(HOST, 8001).times(20) }])?;
    rig.compare("after 20 short ones and 20 reset ones", [12, 7, 5])?;
    drop(old);
    rig.compare("without 5 and 3 of the old", [7, 4, 5])?;
    new.kill()?;
    rig.compare("callers of the new ones killed", [0, 2, 1])?;
    drop(old_too);
    drop(outside);
    rig.compare("all closed", [0, 0, 0])?;
    let held = caller.hold(&[keep(HOST, 8000, 6)])?;
    rig.compare("six more", [6, 0, 0])?;
    rig.stop_worker(8000)?;
    rig.compare("their worker killed", [0, 0, 0])?;
    drop(held);
    ensure!(rig.service()?.sum(|w| w.tickets) == 0);
    Ok(())
}

/// Steered connections are counted where they are, not where they were dialled; so are those in the accept queue.
#[test]
fn steered_and_unaccepted_connections() -> Result<()> {
    let sandbox = Sandbox::new("queue")?;
    let mut rig = Setup { ports: 8000..=8002, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    rig.drain(8000)?;
    rig.drain(8001)?;
    let held = caller.hold(&[Dial { keep: true, ..Dial::to(HOST, 8000).times(9) }])?;
    rig.compare("9 to 8000, which is drained, as 8001 is", [0, 0, 9])?;
    drop(held);
    rig.compare("closed", [0, 0, 0])?;
    rig.servers[2].freeze()?;
    let silent = caller.hold(&[Dial { odd: Some("silent"), ..Dial::to(HOST, 8002).times(4) }])?;
    rig.compare("4 that nobody accepts", [0, 0, 4])?;
    rig.stop_worker(8002)?;
    rig.compare("their worker killed", [0, 0, 0])?;
    drop(silent);
    Ok(())
}
