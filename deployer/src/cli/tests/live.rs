use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use indicatif::ProgressStyle;

use super::{super::board::Board, super::client::Received, super::terminal::Terminal, super::view::*, *};

fn batch(back: bool) -> What {
    What::Batch { nth: 1, of: 2, workers: vec![AT.parse().unwrap()], back }
}

/// A worker's way, a second a step.
fn way(board: &mut Board, steps: &[Phase], last: &str) -> Option<String> {
    let mut shown = None;
    for (at, pair) in (0..).zip(steps.windows(2)) {
        assert_eq!(shown, None, "only the end leaves a line");
        let reason = if at + 2 == steps.len() as u64 { last } else { "" };
        shown = board.apply(&event(1000 * at, phase(pair[0], pair[1], reason)));
    }
    shown
}

const THROUGH: [Phase; 8] = [
    Phase::Up,
    Phase::Draining,
    Phase::Drained,
    Phase::Stopping,
    Phase::Starting,
    Phase::Listening,
    Phase::Warming,
    Phase::Up,
];

fn board() -> Board {
    let mut board = Board::default();
    board.apply(&event(0, begun()));
    assert_eq!(board.apply(&event(0, batch(false))), None);
    board
}

#[test]
fn a_worker_that_is_through_leaves_a_line() {
    let mut board = board();
    assert_eq!((board.total, board.done(), board.rows.len()), (2, 0, 1));
    let line = way(&mut board, &THROUGH, "v2");
    assert_eq!(line.as_deref(), Some("✓ 127.0.0.1:8003  v2  drained 1.0 s, up after 6.0 s"));
    assert_eq!((board.done(), board.rows.len()), (1, 0));
    assert_eq!(board.message(), "batch 1 of 2");

    // Rolled back, it no longer counts.
    board.apply(&event(0, batch(true)));
    assert!(way(&mut board, &THROUGH, "v1").is_some());
    assert_eq!((board.done(), board.message()), (0, "rolling back: batch 1 of 2".to_owned()));
}

#[test]
fn a_worker_that_fails_leaves_its_reason() {
    let mut board = board();
    let line = way(&mut board, &[Phase::Up, Phase::Draining, Phase::Starting, Phase::Failed], "GET /: \u{7}500");
    assert_eq!(line.as_deref(), Some("✗ 127.0.0.1:8003  GET /: \\u{7}500"));
    assert_eq!((board.done(), board.message()), (0, "batch 1 of 2, 1 failed".to_owned()));
}

#[test]
fn a_worker_that_was_not_stopped_did_not_change() {
    let mut board = board();
    let line = way(&mut board, &[Phase::Up, Phase::Draining, Phase::Up], "deadline");
    assert_eq!(line.as_deref(), Some("- 127.0.0.1:8003  unchanged, back in rotation after 1.0 s: deadline"));
    assert_eq!((board.done(), board.rows.len()), (0, 0));
}

#[test]
fn a_spare_comes_and_goes_and_does_not_count() {
    let mut board = board();
    let spares = vec![AT.parse().unwrap()];
    board.apply(&event(0, What::Surge { spares: spares.clone() }));
    assert_eq!((board.message(), board.rows.len()), ("starting spares".to_owned(), 1));
    assert_eq!(board.apply(&event(0, spare(Phase::Down, Phase::Starting))), None);
    let up = board.apply(&event(0, spare(Phase::Warming, Phase::Up)));
    assert_eq!(up.as_deref(), Some("✓ spare 127.0.0.1:8003"));
    assert_eq!((board.total, board.done(), board.rows.len()), (2, 0, 0));
    board.apply(&event(0, What::Retire { spares }));
    assert_eq!(board.apply(&event(0, spare(Phase::Up, Phase::Draining))), None);
    assert_eq!(board.apply(&event(500, spare(Phase::Draining, Phase::Drained))), None);
    let gone = board.apply(&event(900, spare(Phase::Stopping, Phase::Down)));
    assert_eq!(gone.as_deref(), Some("- spare 127.0.0.1:8003  retired, drained 0.5 s"));
    assert_eq!((board.done(), board.rows.len()), (0, 0));
    board.apply(&event(0, spare(Phase::Warming, Phase::Failed)));
    assert_eq!(board.message(), "retiring spares");
}

#[test]
fn a_row_shows_what_holds_a_drain() {
    let mut board = board();
    let worker = AT.parse().unwrap();
    assert_eq!(board.rows[&worker].text(), "waiting    ");
    board.apply(&event(0, phase(Phase::Up, Phase::Draining, "")));
    board.apply(&event(
        0,
        What::Held { worker, spare: false, open: 1, tickets: 0, by: vec!["nginx".to_owned()], floor: None },
    ));
    assert_eq!(board.rows[&worker].text(), "draining   1 open: nginx");
}

/// A terminal that keeps what is drawn until it breaks.
#[derive(Debug, Clone, Default)]
struct Drawn {
    text: Arc<Mutex<Vec<u8>>>,
    broken: bool,
}

impl Write for Drawn {
    fn write(&mut self, drawn: &[u8]) -> io::Result<usize> {
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.text.lock().unwrap().write(drawn)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn shown(what: What) -> Received {
    Received { line: String::new(), event: event(0, what) }
}

#[test]
fn a_roll_is_drawn() {
    for template in TEMPLATES {
        assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
    }
    let drawn = Drawn::default();
    let mut live = Live::new(Terminal::new(drawn.clone()));
    let steps = THROUGH.windows(2).map(|pair| phase(pair[0], pair[1], ""));
    let end = finished(Exit::Done, "web runs v2", 1, &[]);
    for what in [begun(), batch(false)].into_iter().chain(steps).chain([end]) {
        live.event(&shown(what)).unwrap();
        live.tick();
    }
    live.note("a note");
    drop(live);
    let text = String::from_utf8(drawn.text.lock().unwrap().clone()).unwrap();
    for line in ["web: rolling 2 workers", "1/2 workers", "✓ 127.0.0.1:8003", ": web runs v2", "a note"] {
        assert!(text.contains(line), "{line} is not in {text:?}");
    }
}

#[test]
fn a_lost_terminal_is_an_error() {
    let mut live = Live::new(Terminal::new(Drawn { broken: true, ..Drawn::default() }));
    let error = live.event(&shown(begun())).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    live.tick();
}

#[test]
fn who_is_left_goes_on_draining() {
    let mut board = Board::default();
    let at: std::net::SocketAddr = AT.parse().unwrap();
    board.apply(&event(0, begun()));
    board.apply(&event(0, What::Batch { nth: 1, of: 2, workers: vec![at], back: false }));
    board.apply(&event(0, phase(Phase::Up, Phase::Draining, "")));
    let why = format!("{AT}: not empty after 2 s: 1 connection (bash\t)");
    let line = board.apply(&event(2000, What::Left { worker: at, why }));
    assert_eq!(line.unwrap(), format!("… {AT}  left after 2.0 s: not empty after 2 s: 1 connection (bash\\t)"));
    let again = What::Again { workers: vec![at], back: false, seconds: 3600.0 };
    let line = board.apply(&event(3000, again));
    assert_eq!(line.unwrap(), format!("waiting for those that were left, at most 1h00m: {AT}"));
    assert_eq!(board.rows[&at].text(), "draining   ");
    let line = board.apply(&event(4000, phase(Phase::Draining, Phase::Up, "busy")));
    assert_eq!(line.unwrap(), format!("- {AT}  unchanged, back in rotation: busy"));
}

/// A deploy, of one worker in each pool.
#[test]
fn a_deploy_is_shown_batch_by_batch() {
    let (new, old) = (AT.parse().unwrap(), "127.0.0.1:8000".parse().unwrap());
    let mut board = Board::default();
    let (service, by) = ("web".to_owned(), "root".to_owned());
    let begun = What::Begun { service, to: Some("v2".to_owned()), by, batches: Vec::new(), spares: vec![new] };
    assert!(board.apply(&event(0, begun)).unwrap().contains("deploying v2"));
    assert_eq!(board.total, 1);
    assert_eq!(
        board.apply(&event(0, What::Pool { pool: "b".to_owned(), lane: 3 })).unwrap(),
        "starting pool b as lane 3"
    );
    board.apply(&event(0, What::Batch { nth: 1, of: 1, workers: vec![new], back: false }));
    let line = way(&mut board, &[Phase::Down, Phase::Starting, Phase::Warming, Phase::Up], "v2");
    assert_eq!(line.as_deref(), Some("✓ 127.0.0.1:8003  v2"));
    assert_eq!((board.done(), board.message().as_str()), (1, "batch 1 of 1"));
    let (at_ms, until_ms, lane) = (5, 5, 3);
    let text = || "it".to_owned();
    for what in [
        What::Gate { error: None },
        What::Holding,
        What::Asked { by: text(), what: text() },
        What::Armed { at_ms, lane },
        What::Disarmed,
        What::Flipped { at_ms, lane, version: None, until_ms },
        What::Returned { at_ms, lane, why: text(), until_ms },
    ] {
        assert_eq!(board.apply(&event(0, what.clone())), Some(super::super::lines::text(&what)));
    }
    assert_eq!(board.apply(&event(0, What::RetirePool { workers: vec![old] })), None);
    assert_eq!((board.message().as_str(), board.rows.len()), ("retiring the other pool", 1));
    let mut shown = None;
    for (at, pair) in [Phase::Up, Phase::Draining, Phase::Drained, Phase::Stopping, Phase::Down].windows(2).enumerate()
    {
        let (was, phase) = (pair[0], pair[1]);
        let reason = String::new();
        shown = board.apply(&event(1000 * at as u64, What::Phase { worker: old, spare: false, phase, was, reason }));
    }
    assert_eq!(shown.as_deref(), Some("- 127.0.0.1:8000  retired, drained 1.0 s"));
    assert_eq!((board.done(), board.rows.len()), (1, 0), "it does not count");
}
