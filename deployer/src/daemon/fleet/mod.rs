//! This host as one of a fleet.

mod agent;
mod asked;
mod drive;
mod hand;
mod local;
mod publish;
mod register;
mod shown;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::sleep};

use super::Daemon;
pub(super) use hand::Fleet;

impl Daemon {
    /// Follows each service of the configuration, whatever comes and goes.
    pub(super) async fn follow_fleet(self: Arc<Self>) {
        let mut agents: JoinSet<()> = JoinSet::new();
        let mut names = BTreeSet::new();
        loop {
            for name in self.registry.services().into_keys() {
                if names.insert(name.clone()) {
                    agents.spawn(agent::Agent::new(&self, &name).run());
                    agents.spawn(drive::Driving::new(&self, &name).run());
                }
            }
            names.retain(|name| self.registry.service(name).is_some());
            while let Some(ended) = agents.try_join_next() {
                if let Err(error) = ended {
                    // All of them are begun anew: one without the other would be of no use.
                    tracing::error!(%error, "a part of the fleet's has panicked; it is begun anew");
                    agents.shutdown().await;
                    names.clear();
                }
            }
            sleep(Duration::from_secs(1)).await;
        }
    }
}
