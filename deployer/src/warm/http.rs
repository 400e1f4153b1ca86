//! One HTTP exchange with a worker, on a marked connection of its own, and the warm-up made of them.

use std::{io, iter, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tracing::Instrument as _;

use super::{
    BYPASS_MARK, WarmError,
    stream::{self, Stream},
    tls,
};
use crate::{
    config::{Request, Warm},
    kernel::own_ports::{self, OwnPort},
};

/// Between two tries to connect to a port that does not listen yet.
const RETRY: Duration = Duration::from_millis(20);
/// Ports that a connection tries. A port that is free to bind may have a former connection to the same worker in TIME_WAIT,
/// which connect() refuses with EADDRNOTAVAIL; in a small `net.ipv4.ip_local_port_range` many have.
const PORTS: usize = 32;
/// The body of an answer to a warm-up request is thrown away, but an endless one must end.
pub(super) const DRAIN: Body = Body { limit: 16 << 20, keep: false };

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ConnectError {
    /// Nobody listens.
    Refused,
    /// Nothing came back in time.
    TimedOut,
    /// Anything else, in words.
    Failed(String),
}

/// An answer that came in time.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) headers: HeaderMap,
    /// Empty unless it was to be kept.
    pub(super) body: Vec<u8>,
}

/// What becomes of an answer's body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Body {
    /// Larger is an error.
    pub(super) limit: usize,
    pub(super) keep: bool,
}

/// "GET /pin/1"
pub(super) fn label(request: &Request) -> String {
    format!("{} {}", request.method, request.path)
}

/// An answer that is not as it must be, or none.
struct Wrong {
    why: String,
    /// So answers a worker that speaks TLS to plain HTTP: it closes, sends what is no HTTP, or status 400.
    may_be_tls: bool,
}

impl From<String> for Wrong {
    fn from(why: String) -> Self {
        Self { why, may_be_tls: false }
    }
}

/// A warm-up that goes on.
struct Run<'a> {
    worker: SocketAddr,
    warm: &'a Warm,
    begun: Instant,
    left: Duration,
}

/// See [`super::warm`].
pub(super) async fn warm(worker: SocketAddr, warm: &Warm, left: Duration) -> Result<u32, WarmError> {
    let begun = Instant::now();
    let run = Run { worker, warm, begun, left };
    // The connection that shows that the port listens also carries the first request.
    let mut first = Some(run.listening().await?);
    let mut answered = 0;
    for _ in 0..warm.repeat {
        for request in &warm.requests {
            let sent = run.send(first.take(), request).await;
            sent.map_err(|why| run.failed(label(&request.to(worker)), answered + 1, why))?;
            answered += 1;
        }
    }
    Ok(answered)
}

impl Run<'_> {
    fn remaining(&self) -> Duration {
        self.left.saturating_sub(self.begun.elapsed())
    }

    fn failed(&self, request: String, nth: u32, why: String) -> WarmError {
        let of = u32::try_from(self.warm.requests.len()).unwrap_or(u32::MAX);
        let (worker, of) = (self.worker, of.saturating_mul(self.warm.repeat));
        WarmError::Request { worker, request, nth, of, why }
    }

    /// Tries until the port accepts a connection.
    async fn listening(&self) -> Result<Stream, WarmError> {
        loop {
            match connect(self.worker, self.remaining()).await {
                Ok(stream) => return Ok(stream),
                Err(ConnectError::Refused) if self.remaining() > RETRY => sleep(RETRY).await,
                Err(ConnectError::Failed(why)) => {
                    let request = self.warm.requests.first().map(label);
                    let nth = u32::from(request.is_some());
                    return Err(self.failed(request.unwrap_or_else(|| "connect".to_owned()), nth, why));
                }
                Err(ConnectError::Refused | ConnectError::TimedOut) => {
                    let (worker, within) = (self.worker, self.warm.within);
                    return Err(WarmError::NotListening { worker, within });
                }
            }
        }
    }

    /// One request in the time that is left.
    async fn send(&self, open: Option<Stream>, request: &Request) -> Result<Answer, String> {
        let limit = self.remaining();
        let whole = async {
            let stream = match open {
                Some(stream) => stream,
                None => connect(self.worker, limit).await.map_err(ConnectError::words)?,
            };
            exchange(stream, self.worker, request, DRAIN).await
        };
        let late = |_| Err(late(limit, self.warm.within));
        timeout(limit, whole).await.unwrap_or_else(late)
    }
}

fn late(limit: Duration, within: Duration) -> String {
    let (limit, within) = (limit.as_secs_f32(), within.as_secs_f32());
    format!("no answer within {limit:.1} s, which was left of the {within} s from start to warm")
}

/// Connects past all steering.
pub(super) async fn connect(worker: SocketAddr, left: Duration) -> Result<Stream, ConnectError> {
    timeout(left, connected(worker)).await.unwrap_or(Err(ConnectError::TimedOut))
}

async fn connected(worker: SocketAddr) -> Result<Stream, ConnectError> {
    // The last try leaves the choice to the kernel, which finds any port that is free for this worker.
    for is_bound in iter::repeat_n(true, PORTS).chain([false]) {
        let (socket, port) = marked(worker, is_bound).map_err(ConnectError::Failed)?;
        match socket.connect(worker).await {
            Ok(stream) => {
                if port.is_none() {
                    own_ports::count_unheld(worker);
                }
                return unless_self(stream).map(|stream| Stream::new(stream, port));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && is_bound => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Err(ConnectError::Refused),
            Err(error) => return Err(ConnectError::Failed(format!("cannot connect: {error}"))),
        }
    }
    Err(ConnectError::Failed("cannot connect: no port is free".to_owned()))
}

/// A socket that is ready to connect, and its port, or why not.
fn marked(worker: SocketAddr, is_bound: bool) -> Result<(TcpSocket, Option<OwnPort>), String> {
    let new = || {
        let socket = Socket::new(Domain::for_address(worker), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        // Its own port may be that of a worker that is down just now. With this option at both ends, neither it nor what
        // is left of it (TIME_WAIT, 60 s) keeps that worker from listening there.
        socket.set_reuse_address(true)?;
        Ok(socket)
    };
    let socket: Socket = new().map_err(|error: io::Error| format!("cannot make a socket: {error}"))?;
    socket.set_mark(BYPASS_MARK).map_err(mark_failed)?;
    let port = if is_bound { stream::bind(&socket, worker) } else { None };
    Ok((TcpSocket::from_std_stream(socket.into()), port))
}

fn mark_failed(error: io::Error) -> String {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => ". The daemon needs CAP_NET_ADMIN: run it as root or give it the capability",
        _ => "",
    };
    format!("cannot set the socket mark {BYPASS_MARK:#x} that takes warm-up past the steering: {error}{hint}")
}

/// Ends a connection that a socket made to itself. When nobody listens at a port out of the range of ephemeral ports,
/// the kernel may choose that very port for the caller's end, and TCP lets the socket connect to itself. Taken for the
/// worker it would answer with the request; kept open it would hold the port that the worker is about to bind.
fn unless_self(stream: TcpStream) -> Result<TcpStream, ConnectError> {
    let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else {
        return Ok(stream);
    };
    if local != peer {
        return Ok(stream);
    }
    // Reset rather than closed, so that no TIME-WAIT is left on the port. That it fails would only be slower.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    Err(ConnectError::Refused)
}

/// Sends a request and reads the whole answer; an error says why the answer is not what it must be.
pub(super) async fn exchange(
    stream: Stream,
    worker: SocketAddr,
    request: &Request,
    keep: Body,
) -> Result<Answer, String> {
    let request = &request.to(worker);
    if let Some(tls) = &request.tls {
        let stream = tls::handshake(stream, worker, tls).await?;
        return speak(stream, worker, request, keep).await.map_err(|wrong| wrong.why);
    }
    let wrong = match speak(stream, worker, request, keep).await {
        Ok(answer) => return Ok(answer),
        Err(wrong) => wrong,
    };
    if wrong.may_be_tls && tls::is_spoken(worker).await {
        return Err(format!("{}: the worker speaks TLS; write tls = true in its service", wrong.why));
    }
    Err(wrong.why)
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    worker: SocketAddr,
    request: &Request,
    keep: Body,
) -> Result<Answer, Wrong> {
    let message = message(worker, request)?;
    let broken = |error: hyper::Error| Wrong { why: broken(&error), may_be_tls: true };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // The set ends its task when it is dropped, so that an exchange given up leaves no connection behind.
    let mut driver = JoinSet::new();
    driver.spawn(connection.in_current_span());
    let (head, body) = sender.send_request(message).await.map_err(broken)?.into_parts();
    let may_be_tls = head.status == StatusCode::BAD_REQUEST;
    status(request, head.status).map_err(|why| Wrong { why, may_be_tls })?;
    let body = read(body, keep).await?;
    Ok(Answer { headers: head.headers, body })
}

/// The request as it goes out, with what is not configured added.
fn message(worker: SocketAddr, request: &Request) -> Result<hyper::Request<Full<Bytes>>, String> {
    let method =
        Method::from_bytes(request.method.as_bytes()).map_err(|error| format!("its method is no method: {error}"))?;
    let mut message = hyper::Request::builder().method(&method).uri(&request.path);
    for (name, value) in &request.headers {
        message = message.header(name, value);
    }
    let given = |name: HeaderName| request.headers.iter().any(|(header, _)| header.eq_ignore_ascii_case(name.as_str()));
    if !given(HOST) {
        let host = request.tls.as_ref().map_or_else(|| worker.to_string(), |tls| tls::host(worker, tls));
        message = message.header(HOST, host);
    }
    if !given(USER_AGENT) {
        message = message.header(USER_AGENT, concat!("deployer-warm/", env!("CARGO_PKG_VERSION")));
    }
    if !given(CONNECTION) {
        message = message.header(CONNECTION, "close");
    }
    // Servers may insist on a length where a body is expected, and hyper adds none to an empty one.
    let expected = [Method::POST, Method::PUT, Method::PATCH].contains(&method);
    if request.body.is_empty() && expected && !given(CONTENT_LENGTH) {
        message = message.header(CONTENT_LENGTH, 0);
    }
    let body = Full::new(Bytes::from(request.body.clone()));
    message.body(body).map_err(|error| format!("it cannot be written as HTTP: {error}"))
}

fn status(request: &Request, got: StatusCode) -> Result<(), String> {
    match request.status {
        Some(wanted) if wanted == got.as_u16() => Ok(()),
        Some(wanted) => Err(format!("status {}, expected {wanted}", got.as_u16())),
        None if got.is_success() || got.is_redirection() => Ok(()),
        None => Err(format!("status {}, expected 2xx or 3xx", got.as_u16())),
    }
}

async fn read(mut body: Incoming, to: Body) -> Result<Vec<u8>, String> {
    let (mut size, mut kept) = (0, Vec::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("the answer's body ends in the middle: {}", cause(&error)))?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        size += data.len();
        if size > to.limit {
            return Err(format!("the answer's body is larger than {} KiB", to.limit >> 10));
        }
        if to.keep {
            kept.extend_from_slice(data);
        }
    }
    Ok(kept)
}

fn broken(error: &hyper::Error) -> String {
    if error.is_incomplete_message() || error.is_canceled() {
        "the connection was closed before an answer".to_owned()
    } else if error.is_parse() {
        format!("the answer is not HTTP: {}", cause(error))
    } else {
        format!("the connection broke: {}", cause(error))
    }
}

/// An error with what lies under it, as hyper's own words alone say little.
fn cause(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

impl ConnectError {
    /// For messages.
    pub(super) fn words(self) -> String {
        match self {
            Self::Refused => "connection refused".to_owned(),
            Self::TimedOut => "no connection in time: the port neither accepts nor refuses".to_owned(),
            Self::Failed(why) => why,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_connected_to_itself_is_nobody() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = socket.local_addr().unwrap();
        let stream = socket.connect(port).await.unwrap();
        assert_eq!(unless_self(stream).unwrap_err(), ConnectError::Refused);
        std::net::TcpListener::bind(port).expect("the port is free again");
    }

    #[tokio::test]
    async fn its_own_port_stays_free_for_a_worker() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let worker = other.local_addr().unwrap();
        let stream = match connect(worker, Duration::from_secs(5)).await {
            Ok(stream) => stream,
            Err(ConnectError::Failed(why)) if why.contains("CAP_NET_ADMIN") => return,
            Err(error) => panic!("{}", error.words()),
        };
        let port = stream.local_addr().unwrap();
        std::net::TcpListener::bind(port).expect("a worker listens where a warm-up comes from");
        // Closed at this end first, which is the one that is left in TIME_WAIT.
        drop(stream);
        drop(other.accept().unwrap());
        std::net::TcpListener::bind(port).expect("a worker listens where a warm-up came from");
    }

    #[test]
    fn a_mark_not_permitted_names_the_capability() {
        let why = mark_failed(io::Error::from_raw_os_error(1));
        assert!(why.contains("CAP_NET_ADMIN") && why.contains("0x6470"), "{why}");
    }
}
