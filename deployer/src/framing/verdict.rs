//! What is known of a connection.

use std::{
    fmt,
    time::{Duration, Instant},
};

/// How a connection's last exchange stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Nothing has passed since the watch began.
    Unwatched,
    /// Something has, and nobody can say how it stands.
    Unknown(Why),
    /// An exchange is under way.
    Pending(What),
    /// Both ends have said hello, and nothing else. As safe to close as a complete one; a caller that is about to send
    /// its first request sees a failed connection, which nginx counts (`max_fails`).
    Unused {
        /// Sequence number of the caller's first byte.
        asked: u32,
        /// Sequence number of the worker's first byte.
        answered: u32,
    },
    /// Every request was sent whole and has been answered whole. That is true of the bytes before these two sequence
    /// numbers, whatever comes after: who acts on it compares them with the socket's, under its lock.
    Complete {
        /// Sequence number after the last request's last byte: the caller's `snd_una` and `write_seq`.
        asked: u32,
        /// Sequence number after the last answer's last byte: the caller's `copied_seq` and `rcv_nxt`.
        answered: u32,
    },
    /// No request and answer any more.
    Stream(Kind),
}

/// Why nobody can say how a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is older than the watch, and has not begun a request since.
    Older,
    /// The same, but for one request, if it was one; that has been answered.
    UsedOnce,
    /// Packets of it were missed, and it has not begun a request since.
    Missed,
    /// What the caller sends is no HTTP/1 request (HTTP/2 looks so).
    NotRequest,
    /// What the worker sends is no HTTP/1 answer.
    NotAnswer,
    /// The worker sends what no request asks for.
    Unasked,
    /// Header fields that may be read in two ways: `Transfer-Encoding` with `Content-Length`, either twice, or garbled.
    Ambiguous,
    /// A head, or the trailers of a body, longer than anybody takes.
    TooLong,
    /// A body in chunks that are none.
    BadChunk,
    /// More requests under way than are followed, or some were when packets were missed.
    Pipelined,
    /// Multipath TCP: its bytes may go elsewhere, too.
    Multipath,
    /// TCP's urgent data, which is not in the stream.
    Urgent,
    /// The memory for half-sent heads is used up.
    NoRoom,
}

/// What is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It is being set up.
    Opening,
    /// The request has not been sent whole.
    Request,
    /// The caller waits for leave to send the body (`Expect: 100-continue`).
    Continue,
    /// The request is with the worker.
    Asked,
    /// The answer has not been sent whole.
    Answer,
    /// The answer goes on until the worker closes.
    UntilClose,
    /// More than one request is under way.
    Pipelined,
    /// A packet that comes late.
    Gap,
    /// One end has closed; it goes by itself.
    Closing,
}

/// What a connection is that has left requests and answers behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Upgraded to WebSocket.
    WebSocket,
    /// Upgraded to something else, or a tunnel (`CONNECT`).
    Upgraded,
    /// An answer of server-sent events (`text/event-stream`) is under way.
    EventStream,
    /// TLS: what is said on it is not to be seen.
    Tls,
}

/// A connection as the watch has seen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// How it stands.
    pub framing: Framing,
    /// When anything last passed but bare acknowledgements; `None`: nothing has.
    pub last: Option<Instant>,
    /// Since when nothing can have passed unseen: the beginning of the watch, or the last time that packets were missed.
    pub since: Instant,
}

impl Seen {
    /// For how long nothing has passed, as far as was watched.
    #[must_use]
    pub fn quiet(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last.map_or(self.since, |last| last.max(self.since)))
    }
}

impl fmt::Display for Framing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unwatched => f.write_str("nothing has passed since the watch began"),
            Self::Unknown(why) => write!(f, "{why}"),
            Self::Pending(what) => write!(f, "{what}"),
            Self::Unused { .. } => f.write_str("not used yet"),
            Self::Complete { .. } => f.write_str("answered"),
            Self::Stream(kind) => write!(f, "{kind}"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Older => "it is older than the watch, and has begun no request since",
            Self::UsedOnce => "it is older than the watch, and was used once since",
            Self::Missed => "packets were missed, and it has begun no request since",
            Self::NotRequest => "what its caller sends is no HTTP/1 request",
            Self::NotAnswer => "what its worker sends is no HTTP/1 answer",
            Self::Unasked => "its worker has sent what no request asked for",
            Self::Ambiguous => "the length of a message on it can be read in two ways",
            Self::TooLong => "the head of a message on it is too long",
            Self::BadChunk => "a chunk on it is malformed",
            Self::Pipelined => "too many requests were under way on it",
            Self::Multipath => "it is one of Multipath TCP",
            Self::Urgent => "it has carried urgent data",
            Self::NoRoom => "too many connections have sent half a head",
        })
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening => "it is being set up",
            Self::Request => "a request is being sent",
            Self::Continue => "its caller waits for leave to send a body (100-continue)",
            Self::Asked => "a request is being served",
            Self::Answer => "an answer is being sent",
            Self::UntilClose => "an answer is being sent that ends with the connection",
            Self::Pipelined => "several requests are being served",
            Self::Gap => "a packet of it comes late",
            Self::Closing => "one end has closed it",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WebSocket => "a WebSocket",
            Self::Upgraded => "upgraded to another protocol",
            Self::EventStream => "a stream of events (text/event-stream)",
            Self::Tls => "TLS: whether a request is under way cannot be seen",
        })
    }
}
