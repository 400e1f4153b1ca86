//! Deploys played with arbitrary outcomes.

use std::collections::BTreeSet;

use super::*;
use crate::roll::machine::{Baked, Deploy, FleetPart};

const FLEET: FleetPart = FleetPart { epoch: 3, lane: 9 };

fn deploy() -> impl Strategy<Value = Plan> {
    (1..20_usize, 1..20_usize, 1..8_usize, 0..3_usize, any::<[bool; 5]>()).prop_map(
        |(old, new, batch, leftover, [second, gate, hold, switch, fleets])| {
            // Either pool may be the one that is current.
            let (old, new) = if second { (new..new + old, 0..new) } else { (0..old, old..old + new) };
            Plan {
                max_failures: 1,
                switch,
                leftover: new.clone().take(leftover).collect(),
                surge: new.collect(),
                deploy: Some(Deploy {
                    old: old.collect(),
                    batch,
                    gate,
                    hold,
                    at_ms: None,
                    bake_ms: 1000,
                    fleet: fleets.then_some(FLEET),
                }),
                ..Plan::default()
            }
        },
    )
}

/// What a deploy has done, by the numbers of its workers.
#[derive(Debug, Default)]
struct World {
    up: BTreeSet<usize>,
    current_is_new: bool,
    has_flipped: bool,
    gated: bool,
    /// It was told to flip.
    released: bool,
    /// So often it was told once more.
    again: usize,
    end: Option<End>,
}

impl World {
    fn do_it(&mut self, machine: &mut Machine, draw: &mut impl Iterator<Item = u8>) {
        let plan = machine.plan().clone();
        let deploy = plan.deploy.unwrap();
        if draw.next() == Some(7) {
            machine.stop("stopped on request", true);
        }
        if deploy.fleet.is_some() {
            unmoved(machine);
        }
        match machine.step() {
            Step::Finish(end) => self.end = Some(end),
            Step::Switch => machine.commanded(if draw.next() == Some(0) { Err("no".to_owned()) } else { Ok(()) }),
            Step::Surge { spares } => {
                assert!(spares.len() <= deploy.batch && !self.has_flipped);
                let outcomes: Vec<_> = spares.iter().map(|nth| (*nth, outcome(draw.next()))).collect();
                let up = outcomes.iter().filter(|(_, it)| !matches!(it, Outcome::Kept(_) | Outcome::Left(_)));
                self.up.extend(up.map(|(nth, _)| *nth));
                machine.batch_done(outcomes);
            }
            Step::Retire { spares } => {
                let current = if self.current_is_new { &plan.surge } else { &deploy.old };
                assert!(spares.iter().all(|nth| !current.contains(nth)), "the pool that serves is retired");
                self.up.retain(|nth| !spares.contains(nth));
                machine.batch_done(spares.iter().map(|nth| (*nth, Outcome::Changed)).collect());
            }
            Step::Gate => {
                let result = if draw.next() == Some(2) { Err("no".to_owned()) } else { Ok(()) };
                self.gated = result.is_ok();
                machine.gated(result);
            }
            Step::Hold => {
                assert!(deploy.hold || deploy.fleet.is_some());
                assert!(machine.is_open_early(u64::MAX) == deploy.fleet.is_some());
                self.released = true;
                machine.released(None);
            }
            Step::Flip { .. } if deploy.fleet.is_some() && self.again < 3 && draw.next() == Some(5) => {
                // Written down, and the daemon has ended before it was armed.
                machine.arming(1);
                machine.hold_again();
                (self.released, self.again) = (false, self.again + 1);
            }
            Step::Flip { .. } if draw.next() == Some(3) => {
                machine.arming(1);
                // Stopped in time.
                machine.stop("stopped on request", true);
                machine.disarmed();
            }
            Step::Flip { .. } if draw.next() == Some(4) => {
                machine.arming(1);
                machine.unfit("not up");
            }
            Step::Flip { .. } => {
                assert!(plan.surge.iter().all(|nth| self.up.contains(nth)), "not all of the new pool are up");
                assert!(self.gated || !deploy.gate, "the gate was not asked");
                assert!(self.released || deploy.fleet.is_none(), "nobody has said so");
                machine.arming(1);
                machine.flipped();
                (self.current_is_new, self.has_flipped) = (true, true);
            }
            Step::Bake { until_ms } => {
                assert_eq!(until_ms, deploy.fleet.is_none().then_some(1001));
                machine.baked(match draw.next() {
                    Some(0..=4) => Baked::Bad("ill".to_owned()),
                    Some(5..=6) => Baked::Superseded("me".to_owned()),
                    _ => Baked::Done,
                });
            }
            Step::Return { .. } => {
                self.current_is_new = false;
                machine.returned(5);
            }
            Step::Linger { until_ms } => {
                assert_eq!(until_ms, deploy.fleet.is_none().then_some(1005));
                machine.lingered();
            }
            step => panic!("{step:?} is not a deploy's"),
        }
    }
}

/// A fleet's deploy that holds, bakes or lingers goes on only where it is told what that needs.
fn unmoved(machine: &Machine) {
    let (mut other, step) = (machine.clone(), machine.step());
    if matches!(step, Step::Hold | Step::Bake { .. } | Step::Linger { .. }) {
        other.gated(Err("no".to_owned()));
        other.unfit("not up");
        other.flipped();
        other.returned(7);
        other.hold_again();
        if !matches!(step, Step::Hold) {
            other.stop("stopped on request", false);
            other.released(None);
        }
        if !matches!(step, Step::Bake { .. }) {
            other.baked(Baked::Done);
        }
        if !matches!(step, Step::Linger { .. }) {
            other.lingered();
        }
        assert_eq!(other.step(), step);
    }
}

proptest! {
    /// One pool is left, which is current, and the new one only where all of it was up and the gate has passed.
    #[test]
    fn one_pool_is_left(plan in deploy(), draws in prop::collection::vec(0..20_u8, 1..100)) {
        let mut machine = Machine::new(plan.clone());
        let mut draws = draws.iter().copied().cycle();
        let mut world = World { up: plan.deploy.clone().unwrap().old.into_iter().collect(), ..World::default() };
        world.up.extend(&plan.leftover);
        for _ in 0..100 {
            // As another daemon finds it.
            let text = serde_json::to_string(&machine).unwrap();
            machine = serde_json::from_str(&text).unwrap();
            let all = plan.surge.len() + plan.deploy.as_ref().unwrap().old.len();
            prop_assert_eq!(machine.check(all, 0, 0), Ok(()));
            world.do_it(&mut machine, &mut draws);
            if world.end.is_some() {
                break;
            }
        }
        let Some(end) = world.end else { panic!("no end") };
        let done = end.result == Exit::Done;
        prop_assert_eq!(done, world.current_is_new, "{:?}", end);
        prop_assert_eq!(end.result == Exit::RolledBack, world.has_flipped && !world.current_is_new);
        let new: BTreeSet<_> = plan.surge.iter().copied().collect();
        let old: BTreeSet<_> = plan.deploy.unwrap().old.into_iter().collect();
        // What was left running from before is not touched by a deploy that is stopped at once.
        let up: BTreeSet<_> = world.up.iter().copied().filter(|nth| !plan.leftover.contains(nth) || done).collect();
        prop_assert_eq!(up, if done { new } else { old });
    }
}

#[test]
fn a_flip_that_is_armed_is_not_stopped_by_a_word() {
    let deploy = Deploy { old: vec![0], batch: 1, ..Deploy::default() };
    let plan = Plan { surge: vec![1], max_failures: 1, deploy: Some(deploy), ..Plan::default() };
    let mut machine = Machine::new(plan);
    machine.batch_done(vec![(1, Outcome::Changed)]);
    assert_eq!(machine.step(), Step::Flip { at_ms: None });
    machine.arming(77);
    machine.stop("stopped on request", false);
    assert_eq!(machine.step(), Step::Flip { at_ms: Some(77) }, "the kernel does it, whatever is said");
    machine.disarmed();
    assert_eq!(machine.step(), Step::Retire { spares: vec![1] });
}

#[test]
fn what_is_left_of_one_that_cannot_go_on_is_said() {
    let deploy = Deploy { old: vec![0], batch: 1, hold: true, ..Deploy::default() };
    let plan = Plan { surge: vec![1], max_failures: 1, deploy: Some(deploy), ..Plan::default() };
    let mut machine = Machine::new(plan);
    assert_eq!((machine.started(), machine.is_holding()), (0, false));
    machine.batch_done(vec![(1, Outcome::Changed)]);
    assert_eq!((machine.started(), machine.is_holding(), machine.has_flipped()), (1, true, false));
    assert!(machine.abandoned("stopped: why").text.starts_with("stopped: why; nobody has met the new version"));
    machine.released(None);
    machine.arming(77);
    assert!(!machine.is_holding());
    assert!(machine.abandoned("stopped: why").text.starts_with("stopped: why; its flip was armed, or had happened"));
    machine.flipped();
    assert!(machine.is_baking() && machine.has_flipped());
    machine.baked(Baked::Done);
    assert_eq!((machine.started(), machine.is_baking(), machine.has_flipped()), (1, false, false));
}

#[test]
fn a_pool_that_is_not_up_is_not_flipped_to() {
    let deploy = Deploy { old: vec![0], batch: 1, hold: true, ..Deploy::default() };
    let plan = Plan { surge: vec![1], max_failures: 1, deploy: Some(deploy), ..Plan::default() };
    let mut machine = Machine::new(plan);
    machine.batch_done(vec![(1, Outcome::Changed)]);
    assert!(machine.is_holding());
    machine.unfit("not up");
    assert!(machine.is_holding(), "nobody has asked for the flip");
    machine.released(None);
    machine.arming(77);
    machine.unfit("not up");
    assert_eq!(machine.step(), Step::Retire { spares: vec![1] });
    machine.batch_done(vec![(1, Outcome::Changed)]);
    let Step::Finish(end) = machine.step() else { panic!("{machine:?}") };
    assert!(end.result == Exit::Failed && end.text.starts_with("not up; nobody has met"), "{end:?}");
}

fn fleets() -> Machine {
    let deploy = Deploy { old: vec![0], batch: 1, bake_ms: 1, fleet: Some(FLEET), ..Deploy::default() };
    let plan = Plan { surge: vec![1], max_failures: 1, deploy: Some(deploy), ..Plan::default() };
    assert_eq!(plan.epoch(), Some(FLEET.epoch));
    let mut machine = Machine::new(plan);
    machine.batch_done(vec![(1, Outcome::Changed)]);
    machine
}

#[test]
fn what_the_fleet_has_said_is_forgotten_by_a_daemon_that_ends_before_it_is_armed() {
    let mut machine = fleets();
    assert!(machine.is_holding() && machine.is_open_early(0), "it holds, though nobody has asked for that");
    machine.released(Some(77));
    assert_eq!(machine.step(), Step::Flip { at_ms: Some(77) });
    machine.hold_again();
    assert!(machine.is_holding());
    machine.released(Some(88));
    machine.arming(88);
    machine.stop("stopped on request", false);
    assert!(machine.is_open_early(87) && !machine.is_open_early(88), "it may have flipped since");
    machine.hold_again();
    assert_eq!(machine.step(), Step::Retire { spares: vec![1] }, "it is not armed, and it is to stop");
    machine.batch_done(vec![(1, Outcome::Changed)]);
    let Step::Finish(end) = machine.step() else { panic!("{machine:?}") };
    assert!(end.text.contains("this host has not flipped") && !end.text.contains("nobody has met"), "{end:?}");
}

#[test]
fn a_deploy_of_an_older_journal_is_no_fleets() {
    let text = r#"{"old":[0],"batch":1,"gate":false,"hold":false,"at_ms":null,"bake_ms":7}"#;
    let deploy: Deploy = serde_json::from_str(text).unwrap();
    assert_eq!(deploy, Deploy { old: vec![0], batch: 1, bake_ms: 7, ..Deploy::default() });
    let mut machine = fleets();
    machine.released(None);
    machine.arming(5);
    machine.flipped();
    assert_eq!((machine.step(), machine.is_turned_back()), (Step::Bake { until_ms: None }, false));
    let none = FleetPart { lane: 0, ..FLEET };
    let mut plan = machine.plan().clone();
    plan.deploy.as_mut().unwrap().fleet = Some(none);
    assert!(Machine::new(plan).check(2, 0, 0).is_err(), "a lane is 1 to 255");
}
