//! What is true of a connection: its messages, where each exchange ends, and packets in which they may come.

use std::collections::HashSet;

use proptest::prelude::*;

use super::super::From;

/// The first part of a message, and what its body is made of.
#[derive(Debug, Clone, Copy)]
struct Message {
    head: &'static str,
    how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    None,
    Length,
    Chunked,
}

const fn message(head: &'static str, how: How) -> Message {
    Message { head, how }
}

/// Bodies that look like what they are not.
const NASTY: [&str; 6] = [
    "GET / HTTP/1.1\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "0\r\n\r\n",
    "\r\n",
    "POST / HTTP/1.1\r\nContent-Length: 900\r\n\r\n",
    "plain text",
];

const REQUESTS: [Message; 5] = [
    message("GET /a HTTP/1.1\r\nHost: b\r\n", How::None),
    message("HEAD / HTTP/1.1\r\n", How::None),
    message("POST / HTTP/1.1\r\n", How::Length),
    message("PUT /x HTTP/1.1\r\nA: b\r\n", How::Chunked),
    message("DELETE / HTTP/1.0\r\nConnection: keep-alive\r\n", How::None),
];

const ANSWERS: [Message; 5] = [
    message("HTTP/1.1 200 OK\r\n", How::Length),
    message("HTTP/1.1 500 Oh\r\nServer: x\r\n", How::Chunked),
    message("HTTP/1.1 204 No Content\r\n", How::None),
    message("HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n", How::None),
    message("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.0 200 OK\r\n", How::Length),
];

impl Message {
    /// Its head and its body.
    fn write(&self, parts: &[usize], is_bodiless: bool) -> (Vec<u8>, Vec<u8>) {
        let texts = parts.iter().map(|n| NASTY[n % NASTY.len()]);
        let (field, body) = match self.how {
            How::None => (String::new(), String::new()),
            How::Length => {
                let body: String = texts.collect();
                (format!("Content-Length: {}\r\n", body.len()), body)
            }
            How::Chunked => {
                let chunks: String = texts.map(|text| format!("{:X};ext=1\r\n{text}\r\n", text.len())).collect();
                ("Transfer-Encoding: chunked\r\n".into(), chunks + "0\r\nTrailer: x\r\n\r\n")
            }
        };
        let head = format!("{}{field}\r\n", self.head);
        (head.into_bytes(), if is_bodiless { Vec::new() } else { body.into_bytes() })
    }
}

/// The bytes of both directions, and what is true of them.
#[derive(Debug)]
pub(super) struct Plan {
    streams: [Vec<u8>; 2],
    /// Of each request: where its head ends, and where it ends.
    requests: Vec<(usize, usize)>,
    /// Where each answer ends.
    answers: Vec<usize>,
    /// Where both directions are at a boundary.
    pub(super) boundaries: HashSet<(usize, usize)>,
}

/// A packet of a plan.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) from: From,
    pub(super) at: usize,
    len: usize,
    pub(super) ack: usize,
}

/// Up to eight exchanges.
pub(super) fn plan() -> impl Strategy<Value = Plan> {
    let parts = || prop::collection::vec(0..NASTY.len(), 0..4);
    let exchange = (0..5_usize, parts(), 0..5_usize, parts());
    prop::collection::vec(exchange, 1..8).prop_map(|exchanges| {
        let mut plan = Plan {
            streams: Default::default(),
            requests: Vec::new(),
            answers: Vec::new(),
            boundaries: HashSet::from([(0, 0)]),
        };
        for (request, asked, answer, answered) in exchanges {
            plan.add(REQUESTS[request], &asked, ANSWERS[answer], &answered);
        }
        plan
    })
}

impl Plan {
    fn add(&mut self, request: Message, asked: &[usize], answer: Message, answered: &[usize]) {
        let (head, body) = request.write(asked, false);
        self.streams[0].extend(head);
        let head_end = self.streams[0].len();
        self.streams[0].extend(body);
        self.requests.push((head_end, self.streams[0].len()));
        let (head, body) = answer.write(answered, request.head.starts_with("HEAD"));
        self.streams[1].extend(head);
        self.streams[1].extend(body);
        self.answers.push(self.streams[1].len());
        self.boundaries.insert((self.streams[0].len(), self.streams[1].len()));
    }

    pub(super) fn bytes(&self, sent: &Sent) -> &[u8] {
        &self.streams[sent.from as usize][sent.at..sent.at + sent.len]
    }

    /// Each message as a packet.
    pub(super) fn whole(&self) -> Vec<Sent> {
        self.in_turn(&[u8::MAX; 32])
    }

    /// Each request before its answer, in packets as long as `noise` says.
    pub(super) fn in_turn(&self, noise: &[u8]) -> Vec<Sent> {
        let (mut sent, mut at) = (Vec::new(), [0, 0]);
        for ((_, request), answer) in self.requests.iter().zip(&self.answers) {
            for (from, end) in [(From::Caller, *request), (From::Worker, *answer)] {
                while at[from as usize] < end {
                    send(from, end, &mut at, noise, &mut sent);
                }
            }
        }
        sent
    }

    /// Either end sends when `order` says so, the worker as soon as a request's head is there.
    pub(super) fn mixed(&self, order: &[bool], noise: &[u8]) -> Vec<Sent> {
        let (mut sent, mut at) = (Vec::new(), [0, 0]);
        let mut order = order.iter().cycle();
        while at[0] < self.streams[0].len() || at[1] < self.streams[1].len() {
            let heads = self.requests.iter().filter(|(head, _)| *head <= at[0]).count();
            let may_answer = heads.checked_sub(1).map_or(0, |last| self.answers[last]);
            let is_caller = order.next() == Some(&true) && at[0] < self.streams[0].len();
            if is_caller || at[1] >= may_answer {
                send(From::Caller, self.streams[0].len(), &mut at, noise, &mut sent);
            } else {
                send(From::Worker, may_answer, &mut at, noise, &mut sent);
            }
        }
        sent
    }
}

fn send(from: From, end: usize, at: &mut [usize; 2], noise: &[u8], sent: &mut Vec<Sent>) {
    let (mine, other) = (from as usize, 1 - from as usize);
    let most = match noise[sent.len() % noise.len()] {
        u8::MAX => usize::MAX,
        most => usize::from(most / 2) + 1,
    };
    let len = most.min(end - at[mine]);
    sent.push(Sent { from, at: at[mine], len, ack: at[other] });
    at[mine] += len;
}

/// Some are sent again later, some neighbours of the same direction swapped.
pub(super) fn disturbed(packets: &[Sent], noise: &[u8]) -> Vec<Sent> {
    let mut sent: Vec<Sent> = Vec::new();
    let mut is_fixed = true;
    for (n, packet) in packets.iter().enumerate() {
        sent.push(*packet);
        let dice = noise[(n * 7) % noise.len()];
        let last = sent.len() - 1;
        let before = sent[last.saturating_sub(1)];
        if !is_fixed && dice.is_multiple_of(3) && (before.from, before.ack) == (packet.from, packet.ack) {
            sent.swap(last, last - 1);
            is_fixed = true;
        } else if dice.is_multiple_of(7) {
            sent.push(packets[n - usize::from(dice / 7).min(n)]);
            is_fixed = true;
        } else {
            is_fixed = false;
        }
    }
    sent
}

/// How much of each direction has come without a gap.
#[derive(Debug, Default)]
pub(super) struct Seen {
    at: [usize; 2],
    early: Vec<Sent>,
}

impl Seen {
    /// Takes a packet; how far both directions are now. Beyond everything while there is a gap.
    pub(super) fn take(&mut self, sent: &Sent) -> (usize, usize) {
        self.early.push(*sent);
        while let Some(n) = self.early.iter().position(|sent| sent.at <= self.at[sent.from as usize]) {
            let sent = self.early.swap_remove(n);
            let at = &mut self.at[sent.from as usize];
            *at = (*at).max(sent.at + sent.len);
        }
        if self.early.is_empty() { (self.at[0], self.at[1]) } else { (usize::MAX, usize::MAX) }
    }
}
