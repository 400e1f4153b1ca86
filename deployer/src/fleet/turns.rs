//! A fleet's roll: some hosts at a time.

use super::{
    driver::{Seen, Step, become_, enter, ordered, over},
    paths::Mark,
    sound,
    state::{Ended, FORMAT, FleetState, Order, Phase, Release},
};

/// So long, milliseconds, hosts whose turn it is are waited for after an abort. Each stops after the batch in hand, or says
/// that it had not begun; one that does neither is not waited for any longer.
const ABORT_WITHIN_MS: u64 = 10_000;

/// A roll is ordered; `seen.alive` are the hosts that have registered the service.
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
    let enabled = ordered(state, seen)?;
    // A host that has not registered the service has no worker of it, or no daemon that could restart one.
    let (expected, left): (Vec<_>, Vec<_>) = enabled.into_iter().partition(|host| seen.alive.contains(host));
    if expected.is_empty() {
        return Err(format!("no enabled host has registered the service: {} are in the roster", left.len()));
    }
    let without = if left.is_empty() {
        String::new()
    } else {
        format!("; without {}: not there, or without the service", left.join(", "))
    };
    let (hosts, batch) = (expected.len(), order.host_batch.max(1));
    let text = format!("{hosts} hosts are rolled, {batch} at a time, by {}{without}", order.by);
    let next = FleetState {
        format: FORMAT,
        epoch: sound::next(state.epoch)?,
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
    if let Some(wanted) = &state.wanted {
        return aborted(state, seen, now_ms, &wanted.by);
    }
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
    if seen.barrier_held && state.turn.is_empty() {
        let path = state.order.barrier.as_deref().unwrap_or_default();
        return Step::Wait { why: format!("the barrier {path} is held"), hosts: Vec::new() };
    }
    next_turn(state, now_ms)
}

/// Hosts that are there end what they have in hand, or say that they have nothing; not for ever.
fn aborted(state: &FleetState, seen: &Seen, now_ms: u64, by: &str) -> Step {
    let open = state.turn.iter().filter(|host| !seen.says(host, Mark::Rolled));
    let (there, gone): (Vec<_>, Vec<_>) = open.cloned().partition(|host| seen.alive.contains(host));
    let waited = now_ms.saturating_sub(seen.wanted_since_ms.unwrap_or(now_ms));
    if !there.is_empty() && waited < ABORT_WITHIN_MS {
        let why = format!("aborted by {by}; the hosts whose turn it is end what they have in hand");
        return Step::Wait { why, hosts: there };
    }
    let mut why = format!("stopped by {by}");
    if !gone.is_empty() {
        why.push_str(&format!("; gone in its turn: {}", gone.join(", ")));
    }
    if !there.is_empty() {
        let hosts = there.join(", ");
        why.push_str(&format!("; no answer within {} s: {hosts}, which may go on: see there", ABORT_WITHIN_MS / 1000));
    }
    stopped(state, seen, now_ms, &why)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{driver::Said, state::Wanted};

    fn names(all: &[&str]) -> Vec<String> {
        all.iter().map(|name| (*name).to_owned()).collect()
    }

    fn seen(alive: &[&str], rolled: &[(&str, Option<&str>)]) -> Seen {
        let said = |why: &Option<&str>| Said { why: why.map(str::to_owned), ..Said::default() };
        let rolled = rolled.iter().map(|(host, why)| ((*host).to_owned(), said(why))).collect();
        let roster = names(&["a", "b", "c"]).into_iter().map(|host| (host, true)).collect();
        let marks = [(Mark::Rolled, rolled)].into();
        Seen { roster, alive: names(alive).into_iter().collect(), marks, ..Seen::default() }
    }

    fn in_turn(turn: &[&str]) -> FleetState {
        let (expected, turn) = (names(&["a", "b", "c"]), names(turn));
        FleetState {
            phase: Phase::Roll,
            expected,
            turn,
            wanted: Some(Wanted { by: "me".to_owned() }),
            ..Default::default()
        }
    }

    /// How a roll has ended, in words; `None`: it waits.
    fn end(state: &FleetState, seen: &Seen, now_ms: u64) -> Option<String> {
        match roll(state, seen, now_ms) {
            Step::Become { state, text } => {
                assert_eq!(
                    (state.phase, state.outcome.map(|outcome| outcome.result)),
                    (Phase::Idle, Some(Ended::Stopped))
                );
                Some(text)
            }
            Step::Wait { .. } => None,
        }
    }

    #[test]
    fn an_abort_always_ends_a_roll() {
        let (state, all) = (in_turn(&["a", "b"]), ["a", "b", "c"]);
        let since = |seen: Seen| Seen { wanted_since_ms: Some(1_000), ..seen };
        // All have answered: one is through, one had not begun.
        let answered = seen(&all, &[("a", None), ("b", Some("its roll had not begun"))]);
        assert_eq!(end(&state, &answered, 1_000).unwrap(), "stopped by me; 1 of 3 hosts are rolled");
        // One is gone: it is not waited for.
        let gone = since(seen(&["a", "c"], &[("a", None)]));
        assert_eq!(end(&state, &gone, 1_000).unwrap(), "stopped by me; gone in its turn: b; 1 of 3 hosts are rolled");
        // One does not answer: not for ever.
        let silent = since(seen(&all, &[("a", None)]));
        assert_eq!(end(&state, &silent, 1_000 + ABORT_WITHIN_MS - 1), None);
        let text = end(&state, &silent, 1_000 + ABORT_WITHIN_MS).unwrap();
        assert!(text.contains("no answer within 10 s: b, which may go on"), "{text}");
        // No turn has begun.
        assert_eq!(end(&in_turn(&[]), &seen(&all, &[]), 0).unwrap(), "stopped by me; 0 of 3 hosts are rolled");
        // A driver whose clock goes back.
        assert_eq!(end(&state, &silent, 0), None);
    }

    #[test]
    fn hosts_that_have_registered_the_service_take_turns() {
        let idle = FleetState::default();
        let (next, text) = order(&idle, Order::default(), None, &seen(&["a", "c"], &[]), 0).unwrap();
        assert_eq!(next.expected, names(&["a", "c"]));
        assert!(text.contains("without b: not there, or without the service"), "{text}");
        assert!(
            order(&idle, Order::default(), None, &seen(&[], &[]), 0)
                .unwrap_err()
                .contains("no enabled host has registered")
        );
        let last = FleetState { epoch: sound::EPOCH_MOST, ..idle };
        assert!(
            order(&last, Order::default(), None, &seen(&["a"], &[]), 0)
                .unwrap_err()
                .contains("there is no epoch after")
        );
    }
}
