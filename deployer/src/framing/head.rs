//! The heads of requests and answers, and what they say of the body behind them (RFC 9112, section 6.3).

use std::mem::MaybeUninit;

use httparse::Header;

use super::{
    body::Body,
    verdict::{Kind, Why},
};

/// The longest head; nginx takes 32 KiB of a request by default, HAProxy and Envoy less.
const LONGEST: usize = 64 * 1024;
/// The most header fields.
const MOST_FIELDS: usize = 128;
const END: &[u8] = b"\r\n\r\n";

/// What a request's method means to the length of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Head,
    Connect,
    Other,
}

/// A request's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) body: Option<Body>,
    /// Its caller waits for leave to send the body.
    pub(super) expects: bool,
}

/// An answer's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Another answer to the same request follows (1xx).
    Interim,
    /// The last one, and its body.
    Final { body: Option<Body>, events: bool },
    /// What follows is no HTTP/1.
    Switched(Kind),
}

/// A head of which a part has come.
#[derive(Debug, Default)]
pub(super) struct Partial(Vec<u8>);

impl Partial {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes that are kept.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes the bytes that follow. If they end the head, `read` gets it, and its result is returned with the number of
    /// bytes that were the head's.
    ///
    /// # Errors
    /// [`Why::TooLong`]; [`Why::Ambiguous`] for lines that end with LF alone; what `read` says.
    pub(super) fn take<T>(
        &mut self,
        bytes: &[u8],
        read: impl FnOnce(&[u8]) -> Result<T, Why>,
    ) -> Result<Option<(T, usize)>, Why> {
        if self.0.is_empty()
            && let Some(end) = end(bytes, 0)?
        {
            return Ok(Some((read(&bytes[..end])?, end)));
        }
        let old = self.0.len();
        self.0.extend(&bytes[..bytes.len().min(LONGEST - old)]);
        match end(&self.0, old)? {
            Some(end) => {
                let result = read(&self.0[..end])?;
                self.0 = Vec::new();
                Ok(Some((result, end - old)))
            }
            None if self.0.len() == LONGEST => Err(Why::TooLong),
            None => Ok(None),
        }
    }
}

/// Where a head ends, of which the first `old` bytes have been looked at.
fn end(bytes: &[u8], old: usize) -> Result<Option<usize>, Why> {
    let mut at = old;
    while let Some(found) = bytes[at..].iter().position(|byte| *byte == b'\n') {
        at += found + 1;
        let line = &bytes[..at];
        if line.ends_with(END) {
            return if at <= LONGEST { Ok(Some(at)) } else { Err(Why::TooLong) };
        }
        if !line.ends_with(b"\r\n") {
            return Err(Why::Ambiguous);
        }
    }
    Ok(None)
}

/// Whether a request can begin so: a method is a token (RFC 9110, section 9.1), all that are registered are letters.
pub(super) fn may_begin_request(bytes: &[u8]) -> bool {
    bytes.first().is_none_or(u8::is_ascii_alphabetic)
}

/// Whether an answer can begin so.
pub(super) fn may_begin_answer(bytes: &[u8]) -> bool {
    bytes.iter().zip(b"HTTP/1.").all(|(byte, wanted)| byte == wanted)
}

/// Whether this is a request's head, whole and well-formed, whatever follows it.
pub(super) fn is_request(bytes: &[u8]) -> bool {
    may_begin_request(bytes) && end(bytes, 0).is_ok_and(|end| end.is_some_and(|end| request(&bytes[..end]).is_ok()))
}

/// Whether this begins with an answer to which another will follow.
pub(super) fn is_interim(bytes: &[u8]) -> bool {
    may_begin_answer(bytes) && bytes.get(8..10) == Some(b" 1")
}

/// Reads a request's head, from its first byte to the empty line.
///
/// # Errors
/// [`Why::NotRequest`], [`Why::Ambiguous`].
pub(super) fn request(bytes: &[u8]) -> Result<Request, Why> {
    let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut head = httparse::Request::new(&mut []);
    let parsed = head.parse_with_uninit_headers(bytes, &mut fields);
    let whole = parsed == Ok(httparse::Status::Complete(bytes.len()));
    let (Some(method), Some(version), true) = (head.method, head.version, whole) else { return Err(Why::NotRequest) };
    let method = match method {
        "HEAD" => Method::Head,
        "CONNECT" => Method::Connect,
        _ => Method::Other,
    };
    let expects = field(head.headers, "expect").any(|value| value.eq_ignore_ascii_case(b"100-continue"));
    Ok(Request { method, body: length(head.headers, version)?.unwrap_or_default(), expects })
}

/// Reads an answer's head, from its first byte to the empty line.
///
/// # Errors
/// [`Why::NotAnswer`], [`Why::Ambiguous`].
pub(super) fn answer(bytes: &[u8], method: Method) -> Result<Answer, Why> {
    let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut head = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut head, bytes, &mut fields);
    let whole = parsed == Ok(httparse::Status::Complete(bytes.len()));
    let (Some(status), Some(version), true) = (head.code, head.version, whole) else { return Err(Why::NotAnswer) };
    let body = length(head.headers, version)?;
    let has_body = matches!(body, Some(Some(_)));
    match (status, method) {
        (101, _) => Ok(Answer::Switched(upgrade(head.headers))),
        (200..=299, Method::Connect) => Ok(Answer::Switched(Kind::Upgraded)),
        // They have none, and whoever announces one may be believed by the caller.
        (100..=199 | 204, _) if has_body => Err(Why::Ambiguous),
        (100..=199, _) => Ok(Answer::Interim),
        (204 | 304, _) | (_, Method::Head) => Ok(Answer::Final { body: None, events: false }),
        (200.., _) => Ok(Answer::Final { body: body.unwrap_or(Some(Body::UntilClose)), events: events(head.headers) }),
        _ => Err(Why::NotAnswer),
    }
}

/// The length that the fields tell of: `None`, nothing; `Some(None)`, no bytes.
fn length(fields: &[Header<'_>], version: u8) -> Result<Option<Option<Body>>, Why> {
    let mut lengths = field(fields, "content-length");
    let mut codings = field(fields, "transfer-encoding");
    match (lengths.next(), codings.next()) {
        (None, None) => Ok(None),
        (Some(text), None) if lengths.next().is_none() => {
            let length = number(text).ok_or(Why::Ambiguous)?;
            Ok(Some((length > 0).then_some(Body::Length(length))))
        }
        // HTTP/1.0 has no codings (RFC 9112, section 6.1).
        (None, Some(text)) if codings.next().is_none() && version == 1 && text.eq_ignore_ascii_case(b"chunked") => {
            Ok(Some(Some(Body::CHUNKED)))
        }
        _ => Err(Why::Ambiguous),
    }
}

/// Digits and nothing else; neither a sign nor a list.
fn number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

fn upgrade(fields: &[Header<'_>]) -> Kind {
    let is_websocket = field(fields, "upgrade").any(|value| value.eq_ignore_ascii_case(b"websocket"));
    if is_websocket { Kind::WebSocket } else { Kind::Upgraded }
}

fn events(fields: &[Header<'_>]) -> bool {
    field(fields, "content-type").any(|value| {
        let kind = value.split(|byte| *byte == b';').next().unwrap_or_default();
        kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
    })
}

/// The values of a field, without the space around them.
fn field<'a>(fields: &'a [Header<'_>], name: &str) -> impl Iterator<Item = &'a [u8]> {
    let found = fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
    found.map(|field| field.value.trim_ascii())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asked(fields: &str) -> Result<Option<Body>, Why> {
        request(format!("POST /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes()).map(|request| request.body)
    }

    fn answered(line: &str, method: Method, fields: &str) -> Result<Answer, Why> {
        answer(format!("HTTP/1.{line}\r\nServer: a\r\n{fields}\r\n").as_bytes(), method)
    }

    #[test]
    fn lengths_of_requests() {
        assert_eq!(asked(""), Ok(None));
        assert_eq!(asked("content-LENGTH:  7 \r\n"), Ok(Some(Body::Length(7))));
        assert_eq!(asked("Content-Length: 0\r\n"), Ok(None));
        assert_eq!(asked("Transfer-Encoding: Chunked\r\n"), Ok(Some(Body::CHUNKED)));
        for bad in [
            "Content-Length: 7\r\nContent-Length: 7\r\n",
            "Content-Length: 7\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 7, 7\r\n",
            "Content-Length: +7\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length:\r\n",
            "Transfer-Encoding: gzip\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: identity\r\n",
        ] {
            assert_eq!(asked(bad), Err(Why::Ambiguous), "{bad:?}");
        }
        for bad in ["Content-Length : 7\r\n", "A: b\r\n Content-Length: 7\r\n", ": x\r\n", "A: \0\r\n"] {
            assert_eq!(asked(bad), Err(Why::NotRequest), "{bad:?}");
        }
        assert_eq!(request(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Err(Why::Ambiguous));
        assert!(asked(&"A: b\r\n".repeat(200)).is_err());
    }

    #[test]
    fn what_requests_are() {
        let head = request(b"HEAD / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!((head.method, head.expects), (Method::Head, false));
        let head = request(b"PUT / HTTP/1.1\r\nexpect: 100-Continue\r\nContent-Length: 1\r\n\r\n").unwrap();
        assert_eq!((head.method, head.expects), (Method::Other, true));
        for whole in [&b"GET / HTTP/1.1\r\n\r\nmore"[..], b"OPTIONS * HTTP/1.0\r\nA: b\r\n\r\n"] {
            assert!(is_request(whole));
        }
        for none in [
            &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
            b"\r\nGET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\n\n",
            b"GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n",
            b"GET /\r\n\r\n",
            b"GET  / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nA: b\r\n",
            b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
            b"\x81\x05hello\r\n\r\n",
            b"",
        ] {
            assert!(!is_request(none), "{}", String::from_utf8_lossy(none));
        }
    }

    #[test]
    fn lengths_of_answers() {
        let whole = |body| Ok(Answer::Final { body, events: false });
        let other = Method::Other;
        assert_eq!(answered("1 200 OK", other, "Content-Length: 3\r\n"), whole(Some(Body::Length(3))));
        assert_eq!(answered("1 200", other, ""), whole(Some(Body::UntilClose)));
        assert_eq!(answered("0 200 OK", other, "Content-Length: 0\r\n"), whole(None));
        assert_eq!(answered("1 404 Not there", other, "Transfer-Encoding: chunked\r\n"), whole(Some(Body::CHUNKED)));
        assert_eq!(answered("1 200 OK", Method::Head, "Content-Length: 3\r\n"), whole(None));
        assert_eq!(answered("1 304 Not Modified", other, "Content-Length: 3\r\n"), whole(None));
        assert_eq!(answered("1 204 No Content", other, ""), whole(None));
        assert_eq!(answered("1 204 No Content", other, "Content-Length: 3\r\n"), Err(Why::Ambiguous));
        assert_eq!(answered("1 103 Early Hints", other, "Link: x\r\n"), Ok(Answer::Interim));
        assert_eq!(answered("1 200 OK", Method::Connect, ""), Ok(Answer::Switched(Kind::Upgraded)));
        assert_eq!(answered("1 101 S", other, "Upgrade: WebSocket\r\n"), Ok(Answer::Switched(Kind::WebSocket)));
        let stream = "Content-Type: text/Event-Stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n";
        let events = Answer::Final { body: Some(Body::CHUNKED), events: true };
        assert_eq!(answered("1 200 OK", other, stream), Ok(events));
        assert_eq!(answered("1 099 Odd", other, ""), Err(Why::NotAnswer));
        assert_eq!(answered("2 200 OK", other, ""), Err(Why::NotAnswer));
        assert!(is_interim(b"HTTP/1.1 100 Continue\r\n\r\n") && !is_interim(b"HTTP/1.1 200 OK\r\n\r\n"));
    }

    proptest! {
        /// In whatever pieces a head comes, it ends where it ends.
        #[test]
        fn pieces_make_no_difference(piece in 1..40_usize, rest in "[a-z\r\n]{0,20}") {
            let head = "GET /some/where HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
            let bytes = [head, &rest].concat();
            let (mut partial, mut at) = (Partial::default(), 0);
            for piece in bytes.as_bytes().chunks(piece) {
                if let Some((found, used)) = partial.take(piece, request).unwrap() {
                    prop_assert_eq!(found.body, Some(Body::Length(5)));
                    prop_assert_eq!(at + used, head.len());
                    return Ok(());
                }
                at += piece.len();
            }
            prop_assert!(false, "no end was found");
        }

        #[test]
        fn garbage_is_refused_or_awaited(pieces: Vec<Vec<u8>>) {
            let (mut partial, mut other) = (Partial::default(), Partial::default());
            for piece in &pieces {
                let _ = partial.take(piece, request);
                let _ = other.take(piece, |bytes| answer(bytes, Method::Other));
            }
        }
    }

    #[test]
    fn long_heads_are_refused() {
        let mut partial = Partial::default();
        let piece = format!("A: {}\r\n", "x".repeat(1000));
        let result = (0..100).find_map(|_| partial.take(piece.as_bytes(), request).err());
        assert_eq!(result, Some(Why::TooLong));
        assert!(partial.len() <= LONGEST && !partial.is_empty());
    }
}
