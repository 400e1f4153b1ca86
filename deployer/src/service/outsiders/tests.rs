//! Which connections are outsiders'.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::kernel::diag::Origin;

const AT: &str = "127.0.0.1:8003";
const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const CLOSE_WAIT: u8 = 8;

fn socket(state: u8, local: &str, peer: &str, cookie: u64) -> Socket {
    let (local, peer) = (local.parse().unwrap(), peer.parse().unwrap());
    Socket { state, local, peer, cookie, inode: cookie as u32, origin: Origin::default() }
}

fn outsider_note() -> Note {
    Note { outsider: true, ..Note::default() }
}

fn steered() -> Note {
    Note { leads_to: Some(3), ..Note::default() }
}

/// Both ends of a connection from this port; the caller's has the cookie, the worker's one more.
fn pair(port: u16, cookie: u64) -> [Socket; 2] {
    let caller = format!("127.0.0.1:{port}");
    [socket(ESTABLISHED, &caller, AT, cookie), socket(ESTABLISHED, AT, &caller, cookie + 1)]
}

fn ports(sorted: &Sorted) -> (Vec<u16>, Vec<u16>) {
    let at: SocketAddr = AT.parse().unwrap();
    let callers = sorted.callers.iter().filter(|end| end.local != at).map(|end| end.local.port()).collect();
    (callers, sorted.outsiders.iter().map(|outsider| outsider.caller.port()).collect())
}

#[test]
fn notes_decide_first_and_processes_then() {
    let sockets = [pair(40001, 10), pair(40002, 20), pair(40003, 30), pair(40004, 40)].concat();
    let notes = HashMap::from([(10, outsider_note()), (20, steered()), (40, Note::default())]);
    let evidence = Evidence { sockets, notes, ..Evidence::default() };
    let mut asked = BTreeSet::new();
    let sorted = sort(&evidence, AT.parse().unwrap(), &HashMap::new(), &mut |inodes| {
        asked.clone_from(inodes);
        [30].into()
    });
    assert_eq!(ports(&sorted), (vec![40002, 40004], vec![40001, 40003]));
    assert_eq!(asked, [30, 40].into());
    assert!(!sorted.is_without_callers());
    assert_eq!(sorted.outsiders[0].ends.len(), 2);
}

#[test]
fn one_whose_caller_has_closed_its_half_is_told_by_that_half() {
    let (at, caller) = (AT, "127.0.0.1:40001");
    let sockets = vec![socket(CLOSE_WAIT, at, caller, 1), socket(CLOSE_WAIT, at, "127.0.0.1:40002", 2)];
    let evidence = Evidence { sockets, ..Evidence::default() };
    let closing = HashMap::from([((caller.parse().unwrap(), at.parse().unwrap()), outsider_note())]);
    let sorted = sort(&evidence, at.parse().unwrap(), &closing, &mut |_| panic!("nothing to ask"));
    assert_eq!(sorted.outsiders.iter().map(|it| it.caller.port()).collect::<Vec<_>>(), [40001]);
    assert_eq!(sorted.callers.len(), 1);
}

/// On another host, or in another network namespace: perhaps the load balancer.
#[test]
fn callers_elsewhere_are_no_outsiders() {
    let sockets = vec![socket(ESTABLISHED, AT, "10.0.0.9:40001", 1)];
    let evidence = Evidence { sockets, ..Evidence::default() };
    let sorted = sort(&evidence, AT.parse().unwrap(), &HashMap::new(), &mut |_| panic!("nothing to ask"));
    assert!(!sorted.is_without_callers());
}

#[test]
fn one_behind_a_full_accept_queue_is_told() {
    let sockets = vec![socket(SYN_SENT, "127.0.0.1:40001", AT, 1)];
    let evidence = Evidence { sockets, notes: HashMap::from([(1, outsider_note())]), ..Evidence::default() };
    let sorted = sort(&evidence, AT.parse().unwrap(), &HashMap::new(), &mut |_| panic!("nothing to ask"));
    assert!(sorted.is_without_callers());
    assert_eq!(sorted.outsiders[0].state, "syn-sent");
}

/// This very process, by its executable and its cgroup.
#[test]
fn rules_are_held_against_processes() -> io::Result<()> {
    let (listener, pid) = (std::net::TcpListener::bind("127.0.0.1:0")?, std::process::id());
    let own = executables::rule(Path::new("/proc/self/exe"))?;
    let other = CallerRule { id: own.id + 1, ..own };
    assert!(runs(pid, &own)? && !runs(pid, &other)?);
    assert!(Rules::new(&[other, own]).may_fit(pid) && !Rules::new(&[other]).may_fit(pid));
    // What cannot be looked at may be a caller.
    assert!(Rules::new(&[other]).may_fit(u32::MAX));
    assert!(!Rules::new(&[CallerRule { kind: 0, place: 0, id: 0 }]).may_fit(pid));
    let text = fs::read("/proc/self/cgroup")?;
    if let (Ok(root), Some(below)) = (cgroup::root(), below(&text)) {
        let found = cgroup::id(&root, &root.join(below))?;
        let rule = CallerRule { kind: CALLER_CGROUP, place: found.depth, id: found.id };
        assert!(Rules::new(&[rule]).may_fit(pid));
        assert!(!Rules::new(&[CallerRule { id: found.id + 1, ..rule }]).may_fit(pid));
        assert!(!Rules::new(&[CallerRule { place: found.depth + 1, ..rule }]).may_fit(pid));
    }
    drop(listener);
    Ok(())
}

#[test]
fn paths_of_cgroups_are_bytes() {
    assert_eq!(below(b"12:cpu:/x\n0::/a/\xff b\n"), Some(Path::new(std::ffi::OsStr::from_bytes(b"a/\xff b"))));
    assert_eq!(below(b"0::/\n"), Some(Path::new("")));
    assert_eq!(below(b"1:name=systemd:/\n"), None);
}

#[test]
fn calls_are_counted_by_process() {
    let pid = std::process::id();
    let holder = TicketHolder { sk: 3, pid, worker: 1, outsider: 1, stale: 0 };
    let said = waiting(&[holder, TicketHolder { sk: 4, ..holder }, holder]);
    assert_eq!(said.len(), 1);
    assert!(said[0].contains(&format!("(pid {pid}, user ")) && said[0].ends_with("): 2 connect() calls"), "{said:?}");
}

proptest! {
    /// Nothing is lost: every socket is on one side or the other, and a steered caller's is never an outsider's.
    #[test]
    fn every_connection_is_on_one_side(kinds in prop::collection::vec(0_u8..4, 0..20), strangers: bool) {
        let (mut sockets, mut notes) = (Vec::new(), HashMap::new());
        for (nth, kind) in kinds.iter().enumerate() {
            let cookie = 2 * nth as u64 + 1;
            sockets.extend(pair(40_000 + nth as u16, cookie));
            match kind {
                0 => drop(notes.insert(cookie, outsider_note())),
                1 => drop(notes.insert(cookie, steered())),
                2 => drop(notes.insert(cookie, Note::default())),
                _ => {}
            }
        }
        let evidence = Evidence { sockets, notes, ..Evidence::default() };
        let sorted = sort(&evidence, AT.parse().unwrap(), &HashMap::new(), &mut |inodes| {
            if strangers { inodes.clone() } else { BTreeSet::new() }
        });
        prop_assert_eq!(sorted.callers.len() + 2 * sorted.outsiders.len(), 2 * kinds.len());
        let outsiders = kinds.iter().filter(|kind| **kind == 0 || strangers && **kind > 1).count();
        prop_assert_eq!(sorted.outsiders.len(), outsiders);
    }
}
