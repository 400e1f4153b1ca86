//! What a load has seen, request by request and summed up.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;

use crate::http::Response;
use crate::journal::monotonic_ns;

/// One request's fate.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The id that the request carried.
    pub id: String,
    /// Its method.
    pub method: &'static str,
    /// Its path and query.
    pub path: String,
    /// Whether it asked to be slow.
    pub slow: bool,
    /// CLOCK_MONOTONIC when it was sent.
    pub start_ns: u64,
    /// CLOCK_MONOTONIC when it was answered, or failed.
    pub end_ns: u64,
    /// The status, if there was an answer.
    pub status: Option<u16>,
    /// What went wrong, if there was none, or a wrong one.
    pub error: Option<String>,
    /// The version that answered; empty if unknown.
    pub version: String,
    /// The worker that answered; 0 if unknown.
    pub port: u16,
    /// Whether it had to wait for a cold worker.
    pub cold: bool,
}

impl Outcome {
    pub(crate) fn new(
        id: String,
        method: &'static str,
        path: String,
        slow: bool,
        (start_ns, end_ns): (u64, u64),
        answer: Result<Response>,
    ) -> Self {
        let header = |name| answer.as_ref().ok().and_then(|a| a.header(name));
        Self {
            version: header("X-Version").unwrap_or_default().to_owned(),
            port: header("X-Port").and_then(|p| p.parse().ok()).unwrap_or(0),
            cold: header("X-Cold") == Some("1"),
            status: answer.as_ref().ok().map(|a| a.status),
            error: answer.err().map(|error| format!("{error:#}")),
            id,
            method,
            path,
            slow,
            start_ns,
            end_ns,
        }
    }

    /// Anything but a 200.
    pub fn failed(&self) -> bool {
        self.status != Some(200)
    }

    /// How long it took.
    pub fn milliseconds(&self) -> f64 {
        (self.end_ns - self.start_ns) as f64 / 1e6
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.id, self.method, self.path)?;
        match (&self.status, &self.error) {
            (Some(status), _) => write!(f, ": {status} by port {}", self.port)?,
            (None, error) => write!(f, ": {}", error.as_deref().unwrap_or("lost"))?,
        }
        write!(f, " after {:.1} ms", self.milliseconds())
    }
}

/// The beginning of a phase.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    label: String,
    at_ns: u64,
}

impl Mark {
    pub(crate) fn now(label: &str) -> Self {
        Self { label: label.to_owned(), at_ns: monotonic_ns() }
    }
}

/// The requests that started between two marks. Latencies leave out slow and failed ones.
#[derive(Clone, Debug)]
pub struct Phase {
    /// The mark's label; `before` for the first.
    pub label: String,
    /// CLOCK_MONOTONIC at its beginning.
    pub from_ns: u64,
    /// Its length.
    pub seconds: f64,
    /// Requests started.
    pub requests: usize,
    /// Of these, failed.
    pub failed: usize,
    /// Of these, served by a cold worker.
    pub cold: usize,
    /// Latencies in ascending order.
    pub sorted_ms: Vec<f64>,
}

impl Phase {
    /// The latency that `share` (0.99, say) of the requests do not exceed; 0 if there are none.
    pub fn percentile_ms(&self, share: f64) -> f64 {
        let rank = (self.sorted_ms.len() as f64 * share).ceil() as usize;
        let last = self.sorted_ms.get(rank.saturating_sub(1));
        last.copied().unwrap_or(0.0)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |share| self.percentile_ms(share);
        write!(
            f,
            "{}: {} requests in {:.1} s, {} failed, {} cold, p50 {:.1} p90 {:.1} p99 {:.1} max {:.1} ms",
            self.label,
            self.requests,
            self.seconds,
            self.failed,
            self.cold,
            ms(0.5),
            ms(0.9),
            ms(0.99),
            ms(1.0)
        )
    }
}

/// A whole load.
#[derive(Clone, Debug)]
pub struct Report {
    /// Requests sent.
    pub requests: usize,
    /// Requests without a right answer, lost ones included.
    pub failed: usize,
    /// Requests that a cold worker served.
    pub cold: usize,
    /// Answers by version.
    pub by_version: BTreeMap<String, usize>,
    /// From one mark to the next.
    pub phases: Vec<Phase>,
    /// Every request, in the order of their ends.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    pub(crate) fn new(sent: u64, outcomes: Vec<Outcome>, marks: &[Mark]) -> Self {
        let now = monotonic_ns();
        let ends = marks.iter().skip(1).map(|m| m.at_ns).chain([now]);
        let phases = marks.iter().zip(ends);
        let mut by_version = BTreeMap::new();
        for outcome in outcomes.iter().filter(|o| !o.failed()) {
            *by_version.entry(outcome.version.clone()).or_insert(0) += 1;
        }
        let sent = usize::try_from(sent).unwrap_or(usize::MAX);
        let lost = sent.saturating_sub(outcomes.len());
        Self {
            requests: sent,
            failed: lost + outcomes.iter().filter(|o| o.failed()).count(),
            cold: outcomes.iter().filter(|o| o.cold).count(),
            by_version,
            phases: phases.map(|(mark, end)| phase(mark, end, &outcomes)).collect(),
            outcomes,
        }
    }

    /// The phase that a mark began.
    pub fn phase(&self, label: &str) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.label == label)
    }

    /// The failed ones.
    pub fn failures(&self) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(|outcome| outcome.failed())
    }
}

fn phase(mark: &Mark, end_ns: u64, outcomes: &[Outcome]) -> Phase {
    let span = mark.at_ns..end_ns;
    let within: Vec<&Outcome> = outcomes.iter().filter(|o| span.contains(&o.start_ns)).collect();
    let plain = within.iter().filter(|o| !o.slow && !o.failed());
    let mut sorted_ms: Vec<f64> = plain.map(|o| o.milliseconds()).collect();
    sorted_ms.sort_unstable_by(f64::total_cmp);
    Phase {
        label: mark.label.clone(),
        from_ns: mark.at_ns,
        seconds: (end_ns - mark.at_ns) as f64 / 1e9,
        requests: within.len(),
        failed: within.iter().filter(|o| o.failed()).count(),
        cold: within.iter().filter(|o| o.cold).count(),
        sorted_ms,
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} requests, {} failed, {} cold, answers by version {:?}",
            self.requests, self.failed, self.cold, self.by_version
        )?;
        for phase in &self.phases {
            writeln!(f, "  {phase}")?;
        }
        for failure in self.failures().take(5) {
            writeln!(f, "  failed: {failure}")?;
        }
        for cold in self.outcomes.iter().filter(|o| o.cold).take(5) {
            writeln!(f, "  cold: {cold}")?;
        }
        Ok(())
    }
}
