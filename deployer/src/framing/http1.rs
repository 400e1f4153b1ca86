//! Requests and answers of a connection, matched with each other, from a boundary between two exchanges on.

use std::collections::VecDeque;

use super::{
    body::Body,
    head::{self, Answer, Method, Partial},
    verdict::{Framing, Kind, What, Why},
};

/// The most requests under way that are followed.
const MOST_DUE: usize = 32;

/// What has been sent and what is still to come, in both directions.
#[derive(Debug, Default)]
pub(super) struct Exchanges {
    asking: Side,
    answering: Side,
    /// The requests whose answers have not ended, the oldest first.
    due: VecDeque<Due>,
    /// The answer under way is one of events.
    events: bool,
    was_used: bool,
    was_pipelined: bool,
}

/// The message under way in one direction.
#[derive(Debug, Default)]
struct Side {
    head: Partial,
    body: Option<Body>,
}

#[derive(Debug)]
struct Due {
    method: Method,
    expects: bool,
}

impl Side {
    fn is_between(&self) -> bool {
        self.head.is_empty() && self.body.is_none()
    }

    /// Reads on in the body, if one is under way, and says what is left of `bytes`.
    fn eat<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Why> {
        let Some(body) = &mut self.body else { return Ok(bytes) };
        let (eaten, done) = body.eat(bytes)?;
        if done {
            self.body = None;
        }
        Ok(bytes.get(eaten..).unwrap_or_default())
    }
}

impl Exchanges {
    /// Takes what the caller has sent.
    ///
    /// # Errors
    /// When it is no request, or nobody can say where it ends.
    pub(super) fn asked(&mut self, mut bytes: &[u8]) -> Result<(), Why> {
        self.was_used = true;
        while !bytes.is_empty() {
            if self.asking.body.is_some() {
                bytes = self.asking.eat(bytes)?;
                self.stop_waiting(VecDeque::back_mut);
                continue;
            }
            if self.asking.is_between() {
                self.was_pipelined |= !self.due.is_empty();
                head::may_begin_request(bytes).then_some(()).ok_or(Why::NotRequest)?;
            }
            let Some((request, used)) = self.asking.head.take(bytes, head::request)? else { return Ok(()) };
            if self.due.len() == MOST_DUE {
                return Err(Why::Pipelined);
            }
            self.due.push_back(Due { method: request.method, expects: request.expects });
            self.asking.body = request.body;
            bytes = &bytes[used..];
        }
        Ok(())
    }

    /// A request was asked that nobody has seen. Where it was HEAD, its answer will seem to be cut short.
    pub(super) fn asked_unseen(&mut self) {
        self.was_used = true;
        self.due.push_back(Due { method: Method::Other, expects: false });
    }

    /// Takes what the worker has sent; says what the connection has become when no HTTP/1 follows.
    ///
    /// # Errors
    /// When it is no answer, nobody has asked for it, or nobody can say where it ends.
    pub(super) fn answered(&mut self, mut bytes: &[u8]) -> Result<Option<Kind>, Why> {
        while !bytes.is_empty() {
            if self.answering.body.is_some() {
                bytes = self.answering.eat(bytes)?;
                if self.answering.body.is_none() {
                    self.end_answer();
                }
                continue;
            }
            let method = self.due.front().ok_or(Why::Unasked)?.method;
            if self.answering.head.is_empty() && !head::may_begin_answer(bytes) {
                return Err(Why::NotAnswer);
            }
            let Some((answer, used)) = self.answering.head.take(bytes, |bytes| head::answer(bytes, method))? else {
                return Ok(None);
            };
            bytes = &bytes[used..];
            match answer {
                Answer::Interim => self.stop_waiting(VecDeque::front_mut),
                Answer::Switched(kind) => return Ok(Some(kind)),
                Answer::Final { body: None, .. } => self.end_answer(),
                Answer::Final { body, events } => (self.answering.body, self.events) = (body, events),
            }
        }
        Ok(None)
    }

    fn end_answer(&mut self) {
        self.due.pop_front();
        self.events = false;
    }

    /// The caller has leave to send the body, or has begun without.
    fn stop_waiting(&mut self, which: fn(&mut VecDeque<Due>) -> Option<&mut Due>) {
        if let Some(due) = which(&mut self.due) {
            due.expects = false;
        }
    }

    /// Whether a request was ever sent before the answer to another had ended. Who does so may do it again unseen.
    pub(super) fn was_pipelined(&self) -> bool {
        self.was_pipelined
    }

    /// Bytes that are kept.
    pub(super) fn kept(&self) -> usize {
        self.asking.head.len() + self.answering.head.len()
    }

    /// How it stands, where so much has been taken of each direction.
    pub(super) fn framing(&self, asked: u32, answered: u32) -> Framing {
        let waits = self.due.back().is_some_and(|due| due.expects);
        Framing::Pending(match (self.due.len(), &self.answering.body) {
            _ if self.events => return Framing::Stream(Kind::EventStream),
            (_, Some(Body::UntilClose)) => What::UntilClose,
            (2.., _) => What::Pipelined,
            _ if self.asking.body.is_some() && waits => What::Continue,
            _ if !self.asking.is_between() => What::Request,
            (_, Some(_)) => What::Answer,
            _ if !self.answering.is_between() => What::Answer,
            (1, None) => What::Asked,
            _ if self.was_used => return Framing::Complete { asked, answered },
            _ => return Framing::Unused { asked, answered },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPLETE: Framing = Framing::Complete { asked: 1, answered: 2 };

    /// Plays what the caller (`>`) and the worker (`<`) send, and how it stands after each.
    fn play(steps: &[(char, &str, Framing)]) {
        let mut exchanges = Exchanges::default();
        for (who, text, expected) in steps {
            let result = match who {
                '>' => exchanges.asked(text.as_bytes()).map(|()| None),
                _ => exchanges.answered(text.as_bytes()),
            };
            let framing = match result {
                Ok(None) => exchanges.framing(1, 2),
                Ok(Some(kind)) => Framing::Stream(kind),
                Err(why) => Framing::Unknown(why),
            };
            assert_eq!(framing, *expected, "after {who} {text:?} of {steps:?}");
        }
    }

    fn pending(what: What) -> Framing {
        Framing::Pending(what)
    }

    #[test]
    fn plain_exchanges() {
        assert_eq!(Exchanges::default().framing(1, 2), Framing::Unused { asked: 1, answered: 2 });
        play(&[
            ('>', "GET / HT", pending(What::Request)),
            ('>', "TP/1.1\r\n\r\n", pending(What::Asked)),
            ('<', "HTT", pending(What::Answer)),
            ('<', "P/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", pending(What::Answer)),
            ('<', "hell", pending(What::Answer)),
            ('<', "o", COMPLETE),
            ('>', "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", pending(What::Request)),
            ('>', "1\r\nx\r\n0\r\n", pending(What::Request)),
            ('>', "\r\n", pending(What::Asked)),
            ('<', "HTTP/1.1 102 Wait\r\n\r\n", pending(What::Asked)),
            ('<', "HTTP/1.1 204 No Content\r\n\r\n", COMPLETE),
            ('>', "HEAD / HTTP/1.1\r\n\r\n", pending(What::Asked)),
            ('<', "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", COMPLETE),
            ('<', "HTTP/1.1 200 OK\r\n", Framing::Unknown(Why::Unasked)),
        ]);
    }

    #[test]
    fn leave_to_send_a_body() {
        let ask = "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
        play(&[
            ('>', ask, pending(What::Continue)),
            ('<', "HTTP/1.1 100 Continue\r\n\r\n", pending(What::Request)),
            ('>', "ab", pending(What::Asked)),
            ('<', "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", COMPLETE),
        ]);
        // Refused: the body is owed all the same.
        let refused = "HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n";
        play(&[('>', ask, pending(What::Continue)), ('<', refused, pending(What::Request)), ('>', "ab", COMPLETE)]);
        play(&[('>', ask, pending(What::Continue)), ('>', "a", pending(What::Request))]);
    }

    #[test]
    fn several_at_once_and_answers_that_come_early() {
        let (get, ok) = ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        let ask = "POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n";
        play(&[
            ('>', get, pending(What::Asked)),
            ('>', get, pending(What::Pipelined)),
            ('<', ok, pending(What::Asked)),
            ('<', ok, COMPLETE),
            ('>', &[get, get].concat(), pending(What::Pipelined)),
            ('<', &[ok, ok].concat(), COMPLETE),
            ('>', ask, pending(What::Request)),
            ('<', ok, pending(What::Request)),
            ('>', "ab", COMPLETE),
        ]);
        let many = get.repeat(MOST_DUE + 1);
        play(&[('>', &many, Framing::Unknown(Why::Pipelined))]);
    }

    #[test]
    fn what_ends_it() {
        let (get, ok) = ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\n");
        let close = format!("{ok}\r\nbody");
        play(&[('>', get, pending(What::Asked)), ('<', &close, pending(What::UntilClose))]);
        let events = format!("{ok}Content-Type: text/event-stream\r\n\r\ndata: x");
        play(&[('>', get, pending(What::Asked)), ('<', &events, Framing::Stream(Kind::EventStream))]);
        let chunked = format!("{ok}Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n");
        play(&[
            ('>', get, pending(What::Asked)),
            ('<', &chunked, Framing::Stream(Kind::EventStream)),
            ('<', "0\r\n\r\n", COMPLETE),
        ]);
        let switched = "HTTP/1.1 101 S\r\nUpgrade: websocket\r\n\r\n\x01\x02";
        play(&[('>', get, pending(What::Asked)), ('<', switched, Framing::Stream(Kind::WebSocket))]);
        let connect = "CONNECT a:1 HTTP/1.1\r\n\r\n";
        play(&[('>', connect, pending(What::Asked)), ('<', ok, pending(What::Answer))]);
        play(&[('>', "\x16\x03\x01", Framing::Unknown(Why::NotRequest))]);
        play(&[('>', get, pending(What::Asked)), ('<', "SSH-2.0", Framing::Unknown(Why::NotAnswer))]);
        play(&[('>', "GET / HTTP/1.1\r\n\r\n\r\n", Framing::Unknown(Why::NotRequest))]);
    }
}
