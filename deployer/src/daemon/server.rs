//! The API: HTTP and JSON over a unix socket that root and one group may open.

mod connections;
mod fleet;

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, anyhow, bail};
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path as Name, Query, Request, State},
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::de::DeserializeOwned;
use tokio::{
    io::DuplexStream,
    net::{UnixListener, UnixStream},
    sync::{Notify, Semaphore},
};

use super::{Daemon, error::Refusal};
use crate::{
    api::{DeployRequest, Done, ErrorBody, Exit, Reloaded, Report, RollRequest, TraceRequest},
    config,
    journal::history::By,
};

/// Requests are a line or two.
const MOST: usize = 64 * 1024;

/// Clients that read the history at a time, of root and of all others: each holds up to two files open, for as long as it
/// likes.
const READERS: usize = 96;
static READING: Semaphore = Semaphore::const_new(READERS);
static ROOT_READING: Semaphore = Semaphore::const_new(READERS);

/// Stands for the id of the roll that began last; no roll is called so.
const LAST: &str = "last";

/// The number of a user.
type Uid = u32;
const ROOT: Uid = 0;

/// The process at the other end, in words, and its user.
#[derive(Clone)]
struct Peer(String, Uid);

impl Peer {
    fn of(stream: &UnixStream, uid: Uid) -> Self {
        let said = match stream.peer_cred() {
            Ok(peer) => format!("uid {} (pid {})", peer.uid(), peer.pid().unwrap_or_default()),
            Err(error) => format!("an unknown user ({error})"),
        };
        Self(said, uid)
    }
}

/// A socket that is bound, under another name yet: clients find it when the daemon is ready for them.
pub(super) struct Bound {
    listener: UnixListener,
    aside: PathBuf,
    path: PathBuf,
}

impl Bound {
    /// Gives the socket its name.
    pub(super) fn publish(self) -> Result<UnixListener> {
        fs::rename(&self.aside, &self.path)
            .with_context(|| format!("renaming {} to {}", self.aside.display(), self.path.display()))?;
        Ok(self.listener)
    }
}

/// Makes the socket, with mode 0660. One that nobody answers on is left over, and replaced.
pub(super) fn bind(config: &config::Daemon) -> Result<Bound> {
    let path = &config.socket;
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("making directory {}", directory.display()))?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => bail!("another daemon answers at {}; stop it first, or set another [daemon] socket", path.display()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(|| format!("removing the left-over socket {}", path.display()))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("looking at {}", path.display())),
    }
    // Under this name nobody meets it with the wrong mode, or before it is answered.
    let aside = path.with_extension("new");
    let _ = fs::remove_file(&aside);
    let listener = UnixListener::bind(&aside).with_context(|| format!("binding {}", path.display()))?;
    fs::set_permissions(&aside, Permissions::from_mode(0o660))
        .and_then(|()| give_to(&aside, config.group.as_deref()))
        .with_context(|| format!("setting up the socket {}", path.display()))?;
    Ok(Bound { listener, aside, path: path.clone() })
}

fn give_to(path: &Path, group: Option<&str>) -> io::Result<()> {
    let Some(group) = group else { return Ok(()) };
    let groups = fs::read_to_string("/etc/group")?;
    let id = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(group)).then(|| fields.nth(1)?.parse().ok())?
    });
    let id = id.ok_or_else(|| io::Error::other(anyhow!("there is no group `{group}` in /etc/group")))?;
    chown(path, None, Some(id))
}

/// Answers until it is to end, and then what has been asked.
pub(super) async fn run(listener: UnixListener, daemon: Arc<Daemon>, end: Arc<Notify>) {
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services/{name}/roll", post(roll))
        .route("/v1/services/{name}/deploy", post(deploy))
        .route("/v1/services/{name}/flip", post(flip))
        .route("/v1/services/{name}/rollback", post(rollback))
        .route("/v1/services/{name}/drain", post(drain))
        .route("/v1/services/{name}/enable", post(enable))
        .route("/v1/services/{name}/trace", get(trace))
        .route("/v1/events", get(history))
        .route("/v1/rolls/{id}/events", get(events))
        .route("/v1/rolls/{id}/report", get(report))
        .route("/v1/rolls/{id}/stop", post(stop))
        .merge(fleet::routes())
        .route("/v1/bypass", post(bypass))
        .route("/v1/detach", post(detach))
        .route("/v1/reload", post(reload))
        .fallback(nothing_here)
        .method_not_allowed_fallback(nothing_here)
        .layer(DefaultBodyLimit::max(MOST))
        .layer(axum::middleware::map_response(in_json))
        .with_state(daemon);
    connections::serve(listener, router, end).await;
}

type Answer<T> = Result<Json<T>, Refusal>;
type Shared = State<Arc<Daemon>>;
type Who = axum::extract::ConnectInfo<Peer>;

/// Reads a request's body, however it is labelled; an empty one is `{}`.
fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    let body = if body.is_empty() { b"{}" } else { &body[..] };
    serde_json::from_slice(body)
        .map_err(|error| Refusal::usage(format!("the request's body is not understood: {error}")))
}

async fn nothing_here(request: Request) -> Refusal {
    Refusal::usage(format!("the API has no {} {}", request.method(), request.uri().path()))
}

/// What the framework refuses by itself (a body too large, a name that is no text) is an error like any other.
async fn in_json(response: Response) -> Response {
    let status = response.status();
    let kind = response.headers().get(CONTENT_TYPE);
    if status.is_success() || kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json")) {
        return response;
    }
    let said = axum::body::to_bytes(response.into_body(), MOST).await.unwrap_or_default();
    let error = format!("the request is not understood: {}", String::from_utf8_lossy(&said));
    let exit = if status.is_client_error() { Exit::Usage } else { Exit::Failed };
    (status, Json(ErrorBody { error, exit })).into_response()
}

async fn status(State(daemon): Shared) -> Response {
    Json(daemon.status().await).into_response()
}

async fn report(State(daemon): Shared, Name(id): Name<String>) -> Answer<Report> {
    let roll = if id == LAST { daemon.last_roll()? } else { find(&daemon, &id)? };
    daemon.report(&roll).await.map(Json)
}

async fn roll(State(daemon): Shared, Name(name): Name<String>, who: Who, body: Bytes) -> Response {
    let run = async {
        let request: RollRequest = parse(&body)?;
        daemon.catch_up().await;
        daemon.roll(daemon.service(&name)?, request, who.0.0).await
    };
    run.await.map(Json).into_response()
}

async fn deploy(State(daemon): Shared, Name(name): Name<String>, who: Who, body: Bytes) -> Response {
    let run = async {
        let request: DeployRequest = parse(&body)?;
        daemon.catch_up().await;
        daemon.deploy(&name, request, who.0.0).await
    };
    run.await.map(Json).into_response()
}

async fn flip(State(daemon): Shared, Name(name): Name<String>, who: Who, body: Bytes) -> Answer<Done> {
    daemon.flip(&name, &parse(&body)?, &who.0.0).map(Json)
}

async fn rollback(State(daemon): Shared, Name(name): Name<String>, who: Who) -> Response {
    daemon.rollback(&name, who.0.0).await.map(Json).into_response()
}

async fn drain(State(daemon): Shared, Name(name): Name<String>, who: Who, body: Bytes) -> Answer<Done> {
    daemon.drain(&name, &parse(&body)?, &who.0.0).await.map(Json)
}

async fn enable(State(daemon): Shared, Name(name): Name<String>, who: Who, body: Bytes) -> Answer<Done> {
    daemon.enable(&name, &parse(&body)?, &who.0.0).await.map(Json)
}

async fn bypass(State(daemon): Shared, who: Who, body: Bytes) -> Answer<Done> {
    let done = daemon.bypass(&parse(&body)?, &who.0.0)?;
    // It is in force in any case; where it cannot be written down, the status says so.
    let _ = daemon.journal.flush().await;
    Ok(Json(done))
}

async fn detach(State(daemon): Shared, who: Who, body: Bytes) -> Answer<Done> {
    daemon.detach(&parse(&body)?, &who.0.0).map(Json)
}

async fn reload(State(daemon): Shared, who: Who) -> Answer<Reloaded> {
    // A task of its own: it must come to its end even if the client does not wait for it.
    let reload = tokio::spawn(async move { daemon.reload(By::Somebody(&who.0.0)).await });
    reload.await.unwrap_or_else(|error| Err(Refusal::failed(error.to_string()))).map(Json)
}

async fn stop(State(daemon): Shared, Name(id): Name<String>, who: Who) -> Answer<Done> {
    let roll = find(&daemon, &id)?;
    if roll.result().is_some() {
        return Ok(Json(Done { done: format!("roll {id} has ended already") }));
    }
    daemon.may_stop(&roll)?;
    roll.ask_stop(&who.0.0);
    Ok(Json(Done { done: format!("roll {id} stops after the batch in hand") }))
}

fn find(daemon: &Daemon, id: &str) -> Result<Arc<crate::roll::Record>, Refusal> {
    let found = daemon.rolls().iter().find(|roll| roll.id == id).cloned();
    found.ok_or_else(|| Refusal::usage(format!("there is no roll `{id}`; this daemon remembers the last few only")))
}

/// Where to begin.
#[derive(serde::Deserialize)]
struct From {
    #[serde(default)]
    from: usize,
}

/// Which lines of the history.
#[derive(serde::Deserialize)]
struct Lines {
    #[serde(default)]
    from: u64,
    #[serde(default)]
    follow: bool,
}

/// What happened on this host, a line each.
async fn history(State(daemon): Shared, who: Who, Query(wanted): Query<Lines>) -> Result<Response, Refusal> {
    let busy = |_| Refusal::busy(format!("{READERS} clients read the history already; end some of them"));
    let reading = if who.0.1 == ROOT { &ROOT_READING } else { &READING };
    let permit = reading.try_acquire().map_err(busy)?;
    let mut reader = daemon.history.reader(wanted.from, wanted.follow);
    // Before the answer begins: later there is no telling why it ends.
    reader.look().await.map_err(|hang| Refusal::failed(format!("the events cannot be read: {hang}")))?;
    // Asked for the next as soon as the client has taken the last; dropped when it is gone.
    let lines = futures_util::stream::unfold((reader, permit), |(mut reader, permit)| async {
        let lines = reader.next().await?;
        Some((lines, (reader, permit)))
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

/// Events as they happen, a line each, until the roll has ended.
async fn events(State(daemon): Shared, Name(id): Name<String>, Query(from): Query<From>) -> Result<Response, Refusal> {
    let roll = find(&daemon, &id)?;
    let (mut sender, body) = tokio::io::duplex(MOST);
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        let mut seq = roll.go_on(from.from);
        while let Some(event) = roll.event(seq).await {
            seq = usize::try_from(event.seq).unwrap_or(usize::MAX).saturating_add(1);
            let Ok(mut line) = serde_json::to_vec(&event) else { return };
            line.push(b'\n');
            if sender.write_all(&line).await.is_err() {
                // The reader has gone; the roll goes on.
                return;
            }
        }
    });
    Ok(lines(body))
}

/// Decisions as they are made, a line each.
async fn trace(
    State(daemon): Shared,
    Name(name): Name<String>,
    who: Who,
    Query(asked): Query<TraceRequest>,
) -> Result<Response, Refusal> {
    let (sender, body) = tokio::io::duplex(MOST);
    daemon.trace(&name, &asked, &who.0.0, sender)?;
    Ok(lines(body))
}

/// An answer of lines of JSON that are still to come.
fn lines(body: DuplexStream) -> Response {
    let stream = tokio_util::io::ReaderStream::new(body);
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(stream)).into_response()
}
