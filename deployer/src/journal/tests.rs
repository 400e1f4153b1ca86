//! State files as they may be found, and disks as they may be.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use proptest::prelude::*;

use super::{
    file::{Found, parse, read},
    folder::boot_id,
    *,
};
use crate::{
    api::{Exit, Phase},
    roll::machine::{End, Machine, Outcome, Plan},
};

/// A state with something of everything.
pub(crate) fn state() -> State {
    let worker = |phase| WorkerState {
        phase,
        reason: "why \"not\"".to_owned(),
        version: Some("v2".into()),
        listeners: [1, u64::MAX].into(),
        drained: Some(ByHand {
            reason: "by uid 0".to_owned(),
            until_ms: Some(u64::MAX),
            by: "uid 0".to_owned(),
            lasts: None,
        }),
    };
    let workers = ["127.0.0.1:8000", "[::1]:8001"].map(|at| at.parse().unwrap());
    let hand =
        |outcome| Hand { intent: Phase::Stopping, before: Phase::Up, was: String::new(), serving: [7].into(), outcome };
    let service = ServiceState {
        bypassed: true,
        workers: workers.map(|at| (at, worker(Phase::Up))).into(),
        lanes: Some(LaneState { lanes: [3, 4], open: [true, false], from: 0, to: 1, at_ms: u64::MAX, last: 4 }),
        former: Some("v1".into()),
        fleet: Some(FleetMemory { epoch: 7, ended: Some(FleetEnd { epoch: 6, error: Some("ill".to_owned()) }) }),
        ..ServiceState::default()
    };
    let plan = Plan {
        batches: Plan::batches(2, 2),
        max_failures: 1,
        rollback: true,
        switch: false,
        unswitch: true,
        ..Plan::default()
    };
    let roll = RollState {
        id: "web-1".to_owned(),
        service: "web".to_owned(),
        by: "uid 0".to_owned(),
        to: Some("v2".into()),
        before: None,
        workers: workers.to_vec(),
        spares: Vec::new(),
        second: Vec::new(),
        machine: Machine::new(plan),
        hand: [(0, hand(None)), (1, hand(Some(Outcome::Failed("broken".to_owned()))))].into(),
    };
    State { services: [("web".to_owned(), service)].into(), rolls: vec![roll], ..State::new("a boot") }
}

fn bytes() -> Vec<u8> {
    serde_json::to_vec(&state()).unwrap()
}

fn bad(bytes: &[u8]) -> String {
    match parse(bytes) {
        Found::Bad(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_written_is_read() {
    match parse(&bytes()) {
        Found::State(found) => assert_eq!(*found, state()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_cut_anywhere_is_bad() {
    let whole = bytes();
    for cut in 0..whole.len() {
        let why = bad(&whole[..cut]);
        assert!(why.contains("cut short") || why.contains("empty"), "at {cut}: {why}");
    }
}

#[test]
fn what_makes_no_sense_is_bad() {
    let text = String::from_utf8(bytes()).unwrap();
    for (part, instead) in [
        ("\"format\":1", "\"format\":\"1\""),
        ("\"format\":1", "\"format\":-1"),
        ("\"format\":1", "\"format\":1,\"format\":1"),
        ("\"format\":1,", ""),
        ("\"boot\":\"a boot\"", "\"boot\":\"\""),
        ("web-1", "../../etc/passwd"),
        ("\"hand\":{\"0\"", "\"hand\":{\"2\""),
        ("\"hand\":{\"0\"", "\"hand\":{\"99999999999999999999999\""),
        ("[[0,1]]", "[[0,7]]"),
        ("[[0,1]]", "[[]]"),
        ("\"forward\":0", "\"forward\":1"),
        ("\"forward\":0", "\"forward\":18446744073709551615"),
        ("\"max_failures\":1", "\"max_failures\":0"),
        ("18446744073709551615", "18446744073709551616"),
        ("127.0.0.1:8000", "localhost"),
        ("\"stopping\"", "\"jumping\""),
        ("\"services\":{", "\"services\":[{"),
    ] {
        assert!(text.contains(part), "{part}");
        let why = bad(text.replacen(part, instead, 1).as_bytes());
        assert!(!why.is_empty(), "{part} -> {instead}");
    }
    bad(format!("{{\"format\":1,\"services\":{}", "{\"a\":".repeat(100_000)).as_bytes());
    bad(b"[]");
    bad(b"null");
}

/// An earlier deployer allowed more, and a file may be changed by hand.
#[test]
fn a_version_that_is_not_valid_costs_nothing_else() {
    let text = String::from_utf8(bytes()).unwrap();
    for bad in ["\"../../tmp/evil\"", "\"$(x)\"", "\"--help\"", "\"\""] {
        let Found::State(found) = parse(text.replace("\"v1\"", bad).replace("\"v2\"", bad).as_bytes()) else {
            panic!("{bad} costs all of it")
        };
        let mut expected = state();
        let service = expected.services.get_mut("web").unwrap();
        service.former = None;
        service.workers.values_mut().for_each(|worker| worker.version = None);
        expected.rolls[0].to = None;
        assert_eq!(*found, expected);
    }
}

#[test]
fn a_later_format_is_told_apart() {
    for format in ["2", "18446744073709551615"] {
        let text = format!("{{\"format\":{format},\"written_by\":\"9.9\",\"services\":7}}");
        assert!(matches!(parse(text.as_bytes()), Found::Future { by, .. } if by == "9.9"));
    }
    // Fields that are not known here do not matter.
    let more = String::from_utf8(bytes()).unwrap().replacen("\"format\":1", "\"new\":[1],\"format\":1", 1);
    assert!(matches!(parse(more.as_bytes()), Found::State(_)));
}

#[test]
fn files_of_all_kinds() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(read(&dir.path().join("none")), Found::Nothing));
    assert!(matches!(read(dir.path()), Found::Bad(_)));
    assert!(matches!(read(Path::new("/dev/null")), Found::Bad(_)));
    let huge = dir.path().join("huge");
    std::fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(read(&huge), Found::Bad(_)));
}

proptest! {
    #[test]
    fn any_bytes_have_an_answer(noise in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(!matches!(parse(&noise), Found::Nothing));
    }

    #[test]
    fn any_damage_has_an_answer(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = bytes();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Found::State(state) = parse(&bytes) {
            // Whatever is taken for good can be worked with.
            for roll in state.rolls {
                let mut machine = roll.machine.clone();
                machine.stop("stopped", true);
                let _ = machine.step();
                machine.batch_done(Vec::new());
                let _ = machine.step();
            }
        }
    }
}

/// A disk in memory, which may be full, or hang.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    pub(crate) bytes: Arc<Mutex<Vec<u8>>>,
    pub(crate) writes: Arc<Mutex<usize>>,
    pub(crate) full: Arc<AtomicBool>,
    pub(crate) frozen: Arc<AtomicBool>,
}

impl Store for Memory {
    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        while self.frozen.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        *self.bytes.lock().unwrap() = bytes.to_vec();
        *self.writes.lock().unwrap() += 1;
        Ok(())
    }

    fn place(&self) -> String {
        "/state.json".to_owned()
    }
}

#[tokio::test]
async fn many_changes_are_few_writes() {
    let disk = Memory::default();
    let journal = Arc::new(Journal::start(State::new("b"), disk.clone()).unwrap());
    let mut last = 0;
    for nth in 0..1000 {
        last = journal.update(|state| state.boot = nth.to_string());
    }
    journal.durable(last).await.unwrap();
    assert!(*disk.writes.lock().unwrap() < 900, "{:?}", disk.writes);
    assert!(matches!(parse(&disk.bytes.lock().unwrap()), Found::State(state) if state.boot == "999"));
    // What makes no difference is not written.
    let writes = *disk.writes.lock().unwrap();
    journal.refresh(|state| state.boot = "999".to_owned());
    journal.flush().await.unwrap();
    assert_eq!(*disk.writes.lock().unwrap(), writes);
}

#[tokio::test]
async fn a_full_disk_is_told_and_tried_again() {
    let disk = Memory::default();
    let journal = Journal::start(State::new("b"), disk.clone()).unwrap();
    journal.flush().await.unwrap();
    disk.full.store(true, Ordering::SeqCst);
    let why = journal.commit(|state| state.bypassed = true).await.unwrap_err();
    assert!(why.contains("/state.json cannot be written"), "{why}");
    assert_eq!(journal.trouble(), Some(why));
    disk.full.store(false, Ordering::SeqCst);
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if journal.trouble().is_none() {
            break;
        }
    }
    assert_eq!(journal.trouble(), None);
    assert!(matches!(parse(&disk.bytes.lock().unwrap()), Found::State(state) if state.bypassed));
}

#[tokio::test]
async fn a_frozen_disk_is_waited_for_and_looked_away_from() {
    let disk = Memory::default();
    let journal = Journal::start(State::new("b"), disk.clone()).unwrap();
    journal.flush().await.unwrap();
    disk.frozen.store(true, Ordering::SeqCst);
    let generation = journal.update(|state| state.bypassed = true);
    assert_eq!(journal.durable_within(generation, Duration::from_millis(20)).await, None);
    // Readers and changes do not wait.
    assert!(journal.read(|state| state.bypassed));
    journal.refresh(|state| state.boot = "c".to_owned());
    assert_eq!(
        journal.hangs_for(Duration::from_secs(3)),
        "the journal has not been written for 3 s: the disk of / hangs"
    );
    disk.frozen.store(false, Ordering::SeqCst);
    journal.flush().await.unwrap();
    assert_eq!(journal.trouble(), None);
}

#[test]
fn a_folder_is_one_daemons() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("a/b");
    let (folder, contents) = Folder::open(&state).unwrap();
    assert!(contents.state.is_none() && contents.warnings.is_empty());
    let error = Folder::open(&state).unwrap_err().to_string();
    assert!(error.contains(&format!("another daemon (pid {}) works", std::process::id())), "{error}");
    drop(folder);
    Folder::open(&state).unwrap();
}

#[test]
fn a_damaged_file_is_put_aside_when_another_is_written() {
    let dir = tempfile::tempdir().unwrap();
    for nth in 0..6 {
        std::fs::write(dir.path().join("state.json"), format!("damage {nth}")).unwrap();
        let (mut folder, contents) = Folder::open(dir.path()).unwrap();
        assert_eq!(contents.warnings.len(), 1);
        assert_eq!(std::fs::read_to_string(dir.path().join("state.json")).unwrap(), format!("damage {nth}"));
        folder.replace(&bytes()).unwrap();
        folder.replace(&bytes()).unwrap();
    }
    let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let kept: Vec<_> = names.filter(|name| name.contains("corrupt")).collect();
    assert_eq!(kept.len(), 4, "{kept:?}");
    assert!(matches!(read(&dir.path().join("state.json")), Found::State(_)));
}

#[test]
fn a_boot_has_an_id() {
    assert_eq!(boot_id().unwrap().len(), 36);
}

/// A daemon that takes the roll up finds the worker as the operator has left it.
#[test]
fn one_that_is_enabled_has_not_failed() {
    let mut state = state();
    let (before, up) = (state.rolls[0].hand.clone(), state.services["web"].workers.values().next().unwrap().clone());
    let workers = state.rolls[0].workers.clone();
    state.revived("other", workers[1], up.clone());
    state.revived("web", "127.0.0.1:9".parse().unwrap(), up.clone());
    state.revived("web", workers[0], up.clone());
    assert_eq!(state.rolls[0].hand, before);
    state.revived("web", workers[1], up.clone());
    assert_eq!(state.rolls[0].hand[&1].outcome, Some(Outcome::Changed));
    assert_eq!(state.services["web"].workers[&workers[1]], up);
}

/// A pool's lane, from when on it is current, and what is left of it after a restart of the machine.
#[test]
fn a_flip_is_remembered_over_a_restart_of_the_machine() {
    let lanes = LaneState { lanes: [3, 4], open: [true, false], from: 0, to: 1, at_ms: 1_000, last: 4 };
    for (now, current, open) in [(999, 0, [true, false]), (1_000, 1, [true, true]), (1_001, 1, [true, true])] {
        let word = lanes.word(now);
        assert_eq!((word.current(0), word.at_ms(), word.lane(0), word.lane(1)), (current, 0, 3, 4), "at {now}");
        assert_eq!([word.is_open(0, 0), word.is_open(1, 0)], open, "at {now}");
        let alone = lanes.alone(now);
        let mine = if current == 0 { [3, 0] } else { [0, 4] };
        let expected = LaneState {
            lanes: mine,
            open: [current == 0, current == 1],
            from: current,
            to: current,
            at_ms: 0,
            last: 4,
        };
        assert_eq!(alone, expected, "at {now}");
        assert_eq!(alone.alone(u64::MAX), alone, "the next restart changes nothing");
        let word = alone.word(u64::MAX);
        assert_eq!((word.current(0), word.is_open(1 - current, 0)), (current, false), "nobody serves the other");
    }
    let settled = LaneState { from: 1, at_ms: 0, ..lanes };
    assert_eq!(settled.word(0).current(0), 1);
}

/// The fence, and how the last order of the fleet ended, come with the end of the roll.
#[test]
fn how_an_order_of_the_fleet_ended_is_remembered() {
    let end = |result| End { result, text: "why".to_owned() };
    let mut state = state();
    state.roll_over("web-1", "web", None, &end(Exit::Done));
    let fleet = |state: &State| state.services["web"].fleet.clone().unwrap();
    assert_eq!((fleet(&state).epoch, state.rolls.len()), (7, 0), "a roll of the host's own");
    state.roll_over("web-2", "web", Some(9), &end(Exit::Done));
    assert_eq!(fleet(&state), FleetMemory { epoch: 9, ended: Some(FleetEnd { epoch: 9, error: None }) });
    state.roll_over("web-3", "web", Some(8), &end(Exit::RolledBack));
    let ended = Some(FleetEnd { epoch: 8, error: Some("why".to_owned()) });
    assert_eq!(fleet(&state), FleetMemory { epoch: 9, ended }, "the fence does not fall");
    let text = serde_json::to_string(&ServiceState::default()).unwrap().replace(r#","fleet":null"#, "");
    assert!(!text.contains("fleet") && serde_json::from_str::<ServiceState>(&text).unwrap().fleet.is_none());
}
