//! Over real sockets.

use std::{path::PathBuf, time::Instant};

use axum::{
    body::Bytes,
    routing::{get, post},
};
use futures_util::stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

struct Scene {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    end: Arc<Notify>,
}

fn scene() -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let endless = || async {
        let lines = stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from(vec![b'x'; 4096])));
        Body::from_stream(lines)
    };
    let router = Router::new()
        .route("/", get(|ConnectInfo(Peer(who, _)): ConnectInfo<Peer>| async move { who }))
        .route("/", post(|body: Bytes| async move { body.len().to_string() }))
        .route("/endless", get(endless));
    let end = Arc::new(Notify::new());
    tokio::spawn(serve(listener, router, Arc::clone(&end)));
    Scene { _folder: folder, socket, end }
}

impl Scene {
    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    async fn ask(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }
}

const ASK: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn one_request_is_answered_and_its_sender_known() {
    let scene = scene();
    let answer = scene.ask(&format!("{ASK}{ASK}")).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("uid "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    let posted = scene.ask("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc").await;
    assert!(posted.ends_with("\r\n\r\n3"), "{posted}");
    let long = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {0}\r\n\r\n{1}", MOST + 1, "x".repeat(MOST + 1));
    let long = scene.ask(&long).await;
    assert!(long.starts_with("HTTP/1.1 413 ") && long.contains("longer than 65536 bytes"), "{long}");
    let head = scene.ask(&format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(2 * HEAD))).await;
    assert!(head.is_empty() || head.starts_with("HTTP/1.1 4"), "{head}");
}

#[tokio::test]
async fn a_request_comes_in_time_or_not_at_all() {
    let scene = scene();
    let begun = Instant::now();
    let half = [scene.ask("GET / HT"), scene.ask("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na")];
    let [head, body] = futures_util::future::join_all(half).await.try_into().unwrap();
    assert!(!head.contains("200 OK"), "{head}");
    assert!(body.starts_with("HTTP/1.1 408 ") && body.contains("within 10 s"), "{body}");
    assert!(begun.elapsed() < 2 * BODY_WITHIN, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_given_up() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut near = Stalled::new(near, Duration::from_millis(200));
    let (begun, block) = (Instant::now(), vec![0; 1 << 20]);
    // The far end reads a little, once.
    let written = tokio::spawn(async move { near.write_all(&block).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let _ = far.read(&mut [0; 1 << 19]).await.unwrap();
    assert_eq!(written.await.unwrap().unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    assert!(begun.elapsed() >= Duration::from_millis(250), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn who_has_asked_is_answered_when_it_ends() {
    let scene = scene();
    let mut follower = scene.connect().await;
    follower.write_all(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let _ = follower.read(&mut [0; 100]).await.unwrap();
    let mut idle = scene.connect().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    scene.end.notify_one();
    assert_eq!(idle.read(&mut [0; 100]).await.unwrap(), 0, "one that has asked nothing is not waited for");
    assert!(follower.read(&mut [0; 100]).await.unwrap() > 0);
}

#[test]
fn there_is_a_word_for_who_gets_no_place() {
    assert!(no_room(1000, Full::Peer(48)).contains("user 1000: 48 are open"));
    assert!(no_room(1000, Full::Total(448)).contains("448 are open"));
}
