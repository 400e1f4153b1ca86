//! Workers as they are now, whatever they run.

use super::{
    page::{Kind, Labels, Page, Value},
    snapshot::{ServiceSample, WorkerSample},
};
use crate::api::Phase;

/// All there are, as they are written.
const PHASES: [(Phase, &str); 10] = [
    (Phase::Up, "up"),
    (Phase::Draining, "draining"),
    (Phase::Drained, "drained"),
    (Phase::Stopping, "stopping"),
    (Phase::Starting, "starting"),
    (Phase::Listening, "listening"),
    (Phase::Warming, "warming"),
    (Phase::Down, "down"),
    (Phase::Failed, "failed"),
    (Phase::Stranger, "stranger"),
];

type Single = (Kind, &'static str, &'static str, fn(&WorkerSample) -> Value);

const SINGLE: [Single; 13] = [
    (
        Kind::Gauge,
        "deployer_worker_open_connections",
        "Connections now open, those older than the programs included.",
        |worker| worker.open.into(),
    ),
    (Kind::Gauge, "deployer_worker_pending_connects", "connect() calls on their way to the worker.", |worker| {
        worker.pending.into()
    }),
    (
        Kind::Gauge,
        "deployer_worker_pending_outsider_connects",
        "Of the pending connect() calls, those of callers that the service does not steer.",
        |worker| worker.evidence.outsider_tickets.into(),
    ),
    (
        Kind::Counter,
        "deployer_worker_outsider_connections_cut_total",
        "Connections of callers that the service does not steer which drains have cut at their deadline.",
        |worker| worker.evidence.outsiders_cut.into(),
    ),
    (
        Kind::Counter,
        "deployer_worker_unnoted_connections_total",
        "Connections of which the programs could not keep a note, because the kernel refused socket storage.",
        |worker| (worker.evidence.unnoted + worker.evidence.uncounted).into(),
    ),
    (
        Kind::Counter,
        "deployer_worker_lost_observations_total",
        "Events, listening sockets and connect times of the worker that the daemon could not be told of.",
        |worker| (worker.evidence.unmeasured + worker.evidence.unlisted + worker.evidence.untold).into(),
    ),
    (Kind::Gauge, "deployer_worker_listeners", "Sockets that listen at the worker's address.", |worker| {
        worker.listeners.into()
    }),
    (
        Kind::Gauge,
        "deployer_worker_phase_seconds",
        "For how long the worker has been in the phase that it is in.",
        |worker| worker.for_seconds.into(),
    ),
    (
        Kind::Counter,
        "deployer_worker_crashes_total",
        "Ends of the worker's process that nobody had asked for.",
        |worker| worker.crashes.into(),
    ),
    (
        Kind::Counter,
        "deployer_worker_closed_port_total",
        "Connections of any peer that met the worker's address while no socket listened there.",
        |worker| worker.closed_port.into(),
    ),
    (Kind::Counter, "deployer_worker_restarts_total", "Starts of the worker by rolls.", |worker| {
        worker.restarts.into()
    }),
    (Kind::Counter, "deployer_worker_drain_seconds_total", "For how long the worker has been draining.", |worker| {
        worker.drain_seconds.into()
    }),
    (
        Kind::Counter,
        "deployer_worker_warm_up_seconds_total",
        "How long those warm-ups of the worker took that it has passed.",
        |worker| worker.warm_up_seconds.into(),
    ),
];

/// Writes them.
pub(super) fn write(page: &mut Page, services: &[ServiceSample]) {
    let all = labelled(services);
    for (kind, name, help, value) in SINGLE {
        let mut family = page.family(kind, name, help);
        all.iter().for_each(|(labels, worker)| family.add(labels, value(worker)));
    }
    let mut family = page.family(Kind::Gauge, "deployer_worker_phase", "1 for the phase that the worker is in.");
    for (labels, worker) in &all {
        PHASES.iter().for_each(|(phase, text)| family.add_with(labels, "phase", text, worker.phase == *phase));
    }
    let mut family = page.family(
        Kind::Gauge,
        "deployer_worker_info",
        "What the worker runs, and of which of two pools it is; always 1.",
    );
    for (labels, worker) in &all {
        let spare = if worker.spare { "true" } else { "false" };
        let version = worker.version.as_deref().unwrap_or(super::UNKNOWN);
        let mut labels = labels.and(&[("version", version), ("spare", spare)]);
        if let Some((pool, _)) = worker.pool {
            labels = labels.and(&[("pool", pool)]);
        }
        family.add(&labels, 1_u64);
    }
}

fn labelled(services: &[ServiceSample]) -> Vec<(Labels, &WorkerSample)> {
    let mut all = Vec::new();
    for service in services {
        let of_service = Labels::new(&[("service", &service.name)]);
        let labels = |worker: &WorkerSample| of_service.and(&[("worker", &worker.at.to_string())]);
        all.extend(service.workers.iter().map(|worker| (labels(worker), worker)));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_written_as_they_are_told() {
        for (phase, text) in PHASES {
            assert_eq!(phase.to_string(), text);
        }
    }
}
