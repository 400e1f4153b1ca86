//! The API's connections: how many there are at a time, and how long each may take. One request each.
//!
//! | limit | value |
//! |---|---|
//! | connections in all | 512; fewer where the process may have few descriptors |
//! | of one user other than root | 48 |
//! | kept free for root | 64 |
//! | a request's head, a request's body | 5 s, 10 s |
//! | a client that follows something and reads nothing | 60 s |

mod stalled;

use std::{convert::Infallible, future::pending, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, Request},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Notify, Semaphore, watch},
    task::JoinSet,
};
use tracing::debug;

use self::stalled::Stalled;
use super::{MOST, Peer, ROOT, Uid};
use crate::{
    admission::{Admission, Full, Limits, Place},
    api::{ErrorBody, Exit},
    kernel::descriptors,
    log::recurring::Recurring,
};

const LIMITS: Limits = Limits { total: 512, per_peer: 48, reserved: 64 };
/// The API may use one in so many of the descriptors that the process may have.
const SHARE: u64 = 4;
/// Clients that are told at a time that there is no room for them; more are sent away without a word.
const REFUSED: usize = 128;
/// How long a request's head may take.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// How long its body may take.
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// How long a client may leave what is written for it unread.
const READ_WITHIN: Duration = Duration::from_secs(60);
/// A request's head is a few hundred bytes; no smaller number is allowed (hyper).
const HEAD: usize = 8192;
/// Between two tries to accept a connection, where that fails: the process is out of descriptors, as a rule.
const AGAIN: Duration = Duration::from_millis(100);

/// Stands for a client whose user the kernel does not tell.
const UNKNOWN: Uid = u32::MAX;

/// Answers until it is to end, and then what has been asked.
pub(super) async fn serve(listener: UnixListener, router: Router, end: Arc<Notify>) {
    let admission = Admission::new(LIMITS.within(descriptors::limit(), SHARE));
    let refusals = Arc::new(Semaphore::new(REFUSED));
    let (ending, ended) = watch::channel(false);
    let (mut connections, mut trouble) = (JoinSet::new(), Recurring::new());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = end.notified() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                trouble.note(&Ok::<_, std::io::Error>(()), "accept a connection to the API");
                let uid = stream.peer_cred().map_or(UNKNOWN, |peer| peer.uid());
                match admission.admit(uid, uid == ROOT) {
                    Ok(place) => drop(connections.spawn(answer((stream, uid), router.clone(), place, ended.clone()))),
                    Err(full) => refuse(&mut connections, &refusals, stream, uid, full),
                }
            }
            Err(error) => {
                trouble.note(&Err::<(), _>(error), "accept a connection to the API");
                tokio::time::sleep(AGAIN).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    ending.send_replace(true);
    while connections.join_next().await.is_some() {}
}

/// Answers one request.
async fn answer((stream, uid): (UnixStream, Uid), router: Router, place: Place<Uid>, mut ended: watch::Receiver<bool>) {
    let place = Arc::new(place);
    let peer = Peer::of(&stream, uid);
    let asked = Arc::clone(&place);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        asked.busy();
        let (router, peer) = (TowerToHyperService::new(router.clone()), peer.clone());
        async move {
            let mut request = match whole(request).await {
                Ok(request) => request,
                Err(refused) => return Ok(refused),
            };
            request.extensions_mut().insert(ConnectInfo(peer));
            hyper::service::Service::call(&router, request).await
        }
    });
    let connection = http().serve_connection(TokioIo::new(Stalled::new(stream, READ_WITHIN)), service);
    tokio::pin!(connection);
    let stop = async {
        if ended.wait_for(|ended| *ended).await.is_err() {
            pending::<()>().await;
        }
    };
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = place.gives_way() => {
            debug!("a connection to the API that has asked nothing gives way to a newer one");
            return;
        }
        () = stop => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!(%error, "a connection to the API has ended early");
    }
}

fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(HEAD).keep_alive(false);
    http
}

/// The request with its body.
async fn whole(request: hyper::Request<Incoming>) -> Result<Request, Response> {
    let (head, body) = request.into_parts();
    let read = tokio::time::timeout(BODY_WITHIN, Limited::new(body, MOST).collect()).await;
    let (status, error) = match read {
        Ok(Ok(body)) => return Ok(Request::from_parts(head, Body::from(body.to_bytes()))),
        Ok(Err(error)) if error.is::<LengthLimitError>() => (
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the request's body is longer than {MOST} bytes; the API takes none that is"),
        ),
        Ok(Err(error)) => (StatusCode::BAD_REQUEST, format!("the request's body is not understood: {error}")),
        Err(_) => (
            StatusCode::REQUEST_TIMEOUT,
            format!("the request's body has not come within {} s; send it in one go", BODY_WITHIN.as_secs()),
        ),
    };
    Err(refusal(status, Exit::Usage, error))
}

fn refusal(status: StatusCode, exit: Exit, error: String) -> Response {
    (status, Json(ErrorBody { error, exit })).into_response()
}

/// Tells a client that there is no room, once it has asked something.
fn refuse(connections: &mut JoinSet<()>, refusals: &Arc<Semaphore>, stream: UnixStream, uid: Uid, full: Full) {
    debug!(uid, ?full, "there is no room for a connection to the API");
    let Ok(permit) = Arc::clone(refusals).try_acquire_owned() else { return };
    let error = no_room(uid, full);
    connections.spawn(async move {
        let service = service_fn(|request: hyper::Request<Incoming>| {
            let error = error.clone();
            async move {
                // A client writes all of its request before it reads.
                let _ = whole(request).await;
                Ok::<_, Infallible>(refusal(StatusCode::SERVICE_UNAVAILABLE, Exit::Busy, error))
            }
        });
        let served = http().serve_connection(TokioIo::new(Stalled::new(stream, HEAD_WITHIN)), service);
        let _ = tokio::time::timeout(HEAD_WITHIN, served).await;
        drop(permit);
    });
}

fn no_room(uid: Uid, full: Full) -> String {
    match full {
        Full::Peer(open) => format!(
            "the daemon has no room for another connection of user {uid}: {open} are open, and requests are under way \
             on all of them. End some of that user's clients (deployer events --follow, deployer roll), or ask as root"
        ),
        Full::Total(open) => format!(
            "the daemon has no room for another connection: {open} are open, and requests are under way on all of \
             them. End some clients (deployer events --follow, deployer roll), or ask as root"
        ),
    }
}

#[cfg(test)]
mod tests;
