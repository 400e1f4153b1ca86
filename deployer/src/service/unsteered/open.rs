//! The connections that are open at a worker now, by whether their callers are steered.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use deployer_common::layout::CallerRule;

use crate::{
    kernel::{
        diag::{self, Evidence, Socket, is_of_this_host, states},
        procs::{self, Process},
    },
    service::callers,
};

/// What is open at a worker.
#[derive(Debug, Clone, Default)]
pub struct Open {
    /// All that is established, but for what the daemon itself has open.
    pub all: usize,
    /// Those whose callers are not steered, by caller.
    pub unsteered: BTreeMap<Peer, usize>,
}

/// A caller that is not steered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// Its end is no socket of this network namespace.
    Elsewhere(IpAddr),
    /// A process of this host, which no rule fits, or which is outside the callers' cgroup.
    Process {
        /// Its command.
        command: String,
        /// Its id.
        pid: u32,
    },
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Elsewhere(ip) => write!(f, "{ip} (another host or network namespace)"),
            Self::Process { command, pid } => write!(f, "{command} (pid {pid})"),
        }
    }
}

/// Looks at workers, with one walk over /proc. `published`: the rules of who is steered, among the processes below
/// `attached`, where the programs are.
///
/// # Errors
/// When sock_diag fails.
pub fn look(
    workers: &[SocketAddr],
    published: &[CallerRule],
    root: &Path,
    attached: &Path,
) -> io::Result<BTreeMap<SocketAddr, Open>> {
    let mut seen = Vec::with_capacity(workers.len());
    for at in workers {
        let evidence = Evidence::look(*at, diag::listens_on_all(*at)?, None)?;
        let accepted: Vec<_> = evidence.accepted(*at).filter(|socket| socket.is_in(states::ESTABLISHED)).collect();
        seen.push((*at, pairs(&accepted, &evidence.sockets)));
    }
    let inodes: BTreeSet<_> = seen.iter().flat_map(|(_, pairs)| pairs).filter_map(|(_, caller)| *caller).collect();
    let holders = if inodes.is_empty() { Default::default() } else { procs::holding(&inodes) };
    // A process has many connections as a rule.
    let mut known = BTreeMap::new();
    let mut is_steered = |pid| *known.entry(pid).or_insert_with(|| callers::steers(published, pid, root, attached));
    let mut found = BTreeMap::new();
    for (at, pairs) in seen {
        let open: &mut Open = found.entry(at).or_default();
        for (peer, caller) in pairs {
            let holder = caller.and_then(|inode| holders.get(&inode));
            if holder.is_some_and(|holder| holder.pid == std::process::id()) {
                continue;
            }
            open.all += 1;
            let unsteered = match (caller, holder) {
                (None, _) => Some(Peer::Elsewhere(peer.ip())),
                (Some(_), Some(Process { pid, command })) if !is_steered(*pid) => {
                    Some(Peer::Process { command: command.clone(), pid: *pid })
                }
                // One that has just been closed says nothing.
                _ => None,
            };
            if let Some(unsteered) = unsteered {
                *open.unsteered.entry(unsteered).or_default() += 1;
            }
        }
    }
    Ok(found)
}

/// The connections that a worker has accepted: the other end's address, and the inode of its socket, if that is of this
/// network namespace, and so among `sockets`.
fn pairs(accepted: &[&Socket], sockets: &[Socket]) -> Vec<(SocketAddr, Option<u32>)> {
    let by_ends: BTreeMap<_, _> = sockets.iter().map(|socket| ((socket.local, socket.peer), socket.inode)).collect();
    let mut local = HashSet::new();
    let of_pair = |socket: &&Socket| {
        let caller = by_ends.get(&(socket.peer, socket.local)).copied();
        // An end that is of this host and is not there any more is being closed just now.
        let is_here = caller.is_some() || local.contains(&socket.peer.ip()) || is_of_this_host(socket.peer.ip());
        if is_here {
            local.insert(socket.peer.ip());
        }
        match (caller, is_here) {
            (None, true) => None,
            (caller, _) => Some((socket.peer, caller)),
        }
    };
    accepted.iter().filter_map(of_pair).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::kernel::diag::Origin;

    fn socket(local: &str, peer: &str, inode: u32) -> Socket {
        let (local, peer) = (local.parse().unwrap(), peer.parse().unwrap());
        Socket { state: 1, local, peer, cookie: 0, inode, origin: Origin::default() }
    }

    #[test]
    fn ends_are_told_apart() {
        let sockets = [
            // From here, both ends of it.
            socket("10.0.0.1:8000", "127.0.0.1:4000", 1),
            socket("127.0.0.1:4000", "10.0.0.1:8000", 2),
            // Its other end has gone just now.
            socket("10.0.0.1:8000", "127.0.0.1:4001", 3),
            // From elsewhere.
            socket("10.0.0.1:8000", "192.0.2.7:8000", 4),
        ];
        let mut found = pairs(&[&sockets[0], &sockets[2], &sockets[3]], &sockets);
        found.sort();
        assert_eq!(found, [("127.0.0.1:4000".parse().unwrap(), Some(2)), ("192.0.2.7:8000".parse().unwrap(), None)]);
    }

    #[test]
    fn the_daemons_own_do_not_count_and_addresses_are_known() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let _caller = TcpStream::connect(at).unwrap();
        let found = look(&[at], &[], Path::new("/sys/fs/cgroup"), Path::new("/sys/fs/cgroup")).unwrap();
        assert_eq!((found[&at].all, found[&at].unsteered.len()), (0, 0));
        assert!(is_of_this_host("127.9.9.9".parse().unwrap()) && !is_of_this_host("192.0.2.7".parse().unwrap()));
    }

    #[test]
    fn a_peer_is_named() {
        let elsewhere = Peer::Elsewhere("10.9.0.2".parse().unwrap());
        assert_eq!(elsewhere.to_string(), "10.9.0.2 (another host or network namespace)");
        assert_eq!(Peer::Process { command: "nginx".to_owned(), pid: 7 }.to_string(), "nginx (pid 7)");
    }
}
