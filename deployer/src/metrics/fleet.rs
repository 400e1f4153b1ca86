//! The fleet: how this host stands in it, and how far its orders are. A host that is alone has no series here.

use super::page::{Kind, Labels, Page};
use crate::fleet::{paths::Mark, state::Phase};

/// What is known of the fleet.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FleetFigures {
    /// The fleet's name.
    pub name: String,
    /// This host's name in it.
    pub host: String,
    /// There is a connection to what it agrees through.
    pub connected: bool,
    /// Sessions that were lost since the daemon was started.
    pub sessions_lost: u64,
    /// How long the session has been there, seconds; 0: there is none.
    pub session_seconds: f64,
    /// Hosts of the roster.
    pub enrolled: usize,
    /// Hosts whose daemons have a session.
    pub alive: usize,
    /// By name.
    pub services: Vec<FleetServiceFigures>,
}

/// A service of the fleet.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FleetServiceFigures {
    /// Its name.
    pub service: String,
    /// Of the order in hand, or the last.
    pub epoch: u64,
    /// How far that is.
    pub phase: Phase,
    /// For how long it has been there, seconds.
    pub phase_seconds: f64,
    /// Hosts that have said this of the epoch, as in [`Mark::ALL`].
    pub marks: [usize; Mark::ALL.len()],
    /// Hosts that are expected to.
    pub expected: usize,
    /// How much later than its instant this host has flipped last, seconds; `None`: it has not flipped since the daemon was
    /// started.
    pub late_seconds: Option<f64>,
    /// This host is in the server set; `None`: it has nothing to publish.
    pub published: Option<bool>,
    /// This daemon drives the order in hand.
    pub driver: bool,
}

const PHASES: [Phase; 8] =
    [Phase::Idle, Phase::Prepare, Phase::Go, Phase::Cancel, Phase::Flipped, Phase::Back, Phase::Retire, Phase::Roll];

/// Writes them.
pub(super) fn write(page: &mut Page, fleet: Option<&FleetFigures>) {
    let Some(fleet) = fleet else { return };
    host(page, fleet);
    let of = |service: &FleetServiceFigures| Labels::new(&[("service", &service.service)]);
    let all: Vec<_> = fleet.services.iter().map(|service| (of(service), service)).collect();
    orders(page, &all);
    let help =
        "How much later than its instant this host has flipped last, in seconds; missing where it has not flipped.";
    let mut family = page.family(Kind::Gauge, "deployer_fleet_flip_late_seconds", help);
    for (labels, service) in &all {
        if let Some(late) = service.late_seconds {
            family.add(labels, late);
        }
    }
    let help = "Whether this host is in the service's server set; missing where it has nothing to publish.";
    let mut family = page.family(Kind::Gauge, "deployer_fleet_published", help);
    for (labels, service) in &all {
        if let Some(published) = service.published {
            family.add(labels, published);
        }
    }
    let help = "1 where this daemon drives the fleet's order.";
    let mut family = page.family(Kind::Gauge, "deployer_fleet_driver", help);
    all.iter().for_each(|(labels, service)| family.add(labels, service.driver));
}

fn host(page: &mut Page, fleet: &FleetFigures) {
    let mut family =
        page.family(Kind::Gauge, "deployer_fleet_info", "The fleet, and this host's name in it; always 1.");
    family.add(&Labels::new(&[("fleet", &fleet.name), ("host", &fleet.host)]), 1_u64);
    let help = "Whether there is a connection to ZooKeeper. Without one what is served stays as it is.";
    page.single(Kind::Gauge, "deployer_fleet_connected", help, fleet.connected);
    let help = "Sessions with ZooKeeper that were lost since the daemon was started.";
    page.single(Kind::Counter, "deployer_fleet_sessions_lost_total", help, fleet.sessions_lost);
    let help = "How long the session with ZooKeeper has been there; 0 without one.";
    page.single(Kind::Gauge, "deployer_fleet_session_age_seconds", help, fleet.session_seconds);
    let help = "Hosts in the roster, and hosts whose daemons are there, as this one knows.";
    let mut family = page.family(Kind::Gauge, "deployer_fleet_roster_hosts", help);
    family.add_with(&Labels::default(), "state", "enrolled", fleet.enrolled);
    family.add_with(&Labels::default(), "state", "alive", fleet.alive);
}

fn orders(page: &mut Page, all: &[(Labels, &FleetServiceFigures)]) {
    let help = "Epoch of the fleet's order in hand, or the last; only grows.";
    let mut family = page.family(Kind::Gauge, "deployer_fleet_epoch", help);
    all.iter().for_each(|(labels, service)| family.add(labels, service.epoch));
    let help = "1 for the phase that the fleet's order is in, 0 for all others.";
    let mut family = page.family(Kind::Gauge, "deployer_fleet_phase", help);
    for (labels, service) in all {
        PHASES.iter().for_each(|phase| family.add_with(labels, "phase", phase.name(), service.phase == *phase));
    }
    let help = "How long the fleet's order has been in its phase.";
    let mut family = page.family(Kind::Gauge, "deployer_fleet_phase_seconds", help);
    all.iter().for_each(|(labels, service)| family.add(labels, service.phase_seconds));
    let help = "Hosts by what they have said of the epoch in hand.";
    let mut family = page.family(Kind::Gauge, "deployer_fleet_hosts", help);
    for (labels, service) in all {
        let marks = Mark::ALL.iter().zip(service.marks);
        marks.for_each(|(mark, hosts)| family.add_with(labels, "mark", mark.name(), hosts));
    }
    let help = "Hosts that the order in hand, or the last, expects to take part.";
    let mut family = page.family(Kind::Gauge, "deployer_fleet_hosts_expected", help);
    all.iter().for_each(|(labels, service)| family.add(labels, service.expected));
}
