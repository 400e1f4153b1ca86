//! A roll in plain lines: each can be understood without the one before.

use std::net::SocketAddr;

use super::{
    out::{clean, counted, joined, short},
    status::word,
};
use crate::api::{Event, Exit, RollStarted, What};

/// An event as a line; `begun_ms` is when the roll has begun.
pub(super) fn line(event: &Event, begun_ms: u64) -> String {
    match &event.what {
        What::Finished { .. } => text(&event.what),
        what => {
            let milliseconds = event.time_ms.saturating_sub(begun_ms);
            format!("{:>5.1}s {}", milliseconds as f64 / 1000.0, text(what))
        }
    }
}

/// What happened.
pub(super) fn text(what: &What) -> String {
    match what {
        What::Begun { service, to, by, batches, spares } => {
            let what = if batches.is_empty() && !spares.is_empty() {
                deploying(spares, to.as_deref())
            } else {
                format!("rolling {}", plan(batches, spares, to.as_deref()))
            };
            format!("{}: {what}, asked for by {}", clean(service), clean(by))
        }
        What::Command { which, argv, error } => {
            let end = error.as_ref().map_or("done".to_owned(), |error| format!("failed: {}", clean(error)));
            format!("{}: {}: {end}", clean(which), joined(argv, " "))
        }
        What::Batch { nth, of, workers, back } => {
            let back = if *back { "rolling back: " } else { "" };
            format!("{back}batch {nth} of {of}: {}", joined(workers, ", "))
        }
        What::Left { worker, why } => format!("{worker} left: {}", reason(*worker, why)),
        What::Again { workers, back, seconds } => again(workers, *back, *seconds),
        What::Surge { spares } => format!("starting spares: {}", joined(spares, ", ")),
        What::Retire { spares } => format!("retiring spares: {}", joined(spares, ", ")),
        What::Pool { pool, lane } => format!("starting pool {} as lane {lane}", clean(pool)),
        What::RetirePool { workers } => format!("retiring the other pool: {}", joined(workers, ", ")),
        What::Gate { error: None } => "the gate passes".to_owned(),
        What::Gate { error: Some(why) } => format!("the gate does not pass: {}", clean(why)),
        What::Holding => "ready; waiting for `deployer flip`".to_owned(),
        What::Waiting { barrier } => format!("waiting for the barrier {}; Ctrl-C ends that", clean(barrier)),
        What::Passed => "the barrier is passed".to_owned(),
        What::Armed { lane, .. } => format!("the flip to lane {lane} is armed in the kernel"),
        What::Disarmed => "the flip is taken back".to_owned(),
        What::Flipped { at_ms, lane, version, until_ms } => {
            let version = version.as_ref().map_or(String::new(), |version| format!(" ({})", clean(version)));
            let stay = match *until_ms {
                u64::MAX => "until the fleet says".to_owned(),
                until_ms => format!("for {}", between(*at_ms, until_ms)),
            };
            format!("flipped to lane {lane}{version}; both versions stay {stay}")
        }
        What::Returned { at_ms, lane, why, until_ms } => {
            let stays = match *until_ms {
                u64::MAX => "until the fleet says,".to_owned(),
                until_ms => between(*at_ms, until_ms),
            };
            format!("flipped back to lane {lane}: {}; the other version stays {stays} for its pages", clean(why))
        }
        What::Ill { why } => format!("the new version is ill: {}; the fleet decides", clean(why)),
        What::Skipped { events } => format!("{events} events are not shown: the daemon does not keep them any more"),
        What::Asked { by, what } => format!("{} asked for: {}", clean(by), clean(what)),
        What::Phase { worker, spare, phase, was, reason } => {
            let reason = if reason.is_empty() { String::new() } else { format!(" ({})", clean(reason)) };
            format!("{} {} -> {}{reason}", name(*worker, *spare), word(*was), word(*phase))
        }
        What::Held { worker, spare, open, tickets, by, floor } => {
            format!("{} held by {}", name(*worker, *spare), held(*open, *tickets, by, floor.as_deref()))
        }
        What::OutsidersCut { worker, spare, connections, tickets, by } => {
            format!("{} {}", name(*worker, *spare), outsiders_cut(*connections, *tickets, by))
        }
        What::Ended { worker, text, cut, callers } => format!("{worker} {}; {}", clean(text), was_cut(*cut, callers)),
        What::Resumed { text } => format!("the roll {}", clean(text)),
        What::Journal { trouble: Some(why) } => format!("the roll waits for its journal: {}", clean(why)),
        What::Journal { trouble: None } => "the journal is written again; the roll goes on".to_owned(),
        What::StopAsked { by } => format!("{} asked for a stop after the batch in hand", clean(by)),
        What::Finished { result, text, changed, failed, seconds } => {
            let failed = if failed.is_empty() {
                String::new()
            } else {
                format!(", {} failed and out ({})", failed.len(), joined(failed, ", "))
            };
            let ended = format!("{} after {seconds:.1} s", ending(*result));
            let text = if text.is_empty() { String::new() } else { format!(": {}", clean(text)) };
            format!("{ended}, {} changed{failed}{text}", counted(*changed, "worker"))
        }
    }
}

/// What a drain has cut at its deadline.
fn outsiders_cut(connections: u64, tickets: u64, by: &[String]) -> String {
    let plural = |count: u64| if count == 1 { "" } else { "s" };
    let connections = (connections > 0).then(|| format!("cut {connections} connection{}", plural(connections)));
    let tickets = (tickets > 0).then(|| format!("did not wait for {tickets} connect() call{}", plural(tickets)));
    let what: Vec<_> = connections.into_iter().chain(tickets).collect();
    let by: Vec<_> = by.iter().map(|who| clean(who)).collect();
    let by = if by.is_empty() { String::new() } else { format!(": {}", by.join("; ")) };
    format!(
        "drain deadline passed: {} of processes that are not among the service's callers{by}. They do not stop the roll; \
         drain.outsiders = \"hold\" has it wait for them",
        what.join(" and ")
    )
}

fn again(workers: &[SocketAddr], back: bool, seconds: f64) -> String {
    let back = if back { "rolling back: " } else { "" };
    format!("{back}waiting for those that were left, at most {}: {}", short(seconds), joined(workers, ", "))
}

fn between(from_ms: u64, to_ms: u64) -> String {
    short(to_ms.saturating_sub(from_ms) as f64 / 1000.0)
}

/// A reason without the worker that it begins with.
pub(super) fn reason(worker: SocketAddr, why: &str) -> String {
    clean(why.strip_prefix(&format!("{worker}: ")).unwrap_or(why))
}

/// Connections that were open in a process when it ended.
pub(super) fn was_cut(cut: usize, callers: &[String]) -> String {
    if cut == 0 {
        return "no connection was open in it".to_owned();
    }
    let more = if callers.len() == cut { "" } else { "; …" };
    format!("{} cut: {}{more}", counted(cut, "connection"), joined(callers, "; "))
}

/// A worker; a spare is called so.
pub(super) fn name(worker: SocketAddr, spare: bool) -> String {
    if spare { format!("spare {worker}") } else { worker.to_string() }
}

/// What holds a drain.
pub(super) fn held(open: u64, tickets: u64, by: &[String], floor: Option<&str>) -> String {
    match floor.map(|floor| format!("the floor: {}", clean(floor))) {
        Some(floor) if open == 0 && tickets == 0 => floor,
        Some(floor) => format!("{}; {floor}", sockets(open, tickets, by)),
        None => sockets(open, tickets, by),
    }
}

fn sockets(open: u64, tickets: u64, by: &[String]) -> String {
    let mut held = format!("{open} open");
    if tickets > 0 {
        held.push_str(&format!(", {tickets} on the way"));
    }
    if !by.is_empty() {
        let more = if by.len() as u64 == open { "" } else { "; …" };
        held.push_str(&format!(": {}{more}", joined(by, "; ")));
    }
    held
}

/// What a dry run would do.
pub(super) fn dry_run(started: &RollStarted) -> String {
    let mut text = format!("would roll {}\n", plan(&started.batches, &started.spares, started.to.as_deref()));
    if let Some(switch) = &started.switch {
        text.push_str(&format!("  switch: {}\n", joined(switch, " ")));
    }
    if !started.spares.is_empty() {
        text.push_str(&format!("  spares, up before the first batch: {}\n", joined(&started.spares, ", ")));
    }
    for (index, batch) in started.batches.iter().enumerate() {
        text.push_str(&format!("  batch {}: {}\n", index + 1, joined(batch, ", ")));
    }
    text
}

/// `1 batch`, `2 batches`
pub(super) fn batches(number: usize) -> String {
    if number == 1 { "1 batch".to_owned() } else { format!("{number} batches") }
}

/// `deploying v2 to the other pool, 40 workers`
fn deploying<T>(workers: &[T], to: Option<&str>) -> String {
    let workers = counted(workers.len(), "worker");
    format!("deploying {} to the other pool, {workers}", to.map_or_else(|| "a version".to_owned(), clean))
}

/// `40 workers in 10 batches to v2`
fn plan<T>(batches: &[Vec<T>], spares: &[T], to: Option<&str>) -> String {
    let workers = counted(batches.iter().map(Vec::len).sum(), "worker");
    let of = self::batches(batches.len());
    let to = to.map(|to| format!(" to {}", clean(to))).unwrap_or_default();
    let with = if spares.is_empty() { String::new() } else { format!(" with {}", counted(spares.len(), "spare")) };
    format!("{workers} in {of}{with}{to}")
}

pub(super) fn ending(result: Exit) -> &'static str {
    match result {
        Exit::Done => "done",
        Exit::Failed => "failed",
        Exit::Usage => "refused",
        Exit::Stopped => "stopped",
        Exit::Busy => "busy",
        Exit::RolledBack => "rolled back",
        Exit::NoDaemon => "lost",
        Exit::Incomplete => "incomplete",
    }
}
