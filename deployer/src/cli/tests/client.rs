use std::path::PathBuf;

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};

use super::*;
use crate::api::{Done, DrainRequest, Status};

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

/// Says one thing to everyone who calls.
pub(super) struct Daemon {
    dir: TempDir,
    task: JoinHandle<String>,
}

impl Daemon {
    /// Answers one request with these bytes and closes.
    pub(super) fn that_says(answer: impl Into<Vec<u8>>) -> Self {
        let (dir, answer) = (tempfile::tempdir().unwrap(), answer.into());
        let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let asked = request(&mut stream).await;
            stream.write_all(&answer).await.unwrap();
            asked
        });
        Self { dir, task }
    }

    fn answers(status: &str, body: &str) -> Self {
        Self::that_says(format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
    }

    pub(super) fn client(&self) -> Client {
        Client::new(self.socket())
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }
}

/// Reads a request with its body, which is why hyper does not see the connection reset.
async fn request(stream: &mut UnixStream) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).await.unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let expected = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= expected.map_or(0, |length| length.parse().unwrap()) {
            return text;
        }
    }
}

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

fn json(what: What) -> String {
    serde_json::to_string(&event(5, what)).unwrap() + "\n"
}

async fn failure(daemon: &Daemon) -> Failure {
    daemon.client().get::<Status>("/v1/status").await.unwrap_err()
}

#[tokio::test]
async fn a_request_says_what_is_wanted() {
    let daemon = Daemon::answers("200 OK", r#"{"done":"it is"}"#);
    let request = DrainRequest { port: 8003.into(), for_ms: Some(7), force: false };
    let done: Done = daemon.client().post("/v1/services/web/drain", &request).await.unwrap();
    assert_eq!(done.done, "it is");
    let asked = daemon.task.await.unwrap();
    assert!(asked.starts_with("POST /v1/services/web/drain HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains("content-type: application/json") && asked.ends_with(r#"{"port":8003,"for_ms":7}"#));
}

#[tokio::test]
async fn nobody_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("sock");
    let missing = Client::new(socket.clone()).get::<Status>("/v1/status").await.unwrap_err();
    assert_eq!(missing.exit, Exit::NoDaemon);
    let said = format!("cannot reach the daemon at {}: No such file", socket.display());
    assert!(missing.message.starts_with(&said), "{missing}");
    assert!(missing.message.contains("deployer daemon --config FILE"), "{missing}");

    drop(UnixListener::bind(&socket).unwrap());
    let refused = Client::new(socket.clone()).events::<Event>("/v1/rolls/1/events?from=0").await.unwrap_err();
    assert_eq!(refused.exit, Exit::NoDaemon);
    assert!(refused.message.contains("refused"), "{refused}");

    // Not a socket at all, and a path that no socket can have.
    for path in ["/dev/null".to_owned(), format!("/tmp/{}", "x".repeat(200))] {
        let strange = Client::new(path.into()).get::<Status>("/v1/status").await.unwrap_err();
        assert_eq!(strange.exit, Exit::NoDaemon, "{strange}");
    }
}

#[tokio::test]
async fn errors_come_with_their_exit_code() {
    let failure = failure(&Daemon::answers("409 Conflict", r#"{"error":"web is being rolled","exit":"busy"}"#)).await;
    assert_eq!(failure, Failure::new(Exit::Busy, "web is being rolled"));
}

#[tokio::test]
async fn no_error_exits_with_0() {
    let failure = failure(&Daemon::answers("500 Oops", r#"{"error":"odd","exit":"done"}"#)).await;
    assert_eq!(failure, Failure::new(Exit::Failed, "odd"));
}

#[tokio::test]
async fn garbled_answers_are_errors() {
    let long = "x".repeat(1000);
    for (status, body) in [
        ("200 OK", "{\"version\": "),
        ("200 OK", ""),
        ("200 OK", "\u{1b}[2J"),
        ("200 OK", "{\"done\": 1}"),
        ("404 Not Found", ""),
        ("500 Oops", "{}"),
        ("502 Bad Gateway", &long),
    ] {
        let failure = failure(&Daemon::answers(status, body)).await;
        assert_eq!(failure.exit, Exit::Failed, "{failure}");
        assert!(failure.message.starts_with("what listens at "), "{failure}");
        assert!(failure.message.len() < 500 && !failure.message.contains('\u{1b}'), "{failure}");
    }
    let failure = failure(&Daemon::that_says("SSH-2.0-OpenSSH\r\n\r\n")).await;
    assert_eq!(failure.exit, Exit::Failed, "{failure}");
}

#[tokio::test]
async fn a_daemon_that_goes_away_is_no_daemon() {
    for answer in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"version\""] {
        let failure = failure(&Daemon::that_says(answer)).await;
        assert_eq!(failure.exit, Exit::NoDaemon, "{failure}");
        assert!(failure.message.contains("went away"), "{failure}");
    }
}

#[tokio::test]
async fn a_daemon_that_hangs_is_no_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(dir.path().join("sock")).unwrap();
    let mut client = Client::new(dir.path().join("sock"));
    client.answer_within = Duration::from_millis(20);
    let failure = client.get::<Status>("/v1/status").await.unwrap_err();
    assert_eq!(failure.exit, Exit::NoDaemon);
    assert!(failure.message.contains("has not answered for 0.02 s"), "{failure}");
}

#[tokio::test]
async fn events_come_one_by_one_however_they_are_cut() {
    let first = json(begun());
    let (start, rest) = first.split_at(40);
    let second = json(finished(Exit::Done, "", 2, &[])).replace("\"seq\"", "\"new\":1,\"seq\"");
    let answer = [CHUNKED, &chunk(start), &chunk(&format!("{rest}\n\r\n{second}")), "0\r\n\r\n"].concat();
    let daemon = Daemon::that_says(answer);
    let mut events = daemon.client().events::<Event>("/v1/events?from=0").await.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap().event, event(5, begun()));
    // What this version does not know reaches the reader of --json.
    assert_eq!(events.next().await.unwrap().unwrap().line, second.trim());
    assert!(events.next().await.is_none());
    assert!(daemon.task.await.unwrap().starts_with("GET /v1/events?from=0 "));
}

#[tokio::test]
async fn a_stream_cut_in_the_middle_ends() {
    let whole = json(begun());
    let (start, _) = whole.split_at(40);
    let daemon = Daemon::that_says([CHUNKED, &chunk(&whole), &chunk(start)].concat());
    let mut events = daemon.client().events::<Event>("/v1/rolls/1/events?from=0").await.unwrap();
    assert!(events.next().await.unwrap().is_ok());
    assert!(events.next().await.is_none() && events.is_cut);
}

#[tokio::test]
async fn a_garbled_event_is_an_error() {
    let daemon = Daemon::that_says([CHUNKED, &chunk("{\"event\":\"party\"}\n")].concat());
    let failure =
        daemon.client().events::<Event>("/v1/rolls/1/events?from=0").await.unwrap().next().await.unwrap().unwrap_err();
    assert_eq!(failure.exit, Exit::Failed);
    assert!(failure.message.contains("party"), "{failure}");
}
