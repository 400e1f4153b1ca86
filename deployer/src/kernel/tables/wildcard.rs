//! Wildcard listeners: a worker that listens on `0.0.0.0` or `::` serves its configured address, whatever that is.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// The wildcard addresses at which a listener serves `at`. An IPv6 socket on `::` takes IPv4 as well, unless it is
/// IPV6_V6ONLY.
pub(super) fn serving(at: SocketAddr) -> impl Iterator<Item = SocketAddr> {
    let v4 = at.is_ipv4().then_some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let all = v4.into_iter().chain([IpAddr::V6(Ipv6Addr::UNSPECIFIED)]);
    all.map(move |ip| SocketAddr::new(ip, at.port()))
}

/// The worker for which a listener on each wildcard address counts.
///
/// Several workers may share a port at different addresses, and a listener is counted once, so one of them gets it: the
/// one of the listener's own family first (a socket on `::` and one at an IPv6 address exclude each other), then the one on
/// loopback, then the lowest address. In such a configuration each worker has a listener of its own as a rule, and there
/// is no wildcard listener to count; if there is one, user space still sees the end of the others, up to 100 ms later.
pub(super) fn owners(workers: &[(SocketAddr, u32)]) -> BTreeMap<SocketAddr, u32> {
    let mut owners: BTreeMap<SocketAddr, (SocketAddr, u32)> = BTreeMap::new();
    for (at, index) in workers {
        for wildcard in serving(*at) {
            let rank = |at: &SocketAddr| (at.is_ipv4() != wildcard.is_ipv4(), !at.ip().is_loopback(), *at);
            let best = owners.entry(wildcard).or_insert((*at, *index));
            if rank(at) < rank(&best.0) {
                *best = (*at, *index);
            }
        }
    }
    owners.into_iter().map(|(wildcard, (_, index))| (wildcard, index)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(workers: &[&str]) -> Vec<(String, u32)> {
        let workers: Vec<_> = workers.iter().zip(0..).map(|(at, index)| (at.parse().unwrap(), index)).collect();
        owners(&workers).into_iter().map(|(at, index)| (at.to_string(), index)).collect()
    }

    fn both(v4: u32, v6: u32) -> Vec<(String, u32)> {
        vec![("0.0.0.0:80".to_owned(), v4), ("[::]:80".to_owned(), v6)]
    }

    #[test]
    fn any_address_may_be_served_by_a_wildcard_listener() {
        assert_eq!(of(&["10.9.9.9:80"]), both(0, 0));
        assert_eq!(of(&["127.0.0.1:80"]), both(0, 0));
        assert_eq!(of(&["[2001:db8::1]:80"]), [("[::]:80".to_owned(), 0)]);
    }

    #[test]
    fn workers_that_share_a_port_do_not_share_a_listener() {
        assert_eq!(of(&["127.0.0.4:80", "127.0.0.1:80"]), both(1, 1));
        assert_eq!(of(&["10.9.9.9:80", "127.0.0.9:80"]), both(1, 1));
        assert_eq!(of(&["10.9.9.9:80", "10.9.9.8:80"]), both(1, 1));
        assert_eq!(of(&["10.9.9.9:80", "[2001:db8::1]:80"]), both(0, 1));
        assert_eq!(of(&["10.9.9.9:80", "10.9.9.9:81"]).len(), 4);
    }

    #[test]
    fn the_order_of_workers_does_not_matter() {
        let workers = ["10.9.9.9:80", "127.0.0.1:80", "[::1]:80", "10.9.9.8:80"];
        let named = |order: [usize; 4]| -> Vec<_> {
            let workers: Vec<_> = order.map(|nth| (workers[nth].parse().unwrap(), nth as u32)).into();
            owners(&workers).into_iter().collect()
        };
        assert_eq!(named([0, 1, 2, 3]), named([3, 2, 1, 0]));
        assert_eq!(named([0, 1, 2, 3]), named([2, 0, 3, 1]));
    }
}
