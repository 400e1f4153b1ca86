//! Gives the page to whoever asks for it: HTTP/1 on a TCP port, one request a connection.
//!
//! Not by axum's own server, which sets no time limit: a peer that says nothing, or reads nothing, would keep its
//! connection for ever. There are [`AT_ONCE`] connections at a time and each is over after [`WITHIN`]; others wait in the
//! socket's queue. One page is made at a time.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, Semaphore},
    task::{JoinSet, spawn_blocking},
};
use tracing::{debug, info, warn};

use super::page;

/// Connections that are served at a time.
const AT_ONCE: usize = 4;
/// How long a connection may take in all: Prometheus gives up after 10 s unless told otherwise.
const WITHIN: Duration = Duration::from_secs(10);
/// How long a request's head may take.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// Between two tries to bind the port, or to accept.
const AGAIN: Duration = Duration::from_secs(2);
/// A request's head is a few hundred bytes; no smaller number is allowed (hyper).
const HEAD: usize = 8192;

const PATH: &str = "/metrics";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Makes a page; may block.
pub type Make = Arc<dyn Fn() -> String + Send + Sync>;

/// Hears why the page cannot be had, and `None` when it can.
pub type Tell = Arc<dyn Fn(Option<String>) + Send + Sync>;

/// Serves for ever, where a port was `bound`. One that could not be is no reason not to steer: it is said, and tried again.
pub async fn run(at: SocketAddr, mut bound: io::Result<TcpListener>, make: Make, tell: Tell) {
    let mut is_told = false;
    let listener = loop {
        match bound {
            Ok(listener) => break listener,
            Err(error) => {
                let why = unbound(at, &error);
                if !std::mem::replace(&mut is_told, true) {
                    warn!("{why}");
                }
                tell(Some(why));
            }
        }
        tokio::time::sleep(AGAIN).await;
        bound = TcpListener::bind(at).await;
    };
    tell(None);
    info!(at = %at, "metrics are served at http://{at}{PATH}");
    serve(listener, make).await;
}

/// Why a port cannot be had, and what to do.
#[must_use]
pub fn unbound(at: SocketAddr, error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => "another process listens there; stop that, or set another [metrics] listen",
        io::ErrorKind::AddrNotAvailable => "no interface of this host has that address; set another [metrics] listen",
        io::ErrorKind::PermissionDenied => "ports below 1024 take CAP_NET_BIND_SERVICE; set another [metrics] listen",
        _ => "set another [metrics] listen, or none",
    };
    format!("metrics are not served: {at} cannot be bound: {error}; {advice}. It is tried again")
}

/// Serves those who come to a socket, for ever.
pub(super) async fn serve(listener: TcpListener, make: Make) {
    let (permits, turn) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(Mutex::new(())));
    let mut connections = JoinSet::new();
    loop {
        // Nobody closes it.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (make, turn) = (Arc::clone(&make), Arc::clone(&turn));
                connections.spawn(async move {
                    let served = tokio::time::timeout(WITHIN, connection(stream, make, turn)).await;
                    drop(permit);
                    if let Ok(Err(error)) = served {
                        debug!(%error, "a connection for metrics has ended early");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, as a rule.
                debug!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(AGAIN).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: TcpStream, make: Make, turn: Arc<Mutex<()>>) -> Result<(), hyper::Error> {
    let service = service_fn(move |request| {
        let (make, turn) = (Arc::clone(&make), Arc::clone(&turn));
        async move { Ok::<_, Infallible>(answer(&request, make, turn).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(HEAD).keep_alive(false);
    http.serve_connection(TokioIo::new(stream), service).await
}

async fn answer(request: &Request<Incoming>, make: Make, turn: Arc<Mutex<()>>) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        return plain(StatusCode::NOT_FOUND, format!("There is one page here: {PATH}\n"));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, format!("{PATH} is read by GET\n"));
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let turn = turn.lock_owned().await;
    // With its turn: whoever gives up waiting does not have another page made beside it.
    let made = spawn_blocking(move || {
        let page = make();
        drop(turn);
        page
    });
    match made.await {
        // Of the answer to HEAD, hyper sends the head alone.
        Ok(text) => with(StatusCode::OK, page::CONTENT_TYPE, text),
        Err(error) => {
            plain(StatusCode::INTERNAL_SERVER_ERROR, format!("the page could not be made, by a bug: {error}\n"))
        }
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    with(status, PLAIN, text)
}

fn with(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests;
