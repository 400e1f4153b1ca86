//! The page that Prometheus reads: everything is looked at when it is asked for.
//!
//! `snapshot` is what is looked at, `page` the text it becomes, `server` gives that away; the rest is one file for each
//! group of figures, with their names. Those of connections are by version, which `figures` and `ledger` see to.

mod connections;
mod figures;
mod fleet;
mod host;
mod ledger;
mod page;
mod pools;
mod programs;
mod rolls;
pub mod server;
mod services;
mod snapshot;
#[cfg(test)]
mod tests;
mod workers;

use std::time::Instant;

use self::page::{Kind, Page};
pub use self::{
    figures::Figures,
    fleet::{FleetFigures, FleetServiceFigures},
    ledger::{Ledger, Read},
    page::CONTENT_TYPE,
    snapshot::{Process, RollSample, ServiceSample, Sides, Snapshot, WorkerSample},
};

/// The version that is nobody's.
const UNKNOWN: &str = "unknown";
/// Room for what one worker takes, in bytes: a page that grows is copied.
const A_WORKER: usize = 12 << 10;

/// Writes a page of what was looked at since `begun`.
#[must_use]
pub fn render(snapshot: &Snapshot, begun: Instant) -> String {
    let workers: usize = snapshot.services.iter().map(|service| service.workers.len()).sum();
    let mut page = Page::with_capacity((workers + 1) * A_WORKER);
    connections::write(&mut page, &snapshot.services);
    workers::write(&mut page, &snapshot.services);
    services::write(&mut page, &snapshot.services);
    rolls::write(&mut page, &snapshot.services);
    pools::write(&mut page, &snapshot.services);
    fleet::write(&mut page, snapshot.fleet.as_ref());
    programs::write(&mut page, snapshot.runs.as_deref());
    host::write(&mut page, snapshot);
    let (name, help) = ("deployer_scrape_duration_seconds", "How long it took to collect and write this page.");
    page.single(Kind::Gauge, name, help, begun.elapsed().as_secs_f64());
    page.finish()
}
