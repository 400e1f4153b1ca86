//! How long the texts of a line may be, so that each line fits into what a reader takes for one.

use crate::api::Change;

/// Characters of a text: what processes and workers say of themselves may be of any length.
pub(super) const TEXT: usize = 2000;

/// A text that is not too long.
pub(super) fn capped(text: &str) -> String {
    capped_to(text, TEXT)
}

/// Cuts the texts that others have written. What a service is configured to be is compared whole, and bounded by the
/// number of workers.
pub(super) fn cap(change: &mut Change) {
    let cut = |text: &mut String| *text = capped(text);
    match change {
        Change::Started { version, was, .. } => {
            cut(version);
            was.iter_mut().for_each(cut);
        }
        Change::Stopped { version: text, .. }
        | Change::RollResumed { text }
        | Change::RollEnded { text, .. }
        | Change::FlippedBack { why: text, .. }
        | Change::DeployIll { why: text }
        | Change::DeployAsked { what: text }
        | Change::BarrierAwaited { barrier: text }
        | Change::Trouble { text, .. }
        | Change::FleetConnected { coordinator: text }
        | Change::FleetLost { why: text }
        | Change::SelfTest { detail: text, .. } => cut(text),
        Change::Phase { reason, reason_was, .. } => {
            cut(reason);
            reason_was.iter_mut().for_each(cut);
        }
        Change::ProcessEnded { text, callers, .. } => {
            cut(text);
            cap_all(callers);
        }
        Change::Reloaded { error } | Change::Gate { error } => error.iter_mut().for_each(cut),
        Change::Flipped { version, .. } => version.iter_mut().for_each(cut),
        Change::LetIn { now: one, was: other } | Change::RollBegun { to: one, was: other, .. } => {
            one.iter_mut().chain(other).for_each(cut);
        }
        Change::FleetPhase { phase: one, text: other, .. } | Change::FleetHost { host: one, what: other } => {
            cut(one);
            cut(other);
        }
        Change::RollCommand { which, argv, error } => {
            cut(which);
            cap_all(argv);
            error.iter_mut().for_each(cut);
        }
        Change::Service { .. }
        | Change::Bypass { .. }
        | Change::Detached
        | Change::RollStopAsked
        | Change::FlipArmed { .. }
        | Change::FlipDisarmed
        | Change::BarrierPassed
        | Change::Lost { .. } => {}
    }
}

/// Together they are not too long.
fn cap_all(texts: &mut Vec<String>) {
    let mut left = TEXT;
    texts.retain_mut(|text| {
        let is_wanted = left > 0;
        *text = capped_to(text, left);
        left = left.saturating_sub(text.chars().count().max(1));
        is_wanted
    });
}

fn capped_to(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
