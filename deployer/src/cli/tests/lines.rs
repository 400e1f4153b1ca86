use super::{super::lines::*, *};
use crate::api::RollStarted;

fn held_by(open: u64, tickets: u64, by: &[&str]) -> What {
    let by = by.iter().map(|by| (*by).to_owned()).collect();
    What::Held { worker: AT.parse().unwrap(), spare: false, open, tickets, by, floor: None }
}

fn outsiders(connections: u64, tickets: u64, by: &[&str]) -> What {
    let by = by.iter().map(|by| (*by).to_owned()).collect();
    What::OutsidersCut { worker: AT.parse().unwrap(), spare: false, connections, tickets, by }
}

fn below_the_floor(open: u64) -> What {
    let (worker, floor) = (AT.parse().unwrap(), Some("1 other is up, and min_up = 2".to_owned()));
    What::Held { worker, spare: false, open, tickets: 0, by: Vec::new(), floor }
}

fn command(error: Option<&str>) -> What {
    let argv = ["ln", "-sfn", "/srv/v2"].map(str::to_owned).to_vec();
    What::Command { which: "switch".to_owned(), argv, error: error.map(str::to_owned) }
}

#[test]
fn each_event_is_a_line() {
    let batch = |back| What::Batch { nth: 2, of: 10, workers: vec![AT.parse().unwrap()], back };
    for (what, expected) in [
        (begun(), "web: rolling 2 workers in 2 batches to v2, asked for by root (pid 4711)"),
        (command(None), "switch: ln -sfn /srv/v2: done"),
        (command(Some("exit code 1\nno such file")), "switch: ln -sfn /srv/v2: failed: exit code 1\\nno such file"),
        (batch(false), "batch 2 of 10: 127.0.0.1:8003"),
        (batch(true), "rolling back: batch 2 of 10: 127.0.0.1:8003"),
        (phase(Phase::Up, Phase::Draining, ""), "127.0.0.1:8003 up -> draining"),
        (phase(Phase::Warming, Phase::Failed, "GET /: 500"), "127.0.0.1:8003 warming -> failed (GET /: 500)"),
        (held_by(12, 1, &["a", "b"]), "127.0.0.1:8003 held by 12 open, 1 on the way: a; b; …"),
        (held_by(1, 0, &["a \u{1b}[2J"]), "127.0.0.1:8003 held by 1 open: a \\u{1b}[2J"),
        (spare(Phase::Down, Phase::Starting), "spare 127.0.0.1:8003 down -> starting"),
        (What::Surge { spares: vec![AT.parse().unwrap()] }, "starting spares: 127.0.0.1:8003"),
        (What::Retire { spares: vec![AT.parse().unwrap()] }, "retiring spares: 127.0.0.1:8003"),
        (held_by(0, 1, &[]), "127.0.0.1:8003 held by 0 open, 1 on the way"),
        (below_the_floor(0), "127.0.0.1:8003 held by the floor: 1 other is up, and min_up = 2"),
        (below_the_floor(3), "127.0.0.1:8003 held by 3 open; the floor: 1 other is up, and min_up = 2"),
        (
            outsiders(2, 1, &["sh\n (pid 7, user nobody): 2 established, 127.0.0.1:43210"]),
            "127.0.0.1:8003 drain deadline passed: cut 2 connections and did not wait for 1 connect() call of processes that \
             are not among the service's callers: sh\\n (pid 7, user nobody): 2 established, 127.0.0.1:43210. They do not stop \
             the roll; drain.outsiders = \"hold\" has it wait for them",
        ),
        (What::Journal { trouble: Some("it hangs".to_owned()) }, "the roll waits for its journal: it hangs"),
        (What::Journal { trouble: None }, "the journal is written again; the roll goes on"),
        (What::StopAsked { by: "root".to_owned() }, "root asked for a stop after the batch in hand"),
    ] {
        assert_eq!(line(&event(104_200, what), 101_000), format!("  3.2s {expected}"));
    }
}

#[test]
fn each_event_of_a_deploy_is_a_line() {
    let (at_ms, lane, until_ms) = (1_000, 3, 601_000);
    let (begun, text) = (
        |to| What::Begun {
            service: "web".to_owned(),
            to,
            by: "root".to_owned(),
            batches: Vec::new(),
            spares: vec![AT.parse().unwrap()],
        },
        |text: &str| text.to_owned(),
    );
    for (what, expected) in [
        (begun(Some(text("v2"))), "web: deploying v2 to the other pool, 1 worker, asked for by root"),
        (begun(None), "web: deploying a version to the other pool, 1 worker, asked for by root"),
        (What::Pool { pool: text("b"), lane }, "starting pool b as lane 3"),
        (What::RetirePool { workers: vec![AT.parse().unwrap()] }, "retiring the other pool: 127.0.0.1:8003"),
        (What::Gate { error: None }, "the gate passes"),
        (What::Gate { error: Some(text("a\nb")) }, "the gate does not pass: a\\nb"),
        (What::Holding, "ready; waiting for `deployer flip`"),
        (What::Armed { at_ms, lane }, "the flip to lane 3 is armed in the kernel"),
        (What::Disarmed, "the flip is taken back"),
        (
            What::Flipped { at_ms, lane, version: Some(text("v2")), until_ms },
            "flipped to lane 3 (v2); both versions stay for 10m00s",
        ),
        (What::Flipped { at_ms, lane, version: None, until_ms: 0 }, "flipped to lane 3; both versions stay for 0.0s"),
        (
            What::Returned { at_ms, lane, why: text("ill"), until_ms },
            "flipped back to lane 3: ill; the other version stays 10m00s for its pages",
        ),
        (
            What::Flipped { at_ms, lane, version: None, until_ms: u64::MAX },
            "flipped to lane 3; both versions stay until the fleet says",
        ),
        (
            What::Returned { at_ms, lane, why: text("ill"), until_ms: u64::MAX },
            "flipped back to lane 3: ill; the other version stays until the fleet says, for its pages",
        ),
        (What::Ill { why: text("1 crash") }, "the new version is ill: 1 crash; the fleet decides"),
        (What::Skipped { events: 7 }, "7 events are not shown: the daemon does not keep them any more"),
        (What::Asked { by: text("root"), what: text("rollback") }, "root asked for: rollback"),
    ] {
        assert_eq!(line(&event(104_200, what), 101_000), format!("  3.2s {expected}"));
    }
}

#[test]
fn the_end_is_a_sentence() {
    for (what, expected) in [
        (finished(Exit::Done, "web runs v2", 40, &[]), "done after 12.3 s, 40 workers changed: web runs v2"),
        (
            finished(Exit::Failed, "127.0.0.1:8003 answered 500", 1, &[AT]),
            "failed after 12.3 s, 1 worker changed, 1 failed and out (127.0.0.1:8003): 127.0.0.1:8003 answered 500",
        ),
        (finished(Exit::RolledBack, "", 0, &[]), "rolled back after 12.3 s, 0 workers changed"),
    ] {
        assert_eq!(line(&event(9, what), 0), expected);
    }
}

#[test]
fn a_clock_that_is_set_back_is_no_panic() {
    assert!(line(&event(5, phase(Phase::Up, Phase::Draining, "")), 10).starts_with("  0.0s "));
}

#[test]
fn a_dry_run_shows_the_plan() {
    let workers = |ports: [u16; 2]| ports.map(|port| ([127, 0, 0, 1], port).into()).to_vec();
    let mut plan = RollStarted {
        id: String::new(),
        batches: vec![workers([8000, 8001]), workers([8002, 8003])],
        to: Some("v2".to_owned()),
        spares: Vec::new(),
        switch: Some(vec!["ln".to_owned(), "-s".to_owned()]),
    };
    let expected = "would roll 4 workers in 2 batches to v2\n  switch: ln -s\n  \
                    batch 1: 127.0.0.1:8000, 127.0.0.1:8001\n  batch 2: 127.0.0.1:8002, 127.0.0.1:8003\n";
    assert_eq!(dry_run(&plan), expected);
    (plan.to, plan.switch) = (None, None);
    plan.batches.truncate(1);
    assert!(dry_run(&plan).starts_with("would roll 2 workers in 1 batch\n  batch 1:"));
    plan.spares = workers([8040, 8041]);
    let expected = "would roll 2 workers in 1 batch with 2 spares\n  \
                    spares, up before the first batch: 127.0.0.1:8040, 127.0.0.1:8041\n  batch 1:";
    assert!(dry_run(&plan).starts_with(expected), "{}", dry_run(&plan));
}
