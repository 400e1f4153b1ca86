use std::time::Duration;

use super::*;
use crate::framing::verdict::What;

const ACK: u8 = 0x10;
const SYN: u8 = 0x02;
const FIN: u8 = 0x11;
const RST: u8 = 0x04;
const GET: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn pair(caller: &str, worker: &str) -> Pair {
    Pair { caller: at(caller), worker: at(worker) }
}

/// A table, its time, and packets for it.
struct Play {
    table: Table,
    now: Instant,
}

impl Play {
    fn new(workers: &[&str]) -> Self {
        let workers: Vec<SocketAddr> = workers.iter().map(|worker| at(worker)).collect();
        let now = Instant::now();
        Self { table: Table::new(&workers, now), now }
    }

    fn sent(&mut self, from: SocketAddr, to: SocketAddr, numbers: (u32, u32), flags: u8, bytes: &[u8]) {
        self.now += Duration::from_millis(1);
        self.table.take(&Segment::made(from, to, numbers, flags, bytes), self.now);
    }

    /// Opens a connection, and has an exchange on it.
    fn exchange(&mut self, pair: Pair) {
        let (caller, worker) = (pair.caller, pair.worker);
        self.sent(caller, worker, (9, 0), SYN, b"");
        self.sent(worker, caller, (99, 10), SYN | ACK, b"");
        self.sent(caller, worker, (10, 100), ACK, GET);
        self.sent(worker, caller, (100, 10 + GET.len() as u32), ACK, OK);
    }

    fn framing(&self, pair: &Pair) -> Framing {
        self.table.seen(pair).framing
    }
}

fn complete() -> Framing {
    Framing::Complete { asked: 10 + GET.len() as u32, answered: 100 + OK.len() as u32 }
}

#[test]
fn connections_come_and_go() {
    let mut play = Play::new(&["127.0.0.1:8000", "127.0.0.1:8001"]);
    let (one, other) = (pair("127.0.0.1:43210", "127.0.0.1:8000"), pair("127.0.0.1:43211", "127.0.0.1:8000"));
    play.exchange(one);
    play.exchange(other);
    assert_eq!((play.framing(&one), play.framing(&other)), (complete(), complete()));
    let seen = play.table.seen(&one);
    assert_eq!(seen.quiet(play.now), Duration::from_millis(4));
    assert_eq!(play.table.all(one.worker).len(), 2);
    assert!(play.table.all(at("127.0.0.1:8001")).is_empty());
    play.sent(one.caller, one.worker, (10, 100), RST, b"");
    assert_eq!((play.framing(&one), play.framing(&other)), (Framing::Unwatched, complete()));
    play.sent(other.caller, other.worker, (10, 100), FIN, b"");
    assert_eq!(play.framing(&other), Framing::Pending(What::Closing));
    play.sent(other.worker, other.caller, (100, 11), FIN, b"");
    play.sent(other.worker, other.caller, (100, 11), FIN, b"");
    assert!(play.table.connections.is_empty() && play.table.kept == 0);
}

#[test]
fn strangers_are_not_entered() {
    let mut play = Play::new(&["10.0.0.1:8000"]);
    let stranger = pair("10.0.0.2:43210", "10.0.0.3:8000");
    play.exchange(stranger);
    assert!(play.table.connections.is_empty());
    // A worker on every address has its port at all of the host's.
    for worker in ["127.0.0.1:8000", "[::1]:8000"] {
        let own = pair("127.0.0.1:43210", worker);
        play.exchange(own);
        assert_eq!(play.framing(&own), complete());
    }
    assert_eq!(play.table.all(at("10.0.0.1:8000")).len(), 2);
}

/// One worker calls another from a port that is a worker's, too.
#[test]
fn who_calls_is_told_by_the_hello() {
    let mut play = Play::new(&["127.0.0.1:8000", "127.0.0.1:8001"]);
    let pair = pair("127.0.0.2:8001", "127.0.0.1:8000");
    let since = play.table.since;
    play.sent(pair.caller, pair.worker, (10, 100), ACK, GET);
    assert_eq!(play.framing(&pair), Framing::Unwatched);
    assert!(play.table.since > since, "something has passed unseen");
    play.exchange(pair);
    assert_eq!(play.framing(&pair), complete());
}

#[test]
fn what_is_missed_leaves_what_is_complete() {
    let mut play = Play::new(&["127.0.0.1:8000"]);
    let (whole, half) = (pair("127.0.0.1:43210", "127.0.0.1:8000"), pair("127.0.0.1:43211", "127.0.0.1:8000"));
    play.exchange(whole);
    play.exchange(half);
    play.sent(half.caller, half.worker, (10 + GET.len() as u32, 100 + OK.len() as u32), ACK, b"GET /half");
    assert_eq!(play.table.kept, 9);
    play.table.miss(play.now);
    assert_eq!(play.framing(&whole), complete());
    assert_eq!((play.framing(&half), play.table.kept), (Framing::Unknown(Why::Missed), 0));
    assert_eq!(play.table.seen(&whole).quiet(play.now), Duration::ZERO);
}

#[test]
fn a_full_table_says_that_it_is_blind() {
    let mut play = Play::new(&["127.0.0.1:8000"]);
    let number = |n: usize| SocketAddr::from(([127, 1, (n >> 8) as u8, n as u8], 43210 + (n >> 16) as u16));
    let worker = at("127.0.0.1:8000");
    for n in 0..MOST_CONNECTIONS {
        play.sent(number(n), worker, (9, 0), SYN, b"");
    }
    let since = play.table.since;
    let last = Pair { caller: number(MOST_CONNECTIONS), worker };
    play.exchange(last);
    assert_eq!((play.framing(&last), play.table.connections.len()), (Framing::Unwatched, MOST_CONNECTIONS));
    assert!(play.table.seen(&last).since > since && play.table.seen(&last).since == play.now);
}

/// Half a head on each of many connections.
#[test]
fn what_is_kept_has_a_limit() {
    let mut play = Play::new(&["127.0.0.1:8000"]);
    let head = [b"GET / HTTP/1.1\r\nA: ".as_slice(), &[b'x'; 60_000]].concat();
    let mut last = Framing::Unwatched;
    for n in 0..1200_u16 {
        let pair = Pair { caller: SocketAddr::from(([127, 0, 0, 1], 10_000 + n)), worker: at("127.0.0.1:8000") };
        play.exchange(pair);
        play.sent(pair.caller, pair.worker, (10 + GET.len() as u32, 100 + OK.len() as u32), ACK, &head);
        last = play.framing(&pair);
    }
    assert_eq!(last, Framing::Unknown(Why::NoRoom));
    assert!(play.table.kept <= MOST_KEPT);
}
