use std::{
    io,
    ops::ControlFlow,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{
    super::{
        follow::{End, Follow, Goal, Step},
        lines::Teller,
        view::{Json, Plain, View},
    },
    *,
};
use crate::{
    api::Exit,
    cli::{
        client::{Client, Failure},
        signals::Asked,
    },
    fleet::state::Wanted,
};

/// Notes what is shown; fails as told.
#[derive(Debug, Clone, Default)]
struct Screen {
    shown: Arc<Mutex<Vec<String>>>,
    broken: Option<io::ErrorKind>,
}

impl Screen {
    fn text(&self) -> String {
        self.shown.lock().unwrap().join("\n")
    }
}

impl View for Screen {
    fn seen(&mut self, seen: &Seen) -> io::Result<()> {
        self.note(&format!("{:?}", seen.service.state.phase));
        self.broken.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn note(&mut self, text: &str) {
        self.shown.lock().unwrap().push(text.to_owned());
    }
}

fn following(screen: &Screen, goal: Goal) -> Follow {
    Follow {
        client: Client::new("/nonexistent/sock".into()),
        service: "web".to_owned(),
        epoch: 7,
        goal,
        view: Box::new(screen.clone()),
        is_wanted: false,
        gone: None,
        patience: Duration::from_secs(60),
    }
}

fn step(state: FleetState) -> Step {
    Step::Seen(Box::new(seen(service(state))))
}

fn end(flow: End) -> Option<Result<Exit, Exit>> {
    flow.break_value().map(|end| end.map_err(|failure: Failure| failure.exit))
}

/// What following says to an outcome.
fn ends(goal: Goal, state: FleetState) -> Option<Result<Exit, Exit>> {
    end(following(&Screen::default(), goal).apply(step(state)))
}

#[test]
fn the_outcome_says_how_it_ends() {
    let of = |result, text| ends(Goal::End, over(state(Phase::Idle), result, text)).unwrap().unwrap();
    assert_eq!(of(Ended::Done, ""), Exit::Done);
    assert_eq!(of(Ended::Aborted, "aborted by uid 0; nobody has met the new version"), Exit::Stopped);
    assert_eq!(of(Ended::Aborted, "to be aborted, by uid 0: aborted"), Exit::Stopped);
    assert_eq!(of(Ended::Aborted, "aborted: 4 of 5 hosts are needed"), Exit::Failed);
    assert_eq!(of(Ended::TurnedBack, "rolled back by uid 0"), Exit::RolledBack);
    assert_eq!(of(Ended::Stopped, "stopped by uid 0; 1 of 5 hosts are rolled"), Exit::Stopped);
    assert_eq!(of(Ended::Stopped, "app1: a worker failed; 0 of 5 hosts are rolled"), Exit::Failed);
}

#[test]
fn who_was_seen_to_want_it_ended_it() {
    let mut follow = following(&Screen::default(), Goal::End);
    let wanted = Some(Wanted { by: "uid 0".to_owned() });
    assert_eq!(end(follow.apply(step(FleetState { wanted, ..state(Phase::Prepare) }))), None);
    let ended = over(state(Phase::Idle), Ended::Aborted, "otherwise said");
    assert_eq!(end(follow.apply(step(ended))), Some(Ok(Exit::Stopped)));
}

#[test]
fn an_order_that_is_turned_back_has_the_next_epoch() {
    let mut follow = following(&Screen::default(), Goal::End);
    assert_eq!(end(follow.apply(step(FleetState { epoch: 8, ..state(Phase::Back) }))), None);
    let ended = over(FleetState { epoch: 8, ..state(Phase::Idle) }, Ended::TurnedBack, "");
    assert_eq!(end(follow.apply(step(ended))), Some(Ok(Exit::RolledBack)));
}

#[test]
fn the_outcome_of_another_order_is_not_its_own() {
    let former = over(FleetState { epoch: 6, ..state(Phase::Idle) }, Ended::Done, "").outcome;
    assert_eq!(ends(Goal::End, FleetState { outcome: former.clone(), ..state(Phase::Prepare) }), None);
    // A daemon that has not read it yet.
    assert_eq!(ends(Goal::End, FleetState { epoch: 0, outcome: None, ..state(Phase::Idle) }), None);
    let later = over(FleetState { epoch: 9, ..state(Phase::Idle) }, Ended::Done, "");
    assert_eq!(ends(Goal::End, later), Some(Err(Exit::Incomplete)));
}

#[test]
fn a_rollback_is_done_when_the_former_version_serves() {
    let back = FleetState { epoch: 8, members: named(&["app1", "app2"]), ..state(Phase::Back) };
    let mut now = service(back);
    say(&mut now, Mark::Back, &["app1"]);
    let mut follow = following(&Screen::default(), Goal::Return);
    assert_eq!(end(follow.apply(Step::Seen(Box::new(seen(now.clone()))))), None);
    say(&mut now, Mark::Back, &["app1", "app2"]);
    assert_eq!(end(follow.apply(Step::Seen(Box::new(seen(now))))), Some(Ok(Exit::Done)));
    assert_eq!(ends(Goal::Return, over(state(Phase::Idle), Ended::Aborted, "")), Some(Ok(Exit::Done)));
    assert_eq!(ends(Goal::Return, over(state(Phase::Idle), Ended::Done, "")), Some(Ok(Exit::Failed)));
}

#[test]
fn ctrl_c_detaches_and_says_how_to_go_on() {
    let screen = Screen::default();
    let flow = following(&screen, Goal::End).apply(Step::Signal(Asked::Interrupt));
    assert_eq!(end(flow), Some(Ok(Exit::Incomplete)));
    assert!(
        screen.text().contains("`deployer fleet watch web`") && screen.text().contains("`deployer fleet abort web`")
    );
    assert_eq!(end(following(&screen, Goal::End).apply(Step::Signal(Asked::Leave))), Some(Ok(Exit::Incomplete)));
}

#[test]
fn a_daemon_that_goes_is_waited_for() {
    let (screen, gone) = (Screen::default(), || Step::Gone(Failure::new(Exit::NoDaemon, "no")));
    let mut follow = following(&screen, Goal::End);
    assert_eq!(end(follow.apply(gone())), None);
    assert_eq!(end(follow.apply(gone())), None);
    assert_eq!(end(follow.apply(step(state(Phase::Prepare)))), None);
    let told = "the daemon has gone; waiting for it to come back\nthe daemon is back\nPrepare";
    assert_eq!(screen.text(), told);
    follow.patience = Duration::ZERO;
    let ControlFlow::Break(Err(failure)) = follow.apply(gone()) else { panic!("it is waited for") };
    assert_eq!(failure.exit, Exit::NoDaemon);
    assert!(failure.message.contains("`deployer fleet status web`"), "{failure}");
}

#[test]
fn whoever_leaves_is_told_nothing() {
    for (kind, exit) in
        [(io::ErrorKind::BrokenPipe, Ok(Exit::Incomplete)), (io::ErrorKind::StorageFull, Err(Exit::Incomplete))]
    {
        let screen = Screen { broken: Some(kind), ..Screen::default() };
        assert_eq!(end(following(&screen, Goal::End).apply(step(state(Phase::Prepare)))), Some(exit));
        // The end is known, whoever sees it.
        let ended = over(state(Phase::Idle), Ended::Done, "");
        assert_eq!(end(following(&screen, Goal::End).apply(step(ended))), Some(Ok(Exit::Done)));
    }
}

#[test]
fn views_write_a_line_a_change() {
    let (mut json, mut text) = (Vec::new(), Vec::new());
    let first = seen(service(state(Phase::Prepare)));
    let mut changed = service(state(Phase::Prepare));
    changed.seq = 1;
    let mut view = Json { to: &mut json, last: String::new() };
    for seen in [&first, &first, &seen(changed)] {
        view.seen(seen).unwrap();
    }
    assert_eq!(String::from_utf8(json).unwrap().lines().count(), 2);
    let mut plain = Plain { to: &mut text, teller: Teller::default() };
    plain.seen(&first).unwrap();
    plain.seen(&first).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with("  1.5s PREPARE v2") && text.ends_with("\n  1.5s 0 of 5 ready\n"), "{text}");
}
