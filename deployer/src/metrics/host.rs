//! The daemon, and what it has put into the kernel of this host.

use super::{
    page::{Kind, Labels, Page, Value},
    snapshot::Snapshot,
};
use crate::api::TestResult;

type Single = (Kind, &'static str, &'static str, fn(&Snapshot) -> Option<Value>);

/// What is not known is left out.
const SINGLE: [Single; 13] = [
    (Kind::Gauge, "deployer_attached", "Whether the programs are attached.", |all| Some(all.attached.into())),
    (Kind::Gauge, "deployer_bypassed", "Whether every service is bypassed.", |all| Some(all.bypassed.into())),
    (Kind::Counter, "deployer_links_lost_total", "Links and pins of programs that were lost.", |all| {
        Some(all.links_lost.into())
    }),
    (
        Kind::Gauge,
        "deployer_links_missing",
        "Links and pins of programs that the last look, a second ago at most, has found lost.",
        |all| Some(all.links_missing.into()),
    ),
    (Kind::Gauge, "deployer_trouble", "How many things deployer status calls trouble.", |all| Some(all.trouble.into())),
    (
        Kind::Gauge,
        "deployer_squatters",
        "Sockets of strangers that listen at service or lane addresses, or beside workers.",
        |all| Some(all.squatters.into()),
    ),
    (
        Kind::Gauge,
        "deployer_self_test_success",
        "Whether the last self-test has passed; where nothing is to be steered (bypassed, detached), none can fail. Absent \
         where none could be made.",
        |all| {
            let result = all.self_test.as_ref()?.result;
            (result != TestResult::Untested).then(|| (result != TestResult::Failed).into())
        },
    ),
    (
        Kind::Gauge,
        "deployer_self_test_timestamp_seconds",
        "When the last self-test ended, in seconds since 1970.",
        |all| Some((all.self_test.as_ref()?.time_ms as f64 / 1000.0).into()),
    ),
    (
        Kind::Counter,
        "deployer_task_restarts_total",
        "How often a background task of the daemon has panicked or returned, and was started again: a bug of the daemon.",
        |all| Some(all.task_restarts.into()),
    ),
    (
        Kind::Gauge,
        "deployer_journal_writable",
        "Whether the journal can be written; no roll begins while it cannot.",
        |all| Some(all.journal_writable.into()),
    ),
    (Kind::Gauge, "process_start_time_seconds", "When the daemon was started, in seconds since 1970.", |all| {
        Some((all.process.begun_ms as f64 / 1000.0).into())
    }),
    (Kind::Counter, "process_cpu_seconds_total", "Processor time that the daemon has taken.", |all| {
        Some(all.process.cpu_seconds.into())
    }),
    (Kind::Gauge, "process_resident_memory_bytes", "Memory that the daemon has in use.", |all| {
        Some(all.process.resident_bytes?.into())
    }),
];

/// Writes it.
pub(super) fn write(page: &mut Page, all: &Snapshot) {
    let mut family = page.family(Kind::Gauge, "deployer_build_info", "The daemon that runs; always 1.");
    family.add(&Labels::new(&[("version", all.version)]), 1_u64);
    for (kind, name, help, value) in SINGLE {
        if let Some(value) = value(all) {
            page.single(kind, name, help, value);
        }
    }
}
