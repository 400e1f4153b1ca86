//! One connection: both directions held against each other.

use super::{
    head,
    http1::Exchanges,
    packet::Segment,
    stream::{Stream, after, is_before},
    tls,
    verdict::{Framing, Kind, What, Why},
};

/// Which end has sent a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Caller,
    Worker,
}

/// A connection of which something has been seen.
#[derive(Debug)]
pub(super) struct Connection {
    state: State,
    /// The caller's first sequence number, where that was seen.
    begun: Option<u32>,
    /// Which ends have closed: the caller, the worker.
    closed: [bool; 2],
    guess: Guess,
}

/// An older connection, followed as if the first that was seen of it were the beginning of a request, or of an answer, as
/// it looked like one. Nothing proves that, so that it serves only to tell a pooled connection from one on which something is under way.
#[derive(Debug)]
enum Guess {
    /// Nothing was seen yet.
    Open,
    Made(Box<Followed>),
    /// It looked like none, or has turned out wrong.
    Wrong,
}

#[derive(Debug)]
enum State {
    /// The caller has said hello; this is the number of its first byte.
    Opening(u32),
    /// Nobody can say how it stands, until the next request.
    Lost(Why, Option<LastWord>),
    /// Followed from a boundary on.
    Followed(Box<Followed>),
    Switched(Kind),
    /// Nobody will be able to say how it stands.
    Unknown(Why),
}

/// The worker has sent something, and the caller nothing since.
#[derive(Debug, Clone, Copy)]
struct LastWord {
    /// The number of the worker's next byte.
    end: u32,
    /// The number of the caller's next byte, as the worker knew it then.
    asked: u32,
}

#[derive(Debug)]
struct Followed {
    asked: Stream,
    answered: Stream,
    exchanges: Exchanges,
}

impl Connection {
    /// One that is there already.
    pub(super) fn older(why: Why) -> Self {
        Self { state: State::Lost(why, None), begun: None, closed: [false; 2], guess: Guess::Open }
    }

    /// Takes a segment.
    pub(super) fn take(&mut self, from: From, segment: &Segment<'_>) {
        if segment.is_syn() && from == From::Caller {
            return self.open(segment);
        }
        if segment.is_syn_ack() {
            return self.accept(from, segment);
        }
        if !segment.payload.is_empty() {
            self.data(from, segment);
        }
        if segment.is_fin() {
            self.closed[from as usize] = true;
        }
    }

    /// Both ends have closed.
    pub(super) fn is_over(&self) -> bool {
        self.closed == [true, true]
    }

    /// Packets were missed, perhaps of this connection. What is known of the bytes before a boundary stays true: the
    /// socket shows whether others have followed, and the next packet that we see.
    pub(super) fn miss(&mut self) {
        if !matches!(self.framing(), Framing::Complete { .. } | Framing::Unused { .. }) {
            self.lose(Why::Missed, None);
        }
    }

    /// Gives up what is kept of it.
    pub(super) fn forget(&mut self) {
        self.lose(Why::NoRoom, None);
    }

    /// Bytes that are kept.
    pub(super) fn kept(&self) -> usize {
        match (&self.state, &self.guess) {
            (State::Followed(followed), _) | (_, Guess::Made(followed)) => followed.kept(),
            _ => 0,
        }
    }

    /// How it stands.
    pub(super) fn framing(&self) -> Framing {
        match &self.state {
            State::Switched(kind) => Framing::Stream(*kind),
            _ if self.closed != [false; 2] => Framing::Pending(What::Closing),
            State::Opening(_) => Framing::Pending(What::Opening),
            State::Lost(Why::Older, _) if self.guess.is_complete() => Framing::Unknown(Why::UsedOnce),
            State::Lost(why, _) | State::Unknown(why) => Framing::Unknown(*why),
            State::Followed(followed) => followed.framing(),
        }
    }

    /// The caller's hello. The same one again changes nothing; another one is of a new connection between the same ends.
    fn open(&mut self, segment: &Segment<'_>) {
        if self.begun == Some(segment.seq) && self.closed == [false; 2] {
            return;
        }
        let state = match segment.payload {
            [] => State::Opening(after(segment.seq, 1)),
            // TCP Fast Open: whether the worker takes it is seen later.
            _ => State::Lost(Why::Older, None),
        };
        *self = Self { state, begun: Some(segment.seq), closed: [false; 2], guess: Guess::Wrong };
    }

    /// The worker's hello, perhaps once more.
    fn accept(&mut self, from: From, segment: &Segment<'_>) {
        if segment.multipath {
            self.state = State::Unknown(Why::Multipath);
        }
        if let (State::Opening(asked), From::Worker) = (&self.state, from) {
            self.state = match *asked == segment.ack && segment.payload.is_empty() {
                true => State::Followed(Box::new(Followed::at(*asked, after(segment.seq, 1)))),
                false => State::Lost(Why::Older, None),
            };
        }
    }

    fn data(&mut self, from: From, segment: &Segment<'_>) {
        let odd = match () {
            () if segment.multipath => Some(Why::Multipath),
            () if segment.is_urgent() => Some(Why::Urgent),
            () => None,
        };
        if let (Some(why), false) = (odd, matches!(self.state, State::Switched(_))) {
            self.state = State::Unknown(why);
        }
        if self.is_tls(from, segment) {
            (self.state, self.guess) = (State::Switched(Kind::Tls), Guess::Wrong);
        }
        match &mut self.state {
            State::Opening(_) => self.lose(Why::Older, None),
            State::Lost(why, word) => {
                let why = *why;
                let word = word.take();
                self.guess.take(from, segment, self.closed);
                self.find(why, word, from, segment);
            }
            State::Followed(followed) => match followed.take(from, segment, self.closed) {
                Ok(None) => {}
                Ok(Some(kind)) => self.state = State::Switched(kind),
                Err(why) => self.stumble(why, from, segment),
            },
            State::Switched(_) | State::Unknown(_) => {}
        }
    }

    /// Whether it turns out to be one of TLS: it begins so, or is older, and speaks so.
    fn is_tls(&self, from: From, segment: &Segment<'_>) -> bool {
        match &self.state {
            State::Followed(followed) => {
                from == From::Caller && followed.is_unused_at(segment.seq) && tls::is_hello(segment.payload)
            }
            State::Lost(Why::Older | Why::Missed, _) => {
                !segment.is_cut && (tls::is_hello(segment.payload) || tls::are_records(segment.payload))
            }
            State::Lost(..) | State::Opening(_) | State::Switched(_) | State::Unknown(_) => false,
        }
    }

    /// Looks for a boundary: the worker has had the last word, whoever speaks next is the caller, has heard all of it,
    /// and begins a request. The worker had everything before that request when it spoke.
    fn find(&mut self, why: Why, word: Option<LastWord>, from: From, segment: &Segment<'_>) {
        match (from, word) {
            (From::Worker, word) => self.state = State::Lost(why, last_word(word, segment)),
            (From::Caller, Some(word)) if word.end == segment.ack && word.asked == segment.seq => {
                if head::is_request(segment.payload) && !segment.is_cut {
                    self.state = State::Followed(Box::new(Followed::at(segment.seq, segment.ack)));
                    self.guess = Guess::Wrong;
                    self.data(from, segment);
                }
            }
            (From::Caller, _) => {}
        }
    }

    /// What was followed cannot be any longer. Who asks oddly, or several things at once, is never trusted again: a
    /// boundary found later might be none. An odd answer is over when the caller asks for something else.
    fn stumble(&mut self, why: Why, from: From, segment: &Segment<'_>) {
        match (why, from) {
            (Why::Missed, From::Caller) => self.lose(why, None),
            (Why::Missed, From::Worker) => self.lose(why, last_word(None, segment)),
            (Why::Unasked, _) | (_, From::Caller) => self.state = State::Unknown(why),
            (_, From::Worker) => self.lose(why, last_word(None, segment)),
        }
    }

    fn lose(&mut self, why: Why, word: Option<LastWord>) {
        self.guess = Guess::Wrong;
        self.state = match &self.state {
            State::Followed(followed) if followed.exchanges.was_pipelined() => State::Unknown(Why::Pipelined),
            State::Followed(_) | State::Opening(_) => State::Lost(why, word),
            State::Lost(why, _) => State::Lost(*why, word),
            State::Switched(_) | State::Unknown(_) => return,
        };
    }
}

/// What the worker's last word is, after `before` and this segment. None, if it announces another.
fn last_word(before: Option<LastWord>, segment: &Segment<'_>) -> Option<LastWord> {
    let end = after(segment.seq, segment.payload.len());
    let is_older = before.is_some_and(|before| is_before(end, before.end));
    match is_older {
        true => before,
        false if segment.is_cut || head::is_interim(segment.payload) => None,
        false => Some(LastWord { end, asked: segment.ack }),
    }
}

impl Guess {
    /// Where a request begins, or an answer to one that was under way when the watch began.
    fn at(from: From, segment: &Segment<'_>) -> Option<Followed> {
        match from {
            From::Caller if head::is_request(segment.payload) => Some(Followed::at(segment.seq, segment.ack)),
            From::Worker if head::may_begin_answer(segment.payload) => {
                let mut followed = Followed::at(segment.ack, segment.seq);
                followed.exchanges.asked_unseen();
                Some(followed)
            }
            _ => None,
        }
    }

    fn take(&mut self, from: From, segment: &Segment<'_>, closed: [bool; 2]) {
        if matches!(self, Self::Open) {
            *self = Self::at(from, segment).map_or(Self::Wrong, |followed| Self::Made(Box::new(followed)));
        }
        if let Self::Made(followed) = self
            && !matches!(followed.take(from, segment, closed), Ok(None))
        {
            *self = Self::Wrong;
        }
    }

    /// Whether everything that was asked since has been answered.
    fn is_complete(&self) -> bool {
        matches!(self, Self::Made(followed) if matches!(followed.framing(), Framing::Complete { .. }))
    }
}

impl Followed {
    fn at(asked: u32, answered: u32) -> Self {
        let (asked, answered) = (Stream::at(asked), Stream::at(answered));
        Self { asked, answered, exchanges: Exchanges::default() }
    }

    fn framing(&self) -> Framing {
        match self.asked.has_gap() || self.answered.has_gap() {
            true => Framing::Pending(What::Gap),
            false => self.exchanges.framing(self.asked.next(), self.answered.next()),
        }
    }

    /// Whether nothing has been asked, and the next byte of the caller is this one.
    fn is_unused_at(&self, seq: u32) -> bool {
        matches!(self.framing(), Framing::Unused { asked, .. } if asked == seq)
    }

    /// Bytes that are kept.
    fn kept(&self) -> usize {
        self.exchanges.kept() + self.asked.held() + self.answered.held()
    }

    fn take(&mut self, from: From, segment: &Segment<'_>, closed: [bool; 2]) -> Result<Option<Kind>, Why> {
        let (other, is_closed) = match from {
            From::Caller => (&self.answered, closed[From::Worker as usize]),
            From::Worker => (&self.asked, closed[From::Caller as usize]),
        };
        // It acknowledges what we have not seen, and we see everything before its receiver does. (A FIN has a number.)
        if segment.is_cut || is_before(after(other.next(), is_closed.into()), segment.ack) {
            return Err(Why::Missed);
        }
        let mut switched = None;
        let exchanges = &mut self.exchanges;
        match from {
            From::Caller => self.asked.push(segment.seq, segment.payload, |bytes| exchanges.asked(bytes))?,
            From::Worker => self.answered.push(segment.seq, segment.payload, |bytes| {
                if switched.is_none() {
                    switched = exchanges.answered(bytes)?;
                }
                Ok(())
            })?,
        }
        Ok(switched)
    }
}

#[cfg(test)]
mod tests;
