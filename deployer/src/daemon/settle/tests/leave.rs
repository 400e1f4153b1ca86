//! Workers that are not empty at their deadline, under a policy that leaves them.

use super::*;

const LEAVE: How = How { leave: true, ..PLAIN };
/// Drains: more than any run here begins.
const ALWAYS: usize = usize::MAX;

/// A run over several lives in which these workers miss so many deadlines. Whoever always does is never stopped; all are up
/// in the end. Returns how the roll ended, and how many effects and writes the last life took.
async fn run(lives: &[usize], how: How, busy: &[(usize, usize)], broken: &[usize], on_start: OnStart) -> (Exit, usize) {
    let dir = tempfile::tempdir().unwrap();
    let (sim, shelf) = (Sim::new(broken, 1), Shelf::new(dir.path().join("rolls")));
    busy.iter().for_each(|(nth, drains)| sim.be_busy(*nth, *drains));
    for after in lives {
        sim.live(Some(*after));
        if life(&sim, &shelf, how, on_start).await.is_some() {
            break;
        }
    }
    sim.live(None);
    let end = life(&sim, &shelf, how, on_start).await;
    let what = format!("lives {lives:?}, {how:?}, busy {busy:?}, broken {broken:?}, {on_start:?}: {sim:?}");
    assert!(sim.problems().is_empty(), "{what}");
    for (nth, word) in sim.words() {
        let right = if nth < WORKERS { Word::Up } else { Word::Down };
        assert_eq!(word, right, "worker {nth}; {what}");
    }
    for (nth, _) in busy.iter().filter(|(_, drains)| *drains == ALWAYS) {
        assert!(sim.is_as_it_was(*nth), "worker {nth} was busy, and restarted; {what}");
    }
    if end == Some(Exit::Done) {
        let old = (0..WORKERS).filter(|nth| sim.is_as_it_was(*nth)).count();
        assert_eq!(old, 0, "{what}");
    }
    assert!(sim.fewest() >= how.min_up, "only {} were up; {what}", sim.fewest());
    (end.unwrap_or_else(|| panic!("the roll has no end; {what}")), sim.ops())
}

#[tokio::test]
async fn who_becomes_empty_in_time_is_restarted() {
    for busy in [&[(1, 1)][..], &[(0, 1), (1, 1)], &[(1, 1), (4, 1)], &[(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)]] {
        let (end, ops) = run(&[], LEAVE, busy, &[], OnStart::Resume).await;
        assert_eq!(end, Exit::Done, "{busy:?}");
        assert!(ops > 6 * WORKERS, "{ops}");
    }
}

#[tokio::test]
async fn who_does_not_is_as_it_was() {
    for busy in [&[(1, ALWAYS)][..], &[(0, ALWAYS), (1, 1)], &[(1, 2), (4, 1)]] {
        let (end, _) = run(&[], LEAVE, busy, &[], OnStart::Resume).await;
        assert_eq!(end, Exit::Incomplete, "{busy:?}");
    }
}

/// A drain that a former daemon has not told of is tried once more, so that who was busy twice may be through in the end.
#[tokio::test]
async fn a_daemon_may_end_at_any_point() {
    for (busy, right) in [
        (&[(1, 1), (2, 1)][..], &[Exit::Done][..]),
        (&[(1, ALWAYS), (4, 1)], &[Exit::Incomplete]),
        (&[(0, 2)], &[Exit::Done, Exit::Incomplete]),
    ] {
        let (_, ops) = run(&[], LEAVE, busy, &[], OnStart::Resume).await;
        for after in 0..=ops {
            let (end, _) = run(&[after], LEAVE, busy, &[], OnStart::Resume).await;
            assert!(right.contains(&end), "{busy:?}, ended after {after}: {end:?}");
        }
        for after in (0..=ops).step_by(7) {
            let (end, _) = run(&[after, after / 2, 5], LEAVE, busy, &[], OnStart::Resume).await;
            assert!(right.contains(&end), "{busy:?}, ended after {after}, {}, 5: {end:?}", after / 2);
        }
    }
}

#[tokio::test]
async fn held_rolls_leave_nobody_out() {
    let busy = [(1, ALWAYS), (2, 1)];
    let (_, ops) = run(&[], LEAVE, &busy, &[], OnStart::Hold).await;
    for after in 0..=ops {
        let (end, _) = run(&[after], LEAVE, &busy, &[], OnStart::Hold).await;
        assert!(matches!(end, Exit::Incomplete | Exit::Stopped), "ended after {after}: {end:?}");
    }
}

/// Among spares, at a floor, and where the roll turns back.
#[tokio::test]
async fn in_every_kind_of_roll() {
    let back = How { rollback: true, ..LEAVE };
    for (how, broken, right) in [
        (How { surge: true, ..LEAVE }, &[][..], &[Exit::Incomplete][..]),
        (How { min_up: 3, ..LEAVE }, &[], &[Exit::Incomplete]),
        (back, &[3], &[Exit::RolledBack, Exit::Incomplete]),
        (How { surge: true, ..back }, &[3], &[Exit::RolledBack, Exit::Incomplete]),
    ] {
        let busy = [(1, ALWAYS)];
        let (end, ops) = run(&[], how, &busy, broken, OnStart::Resume).await;
        assert_eq!(end, right[0], "{how:?}");
        for after in 0..=ops {
            let (end, _) = run(&[after], how, &busy, broken, OnStart::Resume).await;
            assert!(right.contains(&end), "{how:?}, ended after {after}: {end:?}");
        }
    }
}
