//! What a start makes of intent (the journal) and fact (words, listeners). Pure; the daemon does what is said here.

use std::collections::BTreeSet;

use deployer_common::word::State;

use super::state::{Hand, WorkerState};
use crate::api::Phase;

/// Where a roll goes on with a worker that it had in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Onward {
    /// From the beginning: it may have been given requests since.
    Drain,
    /// Its process is to be stopped, which may have been asked for already, or has been: it is put out, looked at again,
    /// and stopped.
    Stop,
    /// The process that was drained is gone: start (another may run already), warm, enable.
    Start,
}

/// What a worker is that no roll had in hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As it has been found: the journal knows nothing of it.
    AsFound,
    /// The process that was warm still listens.
    Up,
    /// Another process listens, or one that had not been warmed.
    Cold,
    /// Nothing listens.
    Down,
    /// It has failed, and stays out.
    Failed(String),
    /// A roll that nobody remembers took it out to stop it: it is restarted.
    Rescue,
}

/// Where to go on with a worker in hand, given what listens; cookies of sockets are never used twice.
#[must_use]
pub fn onward(hand: &Hand, now: &BTreeSet<u64>) -> Onward {
    let same = !now.is_disjoint(&hand.serving);
    match hand.intent {
        // Whatever listens has been started since, or will be.
        Phase::Starting | Phase::Listening | Phase::Warming if !same => Onward::Start,
        Phase::Stopping if now.is_empty() => Onward::Stop,
        // Its stop may have been asked for: it is put out at once, and emptied of what has come since if its word was lost.
        Phase::Stopping if same => Onward::Stop,
        _ => Onward::Drain,
    }
}

/// What a worker is, given what is known of it, its word and what listens.
#[must_use]
pub fn judge(known: Option<&WorkerState>, word: State, now: &BTreeSet<u64>) -> Verdict {
    if let Some(WorkerState { phase: Phase::Failed, reason, .. }) = known {
        return Verdict::Failed(reason.clone());
    }
    let same = known.is_some_and(|known| !known.listeners.is_disjoint(now));
    match (known.map(|known| known.phase), word) {
        (_, State::Failed) => Verdict::Failed("it had failed before the daemon was restarted".to_owned()),
        (_, State::Stopping) => Verdict::Rescue,
        (None, _) => Verdict::AsFound,
        _ if now.is_empty() => Verdict::Down,
        (Some(Phase::Up | Phase::Draining | Phase::Drained), _) if same => Verdict::Up,
        _ => Verdict::Cold,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookies(all: &[u64]) -> BTreeSet<u64> {
        all.iter().copied().collect()
    }

    fn go_on(intent: Phase, now: &[u64]) -> Onward {
        let hand = Hand { intent, before: Phase::Up, was: String::new(), serving: cookies(&[1]), outcome: None };
        onward(&hand, &cookies(now))
    }

    #[test]
    fn a_worker_in_hand_is_never_stopped_with_requests_in_it() {
        for intent in [Phase::Draining, Phase::Drained] {
            assert_eq!(go_on(intent, &[1]), Onward::Drain);
        }
        assert_eq!(go_on(Phase::Stopping, &[1]), Onward::Stop);
        assert_eq!(go_on(Phase::Stopping, &[]), Onward::Stop);
        // Somebody else has started another.
        assert_eq!(go_on(Phase::Stopping, &[2]), Onward::Drain);
        for intent in [Phase::Starting, Phase::Warming] {
            assert_eq!(go_on(intent, &[]), Onward::Start);
            assert_eq!(go_on(intent, &[2]), Onward::Start);
            assert_eq!(go_on(intent, &[1]), Onward::Drain);
        }
    }

    #[test]
    fn facts_decide_over_what_was_written() {
        let known = |phase, reason: &str| WorkerState {
            phase,
            reason: reason.to_owned(),
            version: None,
            listeners: cookies(&[1]),
            drained: None,
        };
        let up = known(Phase::Up, "");
        assert_eq!(judge(Some(&up), State::Up, &cookies(&[1])), Verdict::Up);
        assert_eq!(judge(Some(&up), State::Draining, &cookies(&[1])), Verdict::Up);
        assert_eq!(judge(Some(&up), State::Up, &cookies(&[2])), Verdict::Cold);
        assert_eq!(judge(Some(&up), State::Up, &cookies(&[])), Verdict::Down);
        assert_eq!(judge(Some(&up), State::Stopping, &cookies(&[])), Verdict::Rescue);
        assert_eq!(judge(Some(&known(Phase::Warming, "")), State::Up, &cookies(&[1])), Verdict::Cold);
        let failed = known(Phase::Failed, "why");
        assert_eq!(judge(Some(&failed), State::Up, &cookies(&[1])), Verdict::Failed("why".to_owned()));
        assert_eq!(judge(None, State::Up, &cookies(&[1])), Verdict::AsFound);
        assert_eq!(judge(None, State::Stopping, &cookies(&[1])), Verdict::Rescue);
        assert!(matches!(judge(None, State::Failed, &cookies(&[1])), Verdict::Failed(_)));
    }
}
