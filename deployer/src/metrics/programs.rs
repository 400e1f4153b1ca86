//! What the programs cost. The kernel counts that only where it is asked to, as counting costs something itself.

use std::time::Duration;

use super::page::{Kind, Labels, Page};

/// Writes it; `None`: it is not counted.
pub(super) fn write(page: &mut Page, runs: Option<&[(String, Duration, u64)]>) {
    let help = "Whether the kernel counts runs of programs (sysctl kernel.bpf_stats_enabled).";
    page.single(Kind::Gauge, "deployer_bpf_stats_enabled", help, runs.is_some());
    let Some(runs) = runs else { return };
    let all: Vec<_> = runs.iter().map(|(name, took, count)| (Labels::new(&[("program", name)]), took, count)).collect();
    let help = "How long the program has run, all processors together.";
    let mut family = page.family(Kind::Counter, "deployer_bpf_program_run_seconds_total", help);
    all.iter().for_each(|(labels, took, _)| family.add(labels, took.as_secs_f64()));
    let mut family = page.family(Kind::Counter, "deployer_bpf_program_runs_total", "How often the program has run.");
    all.iter().for_each(|(labels, _, count)| family.add(labels, **count));
}
