//! An order of the fleet in plain lines: each phase as it begins, and how many hosts are through with it.

use crate::{
    api::{FleetState, HostStatus, ServiceFleet},
    cli::{
        happened,
        out::{clean, counted, joined, short},
    },
    fleet::{
        paths::Mark,
        state::{Ended, Outcome, Phase, Release},
    },
};

/// Hosts that are named; of more, the number is said.
const NAMED: usize = 3;

/// Says what has changed.
#[derive(Debug, Default)]
pub(super) struct Teller {
    last: Option<ServiceFleet>,
    /// The count that was said last.
    said: String,
}

impl Teller {
    /// What is news, a line each. Hosts may be unknown.
    pub(super) fn tell(&mut self, now: &ServiceFleet, hosts: &[HostStatus]) -> Vec<String> {
        let mut lines = Vec::new();
        let last = self.last.as_ref();
        if last.is_none_or(|last| stands(&last.state) != stands(&now.state)) {
            lines.push(phase(now));
        }
        if let Some(wanted) = &now.state.wanted
            && last.is_none_or(|last| last.state.wanted.is_none())
        {
            lines.push(format!("{} wants it to end", clean(&wanted.by)));
        }
        if let Some(last) = last {
            lines.extend(drives(last, now));
        }
        let was = last.filter(|last| last.state.epoch == now.state.epoch);
        let had_failed = was.map_or(&[][..], |was| said(was, Mark::Failed));
        let failed: Vec<_> = said(now, Mark::Failed).iter().filter(|host| !had_failed.contains(host)).collect();
        if !failed.is_empty() {
            lines.push(format!("✗ {} cannot go on: `deployer events` on the host says why", joined(&failed, ", ")));
        }
        let count = count(now);
        if !count.is_empty() && count != self.said {
            lines.push(format!("{count}{}", waiting(now, hosts)));
            self.said = count;
        }
        self.last = Some(now.clone());
        lines
    }
}

/// What of the state begins a phase, or its next try.
fn stands(state: &FleetState) -> (u64, Phase, Option<u64>, &[String]) {
    (state.epoch, state.phase, state.flip_at_ms.filter(|_| state.phase == Phase::Go), &state.turn)
}

/// The phase that has begun.
pub(super) fn phase(now: &ServiceFleet) -> String {
    let state = &now.state;
    let (active, other) = (release(state.active.as_ref()), release(state.other.as_ref()));
    match state.phase {
        Phase::Idle => idle(now),
        Phase::Prepare => format!(
            "PREPARE {other} beside {active} on {}, {} needed; epoch {}, asked for by {}",
            hosts(state.expected.len()),
            state.needed(),
            state.epoch,
            clean(&state.order.by)
        ),
        Phase::Go => {
            let left: Vec<_> = state.expected.iter().filter(|host| !state.has_member(host)).collect();
            let without = if left.is_empty() { String::new() } else { format!(", without {}", few(&left)) };
            format!("GO: {} flip at {}{without}", hosts(state.members.len()), clock(state.flip_at_ms))
        }
        Phase::Cancel => format!("CANCEL: {}", clean(&state.why)),
        Phase::Flipped => format!("FLIPPED to {active}; BAKE: {other} stays beside it until {}", clock(until(state))),
        Phase::Back => {
            format!(
                "BACK to {active}: {}; {other} stays for its pages until {}",
                clean(&state.why),
                clock(until(state))
            )
        }
        Phase::Retire => format!("RETIRE: {active} serves, all other pools end"),
        Phase::Roll if state.turn.is_empty() => {
            let to = state.order.to.as_ref().map(|to| format!(" to {}", clean(to))).unwrap_or_default();
            let (hosts, at_a_time, by) = (hosts(state.expected.len()), state.order.host_batch.max(1), &state.order.by);
            format!("ROLL of {hosts}{to}, {at_a_time} at a time; epoch {}, asked for by {}", state.epoch, clean(by))
        }
        Phase::Roll => {
            let (done, all) = (state.done.len(), state.expected.len());
            format!("ROLL: now {}; {done} of {all} are through", few(&state.turn.iter().collect::<Vec<_>>()))
        }
    }
}

/// How the last order has ended.
pub(super) fn idle(now: &ServiceFleet) -> String {
    let state = &now.state;
    match &state.outcome {
        Some(outcome) => ended(outcome, state),
        None => format!("{}: nothing is under way, and nothing was", clean(&now.service)),
    }
}

fn ended(outcome: &Outcome, state: &FleetState) -> String {
    // Of the order that is in the state; an older one's is not known any more.
    let is_last = outcome.epoch == state.epoch && outcome.at_ms >= state.order.at_ms && state.order.at_ms > 0;
    let took = outcome.at_ms.saturating_sub(state.order.at_ms) as f64 / 1000.0;
    let after = if is_last { format!(" after {}", short(took)) } else { String::new() };
    format!("{}{after}: {}", ending(outcome.result), clean(&outcome.text))
}

pub(super) fn ending(result: Ended) -> &'static str {
    match result {
        Ended::Done => "done",
        Ended::Aborted => "aborted",
        Ended::TurnedBack => "turned back",
        Ended::Stopped => "stopped",
    }
}

/// How many hosts are how far; empty where that says nothing.
pub(super) fn count(now: &ServiceFleet) -> String {
    let state = &now.state;
    let of = |mark: Mark, all: usize, word: &str| match said(now, mark).len() {
        0 => String::new(),
        some => format!("{word} {some} of {all}"),
    };
    match state.phase {
        Phase::Idle => String::new(),
        Phase::Prepare => {
            let (ready, all) = (said(now, Mark::Ready).len(), state.expected.len());
            let barrier =
                if now.waits.contains("barrier") { format!("; {}", clean(&now.waits)) } else { String::new() };
            format!("{ready} of {all} ready{barrier}")
        }
        Phase::Go if said(now, Mark::Flipped).is_empty() => of(Mark::Confirmed, state.members.len(), "confirmed"),
        Phase::Go | Phase::Flipped => {
            let text = of(Mark::Flipped, state.members.len(), "flipped");
            if text.is_empty() { text } else { format!("{text}{}", spread(now)) }
        }
        Phase::Cancel => of(Mark::Disarmed, said(now, Mark::Confirmed).len(), "taken back"),
        Phase::Back => of(Mark::Back, state.expected.len(), "back"),
        Phase::Retire => of(Mark::Retired, state.members.len(), "retired"),
        Phase::Roll => {
            let through =
                state.done.len() + said(now, Mark::Rolled).iter().filter(|host| !state.done.contains(host)).count();
            if through == 0 { String::new() } else { format!("rolled {through} of {}", state.expected.len()) }
        }
    }
}

/// ` (spread 1 ms, the last 2 ms late)`, of whoever has flipped at the instant.
fn spread(now: &ServiceFleet) -> String {
    let (first, last) = (now.flips.values().min(), now.flips.values().max());
    let (Some(first), Some(last)) = (first, last) else { return String::new() };
    let late = now.state.flip_at_ms.map_or(0, |at| last.saturating_sub(at));
    format!(" (spread {} ms, the last {late} ms after the instant)", last - first)
}

/// `; waiting for app3 (starting, 2 of 4 up), app5 (not there) and 2 more`
pub(super) fn waiting(now: &ServiceFleet, hosts: &[HostStatus]) -> String {
    if now.waiting_for.is_empty() {
        return String::new();
    }
    let named = now.waiting_for.iter().take(NAMED).map(|name| {
        let host = hosts.iter().find(|host| host.host == *name);
        host.map_or_else(|| clean(name), |host| format!("{} ({})", clean(name), stage(host, &now.service)))
    });
    let named: Vec<_> = named.collect();
    format!("; waiting for {}{}", named.join(", "), more(now.waiting_for.len()))
}

/// `starting, 2 of 4 up`
pub(super) fn stage(host: &HostStatus, service: &str) -> String {
    if !host.alive {
        return "not there".to_owned();
    }
    match host.services.get(service) {
        Some(it) => format!("{}, {} of {} up", clean(&it.stage), it.up, it.workers),
        None => "does not have the service".to_owned(),
    }
}

/// Who drives it has changed.
fn drives(last: &ServiceFleet, now: &ServiceFleet) -> Option<String> {
    if last.driver == now.driver || now.state.phase == Phase::Idle {
        return None;
    }
    Some(match &now.driver {
        Some(driver) => format!("{} drives it", clean(driver)),
        None => "nobody drives it; another daemon takes over within seconds".to_owned(),
    })
}

/// Who has said something of the epoch in hand.
pub(super) fn said(now: &ServiceFleet, mark: Mark) -> &[String] {
    now.marks.get(mark.name()).map_or(&[], Vec::as_slice)
}

/// Both pools stand until then, milliseconds since 1970.
fn until(state: &FleetState) -> Option<u64> {
    state.flip_at_ms.map(|at| at.saturating_add(state.order.bake_ms))
}

/// `v2 (lane 3)`
pub(super) fn release(release: Option<&Release>) -> String {
    release.map_or_else(|| "-".to_owned(), |it| format!("{} (lane {})", clean(&it.version), it.lane))
}

/// `14:30:02.000Z`, of today or the days around it.
fn clock(ms: Option<u64>) -> String {
    let Some(ms) = ms else { return "an instant that is not known".to_owned() };
    let text = happened::time(ms);
    text.split_once(' ').map_or(text.clone(), |(_, time)| time.to_owned())
}

fn hosts(number: usize) -> String {
    counted(number, "host")
}

fn few(all: &[&String]) -> String {
    let shown: Vec<_> = all.iter().take(NAMED).map(|host| clean(host)).collect();
    format!("{}{}", shown.join(", "), more(all.len()))
}

fn more(all: usize) -> String {
    if all > NAMED { format!(" and {} more", all - NAMED) } else { String::new() }
}
