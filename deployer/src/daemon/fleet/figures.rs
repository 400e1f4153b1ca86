//! The fleet on the page of metrics.

use super::super::Daemon;
use crate::metrics::FleetFigures;

impl Daemon {
    /// What is known of the fleet without asking anybody; `None`: this host is alone.
    pub(in crate::daemon) fn fleet_figures(&self) -> Option<FleetFigures> {
        None
    }
}
