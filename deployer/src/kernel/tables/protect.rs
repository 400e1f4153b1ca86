//! Addresses that only some may bind.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

use anyhow::{Context, Result};
use deployer_common::{endpoint::Endpoint, protect::Protected};

use super::{Tables, spellings, wildcard};

impl Tables {
    /// Protects these addresses, each in all its spellings and with the wildcard addresses at which a listener would get
    /// its connections, and no others; entries of other network namespaces are removed, too.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn protect(&self, wanted: &BTreeMap<SocketAddr, Protected>) -> Result<()> {
        let wanted: HashMap<Endpoint, Protected> =
            keys(wanted).into_iter().map(|(at, protected)| (self.key(at), protected)).collect();
        let mut entries = self.entries();
        let found: HashMap<Endpoint, Protected> =
            entries.protected.iter().collect::<Result<_, _>>().context("reading the protected addresses")?;
        for (key, protected) in wanted.iter().filter(|(key, protected)| found.get(*key) != Some(*protected)) {
            entries.protected.insert(key, protected, 0).context("protecting an address")?;
        }
        for key in found.keys().filter(|key| !wanted.contains_key(*key)) {
            entries.protected.remove(key).context("giving up a protected address")?;
        }
        Ok(())
    }

    /// The user and cgroup that may bind an address, if it is protected now.
    #[must_use]
    pub fn protected(&self, at: SocketAddr) -> Option<Protected> {
        self.entries().protected.get(&self.key(at), 0).ok()
    }
}

/// Each address in all its spellings. At a wildcard address one of several that share a port may listen: the same of them
/// as counts for a listener there, [`wildcard::owners`].
fn keys(wanted: &BTreeMap<SocketAddr, Protected>) -> BTreeMap<SocketAddr, Protected> {
    let mut all = BTreeMap::new();
    let addresses: Vec<_> = wanted.keys().copied().collect();
    // Those that another user than root may bind come first.
    let is_worker = |at: &SocketAddr| wanted[at].uid != deployer_common::protect::ROOT_ONLY;
    let (workers, others): (Vec<_>, Vec<_>) = addresses.iter().copied().zip(0..).partition(|(at, _)| is_worker(at));
    for group in [others, workers] {
        for (at, nth) in wildcard::owners(&group) {
            all.insert(at, wanted[&addresses[nth as usize]]);
        }
    }
    for (at, protected) in wanted {
        let exact = spellings(*at).into_iter().filter(|spelling| !spelling.ip().is_unspecified());
        all.extend(exact.map(|spelling| (spelling, *protected)));
    }
    all
}

#[cfg(test)]
mod tests {
    use deployer_common::protect::ROOT_ONLY;

    use super::*;

    fn of(wanted: &[(&str, u32)]) -> Vec<(String, u32)> {
        let protected = |uid| Protected { uid, service: 0, cgroup: 0, level: 0, zero: 0 };
        let wanted = wanted.iter().map(|(at, uid)| (at.parse().unwrap(), protected(*uid))).collect();
        keys(&wanted).into_iter().map(|(at, protected)| (at.to_string(), protected.uid)).collect()
    }

    #[test]
    fn every_address_that_gets_its_connections_is_protected() {
        let all = |uid| ["0.0.0.0:80", "127.0.0.1:80", "[::]:80", "[::1]:80"].map(|at| (at.to_owned(), uid)).to_vec();
        assert_eq!(of(&[("127.0.0.1:80", 33)]), all(33));
        let six = ["[::]:80", "[fd00::1]:80"].map(|at| (at.to_owned(), 33)).to_vec();
        assert_eq!(of(&[("[fd00::1]:80", 33)]), six);
    }

    #[test]
    fn a_worker_may_listen_at_all_addresses() {
        let found = of(&[("10.9.9.9:80", 33), ("127.0.0.5:80", ROOT_ONLY)]);
        for (at, uid) in [("0.0.0.0:80", 33), ("[::]:80", 33), ("10.9.9.9:80", 33), ("127.0.0.5:80", ROOT_ONLY)] {
            assert!(found.contains(&(at.to_owned(), uid)), "{at}: {found:?}");
        }
    }

    #[test]
    fn lanes_are_one_address() {
        let found = of(&[("127.77.0.0:9000", ROOT_ONLY)]);
        assert_eq!(found.len(), 3, "{found:?}");
    }
}
