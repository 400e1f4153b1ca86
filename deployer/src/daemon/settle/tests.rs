//! Whole rolls in a machine of our own, in which the daemon ends at any of its effects and writes, and another goes on.

mod machine;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use deployer_common::word::State as Word;

use self::machine::{Sim, SimDisk, SimManager, WORKERS};
use super::*;
use crate::{
    api::Exit,
    config::{Config, OnStart},
    journal::{
        Journal, State,
        events::Shelf,
        file::{Found, parse},
    },
    roll::{record::Record, world::World},
};

const LEASE: Duration = Duration::from_secs(10);

/// What a roll is to do with a failure.
fn plan(rollback: bool) -> Plan {
    Plan { batches: Plan::batches(WORKERS, 2), max_failures: 1, rollback, switch: false, unswitch: false }
}

/// A service as a daemon that begins has it.
fn service(sim: &Arc<Sim>) -> Arc<Service> {
    let text = format!(
        "[service.web]\nworkers = \"127.0.0.1:8000-{}\"\nmanager = {{ supervisord = \"/s\", program = \"web_{{port}}\" }}\n",
        8000 + WORKERS - 1
    );
    let config = Config::parse(std::path::Path::new("f"), &text).unwrap().services.remove("web").unwrap();
    let workers = config.workers.iter().enumerate();
    let workers = workers.map(|(nth, at)| Arc::new(Worker::new(nth as u32, *at, "web"))).collect();
    Arc::new(Service { index: 0, config, workers, manager: Box::new(SimManager(Arc::clone(sim))) })
}

/// One daemon's life: takes over what is there, begins a roll if there is none yet, and lives until that has ended or
/// the machine stops it. Returns how the roll ended.
async fn life(sim: &Arc<Sim>, shelf: &Shelf, rollback: bool, on_start: OnStart) -> Option<Exit> {
    let (service, world) = (service(sim), Arc::clone(sim) as Arc<dyn World>);
    for worker in &service.workers {
        sim.adopt(worker);
    }
    let before = match parse(&sim.written()) {
        Found::State(state) => Some(*state),
        _ => None,
    };
    let state = before.clone().unwrap_or_else(|| State::new("boot"));
    let journal = Arc::new(Journal::start(state.clone(), SimDisk::new(sim)).unwrap());
    let former = Former { journal, shelf: shelf.clone(), warnings: Vec::new(), state, rebooted: false };
    let services = BTreeMap::from([("web".to_owned(), Arc::clone(&service))]);
    let scene = Scene { services: &services, world: &world, lease: LEASE, on_start };
    let mut record = None;
    let work = async {
        let resumed = former.settle(&scene).await.unwrap();
        record = resumed.records.iter().find(|record| record.by == "test").cloned();
        let mut rolls = resumed.rolls;
        if record.is_none() {
            let (id, log) = ("web-1".to_owned(), shelf.log("web-1", 0));
            let new = Arc::new(Record::resumed(id, "web".to_owned(), "test".to_owned(), Vec::new(), Some(log)));
            record = Some(Arc::clone(&new));
            rolls.push(begun(&former, &world, &service, new, rollback).await);
        }
        for roll in rolls {
            roll.run().await;
        }
        // On a full disk there is nothing more to do.
        let _ = former.journal.flush().await;
    };
    tokio::select! {
        () = work => {}
        () = sim.ended() => return None,
    }
    record.and_then(|record| record.result())
}

async fn begun(
    former: &Former,
    world: &Arc<dyn World>,
    service: &Arc<Service>,
    record: Arc<Record>,
    rollback: bool,
) -> Roll {
    let machine = Machine::new(plan(rollback));
    let state = entry(&record, service, None, &machine);
    former.journal.commit(|journal| journal.rolls.push(state)).await.unwrap();
    let (world, journal, service) = (Arc::clone(world), Arc::clone(&former.journal), Arc::clone(service));
    Roll { world, journal, service, record, lease: LEASE, to: None, before: None, machine, hand: BTreeMap::new() }
}

/// A run over several lives, each ended after so many effects and writes, the last not at all. Returns how the roll
/// ended, and how many effects and writes the last life took.
async fn run(lives: &[usize], rollback: bool, broken: &[usize], on_start: OnStart) -> (Exit, usize) {
    let dir = tempfile::tempdir().unwrap();
    let (sim, shelf) = (Sim::new(broken, if rollback { 1 } else { usize::MAX }), Shelf::new(dir.path().join("rolls")));
    for after in lives {
        sim.live(Some(*after));
        if life(&sim, &shelf, rollback, on_start).await.is_some() {
            // It was through before that.
            break;
        }
    }
    sim.live(None);
    let end = life(&sim, &shelf, rollback, on_start).await;
    let what = format!("lives {lives:?}, rollback {rollback}, broken {broken:?}, {on_start:?}: {sim:?}");
    assert!(sim.problems().is_empty(), "{what}");
    for (nth, word) in sim.words() {
        let right = if broken.contains(&nth) && !rollback { [Word::Failed, Word::Up] } else { [Word::Up, Word::Up] };
        assert!(right.contains(&word), "worker {nth} is left {word:?}; {what}");
    }
    (end.unwrap_or_else(|| panic!("the roll has no end; {what}")), sim.ops())
}

#[tokio::test]
async fn a_daemon_may_end_at_any_point() {
    let (end, ops) = run(&[], false, &[], OnStart::Resume).await;
    assert_eq!(end, Exit::Done);
    assert!(ops > 6 * WORKERS, "{ops}");
    for after in 0..=ops {
        let (end, _) = run(&[after], false, &[], OnStart::Resume).await;
        assert_eq!(end, Exit::Done, "ended after {after}");
    }
}

#[tokio::test]
async fn and_so_may_the_next() {
    let (_, ops) = run(&[], false, &[], OnStart::Resume).await;
    for after in (0..=ops).step_by(3) {
        for next in (0..ops).step_by(4) {
            let (end, _) = run(&[after, next, next / 2], false, &[], OnStart::Resume).await;
            assert_eq!(end, Exit::Done, "ended after {after}, {next}, {}", next / 2);
        }
    }
}

#[tokio::test]
async fn a_failure_is_a_failure_over_any_end() {
    for rollback in [false, true] {
        let (_, ops) = run(&[], rollback, &[2], OnStart::Resume).await;
        for after in 0..=ops {
            let (end, _) = run(&[after], rollback, &[2], OnStart::Resume).await;
            // A failure that nobody has written down is tried once more, and this one lasts only once.
            let right = if rollback { [Exit::RolledBack, Exit::Done] } else { [Exit::Failed; 2] };
            assert!(right.contains(&end), "ended after {after}: {end:?}");
        }
    }
}

#[tokio::test]
async fn held_rolls_leave_nobody_out() {
    let (_, ops) = run(&[], false, &[], OnStart::Hold).await;
    for after in 0..=ops {
        let (end, _) = run(&[after], false, &[], OnStart::Hold).await;
        assert!(matches!(end, Exit::Done | Exit::Stopped), "ended after {after}: {end:?}");
    }
}

#[tokio::test]
async fn a_full_disk_stops_the_roll_and_leaves_nobody_out() {
    let (_, ops) = run(&[], false, &[], OnStart::Resume).await;
    let mut stopped = 0;
    // The first two writes are those of the daemon and of the roll that begins.
    for after in 2..=ops {
        let dir = tempfile::tempdir().unwrap();
        let (sim, shelf) = (Sim::new(&[], 0), Shelf::new(dir.path().join("rolls")));
        sim.fill(after);
        sim.live(None);
        let end = life(&sim, &shelf, false, OnStart::Resume).await;
        assert!(matches!(end, Some(Exit::Done | Exit::Stopped)), "full after {after}: {end:?}");
        stopped += usize::from(end == Some(Exit::Stopped));
        assert!(sim.problems().is_empty(), "full after {after}: {sim:?}");
        assert!(sim.words().values().all(|word| *word == Word::Up), "full after {after}: {sim:?}");
    }
    assert!(stopped > ops / 3, "{stopped} of {ops}");
}
