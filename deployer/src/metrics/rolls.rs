//! Rolls.

use super::{
    page::{Kind, Labels, Page},
    snapshot::{RollSample, ServiceSample},
};
use crate::service::moves::RESULTS;

type State = (&'static str, fn(&RollSample) -> usize);

const STATES: [State; 5] = [
    ("done", |roll| roll.done),
    ("in_hand", |roll| roll.in_hand),
    ("waiting", |roll| roll.waiting),
    ("failed", |roll| roll.failed),
    ("left", |roll| roll.left),
];

/// Writes them.
pub(super) fn write(page: &mut Page, services: &[ServiceSample]) {
    let of = |service: &ServiceSample| Labels::new(&[("service", &service.name)]);
    let all: Vec<_> = services.iter().map(|service| (of(service), service)).collect();
    let help = "Rolls that have ended since the daemon was started, by how they did, without deploys.";
    let mut family = page.family(Kind::Counter, "deployer_rolls_total", help);
    for (labels, service) in &all {
        let counted = RESULTS.iter().zip(service.moved.rolls);
        counted.for_each(|((_, text), count)| family.add_with(labels, "result", text, count));
    }
    let mut family = page.family(Kind::Gauge, "deployer_roll_running", "1 while a roll or deploy of the service runs.");
    all.iter().for_each(|(labels, service)| family.add(labels, service.roll.is_some()));
    let mut family = page.family(Kind::Gauge, "deployer_roll_workers", "The workers of the roll that runs; 0 without.");
    for (labels, service) in &all {
        let roll = service.roll.unwrap_or_default();
        STATES.iter().for_each(|(text, value)| family.add_with(labels, "state", text, value(&roll)));
    }
    let help = "When the last roll ended, in seconds since 1970; missing where none is remembered.";
    let mut family = page.family(Kind::Gauge, "deployer_roll_last_end_timestamp_seconds", help);
    for (labels, service) in &all {
        if let Some(ended_ms) = service.last_end_ms {
            family.add(labels, ended_ms as f64 / 1000.0);
        }
    }
}
