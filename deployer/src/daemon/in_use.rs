//! Whether a service is used in ways that work only while its connections are steered: a service address or a lane, where no
//! process listens, and the workers of a pool that is not current, which may not run.

use std::net::SocketAddr;

use super::Daemon;
use crate::{
    kernel::{diag, host},
    service::{
        Service,
        registry::is_lane_of,
        uses::{Used, is_same},
    },
};

/// What of a service is used that only steering can serve.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Uses {
    /// Its service address and its lanes.
    pub(super) address: Used,
    /// The workers of the pool that is not current.
    pub(super) moved: Used,
}

impl Daemon {
    /// How a service is used now.
    pub(super) fn uses(&self, service: &Service) -> Uses {
        let (used, now) = (self.tables.counts().used(service.index), host::now_ms());
        let (mut address, mut moved) = (0, 0);
        let others: Vec<_> = service.pool(1 - service.current()).iter().map(|worker| worker.at).collect();
        for at in self.dialled(service) {
            let is_address = service.config.address.is_some_and(|address| is_same(address, at));
            address += usize::from(is_address || is_lane_of(service, at));
            moved += usize::from(others.iter().any(|other| is_same(*other, at)));
        }
        Uses { address: Used::at(used.address_ms, now, address), moved: Used::at(used.moved_ms, now, moved) }
    }

    /// What the callers of connections that are open at its workers have dialled, where they were steered elsewhere. What the
    /// kernel does not say is not known.
    fn dialled(&self, service: &Service) -> Vec<SocketAddr> {
        let mut ports: Vec<_> = service.members().map(|worker| worker.at.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        let open = ports.into_iter().filter_map(|port| {
            diag::activity(port, self.tables.notes())
                .inspect_err(|error| tracing::warn!(%error, port, "cannot look at open connections"))
                .ok()
        });
        open.flat_map(|open| open.into_values().filter_map(|one| one.dialled)).collect()
    }
}
