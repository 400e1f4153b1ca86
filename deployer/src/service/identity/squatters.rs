//! Strangers at addresses where nothing should listen: a service's address, the addresses of its lanes, and the addresses
//! that a worker's callers can reach beside its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use deployer_common::lanes::LANE_NET;

use super::{Listening, Listens, Service, Worker, is_wildcard_for, who};
use crate::kernel::{diag::Socket, procs};

/// What a listener is in the way of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The service's address.
    Service(SocketAddr),
    /// An address of one of the service's lanes, or any of them (lane 0).
    Lane(SocketAddr),
    /// Beside a worker: connections to `localhost` may reach it at `::1`.
    Beside(SocketAddr),
    /// Behind a worker, at every address: connections go to it once the worker has ended.
    Behind(SocketAddr),
}

/// Squatters that are named; any user can make as many as there are lane addresses.
const NAMED: usize = 4;
/// So long one is told of after it has gone: a user can have it come and go as often as he likes, and each change is a line
/// in the host's history.
const STAYS: Duration = Duration::from_secs(5);

/// Sockets that listen where nothing should, with who has them. Kept between two looks, so that `/proc` is walked over only
/// when there is a new one.
#[derive(Debug, Clone, Default)]
pub struct Squatters {
    /// Those that are named.
    named: BTreeMap<(u64, Place), Named>,
    /// How many there are beside them.
    more: usize,
    /// When there were any beside them last.
    crowded: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Named {
    text: String,
    seen: Instant,
}

impl Squatters {
    /// Looks again; returns what is new.
    pub fn look<'a>(
        &mut self,
        services: impl Iterator<Item = &'a Service> + Clone,
        listening: &Listening,
    ) -> Vec<String> {
        let own: BTreeSet<u64> = own(services.clone(), listening);
        let mut found = BTreeMap::new();
        for service in services {
            for (place, socket) in of(service, listening, &own) {
                found.insert((socket.cookie, place), (service.config.name.clone(), socket));
            }
        }
        let now = Instant::now();
        for (_, named) in self.named.iter_mut().filter(|(key, _)| found.contains_key(*key)) {
            named.seen = now;
        }
        self.named.retain(|_, named| now - named.seen < STAYS);
        found.retain(|key, _| !self.named.contains_key(key));
        let all = found.len();
        let found: Vec<_> = found.into_iter().take(NAMED.saturating_sub(self.named.len())).collect();
        self.more = all - found.len();
        if self.more > 0 {
            self.crowded = Some(now);
        }
        if found.is_empty() {
            return Vec::new();
        }
        let inodes = found.iter().map(|(_, (_, socket))| socket.inode).filter(|inode| *inode != 0).collect();
        let holders = procs::holding(&inodes);
        let told = found.into_iter().map(|(key, (service, socket))| {
            let text = text(&service, key.1, socket, &who(socket, &holders));
            self.named.insert(key, Named { text: text.clone(), seen: now });
            text
        });
        told.collect()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.named.len() + self.more
    }

    /// All there are, in words.
    #[must_use]
    pub fn told(&self) -> Vec<String> {
        let more = self
            .crowded
            .is_some_and(|seen| seen.elapsed() < STAYS)
            .then(|| "there are more strangers at service or lane addresses: ss -tlnp".to_owned());
        self.named.values().map(|named| named.text.clone()).chain(more).collect()
    }
}

/// Sockets of workers, wherever else they may be reached.
fn own<'a>(services: impl Iterator<Item = &'a Service>, listening: &Listening) -> BTreeSet<u64> {
    let mut own = BTreeSet::new();
    for worker in services.flat_map(Service::members) {
        let seen = worker.seen();
        let at_port = listening.port(worker.at.port()).iter();
        own.extend(at_port.map(|socket| socket.cookie).filter(|cookie| seen.is_worker(*cookie)));
    }
    own
}

fn of<'a>(service: &Service, listening: &'a Listening, own: &BTreeSet<u64>) -> Vec<(Place, &'a Socket)> {
    let mut found = Vec::new();
    let others = |port| listening.port(port).iter().filter(|socket| !own.contains(&socket.cookie));
    if let Some(address) = service.config.address {
        let lanes = service.config.deploy.as_ref().map(|_| address.port());
        for socket in others(address.port()) {
            let lane = lanes.and_then(|port| lane(socket, port)).map(Place::Lane);
            let in_the_way = is_in_the_way(socket, address).then_some(Place::Service(address));
            found.extend(lane.into_iter().chain(in_the_way).map(|place| (place, socket)));
        }
    }
    for worker in service.members() {
        found.extend(others(worker.at.port()).filter_map(|socket| Some((beside(worker, listening, socket)?, socket))));
    }
    found
}

/// How a listener is in the way of a worker that is not the worker's and has not taken its address.
fn beside(worker: &Worker, listening: &Listening, socket: &Socket) -> Option<Place> {
    let seen = worker.seen();
    if seen.stranger(socket.cookie).is_some() {
        let is_behind = matches!(seen.listens(&listening.at(worker.at), worker.at), Listens::Worker(_));
        return is_behind.then_some(Place::Behind(worker.at));
    }
    let is_its_user_s = seen.users().any(|user| user == socket.origin.uid);
    (is_beside(socket, worker.at) && !is_its_user_s).then_some(Place::Beside(worker.at))
}

/// Whether a listener would be given connections to a service address when they are not steered. Root's own listener at
/// every address is no squatter: a load balancer may serve another address at the same port.
#[must_use]
pub fn is_in_the_way(socket: &Socket, address: SocketAddr) -> bool {
    let is_wildcard = is_wildcard_for(socket, address.ip()) && socket.origin.uid != 0;
    socket.local.port() == address.port() && (socket.local.ip() == address.ip() || is_wildcard)
}

/// The lane address that a listener has; lane 0 if it has all of them.
#[must_use]
pub fn lane(socket: &Socket, port: u16) -> Option<SocketAddr> {
    let [first, second] = LANE_NET;
    let any = SocketAddr::from(([first, second, 0, 0], port));
    if socket.local.port() != port {
        return None;
    }
    match socket.local.ip() {
        IpAddr::V4(ip) if ip.octets()[..2] == LANE_NET => Some(socket.local),
        _ if is_wildcard_for(socket, any.ip()) && socket.origin.uid != 0 => Some(any),
        _ => None,
    }
}

/// Whether a listener is where a worker's callers may get instead of to the worker: `localhost` is `::1`, too.
fn is_beside(socket: &Socket, worker: SocketAddr) -> bool {
    let localhost = IpAddr::from(Ipv6Addr::LOCALHOST);
    let is_loopback = worker.ip() == IpAddr::from([127, 0, 0, 1]);
    let is_other_family =
        socket.local.ip() == localhost || socket.local.is_ipv6() && is_wildcard_for(socket, localhost);
    socket.local.port() == worker.port() && socket.origin.uid != 0 && is_loopback && is_other_family
}

fn text(service: &str, place: Place, socket: &Socket, who: &str) -> String {
    let local = socket.local;
    let (what, means) = match place {
        Place::Service(address) => (
            format!("the service address {address}"),
            "callers that are not steered reach it, and so do all callers while the service is bypassed or detached",
        ),
        Place::Lane(lane) if lane.ip() == IpAddr::from([LANE_NET[0], LANE_NET[1], 0, 0]) => (
            format!("the lane addresses 127.77.*.*:{}", lane.port()),
            "callers that are not steered reach it, and so do all callers while the service is bypassed or detached",
        ),
        Place::Lane(lane) => (
            format!("the lane address {lane}"),
            "callers that are not steered reach it, and so do all callers while the service is bypassed or detached",
        ),
        Place::Beside(worker) => (
            format!("the port of worker {worker}"),
            "callers that name `localhost` may reach it at ::1 instead of the worker",
        ),
        Place::Behind(worker) => {
            (format!("worker {worker}"), "connections to the worker go to it once the worker has ended")
        }
    };
    format!(
        "{service}: {who} listens at {local}, in the way of {what}: {means}. Next: end that process, or give one of them another address"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::diag::Origin;

    fn socket(local: &str, uid: u32) -> Socket {
        let peer = "0.0.0.0:0".parse().unwrap();
        let origin = Origin { uid, v6only: local.ends_with("only"), cgroup: None };
        Socket { state: 10, local: local.trim_end_matches("only").parse().unwrap(), peer, cookie: 1, inode: 1, origin }
    }

    #[test]
    fn who_is_in_the_way_of_a_service() {
        let address = "127.0.0.1:9000".parse().unwrap();
        for (local, uid, is) in [
            ("127.0.0.1:9000", 33, true),
            ("127.0.0.1:9000", 0, true),
            ("0.0.0.0:9000", 33, true),
            ("[::]:9000", 33, true),
            ("[::]:9000only", 33, false),
            ("0.0.0.0:9000", 0, false),
            ("127.0.0.2:9000", 33, false),
            ("127.0.0.1:9001", 33, false),
        ] {
            assert_eq!(is_in_the_way(&socket(local, uid), address), is, "{local} {uid}");
        }
    }

    #[test]
    fn who_is_in_the_way_of_lanes() {
        let lane = |local, uid| lane(&socket(local, uid), 9000).map(|at| at.to_string());
        assert_eq!(lane("127.77.0.3:9000", 0).as_deref(), Some("127.77.0.3:9000"));
        assert_eq!(lane("0.0.0.0:9000", 33).as_deref(), Some("127.77.0.0:9000"));
        assert_eq!(
            [lane("0.0.0.0:9000", 0), lane("127.78.0.3:9000", 33), lane("127.77.0.3:9001", 33)],
            [None, None, None]
        );
    }

    #[test]
    fn who_is_beside_a_worker() {
        let worker = "127.0.0.1:8000".parse().unwrap();
        for (local, uid, is) in [
            ("[::1]:8000", 33, true),
            ("[::]:8000only", 33, true),
            ("[::1]:8000", 0, false),
            ("127.0.0.2:8000", 33, false),
            ("0.0.0.0:8000", 33, false),
        ] {
            assert_eq!(is_beside(&socket(local, uid), worker), is, "{local} {uid}");
        }
    }
}
