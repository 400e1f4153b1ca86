//! `deployer history`: deploys and rolls, one a line, out of the history of the host.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    client::{Client, Failure, Received},
    happened, lines,
    out::{self, clean, short},
};
use crate::api::{Change, Entry, Exit};

/// A deploy or a roll.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Line {
    id: String,
    service: String,
    /// `deploy` or `roll`.
    kind: &'static str,
    begun_ms: u64,
    by: String,
    /// The version before.
    was: Option<String>,
    /// The version aimed at.
    to: Option<String>,
    /// When it flipped, milliseconds since 1970.
    flipped_ms: Option<u64>,
    /// When it flipped back.
    back_ms: Option<u64>,
    /// `None`: it is under way.
    result: Option<Exit>,
    seconds: Option<f64>,
    text: String,
}

pub(super) async fn run(client: &Client, service: Option<&str>, json: bool) -> Result<Exit, Failure> {
    let mut events = client.events("/v1/events").await?;
    let mut entries = Vec::new();
    while let Some(received) = events.next().await {
        let received: Received<Entry> = received?;
        entries.push(received.event);
    }
    if events.is_cut {
        let message = "the daemon went away before it had told all; ask again when it is back";
        return Err(Failure::new(Exit::NoDaemon, message));
    }
    let lines = told(&entries, service);
    if lines.is_empty() && !json {
        return out::say("nothing has been deployed or rolled, as far back as the history goes");
    }
    let text: Result<Vec<_>, _> =
        lines.iter().map(|line| if json { serde_json::to_string(line) } else { Ok(shown(line)) }).collect();
    let text =
        text.map_err(|error| Failure::new(Exit::Failed, format!("cannot write the history as JSON: {error}")))?;
    out::say(&text.join("\n"))
}

/// One a roll, the oldest first. Of what began before the history does, the end is known alone.
fn told(entries: &[Entry], service: Option<&str>) -> Vec<Line> {
    let mut order = Vec::new();
    let mut lines: BTreeMap<&str, Line> = BTreeMap::new();
    for entry in entries {
        let (Some(id), Some(of)) = (&entry.roll, &entry.service) else { continue };
        if service.is_some_and(|wanted| wanted != of) {
            continue;
        }
        if let Change::RollBegun { to, was, workers, .. } = &entry.change {
            order.push(id.as_str());
            let kind = if *workers == 0 { "deploy" } else { "roll" };
            let (to, was) = (to.clone(), was.clone());
            lines.insert(
                id,
                Line {
                    id: id.clone(),
                    service: of.clone(),
                    kind,
                    begun_ms: entry.time_ms,
                    by: entry.by.clone(),
                    was,
                    to,
                    flipped_ms: None,
                    back_ms: None,
                    result: None,
                    seconds: None,
                    text: String::new(),
                },
            );
        }
        let Some(line) = lines.get_mut(id.as_str()) else { continue };
        match &entry.change {
            Change::Flipped { at_ms, .. } => line.flipped_ms = Some(*at_ms),
            Change::FlippedBack { at_ms, .. } => line.back_ms = Some(*at_ms),
            Change::RollEnded { result, text, seconds, .. } => {
                (line.result, line.seconds) = (Some(*result), Some(*seconds));
                line.text.clone_from(text);
            }
            _ => {}
        }
    }
    order.into_iter().filter_map(|id| lines.remove(id)).collect()
}

fn shown(line: &Line) -> String {
    let version = |version: &Option<String>| version.as_deref().map_or_else(|| "?".to_owned(), clean);
    let mut text = format!(
        "{}  {} {}  {} -> {}",
        happened::time(line.begun_ms),
        clean(&line.service),
        line.kind,
        version(&line.was),
        version(&line.to)
    );
    if let Some(at) = line.flipped_ms {
        text.push_str(&format!("  flipped {}", happened::time(at)));
    }
    if let Some(at) = line.back_ms {
        text.push_str(&format!(", back {}", happened::time(at)));
    }
    let end = line.result.map_or("under way", lines::ending);
    let after = line.seconds.map(|seconds| format!(" after {}", short(seconds))).unwrap_or_default();
    text.push_str(&format!("  {end}{after}  ({}; {})", clean(&line.by), clean(&line.id)));
    if !line.text.is_empty() && line.result != Some(Exit::Done) {
        text.push_str(&format!("\n    {}", clean(&line.text)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: u64, roll: &str, change: Change) -> Entry {
        let (service, by) = (Some("web".to_owned()), "uid 0 (pid 1)".to_owned());
        Entry { seq, time_ms: 1_769_868_000_000 + seq, by, service, worker: None, roll: Some(roll.to_owned()), change }
    }

    #[test]
    fn one_line_a_deploy() {
        let begun = |workers| {
            let (to, was) = (Some("v2".to_owned()), Some("v1".to_owned()));
            Change::RollBegun { to, was, workers, batches: workers }
        };
        let ended = |result| {
            let (text, failed) = ("why".to_owned(), Vec::new());
            Change::RollEnded { result, text, changed: 0, failed, seconds: 12.0 }
        };
        let (lane, at_ms) = (2, 1_769_868_001_000);
        let entries = [
            entry(0, "web-0", ended(Exit::Done)),
            entry(1, "web-1", begun(0)),
            entry(2, "web-1", Change::Flipped { at_ms, lane, version: None }),
            entry(3, "web-1", Change::FlippedBack { at_ms, lane, why: String::new() }),
            entry(4, "web-1", ended(Exit::RolledBack)),
            entry(5, "web-2", begun(8)),
        ];
        let lines = told(&entries, None);
        assert_eq!(
            lines.iter().map(|line| (line.kind, line.result)).collect::<Vec<_>>(),
            [("deploy", Some(Exit::RolledBack)), ("roll", None)]
        );
        let text = shown(&lines[0]);
        assert!(
            text.contains("v1 -> v2  flipped 2026-01-31")
                && text.contains("rolled back after 12")
                && text.ends_with("why"),
            "{text}"
        );
        assert!(shown(&lines[1]).contains("under way"));
        assert!(told(&entries, Some("api")).is_empty());
    }
}
