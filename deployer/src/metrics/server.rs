//! Gives the page to whoever asks for it: HTTP/1 on a TCP port, one request a connection.
//!
//! Not by axum's own server, which sets no time limit: a peer that says nothing, or reads nothing, would keep its
//! connection for ever. Each connection is over after [`WITHIN`]. Where [`LIMITS`] are reached, one that has not sent a
//! request yet gives way to a newer one, then one that leaves its page unread, so that no peer can keep Prometheus out by
//! holding connections. One page is made at a time; requests that wait meanwhile share the next.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

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
    sync::Mutex,
    task::{JoinError, JoinSet, spawn_blocking},
};
use tracing::{debug, info, warn};

use super::page;
use crate::{
    admission::{Admission, Limits, Place},
    kernel::descriptors,
};

/// Connections that are open at a time. Local users share one address with a Prometheus on this host, so what counts there
/// is that the oldest gives way: it takes 128 connections within the milliseconds between a scrape's connection and its
/// request to send that away.
const LIMITS: Limits = Limits { total: 256, per_peer: 128, reserved: 0 };
/// The page may use one in so many of the descriptors that the process may have.
const SHARE: u64 = 8;
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
    let admission = Admission::new(LIMITS.within(descriptors::limit(), SHARE));
    let pages = Arc::new(Pages { make, last: Mutex::default() });
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => match admission.admit(peer.ip().to_canonical(), false) {
                Ok(place) => {
                    let pages = Arc::clone(&pages);
                    connections.spawn(async move {
                        let served = tokio::time::timeout(WITHIN, connection(stream, place, pages)).await;
                        if let Ok(Err(error)) = served {
                            debug!(%error, "a connection for metrics has ended early");
                        }
                    });
                }
                Err(full) => debug!(?full, %peer, "there is no room for a connection for metrics"),
            },
            Err(error) => {
                // Out of descriptors, as a rule.
                debug!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(AGAIN).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: TcpStream, place: Place<IpAddr>, pages: Arc<Pages>) -> Result<(), hyper::Error> {
    let place = Arc::new(place);
    let asked = Arc::clone(&place);
    let service = service_fn(move |request| {
        let (pages, place) = (Arc::clone(&pages), Arc::clone(&asked));
        async move {
            place.busy();
            let answer = answer(&request, pages).await;
            place.sending();
            Ok::<_, Infallible>(answer)
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(HEAD).keep_alive(false);
    tokio::select! {
        served = http.serve_connection(TokioIo::new(stream), service) => served,
        () = place.gives_way() => {
            debug!("a connection for metrics gives way to a newer one");
            Ok(())
        }
    }
}

/// Makes pages.
struct Pages {
    make: Make,
    /// The last page, and when its making began. Locked while one is made.
    last: Mutex<Option<(Instant, Bytes)>>,
}

impl Pages {
    /// A page that is not older than this call.
    async fn page(self: Arc<Self>) -> Result<Bytes, JoinError> {
        let asked = Instant::now();
        // Not given up with its connection: the next would have another page made beside it.
        let made = tokio::spawn(async move {
            let mut last = self.last.lock().await;
            if let Some((_, page)) = last.as_ref().filter(|(begun, _)| *begun >= asked) {
                return Ok(page.clone());
            }
            let (begun, make) = (Instant::now(), Arc::clone(&self.make));
            let page = Bytes::from(spawn_blocking(move || make()).await?);
            *last = Some((begun, page.clone()));
            Ok(page)
        });
        made.await?
    }
}

async fn answer(request: &Request<Incoming>, pages: Arc<Pages>) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        return plain(StatusCode::NOT_FOUND, format!("There is one page here: {PATH}\n"));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, format!("{PATH} is read by GET\n"));
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match pages.page().await {
        // Of the answer to HEAD, hyper sends the head alone.
        Ok(page) => with(StatusCode::OK, page::CONTENT_TYPE, page),
        Err(error) => {
            plain(StatusCode::INTERNAL_SERVER_ERROR, format!("the page could not be made, by a bug: {error}\n"))
        }
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    with(status, PLAIN, text.into())
}

fn with(status: StatusCode, kind: &'static str, text: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests;
