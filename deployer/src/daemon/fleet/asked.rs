//! What clients ask of the fleet.

use std::sync::Arc;

use super::super::{Daemon, error::Refusal, lock};
use crate::{
    api::{Done, FleetDeploy, FleetRoll, FleetStarted, FleetStatus, ServiceFleet},
    metrics::FleetFigures,
};

const NOT_BUILT: &str = "the fleet is not built yet; nothing was done";

impl Daemon {
    /// How the fleet stands, as it is known here.
    pub(in crate::daemon) async fn fleet_status(&self) -> FleetStatus {
        let fleet = lock(&self.config).fleet.clone();
        let coordinator = fleet.connect.map_or_else(|| "local".to_owned(), |to| format!("zookeeper {to}"));
        FleetStatus { name: fleet.name, coordinator, host: fleet.host, ..FleetStatus::default() }
    }

    /// The same for the page of metrics; `None`: this host is alone. Does not block.
    pub(in crate::daemon) fn fleet_figures(&self) -> Option<FleetFigures> {
        None
    }

    /// How a service of the fleet stands.
    pub(in crate::daemon) async fn fleet_service(&self, name: &str) -> Result<ServiceFleet, Refusal> {
        Err(not_built(name))
    }

    /// Begins a deploy of the fleet; what is asked is sound.
    pub(in crate::daemon) async fn fleet_deploy_asked(
        self: &Arc<Self>,
        name: &str,
        _asked: FleetDeploy,
        _by: String,
    ) -> Result<FleetStarted, Refusal> {
        Err(not_built(name))
    }

    /// Begins a roll of the fleet; what is asked is sound.
    pub(in crate::daemon) async fn fleet_roll_asked(
        self: &Arc<Self>,
        name: &str,
        _asked: FleetRoll,
        _by: String,
    ) -> Result<FleetStarted, Refusal> {
        Err(not_built(name))
    }

    /// Has the order in hand aborted, or turned back where somebody has flipped.
    pub(in crate::daemon) async fn fleet_abort(&self, name: &str, _by: String) -> Result<Done, Refusal> {
        Err(not_built(name))
    }

    /// Has the former version serve again: by turning the deploy in hand back, else by a deploy of it.
    pub(in crate::daemon) async fn fleet_rollback(self: &Arc<Self>, name: &str, _by: String) -> Result<Done, Refusal> {
        Err(not_built(name))
    }

    /// Has this host's daemon drive the order in hand.
    pub(in crate::daemon) async fn fleet_resume(self: &Arc<Self>, name: &str, _by: String) -> Result<Done, Refusal> {
        Err(not_built(name))
    }

    /// Puts a host into the roster, has it stand aside, or forgets it: `enable`, `drain`, `forget`.
    pub(in crate::daemon) async fn fleet_host(&self, _host: &str, what: &str, _by: String) -> Result<Done, Refusal> {
        Err(not_built(what))
    }

    /// Has a server set published although it has shrunk below half.
    pub(in crate::daemon) async fn fleet_accept_shrink(&self, name: &str, _by: String) -> Result<Done, Refusal> {
        Err(not_built(name))
    }
}

fn not_built(what: &str) -> Refusal {
    Refusal::failed(format!("{what}: {NOT_BUILT}"))
}
