//! What the terminal shows of a roll, as pure data: [`super::view`] draws it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::{lines, out::clean, status::word};
use crate::api::{Event, Phase, What};

/// A roll so far.
#[derive(Debug, Default)]
pub(super) struct Board {
    /// All workers of the roll.
    pub(super) total: usize,
    /// `batch 2 of 10`
    pub(super) heading: String,
    /// The batch in hand without those that are through.
    pub(super) rows: BTreeMap<SocketAddr, Row>,
    /// Workers on the new version.
    changed: BTreeSet<SocketAddr>,
    failed: BTreeSet<SocketAddr>,
    /// Left, and draining.
    left: BTreeSet<SocketAddr>,
    /// The batch takes workers back to the former version.
    back: bool,
}

/// A worker that is in hand.
#[derive(Debug, Default)]
pub(super) struct Row {
    pub(super) spare: bool,
    /// `None`: its turn has not come.
    pub(super) phase: Option<Phase>,
    /// What holds its drain, or why it is in its phase.
    detail: String,
    /// When it was taken out of rotation.
    out_ms: Option<u64>,
    /// When it was seen to be empty.
    empty_ms: Option<u64>,
}

impl Board {
    /// Takes an event in; returns the line that stays on the screen, if it leaves one.
    pub(super) fn apply(&mut self, event: &Event) -> Option<String> {
        match &event.what {
            What::Begun { batches, spares, .. } => {
                // Of a deploy, those of the new pool.
                let of = batches.iter().map(Vec::len).sum();
                self.total = if of == 0 { spares.len() } else { of };
                Some(lines::text(&event.what))
            }
            What::Batch { nth, of, workers, back } => {
                self.batch(*nth, *of, workers, *back);
                None
            }
            What::Again { workers, back, .. } => {
                self.again(workers, *back);
                Some(lines::text(&event.what))
            }
            What::Left { worker, why } => {
                let row = self.rows.remove(worker).unwrap_or_default();
                self.left.insert(*worker);
                Some(row.left(event.time_ms, *worker, why))
            }
            What::Surge { spares } => self.spares("starting spares", spares),
            What::Retire { spares } => self.spares("retiring spares", spares),
            What::Phase { worker, spare: true, phase, was, reason } => {
                self.spare(event.time_ms, *worker, (*was, *phase), reason)
            }
            What::Phase { worker, phase, was, reason, .. } => {
                self.phase(event.time_ms, *worker, (*was, *phase), reason)
            }
            What::Held { worker, open, tickets, by, floor, .. } => {
                self.rows.entry(*worker).or_default().detail = lines::held(*open, *tickets, by, floor.as_deref());
                None
            }
            What::Finished { .. } => {
                self.rows.clear();
                Some(lines::text(&event.what))
            }
            What::RetirePool { workers } => {
                "retiring the other pool".clone_into(&mut self.heading);
                self.rows = workers.iter().map(|worker| (*worker, Row::default())).collect();
                None
            }
            What::Pool { .. }
            | What::Gate { .. }
            | What::Holding
            | What::Waiting { .. }
            | What::Passed
            | What::Armed { .. }
            | What::Disarmed
            | What::Flipped { .. }
            | What::Returned { .. }
            | What::Ill { .. }
            | What::Asked { .. }
            | What::Command { .. }
            | What::OutsidersCut { .. }
            | What::Ended { .. }
            | What::Resumed { .. }
            | What::Journal { .. }
            | What::Skipped { .. }
            | What::StopAsked { .. } => Some(lines::text(&event.what)),
        }
    }

    /// Workers that are through.
    pub(super) fn done(&self) -> usize {
        self.changed.len()
    }

    /// Beside the bar.
    pub(super) fn message(&self) -> String {
        match self.failed.len() {
            0 => self.heading.clone(),
            failed => format!("{}, {failed} failed", self.heading),
        }
    }

    fn again(&mut self, workers: &[SocketAddr], back: bool) {
        self.back = back;
        self.heading = format!("{}waiting for those left", if back { "rolling back: " } else { "" });
        let phase = |worker: &SocketAddr| self.left.contains(worker).then_some(Phase::Draining);
        let row = |worker: &SocketAddr| (*worker, Row { phase: phase(worker), ..Row::default() });
        self.rows = workers.iter().map(row).collect();
    }

    fn batch(&mut self, nth: usize, of: usize, workers: &[SocketAddr], back: bool) {
        self.back = back;
        self.heading = format!("{}batch {nth} of {of}", if back { "rolling back: " } else { "" });
        self.rows = workers.iter().map(|worker| (*worker, Row::default())).collect();
    }

    fn spares(&mut self, heading: &str, spares: &[SocketAddr]) -> Option<String> {
        heading.clone_into(&mut self.heading);
        self.rows = spares.iter().map(|spare| (*spare, Row { spare: true, ..Row::default() })).collect();
        None
    }

    /// A spare counts neither as done nor as failed.
    fn spare(&mut self, at: u64, spare: SocketAddr, step: (Phase, Phase), reason: &str) -> Option<String> {
        let (was, now) = step;
        let mut row = self.rows.remove(&spare).unwrap_or_default();
        row.spare = true;
        row.enter(at, now, reason);
        let name = lines::name(spare, true);
        match (was, now) {
            (_, Phase::Failed | Phase::Stranger) => Some(format!("✗ {name}  {}", clean(reason))),
            (Phase::Up | Phase::Draining | Phase::Drained, Phase::Up) => Some(row.unchanged(at, &name, reason)),
            (_, Phase::Up) => Some(row.through(at, &name, reason)),
            (_, Phase::Down) => Some(row.retired(&name)),
            _ => {
                self.rows.insert(spare, row);
                None
            }
        }
    }

    fn phase(&mut self, at: u64, worker: SocketAddr, step: (Phase, Phase), reason: &str) -> Option<String> {
        let (was, now) = step;
        let mut row = self.rows.remove(&worker).unwrap_or_default();
        row.enter(at, now, reason);
        match (was, now) {
            (_, Phase::Failed | Phase::Stranger) => {
                self.left.remove(&worker);
                self.changed.remove(&worker);
                self.failed.insert(worker);
                Some(format!("✗ {worker}  {}", clean(reason)))
            }
            // It was never stopped.
            (Phase::Up | Phase::Draining | Phase::Drained, Phase::Up) => {
                self.left.remove(&worker);
                Some(row.unchanged(at, &worker.to_string(), reason))
            }
            (_, Phase::Up) => {
                self.failed.remove(&worker);
                // A worker that went back no longer counts.
                if self.back {
                    self.changed.remove(&worker)
                } else {
                    self.changed.insert(worker)
                };
                Some(row.through(at, &worker.to_string(), reason))
            }
            // Of a pool that is retired.
            (_, Phase::Down) if row.empty_ms.is_some() => Some(row.retired(&worker.to_string())),
            _ => {
                self.rows.insert(worker, row);
                None
            }
        }
    }
}

impl Row {
    fn enter(&mut self, at: u64, phase: Phase, reason: &str) {
        self.phase = Some(phase);
        self.detail = clean(reason);
        match phase {
            Phase::Draining => self.out_ms = Some(at),
            // A manager that stops without a drain's end being told still ends it.
            Phase::Drained | Phase::Stopping => self.empty_ms = self.empty_ms.or(Some(at)),
            _ => {}
        }
    }

    /// `draining   2 open: …`
    pub(super) fn text(&self) -> String {
        format!("{:<9}  {}", self.phase.map_or("waiting", word), self.detail)
    }

    /// `✓ 127.0.0.1:8003  v2  drained 0.1 s, up after 2.3 s`, both from when it was taken out of rotation.
    fn through(&self, at: u64, worker: &str, version: &str) -> String {
        let mut line = format!("✓ {worker}");
        if !version.is_empty() {
            line.push_str(&format!("  {}", clean(version)));
        }
        if let Some(out) = self.out_ms {
            let drained = self.empty_ms.map(|empty| format!("drained {}, ", seconds(out, empty))).unwrap_or_default();
            line.push_str(&format!("  {drained}up after {}", seconds(out, at)));
        }
        line
    }

    /// Its drain goes on, so that it is not as it was.
    fn left(&self, at: u64, worker: SocketAddr, why: &str) -> String {
        let after = self.out_ms.map(|out| format!(" after {}", seconds(out, at))).unwrap_or_default();
        format!("… {worker}  left{after}: {}", lines::reason(worker, why))
    }

    fn retired(&self, spare: &str) -> String {
        match (self.out_ms, self.empty_ms) {
            (Some(out), Some(empty)) => format!("- {spare}  retired, drained {}", seconds(out, empty)),
            _ => format!("- {spare}  retired"),
        }
    }

    fn unchanged(&self, at: u64, worker: &str, reason: &str) -> String {
        let after = self.out_ms.map(|out| format!(" after {}", seconds(out, at))).unwrap_or_default();
        let reason = if reason.is_empty() { String::new() } else { format!(": {}", clean(reason)) };
        format!("- {worker}  unchanged, back in rotation{after}{reason}")
    }
}

fn seconds(from: u64, to: u64) -> String {
    format!("{:.1} s", to.saturating_sub(from) as f64 / 1000.0)
}
