//! Which services a reload changes now, and which wait because they are in use.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use deployer_common::lanes::LANE_NET;

use crate::config::{Config, Service};

/// What becomes of each service that is configured otherwise than it was.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sorted {
    /// The configuration to apply: the new one, in which services that wait are configured as they were.
    pub(super) config: Config,
    /// The services that are changed, added or taken out.
    pub(super) applied: Vec<String>,
    /// The services that wait, and why.
    pub(super) deferred: BTreeMap<String, String>,
}

/// Sorts the services of a configuration that was read, where `current` is in force. `busy`: those that are in use, and why.
pub(super) fn sort(current: &Config, wanted: &Config, busy: &BTreeMap<String, String>) -> Sorted {
    let names: BTreeSet<_> = current.services.keys().chain(wanted.services.keys()).collect();
    let changed: Vec<_> =
        names.into_iter().filter(|name| current.services.get(*name) != wanted.services.get(*name)).collect();
    let mut deferred: BTreeMap<String, String> =
        changed.iter().filter_map(|name| busy.get(*name).map(|why| ((*name).clone(), why.clone()))).collect();
    // A service that waits keeps its addresses; one that was to get some of them waits as well, and keeps its own.
    while let Some((name, why)) = changed
        .iter()
        .filter(|name| !deferred.contains_key(**name))
        .find_map(|name| Some(((*name).clone(), conflict(wanted.services.get(*name)?, current, &deferred)?)))
    {
        deferred.insert(name, why);
    }
    let mut services = wanted.services.clone();
    for name in deferred.keys() {
        match current.services.get(name) {
            Some(kept) => drop(services.insert(name.clone(), kept.clone())),
            None => drop(services.remove(name)),
        }
    }
    let applied = changed.into_iter().filter(|name| !deferred.contains_key(*name)).cloned().collect();
    Sorted { config: Config { services, ..wanted.clone() }, applied, deferred }
}

/// An address of a service that another one still has, because that waits; in words.
fn conflict(service: &Service, current: &Config, deferred: &BTreeMap<String, String>) -> Option<String> {
    let wanted = addresses(service);
    deferred.keys().filter_map(|name| current.services.get(name)).find_map(|other| {
        let at = addresses(other).into_iter().find(|at| wanted.contains(at))?;
        (other.name != service.name).then(|| format!("service {}, which waits, still has {at}", other.name))
    })
}

/// All that a service has to itself: its workers, its address and its lanes.
fn addresses(service: &Service) -> BTreeSet<SocketAddr> {
    let [first, second] = LANE_NET;
    let lanes = service.address.filter(|_| service.deploy.is_some());
    let lanes = lanes.map(|address| SocketAddr::from(([first, second, 0, 0], address.port())));
    service.members().chain(service.address).chain(lanes).map(one_spelling).collect()
}

/// `localhost` is both 127.0.0.1 and ::1.
fn one_spelling(at: SocketAddr) -> SocketAddr {
    match at.ip() {
        IpAddr::V6(Ipv6Addr::LOCALHOST) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), at.port()),
        _ => at,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    /// A configuration of services, each with its first port and the number of its workers.
    fn config(services: &[(&str, u16, u16)]) -> Config {
        let one = |(name, first, workers): &(&str, u16, u16)| {
            format!(
                "[service.{name}]\nworkers = \"127.0.0.1:{first}-{}\"\n\
                 manager = {{ supervisord = \"/s\", program = \"{name}_{{port}}\" }}\n",
                first + workers - 1
            )
        };
        Config::parse(Path::new("f"), &services.iter().map(one).collect::<String>()).unwrap()
    }

    fn busy(names: &[&str]) -> BTreeMap<String, String> {
        names.iter().map(|name| ((*name).to_owned(), "a roll runs".to_owned())).collect()
    }

    #[test]
    fn what_is_in_use_waits_and_the_rest_does_not() {
        let current = config(&[("api", 8000, 2), ("old", 8200, 2), ("web", 8100, 2)]);
        let wanted = config(&[("api", 8000, 3), ("new", 8300, 1), ("web", 8100, 3)]);
        let sorted = sort(&current, &wanted, &busy(&["web"]));
        assert_eq!(sorted.applied, ["api", "new", "old"]);
        assert_eq!(sorted.deferred, busy(&["web"]));
        assert_eq!(sorted.config.services["web"], current.services["web"]);
        assert_eq!(sorted.config.services["api"], wanted.services["api"]);
        let all = sort(&current, &wanted, &busy(&["api", "web", "old"]));
        assert_eq!((all.applied, all.deferred.len()), (vec!["new".to_owned()], 3));
        assert!(all.config.services.contains_key("old"), "a service that is taken out waits as well");
    }

    #[test]
    fn what_is_in_use_and_not_changed_does_not_wait() {
        let both = config(&[("api", 8000, 2), ("web", 8100, 2)]);
        let sorted = sort(&both, &both, &busy(&["api", "web"]));
        assert_eq!((sorted.applied.len(), sorted.deferred.len(), sorted.config), (0, 0, both));
    }

    #[test]
    fn addresses_that_are_not_free_yet_are_waited_for() {
        let current = config(&[("api", 8000, 2), ("web", 8100, 2)]);
        // web gives 8101 to api, which gives 8000 to a service that is new.
        let wanted = config(&[("api", 8001, 1), ("new", 8000, 1), ("web", 8100, 1), ("x", 8101, 1)]);
        let sorted = sort(&current, &wanted, &busy(&["web"]));
        assert_eq!(sorted.applied, ["api", "new"]);
        assert!(sorted.deferred["x"].contains("web, which waits, still has 127.0.0.1:8101"), "{sorted:?}");
        let chain = config(&[("api", 8101, 1), ("new", 8000, 1), ("web", 8100, 1)]);
        let sorted = sort(&current, &chain, &busy(&["web"]));
        assert!(sorted.applied.is_empty(), "{sorted:?}");
        assert_eq!(sorted.config.services, current.services);
    }

    proptest! {
        /// No address is of two services, whatever waits; and nothing that is in use is changed.
        #[test]
        fn what_is_applied_is_valid(
            firsts in prop::collection::vec((0..6_u16, 0..6_u16), 4), waits in prop::collection::vec(any::<bool>(), 4),
        ) {
            let names = ["a", "b", "c", "d"];
            let take = |nth: fn(&(u16, u16)) -> u16| {
                let mut seen = BTreeSet::new();
                let all = names.iter().zip(&firsts).map(|(name, pair)| (*name, 8000 + nth(pair), 1));
                let all: Vec<_> = all.filter(|(_, port, _)| seen.insert(*port)).collect();
                config(&all)
            };
            let (current, wanted) = (take(|pair| pair.0), take(|pair| pair.1));
            let waiting: Vec<_> = names.iter().zip(&waits).filter(|(_, waits)| **waits).map(|(name, _)| *name).collect();
            let sorted = sort(&current, &wanted, &busy(&waiting));
            let all: Vec<_> = sorted.config.services.values().flat_map(addresses).collect();
            prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
            for name in waiting {
                prop_assert_eq!(sorted.config.services.get(name), current.services.get(name));
            }
        }
    }
}
