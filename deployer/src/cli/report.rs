//! `deployer report`: what became of the connections around a roll, for whoever asks.

use super::{
    client::{Client, Failure, encoded},
    lines,
    out::{self, clean},
};
use crate::api::{Exit, Proof, Report, Tally, What, Window};

/// Stands for the roll that began last.
const LAST: &str = "last";

const HEADINGS: [&str; 10] = ["", "", "connections", "failed", "reset", "closed port", "cut", "p50", "p99", "max"];
/// The columns of numbers.
const FLUSH_RIGHT: [usize; 8] = [2, 3, 4, 5, 6, 7, 8, 9];

const PROOFS: [&str; 8] = ["proof", "late", "to cold", "fallback: draining", "cold", "floor", "exhausted", "refused"];
const PROOFS_RIGHT: [usize; 7] = [1, 2, 3, 4, 5, 6, 7];

/// What each proof says that is not zero, in the order of [`each`].
const PROVED: [(&str, &str); 7] = [
    ("late", "connections reached a worker after its drain was published and every earlier connect() had ended"),
    ("to cold", "connections reached a worker that was not warm yet"),
    ("draining", "fallbacks: nobody was up, so a worker that was draining took them"),
    ("cold", "fallbacks: nobody was up or draining, so a worker that was not warm took them"),
    ("floor", "fallbacks: too few workers would have been in rotation, so one that was draining took them"),
    ("exhausted", "connections were refused, because no worker could take them"),
    (
        "refused",
        "connections were refused by policy, for the load balancer to ask another worker: none is lost by that",
    ),
];
/// And each harm.
const HARMED: [(&str, &str); 4] = [
    ("failed", "connections could not be established"),
    ("reset", "connections were reset by the worker's end, not closed"),
    (
        "closed port",
        "connections were refused at the worker's end: no socket listened at its address. Steered callers \
         are led around it: these were requests of callers that are not steered, or probes",
    ),
    ("cut", "connections were open in a worker's process when it ended"),
];

const LATENCY: &str = "p50, p99, max: how long connections lasted, seen at the worker's end, to within a fifth; of a load \
                       balancer\nwithout upstream keep-alive, that is the latency of its requests.";

pub(super) async fn run(client: &Client, roll: Option<&str>, json: bool) -> Result<Exit, Failure> {
    let path = format!("/v1/rolls/{}/report", encoded(roll.unwrap_or(LAST)));
    let report: Report = client.get(&path).await?;
    if !json {
        return out::say(&text(&report));
    }
    let line = serde_json::to_string(&report)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot write the report as JSON: {error}")))?;
    out::say(&line)
}

/// All of it.
pub(super) fn text(report: &Report) -> String {
    let mut text = heading(report);
    text.push_str(&out::columns(&figures(report), &FLUSH_RIGHT));
    text.push('\n');
    text.push_str(&out::columns(&proofs(report), &PROOFS_RIGHT));
    text.push('\n');
    for line in meanings(report).iter().chain(&spans(report)) {
        text.push_str(&format!("{line}\n"));
    }
    text.push_str(LATENCY);
    text.push('\n');
    for note in &report.notes {
        text.push_str(&format!("{}\n", clean(note)));
    }
    text
}

/// `roll web-1: web, v1 -> v2, done after 12.3 s, 40 workers changed: 40 workers restarted`
fn heading(report: &Report) -> String {
    let Report { roll, service, from, to, result, seconds, .. } = report;
    let name = |version: &Option<String>| version.as_deref().map_or("-".to_owned(), clean);
    let versions = match (from, to) {
        (None, None) => String::new(),
        (from, None) => format!(", {} restarted", name(from)),
        (from, to) => format!(", {} -> {}", name(from), name(to)),
    };
    let end = match result {
        None => format!("runs, {seconds:.1} s so far"),
        Some(result) => lines::text(&What::Finished {
            result: *result,
            text: report.text.clone(),
            changed: report.changed,
            failed: report.failed.clone(),
            seconds: *seconds,
        }),
    };
    format!("roll {}: {}{versions}, {end}\n", clean(roll), clean(service))
}

/// The windows, as they are called.
fn windows(report: &Report) -> [(&'static str, &Window); 3] {
    [("before", &report.before), ("during", &report.during), ("after", &report.after)]
}

/// What workers of each version got, a row each.
fn figures(report: &Report) -> Vec<Vec<String>> {
    let mut rows = vec![HEADINGS.map(str::to_owned).to_vec()];
    for (name, window) in windows(report) {
        let none = Tally::default();
        let tallies: Vec<_> = match window.versions.is_empty() {
            true => vec![&none],
            false => window.versions.iter().collect(),
        };
        for (nth, tally) in tallies.into_iter().enumerate() {
            rows.push(row(if nth == 0 { name } else { "" }, tally));
        }
    }
    rows
}

fn row(name: &str, tally: &Tally) -> Vec<String> {
    let times = tally.latency.map_or([None; 3], |it| [it.p50_us, it.p99_us, it.max_us].map(Some));
    let mut row = vec![name.to_owned(), tally.version.as_deref().map_or("-".to_owned(), clean)];
    row.extend([tally.connections, tally.failed, tally.reset, tally.closed_port, tally.cut].map(grouped));
    row.extend(times.map(|time| time.map_or("-".to_owned(), lasted)));
    row
}

/// What is zero where all went well, a row a window.
fn proofs(report: &Report) -> Vec<Vec<String>> {
    let mut rows = vec![PROOFS.map(str::to_owned).to_vec()];
    let windows = windows(report).map(|(name, window)| (name, Some(window.proof())));
    for (name, proof) in windows.into_iter().chain([("in total", report.total)]) {
        let mut row = vec![name.to_owned()];
        row.extend(proof.map_or(["-"; 7].map(str::to_owned), |proof| each(&proof).map(grouped)));
        rows.push(row);
    }
    rows
}

/// In the order of their columns.
fn each(proof: &Proof) -> [u64; 7] {
    let Proof { late, to_cold, fallback_draining, fallback_cold, fallback_floor, exhausted, refused, .. } = *proof;
    [late, to_cold, fallback_draining, fallback_cold, fallback_floor, exhausted, refused]
}

/// A line for each figure that is not zero.
fn meanings(report: &Report) -> Vec<String> {
    let (mut proved, mut harmed) = ([0_u64; 7], [0_u64; 4]);
    for (_, window) in windows(report) {
        let more = each(&window.proof());
        proved.iter_mut().zip(more).for_each(|(sum, more)| *sum = sum.saturating_add(more));
        for Tally { failed, reset, closed_port, cut, .. } in &window.versions {
            let more = [failed, reset, closed_port, cut];
            harmed.iter_mut().zip(more).for_each(|(sum, more)| *sum = sum.saturating_add(*more));
        }
    }
    let total = report.total.map_or([0; 7], |total| each(&total));
    let mut lines: Vec<_> = HARMED.iter().zip(harmed).filter(|(_, sum)| *sum > 0).map(line).collect();
    for (of, (sum, total)) in PROVED.iter().zip(proved.into_iter().zip(total)) {
        match (sum, total) {
            (0, 0) => {}
            (0, total) => lines.push(format!("{} (not around this roll)", line((of, total)))),
            (sum, _) => lines.push(line((of, sum))),
        }
    }
    lines
}

fn line(((name, what), sum): (&(&str, &str), u64)) -> String {
    format!("{name}: {} {what}", grouped(sum))
}

/// How long each window is, and why it is no longer.
fn spans(report: &Report) -> Vec<String> {
    let (before, during) = (out::short(report.before.seconds), out::short(report.during.seconds));
    let after = out::short(report.after.seconds);
    let so_far = if report.complete { "" } else { " so far" };
    let line = match report.result {
        None => format!("before: {before}; during: {during} so far"),
        Some(_) => format!("before: {before}; during: {during}; after: {after}{so_far}"),
    };
    vec![line]
}

/// `4,012`
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time as exact as it is known: `0.4 ms`, `6 ms`, `8.1 s`, `4m05s`
fn lasted(microseconds: u64) -> String {
    let ms = microseconds as f64 / 1000.0;
    match microseconds {
        0..1_000 => format!("{ms:.1} ms"),
        1_000..1_000_000 => format!("{ms:.0} ms"),
        1_000_000..60_000_000 => format!("{:.1} s", ms / 1000.0),
        _ => out::short(ms / 1000.0),
    }
}
