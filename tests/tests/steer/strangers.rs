//! Who is not steered: bystanders, other executables, other network namespaces. And a second daemon next door.

use anyhow::{Result, ensure};
use deployer_tests::dial::{Caller, Dial, Seen, Server, answers};
use deployer_tests::rig::{Rig, Setup};
use deployer_tests::sandbox::{Place, Sandbox};

const HOST: &str = "127.0.0.1";

/// The drained worker and nobody else for `stranger`, its sibling for `caller`; after it is stopped, nobody and its sibling.
fn are_told_apart(rig: &mut Rig<'_>, stranger: &Caller<'_>, caller: &Caller<'_>) -> Result<()> {
    let spellings = || [Dial::to(HOST, 8000).times(10), Dial::to("::ffff:127.0.0.1", 8000).times(10)];
    rig.drain(8000)?;
    for alive in [true, false] {
        let (strange, steered) = (stranger.dial(&spellings())?, caller.dial(&spellings())?);
        eprintln!("8000 lives: {alive}; stranger {:?}, caller {:?}", answers(&strange), answers(&steered));
        ensure!(answers(&steered) == [(8001, 20)].into(), "{steered:?}");
        match alive {
            true => ensure!(answers(&strange) == [(8000, 20)].into(), "{strange:?}"),
            false => ensure!(strange.iter().all(Seen::is_refused), "{strange:?}"),
        }
        if alive {
            rig.enable(8000)?;
            rig.stop_worker(8000)?;
        }
    }
    let service = rig.service()?;
    ensure!(service.unsteered == 40 && service.workers[&8000].away == 40, "{service:?}");
    ensure!(service.sum(|w| w.tickets) == 0, "{service:?}");
    Ok(())
}

#[test]
fn bystanders_outside_the_callers_cgroup() -> Result<()> {
    let sandbox = Sandbox::new("bystand")?;
    let mut rig = Setup { ports: 8000..=8001, ..Setup::default() }.start(&sandbox)?;
    let (outside, caller) = (Caller::at(&sandbox, Place::Outside), Caller::at(&sandbox, Place::Callers));
    are_told_apart(&mut rig, &outside, &caller)
}

#[test]
fn callers_by_their_executable() -> Result<()> {
    let sandbox = Sandbox::new("exe")?;
    // Both in one cgroup: nothing but the executable tells them apart.
    let caller = Caller::at(&sandbox, Place::Outside).copied("balancer")?;
    let other = Caller::at(&sandbox, Place::Outside).copied("checker")?;
    let callers = Some(vec![caller.executable().to_owned()]);
    let mut rig = Setup { ports: 8000..=8001, callers, ..Setup::default() }.start(&sandbox)?;
    are_told_apart(&mut rig, &other, &caller)
}

/// A caller in the steered cgroup, but in a network namespace where the same addresses are somebody else's.
#[test]
fn another_network_namespace() -> Result<()> {
    let (sandbox, other) = (Sandbox::new("here")?, Sandbox::new("there")?);
    let rig = Setup { ports: 8000..=8001, ..Setup::default() }.start(&sandbox)?;
    // In the cgroups of this sandbox, in the namespace of the other.
    let workers = Caller::at(&sandbox, Place::Workers).in_netns_of(&other);
    let _theirs = Server::start_saying(&other, &workers, HOST, 8000, 18000)?;
    let (here, there) =
        (Caller::at(&sandbox, Place::Callers), Caller::at(&sandbox, Place::Callers).in_netns_of(&other));
    rig.drain(8000)?;
    let ours = here.once(Dial::to(HOST, 8000).times(10))?;
    let before = rig.service()?;
    let theirs = there.once(Dial::to(HOST, 8000).times(10))?;
    let nobody = there.once(Dial::to(HOST, 8001))?;
    let after = rig.service()?;
    eprintln!("here {:?}, there {:?}", answers(&ours), answers(&theirs));
    ensure!(answers(&ours) == [(8001, 10)].into(), "{ours:?}");
    ensure!(answers(&theirs) == [(18000, 10)].into() && nobody[0].is_refused(), "{theirs:?} {nobody:?}");
    ensure!(before.workers == after.workers, "counted there what is not ours: {before:?} {after:?}");
    Ok(())
}

/// Two daemons on one cgroup, each with a service of its own: both steer, and when one is detached, the other stays.
#[test]
fn two_daemons_side_by_side() -> Result<()> {
    let sandbox = Sandbox::new("two")?;
    let first = Setup { name: "one", ports: 8000..=8001, ..Setup::default() }.start(&sandbox)?;
    let refuse = "drain = { policy = \"refuse\" }";
    let second = Setup { name: "two", ports: 8100..=8101, extra: refuse, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    first.drain(8000)?;
    second.drain(8100)?;
    let dials = [Dial::to(HOST, 8000).times(10), Dial::to(HOST, 8100).times(10), Dial::to(HOST, 8101).times(10)];
    let both = caller.dial(&dials)?;
    eprintln!("both: {:?}", answers(&both));
    ensure!(answers(&both) == [(8001, 10), (0, 10), (8101, 10)].into(), "{both:?}");
    ensure!(both[..10].iter().all(|one| one.peer.as_deref() == Some("127.0.0.1 8000")), "{both:?}");
    let (ours, theirs) = (first.service()?, second.service()?);
    ensure!(ours.sum(|w| w.established) == 10 && theirs.sum(|w| w.established) == 10, "{ours:?} {theirs:?}");
    second.must(&["detach"])?;
    let one = caller.dial(&dials)?;
    eprintln!("one: {:?}", answers(&one));
    ensure!(answers(&one) == [(8001, 10), (8100, 10), (8101, 10)].into(), "{one:?}");
    Ok(())
}
