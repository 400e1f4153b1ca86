//! What of a roll goes into the history of its host. Workers' phases tell the rest.

use super::{kept::Kept, record::Record};
use crate::{
    api::{Change, What},
    journal::history::{About, By, History},
};

/// Tells what a former daemon could not: it was killed when the roll's own log had it, and the history had not.
pub(super) fn make_up(history: &History, roll: &Record, before: Option<&str>, events: &Kept) {
    let (Some(first), Some(last)) = (events.first(), events.last()) else { return };
    match (&first.what, &last.what) {
        (_, What::Finished { .. }) if history.has_roll(&roll.id) => tell(history, roll, before, &last.what),
        // One that is remembered, and has been told long since.
        (_, What::Finished { .. }) => {}
        (What::Begun { .. }, _) if !history.has_roll(&roll.id) => tell(history, roll, before, &first.what),
        _ => {}
    }
}

/// Tells an event of a roll on, if it is one of those; `before` is the version that the workers said they run.
pub(super) fn tell(history: &History, roll: &Record, before: Option<&str>, what: &What) {
    let about = About { service: Some(&roll.service), worker: None, roll: Some(&roll.id) };
    let its_own = By::Roll(&roll.id);
    match what {
        What::Begun { to, by, batches, .. } => {
            let (workers, batches) = (batches.iter().map(Vec::len).sum(), batches.len());
            let (to, was) = (to.clone(), before.map(str::to_owned));
            history.tell(By::Somebody(by), about, Change::RollBegun { to, was, workers, batches });
        }
        What::Command { which, argv, error } => {
            let (which, argv, error) = (which.clone(), argv.clone(), error.clone());
            history.tell(its_own, about, Change::RollCommand { which, argv, error });
        }
        What::Gate { error } => history.tell(its_own, about, Change::Gate { error: error.clone() }),
        What::Waiting { barrier } => {
            history.tell(its_own, about, Change::BarrierAwaited { barrier: barrier.clone() });
        }
        What::Passed => history.tell(its_own, about, Change::BarrierPassed),
        What::Armed { at_ms, lane } => {
            history.tell(its_own, about, Change::FlipArmed { at_ms: *at_ms, lane: *lane });
        }
        What::Disarmed => history.tell(its_own, about, Change::FlipDisarmed),
        What::Flipped { at_ms, lane, version, .. } => {
            let (at_ms, lane, version) = (*at_ms, *lane, version.clone());
            history.tell(its_own, about, Change::Flipped { at_ms, lane, version });
        }
        What::Returned { at_ms, lane, why, .. } => {
            let (at_ms, lane, why) = (*at_ms, *lane, why.clone());
            history.tell(its_own, about, Change::FlippedBack { at_ms, lane, why });
        }
        What::Ill { why } => history.tell(its_own, about, Change::DeployIll { why: why.clone() }),
        What::Asked { by, what } => {
            history.tell(By::Somebody(by), about, Change::DeployAsked { what: what.clone() });
        }
        What::StopAsked { by } => history.tell(By::Somebody(by), about, Change::RollStopAsked),
        What::Resumed { text } => history.tell(By::Daemon, about, Change::RollResumed { text: text.clone() }),
        What::Finished { result, text, changed, failed, seconds } => {
            let (text, failed) = (text.clone(), failed.clone());
            let (result, changed, seconds) = (*result, *changed, *seconds);
            history.tell(its_own, about, Change::RollEnded { result, text, changed, failed, seconds });
        }
        What::Pool { .. }
        | What::RetirePool { .. }
        | What::Holding
        | What::Batch { .. }
        | What::Left { .. }
        | What::Again { .. }
        | What::Surge { .. }
        | What::Retire { .. }
        | What::Phase { .. }
        | What::Held { .. }
        | What::Journal { .. }
        | What::OutsidersCut { .. }
        | What::Skipped { .. }
        | What::Ended { .. } => {}
    }
}
