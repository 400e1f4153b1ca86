//! Workers that are left.

use std::{collections::BTreeSet, time::Duration};

use super::*;

fn left(why: &str) -> Outcome {
    Outcome::Left(why.to_owned())
}

/// What a roll did that was played with outcomes drawn from a list.
#[derive(Default)]
struct Played {
    /// Batches that began after those that were left had been taken again.
    late: usize,
    /// Workers that were left, there and then not restarted, on the way there.
    behind: BTreeSet<usize>,
    /// Times that those that were left were taken again: there, and on the way back.
    again: [usize; 2],
    end: Option<Exit>,
}

fn play_on(mut machine: Machine, draws: &[u8]) -> Played {
    let mut draws = draws.iter().copied().cycle();
    let mut played = Played::default();
    for _ in 0..200 {
        match machine.step() {
            Step::Finish(end) => {
                played.end = Some(end.result);
                break;
            }
            step @ (Step::Gate
            | Step::Hold
            | Step::Flip { .. }
            | Step::Bake { .. }
            | Step::Return { .. }
            | Step::Linger { .. }) => {
                panic!("{step:?} is a deploy's")
            }
            Step::Switch | Step::Unswitch => machine.commanded(Ok(())),
            Step::Surge { spares } | Step::Retire { spares } => {
                machine.batch_done(spares.iter().map(|spare| (*spare, Outcome::Changed)).collect());
            }
            Step::Batch { workers, back, .. } => {
                played.late += usize::from(played.again[usize::from(back)] > 0);
                done(&mut machine, &mut played, &workers, back, &mut draws);
            }
            Step::Again { workers, back } => {
                assert_eq!(workers, machine.left().collect::<Vec<_>>());
                played.again[usize::from(back)] += 1;
                // As another daemon finds it, after some.
                let (some, rest) = workers.split_at(workers.len() / 2);
                let outcomes: Vec<_> = some.iter().map(|worker| (*worker, outcome(draws.next()))).collect();
                let ends = machine.ends_wait(&outcomes);
                if draws.next() == Some(3) && !ends {
                    outcomes.iter().for_each(|(worker, outcome)| played.note(*worker, outcome, back));
                    machine.partly_done(outcomes);
                    played.again[usize::from(back)] -= usize::from(matches!(machine.step(), Step::Again { .. }));
                } else {
                    outcomes.iter().for_each(|(worker, outcome)| played.note(*worker, outcome, back));
                    let rest: Vec<_> = rest.iter().map(|worker| (*worker, outcome(draws.next()))).collect();
                    rest.iter().for_each(|(worker, outcome)| played.note(*worker, outcome, back));
                    machine.batch_done(outcomes.into_iter().chain(rest).collect());
                }
            }
        }
    }
    assert_eq!(machine.left().count(), 0, "left for good");
    played
}

fn done(
    machine: &mut Machine,
    played: &mut Played,
    workers: &[usize],
    back: bool,
    draws: &mut impl Iterator<Item = u8>,
) {
    let outcomes: Vec<_> = workers.iter().map(|worker| (*worker, outcome(draws.next()))).collect();
    outcomes.iter().for_each(|(worker, outcome)| played.note(*worker, outcome, back));
    if draws.next() == Some(4) {
        machine.stop("stopped on request", true);
    }
    machine.batch_done(outcomes);
}

impl Played {
    fn note(&mut self, worker: usize, outcome: &Outcome, back: bool) {
        match outcome {
            Outcome::Left(_) if !back => drop(self.behind.insert(worker)),
            _ => drop(self.behind.remove(&worker)),
        }
    }
}

proptest! {
    /// Whoever is left is taken again after all others, once; a roll that ends otherwise than well says so.
    #[test]
    fn who_is_left_is_taken_last(plan in plan(), draws in prop::collection::vec(0..12_u8, 1..100)) {
        let played = play_on(Machine::new(plan), &draws);
        let end = played.end.expect("the roll has no end");
        prop_assert_eq!(played.late, 0);
        prop_assert!(played.again[0] <= 1 && played.again[1] <= 1, "{:?}", played.again);
        match end {
            Exit::Done => prop_assert!(played.behind.is_empty()),
            Exit::Incomplete => prop_assert!(!played.behind.is_empty() && played.again[0] == 1),
            _ => {}
        }
    }

    /// Where nothing else goes wrong, it is done, or incomplete.
    #[test]
    fn nothing_but_busy_workers(plan in plan(), draws in prop::collection::vec(5..9_u8, 1..100), most in 0..3_u8) {
        let draws: Vec<_> = draws.iter().map(|draw| if *draw < 5 + most { 2 } else { 7 }).collect();
        let played = play_on(Machine::new(plan), &draws);
        let right = if played.behind.is_empty() { Exit::Done } else { Exit::Incomplete };
        prop_assert_eq!(played.end, Some(right));
    }
}

/// Through the switch.
fn begun(max_failures: usize, rollback: bool) -> Machine {
    let mut machine = Machine::new(four(max_failures, rollback));
    machine.commanded(Ok(()));
    machine
}

/// The same, with 1 and 2 left, and 0 and 3 changed.
fn two_left(max_failures: usize, rollback: bool) -> Machine {
    let mut machine = begun(max_failures, rollback);
    for (worker, outcome) in
        [Outcome::Changed, left("1 is busy"), left("2 is busy"), Outcome::Changed].into_iter().enumerate()
    {
        machine.batch_done(vec![(worker, outcome)]);
    }
    assert_eq!(machine.step(), Step::Again { workers: vec![1, 2], back: false });
    machine
}

#[test]
fn who_becomes_empty_is_changed() {
    let mut machine = two_left(1, false);
    machine.batch_done(all(&[1, 2], &Outcome::Changed));
    assert_eq!(end(&machine), (Exit::Done, "4 workers restarted".to_owned()));
}

#[test]
fn who_does_not_is_told() {
    let mut machine = two_left(1, false);
    machine.batch_done(vec![(2, Outcome::Changed), (1, left("1 is still busy"))]);
    let text = "3 of 4 workers are changed, 0 failed and are out; left as they were: 1 is still busy";
    assert_eq!(end(&machine), (Exit::Incomplete, text.to_owned()));
}

#[test]
fn a_failure_among_them_counts() {
    let mut machine = two_left(1, true);
    machine.batch_done(vec![(1, Outcome::Failed("1 broke".to_owned())), (2, left("2 is busy"))]);
    assert_eq!(machine.step(), Step::Unswitch);
    machine.commanded(Ok(()));
    let Step::Batch { workers, back: true, .. } = machine.step() else { panic!("{:?}", machine.step()) };
    assert_eq!(workers, [1]);
    let mut machine = two_left(2, true);
    machine.batch_done(vec![(1, Outcome::Failed("1 broke".to_owned())), (2, left("2 is busy"))]);
    let text = "1 broke; 2 of 4 workers are changed, 1 failed and are out; left as they were: 2 is busy";
    assert_eq!(end(&machine), (Exit::Failed, text.to_owned()));
}

#[test]
fn a_roll_back_forgets_them_and_leaves_its_own() {
    let mut machine = begun(1, true);
    machine.batch_done(vec![(0, Outcome::Changed)]);
    machine.batch_done(vec![(1, left("1 is busy"))]);
    fail(&mut machine, 2);
    assert_eq!(machine.left().count(), 0, "it runs the former version");
    machine.commanded(Ok(()));
    machine.batch_done(vec![(2, Outcome::Changed)]);
    machine.batch_done(vec![(0, left("0 is busy"))]);
    assert_eq!(machine.step(), Step::Again { workers: vec![0], back: true });
    let mut empty = machine.clone();
    empty.batch_done(vec![(0, Outcome::Changed)]);
    assert_eq!(end(&empty).0, Exit::RolledBack);
    machine.batch_done(vec![(0, left("0 is busy"))]);
    let (result, text) = end(&machine);
    assert_eq!((result, machine.changed()), (Exit::Failed, 1));
    assert_eq!(text, "worker 2 broke; rolling back; left as they were: 0 is busy");
}

#[test]
fn a_stop_ends_the_wait() {
    let mut machine = two_left(1, false);
    machine.stop("stopped on request", true);
    assert!(machine.is_stopping());
    machine.batch_done(vec![(1, Outcome::Changed), (2, left("2 is busy"))]);
    let text = "stopped on request; 3 of 4 workers are changed, 0 failed and are out; left as they were: 2 is busy";
    assert_eq!(end(&machine), (Exit::Stopped, text.to_owned()));
    // Before it has begun, and in the batch before that.
    let mut machine = two_left(1, false);
    machine.stop("stopped on request", false);
    assert_eq!(end(&machine).0, Exit::Stopped);
    let mut machine = begun(1, false);
    machine.batch_done(vec![(0, left("0 is busy"))]);
    machine.stop("stopped on request", false);
    assert!(end(&machine).1.ends_with("left as they were: 0 is busy"));
}

#[test]
fn another_daemon_goes_on_waiting() {
    let mut machine = two_left(1, false);
    let most = Duration::from_secs(3600);
    assert!(machine.again_left(most, 1000) > most - Duration::from_secs(60));
    machine.partly_done(vec![(2, Outcome::Changed), (1, left("1 is busy"))]);
    let mut machine: Machine = serde_json::from_str(&serde_json::to_string(&machine).unwrap()).unwrap();
    // Whatever becomes of the time of day.
    assert!(machine.again_left(most, u64::MAX) > most - Duration::from_secs(60));
    assert_eq!(machine.again_left(Duration::from_secs(1), 1000), Duration::from_secs(1));
    assert_eq!(machine.step(), Step::Again { workers: vec![1], back: false });
    assert!(machine.ends_wait(&[(1, Outcome::Kept("1 does not stop".to_owned()))]));
    machine.partly_done(vec![(1, Outcome::Kept("1 does not stop".to_owned()))]);
    assert_eq!(end(&machine).0, Exit::Stopped);
}

#[test]
fn spares_stay_until_they_are_through() {
    let mut machine = surging(false);
    machine.batch_done(all(&[4, 5], &Outcome::Changed));
    for worker in 0..4 {
        machine.batch_done(vec![(worker, if worker == 1 { left("1 is busy") } else { Outcome::Changed })]);
    }
    assert_eq!(machine.step(), Step::Again { workers: vec![1], back: false });
    machine.batch_done(vec![(1, left("1 is busy"))]);
    assert_eq!(machine.step(), Step::Retire { spares: vec![4, 5] });
    machine.batch_done(all(&[4, 5], &Outcome::Changed));
    assert_eq!(end(&machine).0, Exit::Incomplete);
}

#[test]
fn a_journal_without_any_is_read() {
    let text = serde_json::to_string(&begun(1, false)).unwrap();
    let old = text.replace(",\"behind\":[],\"again_ms\":null", "");
    assert_ne!(old, text);
    let read: Machine = serde_json::from_str(&old).unwrap();
    assert_eq!(read, begun(1, false));
    let mut wrong = two_left(1, false);
    wrong.behind[0].0 = 9;
    assert!(wrong.check(4, 0, 0).is_err(), "a worker that is not there");
    wrong.behind.clear();
    assert!(wrong.check(4, 0, 0).is_err(), "a wait for nobody");
}
