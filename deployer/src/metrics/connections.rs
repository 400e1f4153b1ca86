//! Connections, by service, worker and version.

use super::{
    figures::{Bounds, CONNECTS, Count, Figures, LIFETIMES, Times},
    page::{Buckets, Kind, Labels, Page},
    snapshot::ServiceSample,
};

/// A family: its name, what it says, and its lines by the value of a label.
type Counted = (&'static str, &'static str, &'static str, &'static [(&'static str, Count)]);

const BY_LABEL: [Counted; 4] = [
    (
        "deployer_connections_total",
        "Connections to the worker: to which it was dialled, steered from another, or picked for the service address.",
        "outcome",
        &[("direct", Count::Direct), ("steered", Count::Steered), ("picked", Count::Picked)],
    ),
    (
        "deployer_connections_diverted_total",
        "Connections that dialled the worker and went to another (away), or were refused by policy.",
        "outcome",
        &[("away", Count::Away), ("refused", Count::Refused)],
    ),
    (
        "deployer_connections_fallback_total",
        "Connections to the worker for want of a better one: it was draining or cold, or min_up held it in rotation.",
        "kind",
        &[("draining", Count::FallbackDraining), ("cold", Count::FallbackCold), ("floor", Count::FallbackFloor)],
    ),
    (
        "deployer_connections_reaped_total",
        "Kept-alive connections closed while the worker drained: behind a complete answer, or after a long silence.",
        "ground",
        &[("complete", Count::ReapedComplete), ("quiet", Count::ReapedQuiet)],
    ),
];

/// A family of one line for each worker and version.
type Single = (&'static str, &'static str, fn(&Figures) -> u64);

const SINGLE: [Single; 7] = [
    (
        "deployer_connections_established_total",
        "Connections established, seen at the worker's end, whoever dialled; without the daemon's own warm-up.",
        |figures| figures.get(Count::Established),
    ),
    ("deployer_connections_closed_total", "Connections that are over, seen at the worker's end.", Figures::closed),
    ("deployer_connections_failed_total", "Connections of steered callers that could not be established.", |figures| {
        figures.get(Count::Failed)
    }),
    (
        "deployer_connections_reset_total",
        "Connections of steered callers that the worker's end has reset instead of closing them.",
        |figures| figures.get(Count::Reset),
    ),
    (
        "deployer_connections_cut_total",
        "Connections that were open in a process of the worker when it ended.",
        |figures| figures.get(Count::Cut),
    ),
    (
        "deployer_connections_late_total",
        "Connections established after the drain was published and every earlier connect() had ended.",
        |figures| figures.get(Count::Late),
    ),
    ("deployer_connections_to_cold_total", "Connections established while the worker was cold.", |figures| {
        figures.get(Count::ToCold)
    }),
];

/// Writes them.
pub(super) fn write(page: &mut Page, services: &[ServiceSample]) {
    let all = labelled(services);
    for (name, help, label, lines) in BY_LABEL {
        let mut family = page.family(Kind::Counter, name, help);
        for (labels, figures) in &all {
            lines.iter().for_each(|(value, which)| family.add_with(labels, label, value, figures.get(*which)));
        }
    }
    for (name, help, value) in SINGLE {
        let mut family = page.family(Kind::Counter, name, help);
        all.iter().for_each(|(labels, figures)| family.add(labels, value(figures)));
    }
    let (name, help) = ("deployer_connection_lifetime_seconds", "How long connections lasted, at the worker's end.");
    times(page, name, help, &LIFETIMES, all.iter().map(|(labels, figures)| (labels, figures.lifetimes())));
    let (name, help) = (
        "deployer_connect_latency_seconds",
        "From a steered caller's SYN until the connection was established, at the caller's end.",
    );
    times(page, name, help, &CONNECTS, all.iter().map(|(labels, figures)| (labels, figures.connects())));
}

fn labelled(services: &[ServiceSample]) -> Vec<(Labels, &Figures)> {
    let mut all = Vec::new();
    for service in services {
        let of_service = Labels::new(&[("service", &service.name)]);
        for worker in &service.workers {
            let of_worker = of_service.and(&[("worker", &worker.at.to_string())]);
            let versions = worker.versions.iter();
            all.extend(versions.map(|(version, figures)| (of_worker.and(&[("version", version)]), figures)));
        }
    }
    all
}

fn times<'a>(
    page: &mut Page,
    name: &'static str,
    help: &'static str,
    bounds: &Bounds,
    all: impl Iterator<Item = (&'a Labels, Times<'a>)>,
) {
    let bounds = bounds.map(|(_, text)| text);
    let mut family = page.family(Kind::Histogram, name, help);
    for (labels, Times { sum_us, counts }) in all {
        family.add_buckets(labels, &Buckets { bounds: &bounds, counts, sum: sum_us as f64 / 1e6 });
    }
}
