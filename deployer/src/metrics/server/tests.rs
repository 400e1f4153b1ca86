//! Over real sockets.

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    thread,
};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// A server of pages, each of which takes 50 ms to make; how many were made at a time at most, and how many in all.
struct Scene {
    at: SocketAddr,
    most: Arc<AtomicUsize>,
    made: Arc<AtomicUsize>,
}

async fn scene() -> Scene {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (now, most, made) = <(Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    let (theirs, all) = (Arc::clone(&most), Arc::clone(&made));
    let make = Arc::new(move || {
        theirs.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
        thread::sleep(Duration::from_millis(50));
        now.fetch_sub(1, SeqCst);
        format!("page {}\n", all.fetch_add(1, SeqCst) + 1)
    });
    tokio::spawn(serve(listener, make));
    Scene { at, most, made }
}

async fn ask(at: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // One that is closed with a reset has said what it had to.
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

#[tokio::test]
async fn there_is_one_page() {
    let Scene { at, made, .. } = scene().await;
    let page = ask(at, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.ends_with("\r\n\r\npage 1\n"), "{page}");
    assert!(page.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{page}");
    let head = ask(at, "HEAD /metrics?a=b HTTP/1.0\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.0 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    let other = ask(at, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(other.starts_with("HTTP/1.1 404 ") && other.contains("There is one page here: /metrics\n"), "{other}");
    let posted = ask(at, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx").await;
    assert!(posted.starts_with("HTTP/1.1 405 ") && posted.contains("allow: GET, HEAD\r\n"), "{posted}");
    assert_eq!(made.load(SeqCst), 2);
}

#[tokio::test]
async fn what_is_no_request_gets_no_page() {
    let Scene { at, made, .. } = scene().await;
    let long = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(2 * HEAD));
    for odd in ["\0\0\0\0\r\n\r\n", "\r\n\r\n\r\n", "GET\r\n\r\n", "GET /metrics HTTP/9\r\n\r\n", long.as_str()] {
        let answer = ask(at, &format!("{odd}GET /x HTTP/1.1\r\n\r\n")).await;
        assert!(!answer.contains("200 OK"), "{odd:?}: {answer}");
    }
    assert_eq!(made.load(SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_page_is_made_at_a_time() {
    let Scene { at, most, made } = scene().await;
    let asked: Vec<_> = (0..12)
        .map(|_| tokio::spawn(async move { ask(at, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await }))
        .collect();
    // They have asked, and do not wait.
    for _ in 0..4 {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    }
    for answer in asked {
        assert!(answer.await.unwrap().contains("page"));
    }
    assert_eq!(most.load(SeqCst), 1);
    assert!((1..=16).contains(&made.load(SeqCst)));
}

/// The descriptors of this test process may be few.
fn room() -> usize {
    LIMITS.within(descriptors::limit(), SHARE).per_peer
}

/// Connections that ask nothing, or read nothing, do not keep the page from others, however many they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_keeps_the_page_from_no_other() {
    let Scene { at, .. } = scene().await;
    let begun = Instant::now();
    let mut crowd = Vec::new();
    for nth in 0..3 * room() {
        let mut stream = TcpStream::connect(at).await.unwrap();
        // Some have begun to say something, some have asked and do not read.
        let said = ["", "GET /metrics HTTP/1.1\r\nHo", "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"][nth % 3];
        let _ = stream.write_all(said.as_bytes()).await;
        crowd.push(stream);
    }
    let page = ask(at, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(page.contains("page"), "{page}");
    assert!(begun.elapsed() < HEAD_WITHIN, "it has waited until the others were over: {:?}", begun.elapsed());
    drop(crowd);
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let Scene { at, .. } = scene().await;
    let begun = Instant::now();
    assert_eq!(ask(at, "GET /metrics HTTP/1.1\r\nHo").await, "");
    assert!((HEAD_WITHIN / 2..WITHIN).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

/// A page that is shared is one whose making began after it was asked for.
#[tokio::test]
async fn a_shared_page_is_fresh() {
    let Scene { at, made, .. } = scene().await;
    for nth in 1..4 {
        let page = ask(at, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(page.ends_with(&format!("page {nth}\n")), "{page}");
    }
    assert_eq!(made.load(SeqCst), 3);
}

#[tokio::test]
async fn a_port_that_is_taken_is_tried_again() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = taken.local_addr().unwrap();
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let theirs = Arc::clone(&told);
    let tell: Tell = Arc::new(move |why| theirs.lock().unwrap().push(why));
    let bound = TcpListener::bind(at).await;
    let server = tokio::spawn(run(at, bound, Arc::new(|| "page\n".to_owned()), tell));
    while told.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(taken);
    while told.lock().unwrap().last().is_none_or(Option::is_some) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let first = told.lock().unwrap()[0].clone().unwrap();
    assert!(first.contains(&at.to_string()) && first.contains("another process listens there"), "{first}");
    assert!(ask(at, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.contains("page"));
    server.abort();
}
