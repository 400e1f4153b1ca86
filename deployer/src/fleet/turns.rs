//! A fleet's roll: some hosts at a time.

use super::{
    driver::{Seen, Step, become_, enter, ordered, over},
    paths::Mark,
    state::{Ended, FORMAT, FleetState, Order, Phase, Release},
};

/// A roll is ordered.
///
/// # Errors
/// Why it cannot be.
pub fn order(
    state: &FleetState,
    order: Order,
    active: Option<Release>,
    seen: &Seen,
    now_ms: u64,
) -> Result<(FleetState, String), String> {
    let expected = ordered(state, seen)?;
    let text = format!("{} hosts are rolled, {} at a time, by {}", expected.len(), order.host_batch.max(1), order.by);
    let next = FleetState {
        format: FORMAT,
        epoch: state.epoch.saturating_add(1),
        phase: Phase::Roll,
        active: state.active.clone().or(active),
        last_lane: state.last_lane,
        former: state.former.clone(),
        order,
        expected,
        since_ms: now_ms,
        said: text.clone(),
        outcome: state.outcome.clone(),
        ..FleetState::default()
    };
    Ok((next, text))
}

/// The next step of a roll.
pub(super) fn roll(state: &FleetState, seen: &Seen, now_ms: u64) -> Step {
    let failed = |host: &&String| seen.marks.get(&Mark::Rolled).and_then(|all| all.get(*host)?.why.clone()).is_some();
    if let Some(host) = state.turn.iter().find(failed) {
        let why = seen.marks.get(&Mark::Rolled).and_then(|all| all.get(host)?.why.clone()).unwrap_or_default();
        return stopped(state, seen, now_ms, &format!("{host}: {why}"));
    }
    let open: Vec<_> = state.turn.iter().filter(|host| !seen.says(host, Mark::Rolled)).collect();
    if let Some(host) = open.iter().find(|host| !seen.alive.contains(**host))
        && now_ms > state.since_ms.saturating_add(super::driver::GONE_MS)
    {
        return stopped(state, seen, now_ms, &format!("{host} went away in its turn"));
    }
    if !open.is_empty() {
        let why = format!("{} of {} hosts are through", state.done.len(), state.expected.len());
        return Step::Wait { why, hosts: open.into_iter().cloned().collect() };
    }
    if let Some(wanted) = &state.wanted {
        return stopped(state, seen, now_ms, &format!("stopped by {}", wanted.by));
    }
    if seen.barrier_held && state.turn.is_empty() {
        let path = state.order.barrier.as_deref().unwrap_or_default();
        return Step::Wait { why: format!("the barrier {path} is held"), hosts: Vec::new() };
    }
    next_turn(state, now_ms)
}

fn next_turn(state: &FleetState, now_ms: u64) -> Step {
    let done: Vec<_> = state.done.iter().chain(&state.turn).cloned().collect();
    let rest = state.expected.iter().filter(|host| !done.contains(host)).cloned();
    let turn: Vec<_> = rest.take(state.order.host_batch.max(1) as usize).collect();
    if turn.is_empty() {
        let mut next = state.clone();
        if let (Some(active), Some(to)) = (&mut next.active, &state.order.to) {
            active.version.clone_from(to);
        }
        return over(&next, Ended::Done, now_ms, format!("{} hosts are rolled", done.len()));
    }
    let text = format!("{} of {} hosts are through; now {}", done.len(), state.expected.len(), turn.join(", "));
    let (next, text) = enter(state, Phase::Roll, now_ms, text);
    become_(FleetState { turn, done, ..next }, text)
}

fn stopped(state: &FleetState, seen: &Seen, now_ms: u64, why: &str) -> Step {
    let is_done = |host: &&String| {
        state.done.contains(host)
            || seen.marks.get(&Mark::Rolled).and_then(|all| all.get(*host)).is_some_and(|said| said.why.is_none())
    };
    let done = state.expected.iter().filter(is_done).count();
    let mut next = state.clone();
    // Hosts differ: nobody is to be brought to anything until an operator says what.
    if state.order.to.is_some() && done > 0 {
        next.active = None;
    }
    over(&next, Ended::Stopped, now_ms, format!("{why}; {done} of {} hosts are rolled", state.expected.len()))
}
