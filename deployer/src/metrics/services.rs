//! Services as a whole.

use deployer_common::layout::ServiceCount;

use super::{
    page::{Buckets, Kind, Labels, Page},
    snapshot::{ServiceSample, WorkerSample},
};
use crate::service::moves::{BOUNDS, Durations, Moved};

const MODES: [&str; 3] = ["observe", "enforce", "bypass"];

type Outcome = (&'static str, fn(&ServiceCount) -> u64);

const OUTCOMES: [Outcome; 4] = [
    ("dialled", |count| count.dialled),
    ("unsteered", |count| count.unsteered),
    ("exhausted", |count| count.exhausted),
    ("would_change", |count| count.would_change),
];

type Took = (&'static str, &'static str, fn(&Moved) -> &Durations);

const TOOK: [Took; 2] = [
    (
        "deployer_drain_seconds",
        "How long drains took, of rolls and by hand, however they ended, since the daemon was started.",
        |moved| &moved.drains,
    ),
    ("deployer_warmup_seconds", "How long warm-ups took that were passed, since the daemon was started.", |moved| {
        &moved.warm_ups
    }),
];

/// Writes them.
pub(super) fn write(page: &mut Page, services: &[ServiceSample]) {
    let of = |service: &ServiceSample| Labels::new(&[("service", &service.name)]);
    let all: Vec<_> = services.iter().map(|service| (of(service), service)).collect();
    let name = "deployer_service_connects_total";
    let help = "connect() calls to the service address (dialled), of callers that are not steered, that nobody could \
                take (exhausted), and in mode observe those that would go elsewhere (would_change).";
    let mut family = page.family(Kind::Counter, name, help);
    for (labels, service) in &all {
        OUTCOMES.iter().for_each(|(text, value)| family.add_with(labels, "outcome", text, value(&service.count)));
    }
    let help = "bind() calls to the service's protected addresses that failed with EPERM.";
    let mut family = page.family(Kind::Counter, "deployer_service_binds_refused_total", help);
    all.iter().for_each(|(labels, service)| family.add(labels, service.binds_refused));
    let mut family = page.family(Kind::Gauge, "deployer_service_mode", "1 for the mode that the service is in.");
    for (labels, service) in &all {
        MODES.iter().for_each(|mode| family.add_with(labels, "mode", mode, service.mode == *mode));
    }
    let mut family = page.family(Kind::Gauge, "deployer_service_min_up", "So many workers stay in rotation.");
    all.iter().for_each(|(labels, service)| family.add(labels, service.min_up));
    let mut family = page.family(
        Kind::Gauge,
        "deployer_service_workers",
        "Workers that are configured, without spares; of two pools, those of the current one.",
    );
    for (labels, service) in &all {
        let counts = |worker: &&WorkerSample| !worker.spare && worker.pool.is_none_or(|(_, is_current)| is_current);
        family.add(labels, service.workers.iter().filter(counts).count());
    }
    let mut family = page.family(
        Kind::Gauge,
        "deployer_service_workers_unsteered",
        "Workers most of whose connections in the last five minutes came from callers that are not steered.",
    );
    all.iter().for_each(|(labels, service)| family.add(labels, service.workers_unsteered));
    let mut family = page.family(
        Kind::Gauge,
        "deployer_unsteered_connections",
        "Connections in the last five minutes of callers that are not steered, by executable or address.",
    );
    for (labels, service) in &all {
        service.unsteered.iter().for_each(|(caller, count)| family.add(&labels.and(&[("caller", caller)]), *count));
    }
    let mut family = page.family(
        Kind::Gauge,
        "deployer_caller_processes",
        "Processes that an entry of callers means just now; 0: no connection is steered by it.",
    );
    for (labels, service) in &all {
        service.callers.iter().for_each(|(caller, count)| family.add(&labels.and(&[("caller", caller)]), *count));
    }
    for (name, help, durations) in TOOK {
        let mut family = page.family(Kind::Histogram, name, help);
        for (labels, service) in &all {
            let Durations { sum, counts } = durations(&service.moved);
            let bounds = BOUNDS.map(|(_, text)| text);
            family.add_buckets(labels, &Buckets { bounds: &bounds, counts, sum: *sum });
        }
    }
}
