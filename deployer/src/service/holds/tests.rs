//! Connections from sockets, and what is told of them.

use std::{
    collections::HashMap,
    net::{TcpListener, TcpStream},
    time::Duration,
};

use super::*;

const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const SYN_RECV: u8 = 3;
const CLOSE_WAIT: u8 = 8;
const AT: &str = "127.0.0.1:8003";

fn socket(state: u8, local: &str, peer: &str, inode: u32) -> Socket {
    let (local, peer) = (local.parse().unwrap(), peer.parse().unwrap());
    Socket { state, local, peer, cookie: u64::from(inode), inode, origin: crate::kernel::diag::Origin::default() }
}

#[test]
fn two_ends_are_one_connection() {
    let sockets = [
        socket(ESTABLISHED, "127.0.0.1:43210", AT, 1),
        socket(ESTABLISHED, AT, "127.0.0.1:43210", 2),
        // Both have the same port.
        socket(ESTABLISHED, "127.0.0.2:8003", AT, 3),
        socket(ESTABLISHED, AT, "127.0.0.2:8003", 4),
        // From elsewhere.
        socket(ESTABLISHED, AT, "10.0.0.9:43210", 5),
    ];
    let found = connections(&sockets, AT.parse().unwrap());
    let told: Vec<_> = found
        .iter()
        .map(|it| (it.pair.caller.to_string(), it.caller.map(|end| end.inode), it.worker.map(|end| end.inode)))
        .collect();
    let expected = [
        ("10.0.0.9:43210".to_owned(), None, Some(5)),
        ("127.0.0.1:43210".to_owned(), Some(1), Some(2)),
        ("127.0.0.2:8003".to_owned(), Some(3), Some(4)),
    ];
    let mut told = told;
    told.sort();
    assert_eq!(told, expected);
}

#[test]
fn why_it_holds() {
    let caller = "127.0.0.1:43210";
    for (callers, workers, why) in [
        (Some(ESTABLISHED), Some((ESTABLISHED, 7)), "established"),
        (Some(ESTABLISHED), Some((ESTABLISHED, 0)), "waits to be accepted"),
        (Some(SYN_SENT), None, "not connected yet"),
        (None, Some((SYN_RECV, 0)), "not connected yet"),
        (None, Some((CLOSE_WAIT, 7)), "its caller has closed it, the worker has not"),
        (Some(CLOSE_WAIT), None, "the worker has closed it, its caller has not"),
    ] {
        let callers = callers.map(|state| socket(state, caller, AT, 1));
        let workers = workers.map(|(state, inode)| socket(state, AT, caller, inode));
        let sockets: Vec<_> = callers.into_iter().chain(workers).collect();
        let found = connections(&sockets, AT.parse().unwrap());
        assert_eq!(found[0].why(), why, "{sockets:?}");
    }
}

#[test]
fn the_oldest_are_listed() {
    let callers: Vec<_> = (0..50).map(|nth| format!("127.0.0.1:{}", 40_000 + nth)).collect();
    let sockets: Vec<_> =
        callers.iter().enumerate().map(|(nth, caller)| socket(ESTABLISHED, AT, caller, nth as u32 + 1)).collect();
    let age = |cookie: u64| (cookie > 1).then(|| Duration::from_secs(cookie));
    let past: HashMap<_, _> =
        (1..=50).map(|cookie| (cookie, Activity { idle: None, age: age(cookie), ..Activity::default() })).collect();
    let (listed, more) = oldest(connections(&sockets, AT.parse().unwrap()), &past);
    assert_eq!((listed.len(), more), (LISTED, 50 - LISTED));
    let ages: Vec<_> = listed.iter().map(|(_, past)| past.age).collect();
    // One may be older than all of them.
    assert_eq!(ages[..3], [None, age(50), age(49)]);
}

/// Of this very process, both ends.
#[test]
fn a_connection_is_told() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let at = listener.local_addr()?;
    let caller = TcpStream::connect(at)?;
    let kept = listener.accept()?;
    let sockets = diag::holders(at, false)?;
    let (listed, _) = oldest(connections(&sockets, at), &diag::activity(at.port(), None)?);
    let holders = holders(listed.iter().map(|(connection, _)| connection));
    let (connection, past) = listed[0];
    let found = hold(&connection, past, &holders, &|_| None);
    assert_eq!((found.peer, found.pid), (caller.local_addr()?, Some(std::process::id())));
    assert_eq!((&*found.state, &*found.why, found.age_s), ("established", "established", None));
    assert!(found.idle_s.is_some_and(|idle| idle < 60.0), "{found:?}");
    assert_eq!(hold(&connection, past, &holders, &|pair| Some(pair.to_string())).why, connection.pair.to_string());
    let held = named(&sockets, at);
    assert!(held[0].ends_with(&format!("(pid {}): 1 established, {}", std::process::id(), found.peer)), "{held:?}");
    drop(kept);
    Ok(())
}
