//! Whole rolls in a machine of our own, in which the daemon ends at any of its effects and writes, and another goes on.

mod fleet;
mod leave;
mod machine;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use deployer_common::word::State as Word;

use self::machine::{SPARES, Sim, SimDisk, SimManager, WORKERS};
use super::*;
use crate::{
    api::Exit,
    config::{Config, OnStart},
    journal::{
        History, Journal, LaneState, State,
        events::Shelf,
        file::{Found, parse},
    },
    roll::{barrier::Barriers, record::Record, world::World},
};

const LEASE: Duration = Duration::from_secs(10);

/// Two at a time, and what a roll is to do with a failure.
#[derive(Debug, Clone, Copy, Default)]
struct How {
    rollback: bool,
    /// With spares.
    surge: bool,
    /// The floor; 0: as it is without one configured.
    min_up: usize,
    /// Workers that miss their deadline are left.
    leave: bool,
}

const PLAIN: How = How { rollback: false, surge: false, min_up: 0, leave: false };
const BACK: How = How { rollback: true, ..PLAIN };

fn plan(How { rollback, surge, .. }: How) -> Plan {
    let surge = if surge { (WORKERS..WORKERS + SPARES).collect() } else { Vec::new() };
    Plan { batches: Plan::batches(WORKERS, 2), max_failures: 1, rollback, surge, ..Plan::default() }
}

/// A service as a daemon that begins has it.
fn service(sim: &Arc<Sim>, how: How) -> Arc<Service> {
    let text = format!(
        "[service.web]\nworkers = \"127.0.0.1:8000-{}\"\nspare = \"127.0.0.1:{}-{}\"\n\
         manager = {{ supervisord = \"/s\", program = \"web_{{port}}\" }}\nmin_up = {}\nroll.surge = {SPARES}\n{}",
        8000 + WORKERS - 1,
        8000 + WORKERS,
        8000 + WORKERS + SPARES - 1,
        how.min_up.max(1),
        if how.leave { "drain.on_deadline = \"leave\"\n" } else { "" }
    );
    let config = Config::parse(std::path::Path::new("f"), &text).unwrap().services.remove("web").unwrap();
    let members = config.members().enumerate();
    let mut workers: Vec<_> = members.map(|(nth, at)| Arc::new(Worker::new(nth as u32, at, "web", 0))).collect();
    let spares = workers.split_off(WORKERS);
    Arc::new(Service {
        index: 0,
        config,
        pools: [workers, Vec::new()],
        current: Arc::default(),
        spares,
        manager: Box::new(SimManager(Arc::clone(sim))),
    })
}

/// One daemon's life: takes over what is there, begins a roll if there is none yet, and lives until that has ended or
/// the machine stops it. Returns how the roll ended.
async fn life(sim: &Arc<Sim>, shelf: &Shelf, how: How, on_start: OnStart) -> Option<Exit> {
    let (service, world) = (service(sim, how), Arc::clone(sim) as Arc<dyn World>);
    for worker in service.members() {
        sim.adopt(worker);
    }
    let before = match parse(&sim.written()) {
        Found::State(state) => Some(*state),
        _ => None,
    };
    let state = before.clone().unwrap_or_else(|| State::new("boot"));
    let journal = Arc::new(Journal::start(state.clone(), SimDisk::new(sim)).unwrap());
    let told = tempfile::tempdir().unwrap();
    let history = Arc::new(History::open(told.path()).unwrap());
    let former = Former {
        journal,
        shelf: shelf.clone(),
        history,
        warnings: Vec::new(),
        state,
        boot: String::new(),
        rebooted: false,
    };
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
            rolls.push(begun(&former, &world, &service, new, how).await);
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

async fn begun(former: &Former, world: &Arc<dyn World>, service: &Arc<Service>, record: Arc<Record>, how: How) -> Roll {
    let machine = Machine::new(plan(how));
    let state = entry(&record, service, None, &machine);
    former.journal.commit(|journal| journal.rolls.push(state)).await.unwrap();
    let (world, journal, service) = (Arc::clone(world), Arc::clone(&former.journal), Arc::clone(service));
    Roll {
        world,
        journal,
        service,
        record,
        lease: LEASE,
        to: None,
        before: None,
        machine,
        hand: BTreeMap::new(),
        barriers: Barriers::default(),
    }
}

/// A run over several lives, each ended after so many effects and writes, the last not at all. Returns how the roll
/// ended, and how many effects and writes the last life took.
async fn run(lives: &[usize], how: How, broken: &[usize], on_start: OnStart) -> (Exit, usize) {
    let dir = tempfile::tempdir().unwrap();
    let (sim, shelf) =
        (Sim::new(broken, if how.rollback { 1 } else { usize::MAX }), Shelf::new(dir.path().join("rolls")));
    for after in lives {
        sim.live(Some(*after));
        if life(&sim, &shelf, how, on_start).await.is_some() {
            // It was through before that.
            break;
        }
    }
    sim.live(None);
    let end = life(&sim, &shelf, how, on_start).await;
    let what = format!("lives {lives:?}, {how:?}, broken {broken:?}, {on_start:?}: {sim:?}");
    assert!(sim.problems().is_empty(), "{what}");
    for (nth, word) in sim.words() {
        if nth >= WORKERS {
            assert!(word == Word::Down && !sim.runs(nth), "spare {nth} is left {word:?}; {what}");
            continue;
        }
        let right =
            if broken.contains(&nth) && !how.rollback { [Word::Failed, Word::Up] } else { [Word::Up, Word::Up] };
        assert!(right.contains(&word), "worker {nth} is left {word:?}; {what}");
    }
    let dips = !how.surge || !broken.is_empty();
    assert!(dips || sim.fewest() >= WORKERS, "only {} were up; {what}", sim.fewest());
    let failed = if how.rollback { 0 } else { broken.len() };
    let floor = how.min_up.min(WORKERS - failed);
    assert!(sim.fewest() >= floor, "only {} were up; {what}", sim.fewest());
    (end.unwrap_or_else(|| panic!("the roll has no end; {what}")), sim.ops())
}

#[tokio::test]
async fn a_daemon_may_end_at_any_point() {
    let (end, ops) = run(&[], PLAIN, &[], OnStart::Resume).await;
    assert_eq!(end, Exit::Done);
    assert!(ops > 6 * WORKERS, "{ops}");
    for after in 0..=ops {
        let (end, _) = run(&[after], PLAIN, &[], OnStart::Resume).await;
        assert_eq!(end, Exit::Done, "ended after {after}");
    }
}

#[tokio::test]
async fn and_so_may_the_next() {
    let (_, ops) = run(&[], PLAIN, &[], OnStart::Resume).await;
    for after in (0..=ops).step_by(3) {
        for next in (0..ops).step_by(4) {
            let (end, _) = run(&[after, next, next / 2], PLAIN, &[], OnStart::Resume).await;
            assert_eq!(end, Exit::Done, "ended after {after}, {next}, {}", next / 2);
        }
    }
}

#[tokio::test]
async fn a_failure_is_a_failure_over_any_end() {
    for how in [PLAIN, BACK] {
        let (_, ops) = run(&[], how, &[2], OnStart::Resume).await;
        for after in 0..=ops {
            let (end, _) = run(&[after], how, &[2], OnStart::Resume).await;
            // A failure that nobody has written down is tried once more, and this one lasts only once.
            let right = if how.rollback { [Exit::RolledBack, Exit::Done] } else { [Exit::Failed; 2] };
            assert!(right.contains(&end), "ended after {after}: {end:?}");
        }
    }
}

#[tokio::test]
async fn held_rolls_leave_nobody_out() {
    let (_, ops) = run(&[], PLAIN, &[], OnStart::Hold).await;
    for after in 0..=ops {
        let (end, _) = run(&[after], PLAIN, &[], OnStart::Hold).await;
        assert!(matches!(end, Exit::Done | Exit::Stopped), "ended after {after}: {end:?}");
    }
}

#[tokio::test]
async fn a_full_disk_stops_the_roll_and_leaves_nobody_out() {
    let (_, ops) = run(&[], PLAIN, &[], OnStart::Resume).await;
    let mut stopped = 0;
    // The first two writes are those of the daemon and of the roll that begins.
    for after in 2..=ops {
        let dir = tempfile::tempdir().unwrap();
        let (sim, shelf) = (Sim::new(&[], 0), Shelf::new(dir.path().join("rolls")));
        sim.fill(after);
        sim.live(None);
        let end = life(&sim, &shelf, PLAIN, OnStart::Resume).await;
        assert!(matches!(end, Some(Exit::Done | Exit::Stopped)), "full after {after}: {end:?}");
        stopped += usize::from(end == Some(Exit::Stopped));
        assert!(sim.problems().is_empty(), "full after {after}: {sim:?}");
        assert!(sim.words().values().take(WORKERS).all(|word| *word == Word::Up), "full after {after}: {sim:?}");
    }
    assert!(stopped > ops / 3, "{stopped} of {ops}");
}

const SURGE: How = How { surge: true, ..PLAIN };

#[tokio::test]
async fn a_surge_may_be_cut_at_any_point() {
    let (end, ops) = run(&[], SURGE, &[], OnStart::Resume).await;
    assert_eq!(end, Exit::Done);
    let (_, without) = run(&[], PLAIN, &[], OnStart::Resume).await;
    assert!(ops >= without + 6 * SPARES, "{ops} with, {without} without");
    for after in 0..=ops {
        let (end, _) = run(&[after], SURGE, &[], OnStart::Resume).await;
        assert_eq!(end, Exit::Done, "ended after {after}");
        let (end, _) = run(&[after], SURGE, &[], OnStart::Hold).await;
        assert!(matches!(end, Exit::Done | Exit::Stopped), "ended after {after}: {end:?}");
    }
    for after in (0..=ops).step_by(5) {
        for next in (0..ops).step_by(7) {
            let (end, _) = run(&[after, next, next / 2], SURGE, &[], OnStart::Resume).await;
            assert_eq!(end, Exit::Done, "ended after {after}, {next}, {}", next / 2);
        }
    }
}

/// A worker that fails among spares, and a spare that does: no spare is left, no other worker is out.
#[tokio::test]
async fn a_failure_in_a_surge_leaves_no_spare() {
    for (broken, rollback) in [(2, false), (2, true), (WORKERS, false), (WORKERS + 1, true)] {
        let how = How { rollback, ..SURGE };
        let (_, ops) = run(&[], how, &[broken], OnStart::Resume).await;
        for after in 0..=ops {
            let (end, _) = run(&[after], how, &[broken], OnStart::Resume).await;
            let right = if rollback { [Exit::RolledBack, Exit::Done] } else { [Exit::Failed; 2] };
            assert!(right.contains(&end), "{broken} broken, ended after {after}: {end:?}");
        }
    }
}

/// However often the daemon ends, and whatever fails.
#[tokio::test]
async fn the_floor_holds_over_any_end() {
    let surge = How { min_up: WORKERS, ..SURGE };
    for (how, broken) in [
        (How { min_up: 3, ..PLAIN }, &[][..]),
        (How { min_up: 3, ..PLAIN }, &[2]),
        (How { min_up: 3, ..BACK }, &[2]),
        (surge, &[]),
    ] {
        let (end, ops) = run(&[], how, broken, OnStart::Resume).await;
        assert_eq!(end == Exit::Done, broken.is_empty(), "{how:?}, {broken:?}: {end:?}");
        for after in 0..=ops {
            run(&[after, after / 2], how, broken, OnStart::Resume).await;
        }
    }
}

/// Two at a time are too many: nobody is taken out, and the roll says so.
#[tokio::test]
async fn below_the_floor_a_roll_stops() {
    let how = How { min_up: 4, ..PLAIN };
    let (end, ops) = run(&[], how, &[], OnStart::Resume).await;
    assert_eq!(end, Exit::Stopped);
    for after in 0..=ops {
        let (end, _) = run(&[after], how, &[], OnStart::Resume).await;
        assert_eq!(end, Exit::Stopped, "ended after {after}");
    }
}

/// A failure is written down before it takes effect: who notes down how things are in between does not undo that.
#[test]
fn what_a_roll_has_written_stays() {
    let sim = Sim::new(&[], 0);
    let service = service(&sim, PLAIN);
    let (services, worker) =
        (BTreeMap::from([("web".to_owned(), Arc::clone(&service))]), Arc::clone(&service.workers()[0]));
    let mut state = State::new("boot");
    note(&mut state, &services);
    let _claim = worker.claim(crate::service::Owner::Roll("web-1".to_owned())).ok().unwrap();
    let known = &mut state.services.get_mut("web").unwrap().workers;
    known.get_mut(&worker.at).unwrap().phase = Phase::Failed;
    let written = state.clone();
    note(&mut state, &services);
    assert!(state == written);
}

/// A deploy of which nothing is left, or that cannot go on: what it has armed must not happen, since nobody would look after
/// it; what has happened stays.
#[tokio::test]
async fn a_flip_of_nobodys_is_taken_back() {
    let word = FlipWord::new([1, 2], [true, false], 0);
    let (soon, past) = (host::now_ms() + 3_600_000, host::now_ms() - 1);
    for (at_ms, expected) in [(soon, word), (past, word.flipping(1, past))] {
        let (sim, dir) = (Sim::new(&[], 0), tempfile::tempdir().unwrap());
        sim.live(None);
        let (service, world) = (service(&sim, PLAIN), Arc::clone(&sim) as Arc<dyn World>);
        world.publish_flip(&service, word.flipping(1, at_ms));
        let mut state = State::new("boot");
        let lanes = LaneState { lanes: [1, 2], open: [true, false], from: 0, to: 1, at_ms: u64::MAX, last: 2 };
        state.services.entry("web".to_owned()).or_default().lanes = Some(lanes.clone());
        let former = Former {
            journal: Arc::new(Journal::start(state.clone(), SimDisk::new(&sim)).unwrap()),
            shelf: Shelf::new(dir.path().join("rolls")),
            history: Arc::new(History::open(dir.path()).unwrap()),
            warnings: Vec::new(),
            state,
            boot: String::new(),
            rebooted: false,
        };
        let services = BTreeMap::from([("web".to_owned(), Arc::clone(&service))]);
        let scene = Scene { services: &services, world: &world, lease: LEASE, on_start: OnStart::Resume };
        former.settle(&scene).await.unwrap();
        assert_eq!(world.flip(&service), expected);
        let noted = former.journal.read(|state| state.services["web"].lanes.clone());
        let taken_back = LaneState { to: 0, at_ms: 0, ..lanes.clone() };
        assert_eq!(noted, Some(if at_ms == soon { taken_back } else { lanes }));
    }
}
