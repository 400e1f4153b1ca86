//! Ports that somebody else may take, or has taken.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use super::{Finding, ranges};
use crate::{
    config::Config,
    kernel::{
        diag::{self, Socket, states},
        ports, procs,
    },
    service::identity::{self, squatters},
};

const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

pub(super) fn findings(config: &Config, workers: &[SocketAddr]) -> Vec<Finding> {
    let services: Vec<_> =
        config.services.values().filter_map(|service| Some((service.name.as_str(), service.address?))).collect();
    let ours = workers.iter().chain(services.iter().map(|(_, address)| address)).map(SocketAddr::port).collect();
    let mut found = vec![match (fs::read_to_string(RANGE), fs::read_to_string(RESERVED)) {
        (Ok(range), Ok(reserved)) => outgoing(&ours, &range, &reserved),
        (Err(error), _) => Finding::warn("ports", format!("{RANGE}: {error}")),
        (_, Err(error)) => Finding::warn("ports", format!("{RESERVED}: {error}")),
    }];
    found.extend(services.into_iter().map(|(name, address)| service(name, address)));
    let with_lanes = config.services.values().filter(|service| service.deploy.is_some());
    found.extend(with_lanes.filter_map(|service| Some(lanes(&service.name, service.address?.port()))));
    found
}

/// Nothing may listen at a lane's address: callers that are not steered would reach it.
fn lanes(name: &str, port: u16) -> Finding {
    let what = format!("lanes of service.{name}, 127.77.*.*:{port}");
    let listeners = match diag::sockets(states::LISTEN, Some(port)) {
        Ok(listeners) => listeners,
        Err(error) => return Finding::warn(what, format!("no telling whether anything listens there: {error}")),
    };
    let Some(socket) = listeners.iter().find(|socket| squatters::lane(socket, port).is_some()) else {
        return Finding::ok(what, "nothing listens there, as it should be");
    };
    let detail = format!("{} listens at {}, and callers that are not steered reach it", listener(socket), socket.local);
    Finding::fail(what, detail).fix("do", format!("stop that process (ss -ltnp 'sport = :{port}')"))
}

/// "python3 (pid 4711, user nobody)"
fn listener(socket: &Socket) -> String {
    identity::who(socket, &procs::holding(&[socket.inode].into()))
}

/// Whether an outgoing connection may be given one of `ours` while the worker restarts.
fn outgoing(ours: &BTreeSet<u16>, range: &str, reserved: &str) -> Finding {
    let (Some(range), Some(reserved)) = (local_range(range), port_list(reserved)) else {
        return Finding::warn("ports", format!("{RANGE} or {RESERVED} is not understood"));
    };
    let (first, last) = (range.start(), range.end());
    let risky: BTreeSet<u16> =
        ours.iter().copied().filter(|port| range.contains(port) && !reserved.contains(port)).collect();
    if risky.is_empty() {
        let detail = format!("no outgoing connection is given one ({first}-{last} are, but for those reserved)");
        return Finding::ok(format!("ports {}", ranges(ours)), detail);
    }
    let all: BTreeSet<u16> = reserved.union(&risky).copied().collect();
    let detail = format!(
        "in ip_local_port_range ({first}-{last}) and not reserved: an outgoing connection may take one while its \
         worker restarts (put the setting into /etc/sysctl.d, too)"
    );
    Finding::warn(format!("ports {}", ranges(&risky)), detail)
        .fix("run", format!("sysctl -w net.ipv4.ip_local_reserved_ports={}", ranges(&all)))
}

/// Two numbers, a tab between them.
fn local_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(|word| word.parse().ok());
    Some(numbers.next()??..=numbers.next()??)
}

/// `8000-8010,9000`
fn port_list(text: &str) -> Option<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        ports.extend(first.trim().parse::<u16>().ok()?..=last.trim().parse::<u16>().ok()?);
    }
    Some(ports)
}

/// Nobody may listen at a service address: steered callers would never reach them.
fn service(name: &str, address: SocketAddr) -> Finding {
    let what = format!("service.{name}.address {address}");
    let listeners = match diag::sockets(states::LISTEN, Some(address.port())) {
        Ok(listeners) => listeners,
        Err(error) => return Finding::warn(what, format!("no telling whether somebody listens there: {error}")),
    };
    let takers: Vec<_> = listeners.iter().filter(|socket| takes(socket.local, address)).collect();
    // What is in the way of connections that are not steered first.
    let in_the_way = takers.iter().find(|socket| squatters::is_in_the_way(socket, address));
    let Some(socket) = in_the_way.or(takers.first()) else {
        return Finding::ok(what, "nobody listens there, as it should be");
    };
    let (at, who) = (socket.local, listener(socket));
    if in_the_way.is_none() {
        let detail = format!(
            "{who} listens at {at}: callers that are not steered reach it, and so do all callers while {name} is bypassed or \
             detached"
        );
        return Finding::warn(what, detail).fix("do", "give the service a port of its own, if that is not wanted");
    }
    let detail = format!("{who} listens at {at} and would never be reached by callers that are steered");
    Finding::fail(what, detail).fix(
        "do",
        format!("give the service an address of its own, or stop that process (ss -ltnp 'sport = :{}')", at.port()),
    )
}

/// Whether a listener would get connections to `address`.
pub(super) fn takes(listener: SocketAddr, address: SocketAddr) -> bool {
    if listener.port() != address.port() {
        return false;
    }
    match (listener.ip(), address.ip()) {
        (listener, address) if listener == address => true,
        (IpAddr::V4(listener), IpAddr::V4(_)) => listener.is_unspecified(),
        (IpAddr::V6(listener), IpAddr::V6(_)) => listener.is_unspecified(),
        // On [::]: sock_diag does not say whether it takes IPv4, too, but a bind is refused if it does.
        (IpAddr::V6(listener), IpAddr::V4(_)) => listener.is_unspecified() && ports::is_taken(address),
        (IpAddr::V4(_), IpAddr::V6(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        error::Error,
        net::{Ipv4Addr, TcpListener},
    };

    use proptest::prelude::*;
    use socket2::{Domain, Protocol, Socket, Type};

    use super::{super::Level, *};

    fn ours(ports: impl IntoIterator<Item = u16>) -> BTreeSet<u16> {
        ports.into_iter().collect()
    }

    #[test]
    fn the_fix_keeps_what_is_reserved() {
        let finding = outgoing(&ours((8000..=8003).chain([40000])), "8002\t60999\n", "9,8003,50000-50002\n");
        assert_eq!(finding.level, Level::Warn);
        assert_eq!(finding.what, "ports 8002,40000");
        let fix = "sysctl -w net.ipv4.ip_local_reserved_ports=9,8002-8003,40000,50000-50002";
        assert_eq!(finding.fix.as_deref(), Some(fix));
    }

    #[test]
    fn ports_outside_the_range_are_fine() {
        assert_eq!(outgoing(&ours(8000..8040), "32768\t60999\n", "\n").level, Level::Ok);
        assert_eq!(outgoing(&ours(32768..32770), "32768\t60999\n", "32768-32769\n").level, Level::Ok);
        assert_eq!(outgoing(&ours([1]), "", "\n").level, Level::Warn);
        assert_eq!(outgoing(&ours([65535]), "65535 65535", "1-x\n").level, Level::Warn);
    }

    #[test]
    fn a_listener_at_the_service_address_fails() -> Result<(), Box<dyn Error>> {
        for at in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"] {
            let listener = TcpListener::bind(at)?;
            let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), listener.local_addr()?.port());
            // Root's own at every address may be a load balancer's.
            let is_roots = rustix::process::geteuid().is_root() && at != "127.0.0.1:0";
            let level = if is_roots { Level::Warn } else { Level::Fail };
            assert_eq!(service("web", address).level, level, "{at}");
            drop(listener);
            assert_eq!(service("web", address).level, Level::Ok, "{at}");
        }
        Ok(())
    }

    #[test]
    fn a_listener_elsewhere_is_fine() -> Result<(), Box<dyn Error>> {
        let listener = TcpListener::bind("127.0.0.2:0")?;
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), listener.local_addr()?.port());
        assert_eq!(service("web", address).level, Level::Ok);
        // IPv6 only, although on every address.
        let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_only_v6(true)?;
        socket.bind(&"[::]:0".parse::<SocketAddr>()?.into())?;
        socket.listen(1)?;
        let port = socket.local_addr()?.as_socket().ok_or("no address")?.port();
        assert_eq!(service("web", SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)).level, Level::Ok);
        assert_ne!(service("web", SocketAddr::new("::1".parse()?, port)).level, Level::Ok);
        Ok(())
    }

    proptest! {
        #[test]
        fn lists_come_back(ports: BTreeSet<u16>) {
            prop_assert_eq!(port_list(&ranges(&ports)), Some(ports));
        }

        #[test]
        fn garbage_is_no_panic(range in "[0-9\\-, \\t]*", reserved in "[0-9\\-, ]*") {
            outgoing(&ours(0..100), &range, &reserved);
        }
    }
}
