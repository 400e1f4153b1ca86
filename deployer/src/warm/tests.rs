//! Warm-up and version requests against small servers, well and badly behaved.

use std::{
    net::{Ipv4Addr, TcpListener as StdListener},
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep},
};

use super::*;
use crate::config::{Request, VersionPlace};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-version: 7.1\r\n\r\nok";

/// A server that gives each connection the next of its answers, the last again and again, and keeps the requests.
/// An empty answer is never sent; "endless" follows its head with an endless body.
struct Server {
    at: SocketAddr,
    got: Arc<Mutex<Vec<String>>>,
    _task: JoinSet<()>,
}

impl Server {
    async fn new(answers: &[&str]) -> Self {
        Self::on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(), answers)
    }

    fn on(listener: TcpListener, answers: &[&str]) -> Self {
        let at = listener.local_addr().unwrap();
        let answers: Vec<String> = answers.iter().map(|&answer| answer.to_owned()).collect();
        let got = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&got);
        let mut task = JoinSet::new();
        task.spawn(async move {
            for count in 0.. {
                let (peer, _) = listener.accept().await.unwrap();
                let answer = &answers[count.min(answers.len() - 1)];
                serve(peer, answer, &seen).await;
            }
        });
        Self { at, got, _task: task }
    }

    fn requests(&self) -> Vec<String> {
        self.got.lock().unwrap().clone()
    }
}

async fn serve(mut peer: TcpStream, answer: &str, seen: &Mutex<Vec<String>>) {
    let mut text = vec![0; 65_536];
    let mut size = peer.read(&mut text).await.unwrap();
    // The body may come in a piece of its own.
    if String::from_utf8_lossy(&text[..size]).contains("content-length: 5\r\n") && text[..size].ends_with(b"\r\n\r\n") {
        size += peer.read(&mut text[size..]).await.unwrap();
    }
    seen.lock().unwrap().push(String::from_utf8_lossy(&text[..size]).into_owned());
    if answer.is_empty() {
        sleep(Duration::from_secs(60)).await;
    }
    let (head, endless) = answer.strip_prefix("endless").map_or((answer, false), |head| (head, true));
    let _ = peer.write_all(head.as_bytes()).await;
    while endless && peer.write_all(&[b'x'; 65_536]).await.is_ok() {}
}

fn get(path: &str) -> Request {
    Request {
        method: "GET".into(),
        tls: None,
        path: path.into(),
        headers: Vec::new(),
        body: String::new(),
        status: None,
    }
}

fn plan(requests: Vec<Request>, repeat: u32) -> Warm {
    Warm { requests, repeat, within: Duration::from_secs(20) }
}

const LEFT: Duration = Duration::from_secs(5);

/// Why one GET fails.
async fn why(answer: &str, status: Option<u16>, left: Duration) -> String {
    let server = Server::new(&[answer]).await;
    let request = Request { status, ..get("/pin/1") };
    match warm(server.at, &plan(vec![request], 1), left).await {
        Err(WarmError::Request { request, nth: 1, of: 1, why, .. }) if request == "GET /pin/1" => why,
        other => panic!("{other:?}"),
    }
}

/// A port at which nobody listens.
fn nobody() -> SocketAddr {
    StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn requests_go_out_in_order_and_as_configured() {
    let server = Server::new(&[OK]).await;
    let post = Request {
        method: "POST".into(),
        headers: vec![
            ("Host".into(), "shop.example".into()),
            ("user-agent".into(), "me".into()),
            ("X-A".into(), "b".into()),
        ],
        body: "hello".into(),
        status: Some(200),
        ..get("/b?c=d")
    };
    let empty = Request { method: "POST".into(), ..get("/e") };
    assert_eq!(warm(server.at, &plan(vec![get("/a"), post, empty], 2), LEFT).await, Ok(6));
    let got = server.requests();
    assert_eq!(got.len(), 6);
    assert_eq!(got[0..3], got[3..6]);
    let agent = concat!("deployer-warm/", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        got[0],
        format!("GET /a HTTP/1.1\r\nhost: {}\r\nuser-agent: {agent}\r\nconnection: close\r\n\r\n", server.at)
    );
    assert_eq!(
        got[1],
        "POST /b?c=d HTTP/1.1\r\nhost: shop.example\r\nuser-agent: me\r\nx-a: b\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello"
    );
    assert!(got[2].contains("content-length: 0\r\n"), "{}", got[2]);
}

#[tokio::test]
async fn status_decides() {
    assert_eq!(why("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", Some(200), LEFT).await, "status 500, expected 200");
    assert_eq!(
        why("HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n", None, LEFT).await,
        "status 404, expected 2xx or 3xx"
    );
    let server = Server::new(&["HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 503 No\r\n\r\n"]).await;
    let requests = vec![get("/"), Request { status: Some(503), ..get("/") }];
    assert_eq!(warm(server.at, &plan(requests, 1), LEFT).await, Ok(2));
}

#[tokio::test]
async fn badly_behaved_workers() {
    let begun = Instant::now();
    let silent = why("", None, Duration::from_millis(150)).await;
    assert!(silent.starts_with("no answer within 0."), "{silent}");
    assert!(begun.elapsed() < Duration::from_secs(2));
    let garbage = why("220 mail.example ESMTP\r\n", None, LEFT).await;
    assert!(garbage.starts_with("the answer is not HTTP"), "{garbage}");
    let half = why("HTTP/1.1 200 OK\r\ncontent-le", None, LEFT).await;
    assert_eq!(half, "the connection was closed before an answer");
    let short = why("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", None, LEFT).await;
    assert!(short.starts_with("the answer's body ends in the middle"), "{short}");
    let endless = why("endlessHTTP/1.1 200 OK\r\n\r\n", None, LEFT).await;
    assert_eq!(endless, "the answer's body is larger than 16384 KiB");
    let odd = Request { method: "GET".into(), ..get("/a b") };
    let server = Server::new(&[OK]).await;
    let error = warm(server.at, &plan(vec![odd], 1), LEFT).await.unwrap_err().to_string();
    assert!(error.contains("cannot be written as HTTP"), "{error}");
}

#[tokio::test]
async fn nobody_listens() {
    let (worker, begun) = (nobody(), Instant::now());
    let plan = plan(vec![get("/")], 1);
    let late = warm(worker, &plan, Duration::from_millis(200)).await;
    assert_eq!(late, Err(WarmError::NotListening { worker, within: plan.within }));
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_port_that_listens_later() {
    let worker = nobody();
    let mut task = JoinSet::new();
    task.spawn(async move {
        sleep(Duration::from_millis(150)).await;
        let server = Server::on(TcpListener::bind(worker).await.unwrap(), &[OK]);
        sleep(LEFT).await;
        drop(server);
    });
    assert_eq!(warm(worker, &plan(Vec::new(), 3), LEFT).await, Ok(0));
    assert_eq!(warm(worker, &plan(vec![get("/")], 1), LEFT).await, Ok(1));
}

#[tokio::test]
async fn a_port_that_closes_again() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let worker = listener.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let (peer, _) = listener.accept().await.unwrap();
        drop(listener);
        serve(peer, OK, &Mutex::default()).await;
    });
    let (begun, plan) = (Instant::now(), plan(vec![get("/a"), get("/b")], 2));
    let error = warm(worker, &plan, LEFT).await.unwrap_err();
    let why = "connection refused".to_owned();
    assert_eq!(error, WarmError::Request { worker, request: "GET /b".into(), nth: 2, of: 4, why });
    assert!(begun.elapsed() < Duration::from_secs(2));
}

async fn version_in(answer: &str, place: VersionPlace) -> Result<String, String> {
    let server = Server::new(&[answer]).await;
    let ask = VersionRequest { request: get("/version"), place };
    version(server.at, &ask, Duration::from_millis(500)).await.map(String::from).map_err(|error| match error {
        WarmError::NoVersion { request, why, .. } if request == "GET /version" => why,
        WarmError::InvalidVersion { shown, .. } => shown,
        other => panic!("{other:?}"),
    })
}

fn body(text: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len())
}

/// A build with a version in it.
const JSON: &str = "{\"build\": {\"version\": \"1.2\", \"number\": 12, \"flags\": []}, \"top\": 3}";

fn json(path: &str) -> VersionPlace {
    VersionPlace::Json(path.to_owned())
}

fn header(name: &str) -> VersionPlace {
    VersionPlace::Header(name.to_owned())
}

#[tokio::test]
async fn versions() {
    for (answer, place, expected) in [
        (body(" 1.2.3-rc1 \n"), VersionPlace::Body, "1.2.3-rc1"),
        (body(&"v".repeat(128)), VersionPlace::Body, &*"v".repeat(128)),
        (OK.to_owned(), header("X-Version"), "7.1"),
        (body(JSON), json("build.version"), "1.2"),
        (body(JSON), json("build.number"), "12"),
        (body(JSON), json("top"), "3"),
    ] {
        assert_eq!(version_in(&answer, place).await.as_deref(), Ok(expected));
    }
}

#[tokio::test]
async fn what_is_no_version() {
    for (answer, place, expected) in [
        (body(" \n"), VersionPlace::Body, "\"\""),
        (body(&"v".repeat(129)), VersionPlace::Body, "vvv...\""),
        (body("1\u{1b}[2J"), VersionPlace::Body, "\"1\\u{1b}[2J\""),
        (body("../../tmp/evil\n"), VersionPlace::Body, "\"../../tmp/evil\""),
        (body("1\n2"), VersionPlace::Body, "\"1\\n2\""),
        (body(&"v".repeat(70_000)), VersionPlace::Body, "larger than 64 KiB"),
        ("HTTP/1.1 200 OK\r\n\r\n".to_owned(), header("x-version"), "no header `x-version`"),
        ("HTTP/1.1 404 No\r\n\r\n".to_owned(), VersionPlace::Body, "status 404"),
        (body(JSON), json("build.flags"), "neither a string nor a number"),
        (body(JSON), json("build.commit.id"), "no `build.commit.id`: there is no `commit`"),
        (body(&"[".repeat(10_000)), json("a"), "not JSON"),
        (String::new(), VersionPlace::Body, "no answer within 0.5 s"),
    ] {
        let why = version_in(&answer, place).await.unwrap_err();
        assert!(why.contains(expected), "{why}");
    }
}

#[tokio::test]
async fn no_worker_no_version() {
    let ask = VersionRequest { request: get("/version"), place: VersionPlace::Body };
    let error = version(nobody(), &ask, LEFT).await.unwrap_err();
    assert!(error.to_string().ends_with("connection refused"), "{error}");
}
