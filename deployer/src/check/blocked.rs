//! Addresses of workers of the built-in manager that another process has: that of a former process manager, say. The worker
//! is started as soon as its address is free.

use std::{collections::BTreeSet, net::SocketAddr, path::Path};

use super::Finding;
use crate::{
    config::Service,
    kernel::{
        diag::{self, Socket, states},
        family, procs,
    },
    service::identity,
};

/// One for each address that a process outside the service's cgroup has. `cgroup` is that in which the services have theirs.
pub(super) fn findings(what: &str, service: &Service, cgroup: &Path) -> Vec<Finding> {
    // What is wrong with the kernel's answer is found elsewhere.
    let Ok(listening) = diag::sockets(states::LISTEN, None) else { return Vec::new() };
    let Ok(own) = family::tree(&cgroup.join(&service.name)) else { return Vec::new() };
    let workers = service.workers.iter().chain(service.second());
    let taken = workers.filter_map(|at| Some((*at, holder(&listening, &own.ids, *at)?)));
    taken.map(|(at, socket)| finding(what, at, socket)).collect()
}

/// The socket in the way, if one is. Linux before 5.9 does not tell whose it is.
fn holder<'a>(listening: &'a [Socket], own: &BTreeSet<u64>, at: SocketAddr) -> Option<&'a Socket> {
    let takers = identity::takers(listening, at);
    takers.into_iter().find(|socket| socket.origin.cgroup.is_some_and(|id| !own.contains(&id)))
}

fn finding(what: &str, at: SocketAddr, socket: &Socket) -> Finding {
    let who = identity::who(socket, &procs::holding(&[socket.inode].into()));
    let detail = format!(
        "{who} listens there, which the built-in manager has not started: the manager starts this worker as soon as the \
         address is free"
    );
    Finding::warn(format!("{what}, {at}"), detail).fix("do", "stop that process in its own process manager")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::diag::Origin;

    #[test]
    fn only_what_is_outside_the_cgroup_is_in_the_way() {
        let at: SocketAddr = "127.0.0.1:8000".parse().unwrap();
        let socket = |local: &str, cgroup| {
            let (local, peer) = (local.parse().unwrap(), "0.0.0.0:0".parse().unwrap());
            Socket { state: 10, local, peer, cookie: 1, inode: 1, origin: Origin { cgroup, ..Origin::default() } }
        };
        let own = BTreeSet::from([7]);
        assert!(holder(&[socket("127.0.0.1:8000", Some(7))], &own, at).is_none());
        assert!(holder(&[socket("127.0.0.1:8000", None)], &own, at).is_none());
        assert!(holder(&[socket("127.0.0.1:8001", Some(8))], &own, at).is_none());
        for local in ["127.0.0.1:8000", "0.0.0.0:8000"] {
            assert!(holder(&[socket(local, Some(8))], &own, at).is_some(), "{local}");
        }
    }
}
