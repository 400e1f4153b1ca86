use std::{
    io::Write,
    ops::ControlFlow,
    sync::{Arc, Mutex},
};

use tokio::task::JoinSet;

use super::{
    super::client::Received, super::pump::Heard, super::roll::*, super::signals::Asked, super::view::*, client::Daemon,
    *,
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
    fn event(&mut self, received: &Received) -> io::Result<()> {
        self.note(&received.line);
        self.broken.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn note(&mut self, text: &str) {
        self.shown.lock().unwrap().push(text.to_owned());
    }
}

fn following(screen: &Screen, client: Client) -> Follow {
    let (view, roll) = (Box::new(screen.clone()), "web-1".to_owned());
    let patience = std::time::Duration::from_secs(1);
    Follow {
        client,
        roll,
        view,
        stops: JoinSet::new(),
        interrupted: false,
        until_returned: false,
        unheard: false,
        gone: None,
        patience,
    }
}

fn nowhere(screen: &Screen) -> Follow {
    following(screen, Client::new("/nonexistent/sock".into()))
}

fn step(what: What) -> Step {
    Step::Heard(Heard::Event(Received { line: "an event".to_owned(), event: event(0, what) }))
}

fn end(flow: ControlFlow<Result<Exit, Failure>>) -> Option<Result<Exit, Exit>> {
    flow.break_value().map(|end| end.map_err(|failure| failure.exit))
}

#[test]
fn the_roll_says_how_it_ends() {
    let screen = Screen::default();
    let mut follow = nowhere(&screen);
    assert_eq!(end(follow.apply(step(begun()))), None);
    assert_eq!(end(follow.apply(Step::Tick)), None);
    assert_eq!(end(follow.apply(step(finished(Exit::RolledBack, "", 0, &[])))), Some(Ok(Exit::RolledBack)));
    assert_eq!(screen.text(), "an event\nan event");
}

#[test]
fn a_rollback_shows_what_comes_of_it() {
    let screen = Screen::default();
    let mut follow = nowhere(&screen);
    follow.until_returned = true;
    let asked = |what: &str| What::Asked { by: "uid 0".to_owned(), what: what.to_owned() };
    let returned = What::Returned { at_ms: 2, lane: 1, why: String::new(), until_ms: 3 };
    for what in [begun(), asked("flip"), What::Gate { error: None }, asked("rollback")] {
        assert_eq!(end(follow.apply(step(what))), None);
    }
    assert_eq!(end(follow.apply(step(returned))), Some(Ok(Exit::Done)));
    assert_eq!(screen.text(), "an event\nan event");
}

#[tokio::test]
async fn a_lost_daemon_is_no_daemon() {
    let screen = Screen::default();
    let mut follow = nowhere(&screen);
    follow.patience = std::time::Duration::ZERO;
    let mut signals = super::super::signals::Signals::catch().unwrap();
    let end = follow.follow(&mut signals).await.unwrap_err();
    assert_eq!(end.exit, Exit::NoDaemon);
    assert!(end.message.contains("went away") && end.message.contains("`deployer status`"), "{end}");
    assert_eq!(screen.text(), "the daemon has gone; waiting for it to come back");
}

#[test]
fn whoever_leaves_is_told_nothing() {
    let screen = Screen::default();
    assert_eq!(end(nowhere(&screen).apply(Step::Signal(Asked::Leave))), Some(Ok(Exit::Incomplete)));
    assert_eq!(screen.text(), "");

    let screen = Screen { broken: Some(io::ErrorKind::BrokenPipe), ..Screen::default() };
    assert_eq!(end(nowhere(&screen).apply(step(begun()))), Some(Ok(Exit::Incomplete)));
    // The end is known, whoever sees it.
    assert_eq!(end(nowhere(&screen).apply(step(finished(Exit::Done, "", 0, &[])))), Some(Ok(Exit::Done)));

    let screen = Screen { broken: Some(io::ErrorKind::StorageFull), ..Screen::default() };
    assert_eq!(end(nowhere(&screen).apply(step(begun()))), Some(Err(Exit::Incomplete)));
}

#[tokio::test]
async fn the_first_interrupt_stops_and_the_second_detaches() {
    let body = r#"{"done":"stopping"}"#;
    let daemon = Daemon::that_says(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    let screen = Screen::default();
    let mut follow = following(&screen, daemon.client());
    assert_eq!(end(follow.apply(Step::Signal(Asked::Interrupt))), None);
    let answer = follow.stops.join_next().await.unwrap().unwrap();
    assert!(answer.is_ok(), "{answer:?}");
    assert_eq!(end(follow.apply(Step::StopAnswered(answer))), None);
    assert_eq!(screen.text(), "stopping after the batch in hand; press Ctrl-C again to detach");
    assert_eq!(end(follow.apply(Step::Signal(Asked::Interrupt))), Some(Ok(Exit::Incomplete)));
    assert!(screen.text().ends_with("the roll goes on in the daemon, `deployer status` shows it"));
}

#[tokio::test]
async fn a_stop_that_is_not_heard_is_said() {
    let screen = Screen::default();
    let mut follow = nowhere(&screen);
    assert_eq!(end(follow.apply(Step::Signal(Asked::Interrupt))), None);
    let answer = follow.stops.join_next().await.unwrap().unwrap();
    assert_eq!(end(follow.apply(Step::StopAnswered(answer))), None);
    assert!(screen.text().contains("it will be when it is back"), "{}", screen.text());
}

/// A pipe whose reader has gone.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn views_write_lines_and_report_a_closed_pipe() {
    let received = Received { line: "{\"a\":1}".to_owned(), event: event(2000, begun()) };
    let (mut json, mut text) = (Vec::new(), Vec::new());
    Json(&mut json).event(&received).unwrap();
    assert_eq!(json, b"{\"a\":1}\n");
    let mut plain = Plain { to: &mut text, begun_ms: None };
    plain.event(&received).unwrap();
    plain.event(&Received { event: event(5200, phase(Phase::Up, Phase::Draining, "")), ..received.clone() }).unwrap();
    assert!(String::from_utf8(text).unwrap().ends_with("\n  3.2s 127.0.0.1:8003 up -> draining\n"));
    for view in [&mut Json(Closed) as &mut dyn View, &mut Plain { to: Closed, begun_ms: None }] {
        assert_eq!(view.event(&received).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
