//! What of a fleet's deploy is seen, and what is made of an order, as things stand.

use std::path::Path;

use super::*;
use crate::{
    config::Config,
    roll::machine::{Baked, Deploy, Outcome, Plan},
    service::manager,
};

const FLEET: FleetPart = FleetPart { epoch: 7, lane: 4 };

/// Two pools of two; the first is current.
fn service() -> Service {
    let text = "[service.web]\nworkers = \"127.0.0.1:8000-8001\"\ndeploy.second = \"next\"\n\
                manager = { unit = \"web@{port}.service\" }\n";
    let config = Config::parse(Path::new("f"), text).unwrap().services.remove("web").unwrap();
    let members = config.members().enumerate();
    let mut first: Vec<_> = members.map(|(nth, at)| Arc::new(Worker::new(nth as u32, at, "web", 0))).collect();
    let second = first.split_off(2);
    let manager = manager(&config, &[]);
    Service { index: 0, config, pools: [first, second], current: Arc::default(), spares: Vec::new(), manager }
}

fn up(worker: &Worker, version: &str) {
    worker.control().version = Some(version.into());
    worker.enter(Phase::Up, "");
}

fn machine() -> Machine {
    let deploy = Deploy { old: vec![0, 1], batch: 2, gate: true, fleet: Some(FLEET), ..Deploy::default() };
    Machine::new(Plan { surge: vec![2, 3], max_failures: 1, deploy: Some(deploy), ..Plan::default() })
}

fn roll(machine: &Machine) -> RollState {
    let (workers, machine) = (Vec::new(), machine.clone());
    RollState {
        id: "web-1".to_owned(),
        service: "web".to_owned(),
        by: "the fleet".to_owned(),
        to: Some("v2".into()),
        before: None,
        workers: workers.clone(),
        spares: workers.clone(),
        second: workers,
        machine,
        hand: Default::default(),
    }
}

fn task() -> Task {
    Task { epoch: 7, to: Release { version: "v2".into(), lane: 4 } }
}

fn flip() -> FleetOrder {
    FleetOrder::Flip { at_ms: 99 }
}

fn back() -> FleetOrder {
    FleetOrder::Return { why: "ill".to_owned() }
}

fn stop() -> FleetOrder {
    FleetOrder::Stop { why: "aborted".to_owned() }
}

#[test]
fn a_pool_runs_what_those_say_that_are_up() {
    let service = service();
    let seen = || release(service.pool(0), 3).map(|it| (it.version, it.lane));
    assert_eq!(seen(), None, "nobody is up");
    let [a, b] = [&service.pool(0)[0], &service.pool(0)[1]];
    up(a, "v1");
    assert_eq!(seen(), Some(("v1".into(), 3)), "the other is not up");
    up(b, "v2");
    assert_eq!(seen(), None, "two versions");
    b.enter(Phase::Failed, "");
    assert_eq!(seen(), Some(("v1".into(), 3)));
    a.control().version = None;
    assert_eq!(seen(), None, "it does not say");
}

#[test]
fn each_stage_is_told_as_it_is() {
    let (service, mut machine) = (service(), machine());
    let (closed, open) = (FlipWord::new([3, 4], [true, false], 0), FlipWord::new([3, 4], [true, true], 0));
    let seen = |machine: &Machine, word| stage(&service, &roll(machine), word, 1000);
    assert_eq!(seen(&machine, closed), Stage::Starting(task()));
    machine.batch_done(vec![(2, Outcome::Changed), (3, Outcome::Changed)]);
    assert_eq!(seen(&machine, closed), Stage::Starting(task()), "its gate is asked");
    machine.gated(Ok(()));
    service.pool(1).iter().for_each(|worker| up(worker, "v2"));
    assert_eq!(seen(&machine, closed), Stage::Starting(task()), "its lane is not open yet");
    assert_eq!(seen(&machine, open), Stage::Holding(task()));
    service.pool(1)[0].enter(Phase::Down, "");
    assert_eq!(seen(&machine, open), Stage::Starting(task()), "one has crashed");
    up(&service.pool(1)[0], "v2");
    machine.released(Some(2000));
    assert_eq!(seen(&machine, open), Stage::Holding(task()), "it is not armed");
    machine.arming(2000);
    assert_eq!(seen(&machine, open.flipping(1, 1500)), Stage::Armed(task(), 2000));
    assert_eq!(seen(&machine, open.flipping(1, 900)), Stage::Baking(task(), 2000), "the kernel has flipped");
    machine.flipped();
    let flipped = FlipWord::new([3, 4], [true, true], 1);
    assert_eq!(seen(&machine, flipped), Stage::Baking(task(), 2000));
    let mut ending = machine.clone();
    ending.baked(Baked::Done);
    assert_eq!(seen(&ending, flipped), Stage::Ending(task()));
    machine.baked(Baked::Bad("ill".to_owned()));
    assert_eq!(seen(&machine, open), Stage::Lingering(task()));
    machine.returned(3000);
    assert_eq!(seen(&machine, open), Stage::Lingering(task()));
    machine.lingered();
    assert_eq!(seen(&machine, open), Stage::Ending(task()));
    let of = |fleet| Machine::new(Plan { batches: Plan::batches(2, 1), max_failures: 1, fleet, ..Plan::default() });
    assert_eq!(seen(&of(Some(7)), open), Stage::Rolling(7));
    assert_eq!(seen(&of(None), open), Stage::Busy("web-1".to_owned()));
}

#[test]
fn an_order_is_done_once_and_only_where_it_can_be() {
    let mut machine = machine();
    let given = |machine: &Machine, order: FleetOrder| match wish(machine, order) {
        Ok(Wish::Done) => "done",
        Ok(Wish::Stop(_)) => "stop",
        Ok(Wish::Disarm) => "disarm",
        Ok(Wish::Order(_, what)) => what,
        Err(_) => "no",
    };
    let all = |machine: &Machine| [flip(), stop(), back(), FleetOrder::End].map(|order| given(machine, order));
    assert_eq!(all(&machine), ["no", "stop", "no", "no"]);
    machine.batch_done(vec![(2, Outcome::Changed), (3, Outcome::Changed)]);
    machine.gated(Ok(()));
    assert_eq!(all(&machine), ["flip", "stop", "no", "no"]);
    assert_eq!(wish(&machine, flip()), Ok(Wish::Order(Order::Flip { at_ms: Some(99) }, "flip")));
    assert_eq!(given(&machine, FleetOrder::Disarm), "disarm");
    machine.released(Some(99));
    assert_eq!(all(&machine), ["done", "stop", "no", "no"]);
    assert_eq!(given(&machine, FleetOrder::Disarm), "disarm");
    machine.arming(99);
    machine.flipped();
    assert_eq!(all(&machine), ["done", "no", "rollback", "end"]);
    assert_eq!(given(&machine, FleetOrder::Disarm), "done", "too late");
    let mut ended = machine.clone();
    ended.baked(Baked::Done);
    assert_eq!(all(&ended), ["no", "done", "no", "done"]);
    machine.baked(Baked::Bad("ill".to_owned()));
    machine.returned(100);
    assert_eq!(all(&machine), ["no", "no", "done", "end"]);
    let plan = Plan { batches: Plan::batches(2, 1), max_failures: 1, fleet: Some(7), ..Plan::default() };
    assert_eq!(all(&Machine::new(plan)), ["no", "stop", "no", "no"]);
}
