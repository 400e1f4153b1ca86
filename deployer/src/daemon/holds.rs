//! What holds the drains that are under way, for whoever asks.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use deployer_common::word::State;

use super::Daemon;
use crate::{
    kernel::host,
    log::recurring,
    service::{
        blocking,
        holds::{self, Draining, Holds},
    },
};

/// Between two looks, which walk over all of /proc: whoever asks again before that is told the same.
const LOOK: Duration = Duration::from_secs(1);

/// With those looks.
static TROUBLE: recurring::Shared = recurring::Shared::new();

/// By worker.
pub(super) type Held = BTreeMap<SocketAddr, Holds>;

/// The last look.
#[derive(Default)]
pub(super) struct Looked(Option<(Instant, Arc<Held>)>);

impl Daemon {
    /// What holds each worker that is draining.
    pub(super) async fn holds(&self) -> Arc<Held> {
        let mut looked = self.holds.lock().await;
        if let Looked(Some((at, held))) = &*looked
            && at.elapsed() < LOOK
        {
            return Arc::clone(held);
        }
        let draining = self.draining();
        let (tables, keepalive) = (Arc::clone(&self.tables), Arc::clone(&self.keepalive));
        let look = blocking(move || match draining.is_empty() {
            true => Ok(Held::new()),
            false => holds::look(&tables, &draining, &|pair| keepalive.why(pair)),
        });
        let held = look.await;
        TROUBLE.note(&held, "look at what holds the drains");
        let held = Arc::new(held.unwrap_or_default());
        // Nothing was looked at where nobody is draining: who asks next is told at once of one that is by then.
        if !held.is_empty() {
            *looked = Looked(Some((Instant::now(), Arc::clone(&held))));
        }
        held
    }

    fn draining(&self) -> Vec<Draining> {
        let (services, now) = (self.registry.services(), host::now_ms());
        let members = services.values().flat_map(|service| service.members());
        let draining = members.filter(|worker| self.tables.word(worker.index).at(now) == State::Draining);
        draining.map(|worker| Draining { at: worker.at, places: worker.places() }).collect()
    }
}
