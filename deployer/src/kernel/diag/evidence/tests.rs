//! Which sockets hold the drain of 127.0.0.1:8003.

use std::net::{TcpListener, TcpStream};

use proptest::prelude::*;

use super::*;
use crate::kernel::diag::Origin;

const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const PORT: u16 = 8003;
const OWN: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Users of the worker and of another process.
const WORKER: u32 = 33;
const STRANGER: u32 = 65534;

fn socket(state: u8, local: &str, peer: &str) -> Socket {
    Socket {
        state,
        local: local.parse().unwrap(),
        peer: peer.parse().unwrap(),
        cookie: 1,
        inode: 1,
        origin: Origin::default(),
    }
}

fn doors(listening: &[(&str, u32)]) -> Doors {
    let listening: Vec<_> = listening.iter().map(|(ip, uid)| (ip.parse().unwrap(), *uid)).collect();
    Doors::of(&listening, OWN, false)
}

#[test]
fn what_holds() {
    let own: &[_] = &[("127.0.0.1", WORKER)];
    let both: &[_] = &[("127.0.0.1", WORKER), ("::1", WORKER)];
    let (all4, all6): (&[_], &[_]) = (&[("0.0.0.0", WORKER)], &[("::", WORKER)]);
    let cases = [
        (ESTABLISHED, "127.0.0.1:8003", "127.0.0.1:43210", own, true),
        (ESTABLISHED, "127.0.0.1:43210", "127.0.0.1:8003", own, true),
        (SYN_SENT, "127.0.0.1:43210", "127.0.0.1:8003", own, true),
        (ESTABLISHED, "127.0.0.3:8003", "127.0.0.1:8003", own, true),
        // A socket that has dialled itself, also where the worker listens on every address.
        (SYN_SENT, "127.0.0.1:8003", "127.0.0.1:8003", &[], false),
        (ESTABLISHED, "127.0.0.1:8003", "127.0.0.1:8003", own, false),
        (ESTABLISHED, "127.9.9.9:8003", "127.9.9.9:8003", own, false),
        (ESTABLISHED, "127.9.9.9:8003", "127.9.9.9:8003", all4, false),
        (ESTABLISHED, "127.9.9.9:8003", "127.9.9.9:8003", &[], false),
        // Two that have dialled each other.
        (ESTABLISHED, "127.9.9.9:8003", "127.9.9.8:8003", own, false),
        (ESTABLISHED, "127.9.9.9:8003", "127.9.9.8:8003", &[], false),
        // Outgoing connections from the worker's port.
        (SYN_SENT, "127.0.0.1:8003", "127.0.0.1:5432", &[], false),
        (SYN_SENT, "127.0.0.2:8003", "127.0.0.1:5432", all4, false),
        // The worker has closed its listener and is still serving.
        (ESTABLISHED, "127.0.0.1:8003", "127.0.0.1:43210", &[], true),
        (ESTABLISHED, "127.0.0.1:8003", "127.0.0.1:43210", &[("10.0.0.1", STRANGER)], true),
        // Another process listens at another address.
        (ESTABLISHED, "127.0.0.2:8003", "127.0.0.2:43210", &[("127.0.0.1", WORKER), ("127.0.0.2", STRANGER)], false),
        (ESTABLISHED, "127.0.0.2:8003", "127.0.0.2:43210", &[("127.0.0.1", WORKER), ("127.0.0.2", WORKER)], false),
        (ESTABLISHED, "127.0.0.2:8003", "127.0.0.1:5432", own, false),
        (ESTABLISHED, "127.0.0.1:5432", "127.0.0.2:8003", own, false),
        (ESTABLISHED, "10.0.0.1:8003", "10.0.0.1:5432", own, false),
        (ESTABLISHED, "10.0.0.1:8003", "10.0.0.2:43210", &[], false),
        // The other spelling: the worker's listener, none, another user's.
        (ESTABLISHED, "[::1]:8003", "[::1]:43210", both, true),
        (ESTABLISHED, "[::1]:8003", "[::1]:43210", own, false),
        (ESTABLISHED, "[::1]:8003", "[::1]:43210", &[("127.0.0.1", WORKER), ("::1", STRANGER)], false),
        // Every address.
        (ESTABLISHED, "[::1]:8003", "[::1]:43210", all4, false),
        (ESTABLISHED, "[::1]:8003", "[::1]:43210", all6, true),
        (ESTABLISHED, "10.0.0.1:8003", "10.0.0.2:43210", all4, true),
        (ESTABLISHED, "10.0.0.1:8003", "10.0.0.2:43210", all6, true),
        // ... but those at which another process listens.
        (ESTABLISHED, "10.0.0.1:8003", "10.0.0.2:43210", &[("0.0.0.0", WORKER), ("10.0.0.1", STRANGER)], false),
        // Another process listens on every address of IPv6, or of both where the worker has its own.
        (ESTABLISHED, "[::1]:8003", "[::1]:43210", &[("127.0.0.1", WORKER), ("::", STRANGER)], false),
        (ESTABLISHED, "127.9.9.9:8003", "127.9.9.9:43210", &[("127.0.0.1", WORKER), ("::", STRANGER)], false),
    ];
    for (state, local, peer, listening, held) in cases {
        let found = doors(listening).holds(&socket(state, local, peer), PORT, Note::default(), Some(7));
        assert_eq!(found, held, "{local} to {peer} in state {state}, listening {listening:?}");
    }
}

#[test]
fn what_is_noted_decides_where_addresses_do_not() {
    let accepted = Note { accepted_for: Some(7), ..Note::default() };
    let end = socket(ESTABLISHED, "10.0.0.1:8003", "10.0.0.2:43210");
    assert!(doors(&[]).holds(&end, PORT, accepted, Some(7)));
    for (note, worker) in [(accepted, Some(6)), (accepted, None), (Note::default(), Some(7))] {
        assert!(!doors(&[]).holds(&end, PORT, note, worker), "{note:?}");
    }
    // Another process listens at the other spelling, and the programs take it for the worker.
    let (alias, both) = (socket(ESTABLISHED, "[::1]:8003", "[::1]:43210"), [("127.0.0.1", WORKER), ("::1", STRANGER)]);
    assert!(!doors(&both).holds(&alias, PORT, accepted, Some(7)));
    let steered = Note { leads_to: Some(7), ..Note::default() };
    assert!(doors(&[]).holds(&socket(SYN_SENT, "10.0.0.2:43210", "10.0.0.1:8003"), PORT, steered, Some(7)));
}

/// Both ends of a connection are found, wherever the listener is bound; the worker's end is told from the caller's.
#[test]
fn finds_both_ends() -> io::Result<()> {
    for at in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
        let listener = TcpListener::bind(at)?;
        let ip = if at == "[::1]:0" { Ipv6Addr::LOCALHOST.into() } else { OWN };
        let worker = SocketAddr::new(ip, listener.local_addr()?.port());
        let caller = TcpStream::connect(worker)?;
        let accepted = listener.accept()?;
        let evidence = Evidence::look(worker, false, None)?;
        assert_eq!(evidence.sockets.len(), 2, "{at}: {evidence:?}");
        let ends: Vec<_> = evidence.accepted(worker).map(|end| end.peer).collect();
        assert_eq!(ends, [caller.local_addr()?], "{at}");
        drop((caller, accepted));
    }
    Ok(())
}

#[test]
fn one_that_has_dialled_itself_does_not_hold() -> io::Result<()> {
    let (kind, domain) = (socket2::Type::STREAM, socket2::Domain::IPV4);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let worker = listener.local_addr()?;
    let own = socket2::Socket::new(domain, kind, None)?;
    let at = SocketAddr::from(([127, 9, 9, 9], worker.port())).into();
    own.bind(&at)?;
    own.connect(&at)?;
    assert_eq!(Evidence::look(worker, false, None)?.sockets, vec![]);
    drop(listener);
    assert_eq!(Evidence::look(worker, true, None)?.sockets, vec![]);
    Ok(())
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        Just(OWN),
        any::<[u8; 3]>().prop_map(|[a, b, c]| IpAddr::from([127, a, b, c])),
        Just(IpAddr::from([0, 0, 0, 0])),
        Just(Ipv6Addr::LOCALHOST.into()),
        Just(Ipv6Addr::UNSPECIFIED.into()),
        any::<[u8; 4]>().prop_map(IpAddr::from),
    ]
}

proptest! {
    /// A connection to the worker's very address holds, whatever else listens.
    #[test]
    fn the_own_address_always_holds(
        listening in prop::collection::vec((any_ip(), 0_u32..3), 0..5),
        peer in any_ip(),
        from in 1_u16..PORT,
        wildcard: bool,
    ) {
        let doors = Doors::of(&listening, OWN, wildcard);
        let (at, from) = (SocketAddr::new(OWN, PORT), SocketAddr::new(peer, from));
        for (local, peer) in [(at, from), (from, at)] {
            let socket = Socket { state: ESTABLISHED, local, peer, cookie: 1, inode: 1, origin: Origin::default() };
            prop_assert!(doors.holds(&socket, PORT, Note::default(), None));
        }
    }

    /// Where the worker has its own listener at its own address, no other address holds but the other spelling.
    #[test]
    fn no_other_address_holds(
        listening in prop::collection::vec((any_ip(), 0_u32..3), 0..5),
        local in any_ip(),
        peer in any_ip(),
        port in any::<u16>(),
        state in 1_u8..13,
    ) {
        prop_assume!(local != OWN && peer != OWN);
        let local_alias = local == Ipv6Addr::LOCALHOST || peer == Ipv6Addr::LOCALHOST;
        prop_assume!(!local_alias);
        let listening: Vec<_> = listening.into_iter().chain([(OWN, 1)]).collect();
        let doors = Doors::of(&listening, OWN, false);
        for (local, peer) in [((local, PORT), (peer, port)), ((peer, port), (local, PORT))] {
            let socket = Socket { state, local: local.into(), peer: peer.into(), cookie: 1, inode: 1, origin: Origin::default() };
            prop_assert!(!doors.holds(&socket, PORT, Note::default(), Some(1)));
        }
    }

    #[test]
    fn no_socket_that_dialled_itself_holds(
        listening in prop::collection::vec((any_ip(), 0_u32..3), 0..5),
        ip in any_ip(),
        wildcard: bool,
        worker in 0_u32..3,
    ) {
        let end = SocketAddr::new(ip, PORT);
        let socket = Socket { state: ESTABLISHED, local: end, peer: end, cookie: 1, inode: 1, origin: Origin::default() };
        let note = Note { accepted_for: Some(worker), leads_to: Some(worker), outsider: false };
        prop_assert!(!Doors::of(&listening, OWN, wildcard).holds(&socket, PORT, note, Some(worker)));
    }
}
