//! Which connections have lost their other end.

use std::net::{Shutdown, TcpListener, TcpStream};

use proptest::prelude::*;

use super::*;
use crate::kernel::diag::{Evidence, Origin};

const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE_WAIT: u8 = 8;
const PORT: u16 = 8003;
const AT: &str = "127.0.0.1:8003";
const CALLER: &str = "127.0.0.1:43210";

fn socket(state: u8, local: &str, peer: &str, inode: u32) -> Socket {
    let (local, peer) = (local.parse().unwrap(), peer.parse().unwrap());
    Socket { state, local, peer, cookie: 1, inode, origin: Origin::default() }
}

fn other(state: u8, inode: u32) -> Other {
    found(&socket(state, CALLER, AT, inode))
}

#[test]
fn an_end_without_a_process_is_an_orphan() {
    assert_eq!(other(FIN_WAIT1, 0), Other::Orphan);
    assert_eq!(other(FIN_WAIT2, 0), Other::Orphan);
    // It has closed one half, and waits for the answer.
    assert_eq!(other(FIN_WAIT1, 7), Other::Alive);
    assert_eq!(other(FIN_WAIT2, 7), Other::Alive);
    // In an accept queue.
    assert_eq!(other(ESTABLISHED, 0), Other::Alive);
    assert_eq!(other(CLOSE_WAIT, 0), Other::Alive);
}

/// Which of the missing ends may be alive, beside these sockets.
fn lives(missing: (&str, &str), all: &[Socket]) -> bool {
    let ends: Ends = (missing.0.parse().unwrap(), missing.1.parse().unwrap());
    let mut is_here = |ip: IpAddr| ip.is_loopback() || ip.to_string() == "10.0.0.1";
    !may_live(&HashSet::from([ends]), all, PORT, &mut is_here).is_empty()
}

#[test]
fn what_is_not_shown_may_live_elsewhere() {
    assert!(!lives((CALLER, AT), &[]));
    assert!(!lives(("10.0.0.1:43210", "10.0.0.1:8003"), &[]));
    // On another host, or in another network namespace.
    assert!(lives(("10.0.0.2:43210", "10.0.0.1:8003"), &[]));
    // It has been overlooked before.
    assert!(lives((CALLER, AT), &[socket(FIN_WAIT2, CALLER, AT, 7)]));
    assert!(!lives((CALLER, AT), &[socket(FIN_WAIT2, CALLER, AT, 0)]));
    // It has dialled another address, which iptables has made the worker's.
    assert!(lives((CALLER, AT), &[socket(FIN_WAIT2, CALLER, "127.0.0.1:80", 7)]));
    assert!(lives((CALLER, AT), &[socket(ESTABLISHED, CALLER, "192.0.2.1:80", 7)]));
    // Its port is used for another connection now, of which both ends are known.
    let reused = [socket(ESTABLISHED, CALLER, "127.0.0.1:5432", 7), socket(ESTABLISHED, "127.0.0.1:5432", CALLER, 8)];
    assert!(!lives((CALLER, AT), &reused));
    // The worker's end is gone; its listener serves callers on other hosts.
    assert!(!lives((AT, CALLER), &[socket(ESTABLISHED, AT, "192.0.2.1:40000", 7)]));
}

/// A real caller, step by step.
#[test]
fn a_caller_that_closes_is_gone_and_one_that_closes_its_half_is_not() -> io::Result<()> {
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(at)?;
        let worker = listener.local_addr()?;
        let look = || Evidence::look(worker, false, None).map(|found| (found.sockets.len(), found.gone.len()));
        let caller = TcpStream::connect(worker)?;
        let accepted = listener.accept()?;
        caller.shutdown(Shutdown::Write)?;
        assert_eq!(look()?, (1, 0), "{at}: half closed");
        drop(caller);
        assert_eq!(look()?, (0, 1), "{at}: closed");
        drop(accepted);
        assert_eq!(look()?, (0, 0), "{at}: closed at both ends");
        // Abandoned in the accept queue.
        drop(TcpStream::connect(worker)?);
        assert_eq!(look()?, (0, 1), "{at}: abandoned");
        drop(listener.accept()?);
        // The worker closes, the caller does not.
        let caller = TcpStream::connect(worker)?;
        let accepted = listener.accept()?.0;
        accepted.shutdown(Shutdown::Write)?;
        assert_eq!(look()?, (1, 0), "{at}: half closed by the worker");
        drop(accepted);
        assert_eq!(look()?, (0, 1), "{at}: closed by the worker");
        drop(caller);
    }
    Ok(())
}

prop_compose! {
    fn any_socket()(state in 1_u8..13, local in 0_u16..4, peer in 0_u16..4, inode in 0_u32..2) -> Socket {
        let end = |nth: u16| format!("127.0.0.1:{}", PORT + nth);
        socket(state, &end(local), &end(peer), inode)
    }
}

proptest! {
    /// No socket is lost, and none is gone whose other end has a process or waits to be accepted.
    #[test]
    fn what_has_a_process_at_the_other_end_is_never_gone(
        all in prop::collection::vec(any_socket(), 0..6),
        closing in prop::collection::vec(any_socket(), 0..6),
    ) {
        let all: Vec<_> = all.into_iter().filter(|socket| socket.is_in(states::ALIVE)).collect();
        let closing: Vec<_> = closing.into_iter().filter(|socket| socket.is_in(states::HALF_CLOSED)).collect();
        let settled = settle(all.clone(), &closing, PORT)?;
        prop_assert_eq!(settled.alive.len() + settled.gone.len(), all.len());
        for socket in &settled.gone {
            let is_other = |other: &&Socket| (other.local, other.peer) == (socket.peer, socket.local);
            let others: Vec<_> = all.iter().chain(&closing).filter(is_other).collect();
            prop_assert!(others.is_empty() || others.iter().any(|other| found(other) == Other::Orphan), "{others:?}");
            prop_assert!(!others.is_empty() || socket.is_in(states::CLOSE_WAIT));
        }
    }

    /// A missing end on another host may always live, whatever is here.
    #[test]
    fn what_is_elsewhere_holds(all in prop::collection::vec(any_socket(), 0..6)) {
        prop_assert!(lives(("10.0.0.2:43210", "10.0.0.1:8003"), &all));
    }
}
