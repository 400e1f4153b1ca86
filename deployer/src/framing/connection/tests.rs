//! Arbitrary exchanges, cut, sent again, out of order, missed: complete where it is, and nowhere else.

mod model;

use proptest::prelude::*;

use self::model::{Plan, Sent, disturbed, plan};
use super::*;

const ACK: u8 = 0x10;
const SYN: u8 = 0x02;
const FIN: u8 = 0x01;
const START: [u32; 2] = [u32::MAX - 100, 77];

/// A segment of these bytes; `numbers` count from the first byte of each direction.
fn segment(from: From, numbers: (usize, usize), flags: u8, payload: &[u8]) -> Segment<'_> {
    let (caller, worker) = ("127.0.0.1:43210".parse().unwrap(), "127.0.0.1:8000".parse().unwrap());
    let start = |end: From| after(START[end as usize], 1);
    match from {
        From::Caller => {
            let numbers = (after(start(From::Caller), numbers.0), after(start(From::Worker), numbers.1));
            Segment::made(caller, worker, numbers, flags, payload)
        }
        From::Worker => {
            let numbers = (after(start(From::Worker), numbers.0), after(start(From::Caller), numbers.1));
            Segment::made(worker, caller, numbers, flags, payload)
        }
    }
}

fn opened() -> Connection {
    let mut connection = Connection::older(Why::Older);
    let before = usize::MAX;
    connection.take(From::Caller, &segment(From::Caller, (before, before), SYN, b""));
    assert_eq!(connection.framing(), Framing::Pending(What::Opening));
    connection.take(From::Worker, &segment(From::Worker, (before, 0), SYN | ACK, b""));
    connection
}

/// The boundary that a connection says it is at, counted from the first bytes.
fn boundary(connection: &Connection) -> Option<(usize, usize)> {
    match connection.framing() {
        Framing::Complete { asked, answered } | Framing::Unused { asked, answered } => {
            let from_start = |number: u32, end: From| number.wrapping_sub(after(START[end as usize], 1)) as usize;
            Some((from_start(asked, From::Caller), from_start(answered, From::Worker)))
        }
        _ => None,
    }
}

fn take(connection: &mut Connection, sent: &Sent, plan: &Plan) {
    let bytes = plan.bytes(sent);
    connection.take(sent.from, &segment(sent.from, (sent.at, sent.ack), ACK, bytes));
}

/// Plays packets to a connection that is followed from its beginning: it is at a boundary exactly when it is.
fn follow(plan: &Plan, packets: &[Sent]) -> Result<(), TestCaseError> {
    let mut connection = opened();
    let mut seen = model::Seen::default();
    prop_assert_eq!(boundary(&connection), Some((0, 0)));
    for sent in packets {
        take(&mut connection, sent, plan);
        let truth = seen.take(sent);
        let at = plan.boundaries.contains(&truth).then_some(truth);
        prop_assert_eq!(boundary(&connection), at, "after {:?}: {:?}", sent, connection.framing());
    }
    Ok(())
}

/// Plays packets to a connection that is there already: wherever it says that it is at a boundary, there is one.
fn join(plan: &Plan, packets: &[Sent], missed: &[usize]) -> Result<(), TestCaseError> {
    let mut connection = Connection::older(Why::Older);
    for (n, sent) in packets.iter().enumerate() {
        if missed.contains(&n) {
            continue;
        }
        // Of some that are missed the kernel tells, and late.
        if n > 1 && missed.contains(&(n - 2)) && n % 2 == 0 {
            connection.miss();
        }
        take(&mut connection, sent, plan);
        if let Some(at) = boundary(&connection) {
            prop_assert!(plan.boundaries.contains(&at), "after {:?}: {:?}", sent, connection.framing());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn one_after_the_other(plan in plan(), noise: [u8; 32]) {
        let packets = plan.in_turn(&noise);
        follow(&plan, &disturbed(&packets, &noise))?;
    }

    #[test]
    fn several_at_once_and_answers_that_come_early(plan in plan(), order: [bool; 64], noise: [u8; 32]) {
        let packets = plan.mixed(&order, &noise);
        follow(&plan, &disturbed(&packets, &noise))?;
    }

    #[test]
    fn joined_anywhere(plan in plan(), noise: [u8; 32], from in 0..60_usize) {
        let packets = disturbed(&plan.in_turn(&noise), &noise);
        join(&plan, packets.get(from..).unwrap_or_default(), &[])?;
    }

    #[test]
    fn with_packets_missed(plan in plan(), noise: [u8; 32], from in 0..9_usize, missed in prop::collection::vec(0..40_usize, 1..6)) {
        let packets = disturbed(&plan.in_turn(&noise), &noise);
        join(&plan, packets.get(from..).unwrap_or_default(), &missed)?;
    }

    /// In whole messages it is found at the second exchange, and followed from then on.
    #[test]
    fn is_found_again(plan in plan()) {
        let packets = plan.whole();
        let mut connection = Connection::older(Why::Older);
        let mut seen = model::Seen::default();
        let mut found = false;
        for (n, sent) in packets.iter().enumerate() {
            let truth = seen.take(sent);
            take(&mut connection, sent, &plan);
            // An answer that begins with another's announcement is taken for that.
            let is_last_word = |sent: &Sent| sent.from == From::Worker && !plan.bytes(sent).starts_with(b"HTTP/1.1 1");
            found |= n > 0 && sent.from == From::Caller && is_last_word(&packets[n - 1]);
            if found && plan.boundaries.contains(&truth) {
                prop_assert_eq!(boundary(&connection), Some(truth));
            }
        }
    }

    #[test]
    fn garbage_is_never_complete(pieces in prop::collection::vec((any::<bool>(), any::<Vec<u8>>()), 1..20), fresh: bool) {
        let mut connection = if fresh { opened() } else { Connection::older(Why::Older) };
        let mut at = [0, 0];
        for (is_caller, bytes) in &pieces {
            let (from, other) = if *is_caller { (From::Caller, From::Worker) } else { (From::Worker, From::Caller) };
            connection.take(from, &segment(from, (at[from as usize], at[other as usize]), ACK, bytes));
            at[from as usize] += bytes.len();
            let is_complete = matches!(connection.framing(), Framing::Complete { .. });
            prop_assert!(!is_complete, "{:?}", connection);
        }
    }
}

/// Plays texts of the caller (`>`) and the worker (`<`), acknowledged at once, and how it stands after each.
fn play(connection: &mut Connection, at: &mut [usize; 2], steps: &[(char, &str, Framing)]) {
    for (who, text, expected) in steps {
        let (from, other) = if *who == '>' { (From::Caller, From::Worker) } else { (From::Worker, From::Caller) };
        let numbers = (at[from as usize], at[other as usize]);
        connection.take(from, &segment(from, numbers, ACK, text.as_bytes()));
        at[from as usize] += text.len();
        let shown = match connection.framing() {
            Framing::Complete { .. } => Framing::Complete { asked: 0, answered: 0 },
            framing => framing,
        };
        assert_eq!(shown, *expected, "after {who} {text:?}");
    }
}

const GET: &str = "GET / HTTP/1.1\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const OLDER: Framing = Framing::Unknown(Why::Older);
const COMPLETE: Framing = Framing::Complete { asked: 0, answered: 0 };
const ASKED: Framing = Framing::Pending(What::Asked);

#[test]
fn an_older_one_is_known_at_its_next_request() {
    let (mut connection, mut at) = (Connection::older(Why::Older), [1000, 1000]);
    let steps = [('<', "half an answer", OLDER), ('<', "the rest", OLDER), ('>', GET, ASKED), ('<', OK, COMPLETE)];
    play(&mut connection, &mut at, &steps);
}

/// What looks like a request and its answer is enough to tell it from a stream; nothing else is.
#[test]
fn an_older_one_that_is_used_once() {
    let once = Framing::Unknown(Why::UsedOnce);
    let event_stream = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let cases: &[&[(char, &str, Framing)]] = &[
        &[('>', GET, OLDER), ('<', "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", OLDER), ('<', "k", once)],
        &[('>', GET, OLDER), ('<', OK, once), ('>', GET, ASKED), ('<', OK, COMPLETE)],
        &[('>', GET, OLDER), ('<', OK, once), ('<', "more", OLDER), ('>', GET, ASKED)],
        &[('>', GET, OLDER), ('<', event_stream, OLDER), ('<', "1\r\nx\r\n", OLDER)],
        &[('>', "no request", OLDER), ('<', OK, OLDER)],
        &[('<', "rest", OLDER)],
        &[('<', OK, once), ('>', GET, ASKED)],
        // To HEAD, perhaps.
        &[('<', "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", OLDER)],
        &[('<', event_stream, OLDER), ('<', "1\r\nx\r\n", OLDER)],
        &[('>', GET, OLDER), ('<', "HTTP/1.1 100 Continue\r\n\r\n", OLDER)],
    ];
    for steps in cases {
        play(&mut Connection::older(Why::Older), &mut [1000, 1000], steps);
    }
    let mut connection = Connection::older(Why::Older);
    play(&mut connection, &mut [1000, 1000], &[('>', GET, OLDER), ('<', OK, once)]);
    connection.miss();
    assert_eq!(connection.framing(), OLDER);
}

#[test]
fn tls_is_known_from_its_first_bytes_or_its_records() {
    let tls = Framing::Stream(Kind::Tls);
    let (hello, record) = ("\u{16}\u{3}\u{1}\u{0}\u{5}\u{1}rest of it", "\u{17}\u{3}\u{3}\u{0}\u{2}ab");
    play(&mut opened(), &mut [0, 0], &[('>', hello, tls), ('<', "anything", tls), ('>', GET, tls)]);
    play(
        &mut opened(),
        &mut [0, 0],
        &[('>', GET, ASKED), ('<', OK, COMPLETE), ('>', hello, Framing::Unknown(Why::NotRequest))],
    );
    let older = || Connection::older(Why::Older);
    play(&mut older(), &mut [1000, 1000], &[('<', "middle", OLDER), ('>', record, tls), ('<', "middle", tls)]);
    play(&mut older(), &mut [1000, 1000], &[('<', record, tls)]);
    play(
        &mut older(),
        &mut [1000, 1000],
        &[('<', &record[..6], OLDER), ('>', GET, ASKED), ('<', record, Framing::Unknown(Why::NotAnswer))],
    );
}

#[test]
fn what_is_no_boundary() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\n";
    let (unasked, odd) = (Framing::Unknown(Why::NotAnswer), Framing::Unknown(Why::NotRequest));
    let cases: &[&[(char, &str, Framing)]] = &[
        // The body of a request that nobody has seen, though it looks like one.
        &[('>', GET, OLDER), ('>', GET, OLDER)],
        &[('<', interim, OLDER), ('>', GET, OLDER)],
        // WebSocket, TLS, HTTP/2.
        &[('<', "\u{1}x", OLDER), ('>', "\u{2}y", OLDER), ('<', "z", OLDER)],
        &[('<', "x", OLDER), ('>', "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", OLDER)],
        // A second request before the first is answered: then comes the rest of another answer.
        &[('<', "x", OLDER), ('>', GET, ASKED), ('<', "y", unasked), ('>', "?", unasked), ('>', GET, unasked)],
        &[
            ('<', "x", OLDER),
            ('>', GET, ASKED),
            ('<', OK, COMPLETE),
            ('>', "\r\n", odd),
            ('<', "x", odd),
            ('>', GET, odd),
        ],
    ];
    for steps in cases {
        play(&mut Connection::older(Why::Older), &mut [1000, 1000], steps);
    }
}

#[test]
fn what_ends_and_what_comes_anew() {
    let mut connection = opened();
    let mut at = [0, 0];
    play(&mut connection, &mut at, &[('>', GET, ASKED), ('<', OK, COMPLETE)]);
    // The same hello again, late.
    connection.take(From::Caller, &segment(From::Caller, (usize::MAX, 0), SYN, b""));
    assert!(matches!(connection.framing(), Framing::Complete { .. }));
    connection.take(From::Worker, &segment(From::Worker, (at[1], at[0]), FIN | ACK, b""));
    assert_eq!(connection.framing(), Framing::Pending(What::Closing));
    connection.take(From::Caller, &segment(From::Caller, (at[0], at[1] + 1), FIN | ACK, b""));
    assert!(connection.is_over());
    connection.take(From::Caller, &segment(From::Caller, (5_000_000, 0), SYN, b""));
    assert_eq!(connection.framing(), Framing::Pending(What::Opening));
}

#[test]
fn odd_segments_are_not_followed() {
    let multipath = Segment { multipath: true, ..segment(From::Caller, (0, 0), ACK, GET.as_bytes()) };
    let cut = Segment { is_cut: true, ..segment(From::Caller, (0, 0), ACK, GET.as_bytes()) };
    let urgent = segment(From::Caller, (0, 0), ACK | 0x20, GET.as_bytes());
    // It acknowledges what was not seen.
    let beyond = segment(From::Caller, (0, 1), ACK, GET.as_bytes());
    for (odd, why) in [(multipath, Why::Multipath), (cut, Why::Missed), (urgent, Why::Urgent), (beyond, Why::Missed)] {
        let mut connection = opened();
        connection.take(From::Caller, &odd);
        assert_eq!(connection.framing(), Framing::Unknown(why));
    }
}
