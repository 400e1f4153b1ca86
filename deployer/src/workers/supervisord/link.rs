//! One HTTP exchange with supervisord over its unix socket, on a connection of its own.

use std::{
    io::{Error, ErrorKind},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, task::JoinSet, time::timeout};

use crate::workers::peer::{self, PeerError};

/// Longest wait for a connection and the whole answer. supervisord is one thread, but every call made here returns
/// at once: one that takes longer is stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Largest answer read; 1,000 processes are about 2 MB.
const ANSWER_SIZE: usize = 4 << 20;

/// Where supervisord listens and how to log in.
pub(super) struct Link {
    socket: PathBuf,
    /// The value of the `Authorization` header.
    authorization: Option<String>,
    within: Duration,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum LinkError {
    /// No connection.
    Unreachable { source: Error, hint: &'static str },
    /// The connection broke off, or nothing came over it in time: what was asked for may still be done.
    Unanswered { source: Error, hint: &'static str },
    /// An HTTP status that says no.
    Refused { said: String, hint: &'static str },
    /// Something came that is no HTTP answer with a text in it.
    Garbled(String),
}

impl Link {
    pub(super) fn new(socket: PathBuf, login: Option<(String, String)>) -> Self {
        let authorization =
            login.map(|(name, password)| format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}"))));
        Self { socket, authorization, within: ANSWER_WITHIN }
    }

    /// The socket, for messages.
    pub(super) fn at(&self) -> String {
        self.socket.display().to_string()
    }

    /// Sends a document and returns the one that comes back.
    pub(super) async fn post(&self, xml: String) -> Result<String, LinkError> {
        timeout(self.within, self.exchange(xml)).await.unwrap_or_else(|_| {
            let source = Error::new(ErrorKind::TimedOut, format!("no answer within {} s", self.within.as_secs_f32()));
            Err(LinkError::Unanswered { hint: hint(&source), source })
        })
    }

    async fn exchange(&self, xml: String) -> Result<String, LinkError> {
        let stream = connect(&self.socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // The set ends its task when it is dropped, so that a call given up leaves nothing behind.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let answer = sender.send_request(self.request(xml)?).await.map_err(broken)?;
        match answer.status() {
            StatusCode::OK => body(answer).await,
            status => Err(status_error(status)),
        }
    }

    fn request(&self, xml: String) -> Result<Request<Full<Bytes>>, LinkError> {
        let mut request = Request::post("/RPC2")
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "text/xml")
            .header(header::CONNECTION, "close");
        if let Some(login) = &self.authorization {
            request = request.header(header::AUTHORIZATION, login);
        }
        request
            .body(Full::new(Bytes::from(xml)))
            .map_err(|error| LinkError::Garbled(format!("the request cannot be written: {error}")))
    }
}

async fn connect(socket: &Path) -> Result<UnixStream, LinkError> {
    peer::connect(socket).await.map_err(|error| match error {
        PeerError::Connect(source) => LinkError::Unreachable { hint: hint(&source), source },
        PeerError::Stranger(source) => LinkError::Unreachable { hint: peer::HINT, source },
    })
}

async fn body(answer: Response<Incoming>) -> Result<String, LinkError> {
    let whole = Limited::new(answer.into_body(), ANSWER_SIZE).collect().await.map_err(|error| {
        LinkError::Garbled(if error.is::<LengthLimitError>() {
            format!("it is larger than {} MiB", ANSWER_SIZE >> 20)
        } else {
            format!("it ends in the middle: {error}")
        })
    })?;
    String::from_utf8(whole.to_bytes().into()).map_err(|_| LinkError::Garbled("it is not UTF-8".to_owned()))
}

/// What to do about a socket that does not work.
fn hint(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => {
            "Is supervisord running, and is this the `file` of its [unix_http_server] section? Compare `manager.supervisord`"
        }
        ErrorKind::ConnectionRefused => "The socket is there but nobody listens: supervisord has ended. Start it",
        ErrorKind::PermissionDenied => {
            "Run the daemon as a user that may write to the socket, or set `chmod` and `chown` in [unix_http_server]"
        }
        // A full queue of connections that nobody accepts is WouldBlock.
        ErrorKind::TimedOut | ErrorKind::WouldBlock => {
            "It is there but hangs: look at its log and at its process (stopped? a slow disk under its logs?)"
        }
        ErrorKind::ConnectionReset => "Has supervisord ended? Look at its log",
        _ => "Look at supervisord's log",
    }
}

fn status_error(status: StatusCode) -> LinkError {
    let hint = match status {
        StatusCode::UNAUTHORIZED => "Set the user name and password of its [unix_http_server] section",
        StatusCode::NOT_FOUND => "Its configuration needs the section [rpcinterface:supervisor]",
        _ => {
            return LinkError::Garbled(format!("HTTP status {status}; supervisord's log may say why"));
        }
    };
    LinkError::Refused { said: format!("HTTP status {status}"), hint }
}

fn broken(error: hyper::Error) -> LinkError {
    if error.is_parse() {
        return LinkError::Garbled(format!("it is not HTTP: {error}"));
    }
    let source = Error::new(ErrorKind::ConnectionReset, "the connection was closed before an answer");
    LinkError::Unanswered { hint: hint(&source), source }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };

    use super::*;

    /// Answers one connection with `answer`, then more of `filler` as long as it is taken.
    async fn told(answer: &'static str, filler: &'static [u8]) -> Result<String, LinkError> {
        let folder = tempfile::tempdir().unwrap();
        let mut link = Link::new(folder.path().join("s"), Some(("user".into(), "pass".into())));
        link.within = Duration::from_secs(2);
        let listener = UnixListener::bind(&link.socket).unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut got = vec![0; 4096];
            let size = peer.read(&mut got).await.unwrap();
            let got = String::from_utf8_lossy(&got[..size]).into_owned();
            assert!(
                got.starts_with("POST /RPC2 HTTP/1.1\r\n") && got.contains("authorization: Basic dXNlcjpwYXNz\r\n"),
                "{got}"
            );
            peer.write_all(answer.as_bytes()).await.unwrap();
            while !filler.is_empty() && peer.write_all(filler).await.is_ok() {}
        });
        let result = link.post("<a/>".to_owned()).await;
        server.join_next().await.unwrap().unwrap();
        result
    }

    fn garbled(result: Result<String, LinkError>, part: &str) {
        match result {
            Err(LinkError::Garbled(why)) => assert!(why.contains(part), "{why}"),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn answers() {
        assert_eq!(told("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n<a/>", b"").await.unwrap(), "<a/>");
        garbled(told("SSH-2.0-OpenSSH_9\r\n\r\n", b"").await, "not HTTP");
        let closed = told("", b"").await;
        assert!(matches!(closed, Err(LinkError::Unanswered { source, .. }) if source.to_string().contains("closed")));
        garbled(told("HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\n<a/>", b"").await, "in the middle");
        garbled(told("HTTP/1.1 200 OK\r\n\r\n\u{e9}", &[0xff; 65_536]).await, "4 MiB");
        garbled(told("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n", b"").await, "500");
        let refused = told("HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n", b"").await;
        assert!(matches!(refused, Err(LinkError::Refused { hint, .. }) if hint.contains("password")));
    }

    #[tokio::test]
    async fn a_peer_that_hangs() {
        let folder = tempfile::tempdir().unwrap();
        let mut link = Link::new(folder.path().join("s"), None);
        link.within = Duration::from_millis(80);
        let listener = UnixListener::bind(&link.socket).unwrap();
        let Err(LinkError::Unanswered { source, hint }) = link.post(String::new()).await else { panic!() };
        assert_eq!(source.kind(), ErrorKind::TimedOut);
        assert!(hint.contains("hangs"));
        drop(listener);
        let Err(LinkError::Unreachable { hint, .. }) = link.post(String::new()).await else { panic!() };
        assert!(hint.contains("nobody listens"));
    }
}
