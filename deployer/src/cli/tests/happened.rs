use super::{super::happened::*, *};
use crate::api::{Change, Configured, Entry, TestResult};

fn entry(by: &str, change: Change) -> Entry {
    let worker = Some(AT.parse().unwrap());
    let (by, service) = (by.to_owned(), Some("web".to_owned()));
    Entry { seq: 1, time_ms: 1_785_414_896_789, by, service, worker, roll: None, change }
}

fn shown(change: Change) -> String {
    line(&entry("the daemon", change))
}

#[test]
fn times_are_of_the_calendar() {
    let known = [
        (0, "1970-01-01 00:00:00.000Z"),
        (951_782_400_000, "2000-02-29 00:00:00.000Z"),
        (951_868_799_999, "2000-02-29 23:59:59.999Z"),
        (4_107_542_400_000, "2100-03-01 00:00:00.000Z"),
        (1_785_414_896_789, "2026-07-30 12:34:56.789Z"),
        (u64::MAX, "584556019-04-03 14:25:51.615Z"),
    ];
    for (ms, text) in known {
        assert_eq!(time(ms), text);
    }
}

#[test]
fn a_phase_says_what_it_was_why_and_by_whom() {
    let phase =
        |was, reason: &str| Change::Phase { phase: Phase::Up, was, reason: reason.to_owned(), reason_was: None };
    let of = "2026-07-30 12:34:56.789Z  web 127.0.0.1:8003  ";
    let mut by_roll = entry("roll web-1", phase(Some(Phase::Warming), "v2"));
    by_roll.roll = Some("web-1".to_owned());
    assert_eq!(line(&by_roll), format!("{of}warming -> up: v2  (roll web-1)"));
    assert_eq!(shown(phase(None, "")), format!("{of}unknown -> up  (the daemon)"));
    assert_eq!(shown(phase(Some(Phase::Up), "a \u{1b}[2J")), format!("{of}up: a \\u{{1b}}[2J  (the daemon)"));
}

#[test]
fn who_asked_for_a_roll_and_which_it_is() {
    let (to, was) = (Some("v2".to_owned()), Some("v1".to_owned()));
    let mut begun = entry("uid 0 (pid 1)", Change::RollBegun { to, was, workers: 4, batches: 1 });
    (begun.worker, begun.roll) = (None, Some("web-1".to_owned()));
    let said = "web  roll begins: v1 -> v2, 4 workers in 1 batch  (uid 0 (pid 1); roll web-1)";
    assert!(line(&begun).ends_with(said), "{}", line(&begun));
}

#[test]
fn a_service_says_what_is_another() {
    let was = Configured {
        mode: "observe".to_owned(),
        policy: "steer".to_owned(),
        min_up: 1,
        address: None,
        workers: "127.0.0.1:8000-8003".to_owned(),
        spares: String::new(),
        second: String::new(),
    };
    let now = Configured { mode: "enforce".to_owned(), spares: "127.0.0.1:9000".to_owned(), ..was.clone() };
    let change = |now: Option<&Configured>, was: Option<&Configured>| {
        shown(Change::Service { now: now.cloned().map(Box::new), was: was.cloned().map(Box::new) })
    };
    let new = "configured: mode observe, policy steer, min_up 1, workers 127.0.0.1:8000-8003  (";
    assert!(change(Some(&was), None).contains(new));
    let other = "configured: mode observe -> enforce, spares none -> 127.0.0.1:9000  (";
    assert!(change(Some(&now), Some(&was)).contains(other), "{}", change(Some(&now), Some(&was)));
    assert!(change(None, Some(&was)).contains("no longer configured"));
}

#[test]
fn every_change_of_a_deploy_is_a_line() {
    let (at_ms, lane, text) = (1_785_414_896_789, 3, || "it".to_owned());
    let at = "2026-07-30 12:34:56.789Z";
    let begun = |was: Option<String>| Change::RollBegun { to: Some("v2".to_owned()), was, workers: 0, batches: 0 };
    for (change, said) in [
        (begun(Some("v1".to_owned())), "deploy begins: v1 -> v2  ("),
        (begun(None), "deploy begins: to v2  ("),
        (Change::Gate { error: None }, "gate passed  ("),
        (Change::Gate { error: Some(text()) }, "gate did not pass: it  ("),
        (Change::BarrierAwaited { barrier: text() }, "waits for the barrier it  ("),
        (Change::BarrierPassed, "barrier passed  ("),
        (Change::FlipArmed { at_ms, lane }, &format!("flip to lane 3 armed for {at}  (")),
        (Change::FlipDisarmed, "flip taken back before its instant  ("),
        (Change::Flipped { at_ms, lane, version: Some(text()) }, &format!("flipped to lane 3 (it) at {at}  (")),
        (Change::Flipped { at_ms, lane, version: None }, &format!("flipped to lane 3 at {at}  (")),
        (Change::FlippedBack { at_ms, lane, why: text() }, &format!("flipped back to lane 3 at {at}: it  (")),
        (Change::DeployIll { why: text() }, "the new version is ill: it  ("),
        (Change::DeployAsked { what: "rollback".to_owned() }, "rollback asked for  ("),
    ] {
        assert!(shown(change.clone()).contains(said), "{}", shown(change));
    }
}

#[test]
fn every_other_change_is_a_line() {
    let text = || "it".to_owned();
    let all = [
        (
            Change::Started { version: "1".to_owned(), pid: 2, was: Some(text()) },
            "daemon 1 (pid 2) has started, after it",
        ),
        (Change::Stopped { version: "1".to_owned(), pid: 2 }, "daemon 1 (pid 2) stops"),
        (Change::Reloaded { error: Some(text()) }, "the former stays: it"),
        (Change::ProcessEnded { text: text(), cut: 1, callers: vec!["him".to_owned()] }, "it; 1 connection cut: him"),
        (Change::LetIn { now: Some(text()), was: None }, "connections go on to it: it"),
        (Change::Bypass { on: true, was: false }, "steered -> bypassed"),
        (Change::Detached, "detached"),
        (Change::RollCommand { which: text(), argv: vec!["ln".to_owned(), "-s".to_owned()], error: None }, "it: ln -s"),
        (Change::RollStopAsked, "stop after the batch"),
        (Change::RollResumed { text: "goes on".to_owned() }, "roll goes on"),
        (
            Change::RollEnded { result: Exit::RolledBack, text: text(), changed: 0, failed: Vec::new(), seconds: 1.25 },
            "roll ends, rolled back, after 1.2s: it",
        ),
        (Change::Trouble { text: text(), on: false }, "no longer: it"),
        (
            Change::SelfTest { result: TestResult::Failed, was: Some(TestResult::Ok), detail: text() },
            "self-test: ok -> FAILED: it",
        ),
        (Change::FleetConnected { coordinator: text() }, "connected to the fleet: it  ("),
        (Change::FleetLost { why: text() }, "no connection to the fleet, what is served stays as it is: it  ("),
        (Change::FleetPhase { epoch: 7, phase: "go".to_owned(), text: text() }, "fleet, epoch 7: go: it  ("),
        (Change::FleetHost { host: "app3".to_owned(), what: "drained".to_owned() }, "fleet: app3 is drained  ("),
        (Change::Lost { lines: 3 }, "3 lines of this history"),
    ];
    for (change, said) in all {
        assert!(shown(change.clone()).contains(said), "{}", shown(change));
    }
}
