//! What the start of a worker waits for, in the reason of its phase: so it is in the status and in the events.

use super::super::{Service, Worker};
use crate::api::Phase;

/// Begins that part of a reason; see [`waits_for`](crate::workers::ProcessManager::waits_for).
const WAITS: &str = "the built-in manager starts ";

/// Tells what the start of a worker waits for, or no longer. The reason of a stranger names the process already.
pub(super) fn tell(service: &Service, worker: &Worker) {
    let (phase, reason) = {
        let control = worker.control();
        if !control.is_watched() || !matches!(control.phase, Phase::Up | Phase::Down) {
            return;
        }
        (control.phase, control.reason.clone())
    };
    let wanted = with(&reason, service.manager.waits_for(worker.at).as_deref());
    if wanted != reason {
        worker.enter(phase, &wanted);
    }
}

/// A reason with what is waited for now in place of what was.
fn with(reason: &str, waits_for: Option<&str>) -> String {
    let plain = reason.find(WAITS).map_or(reason, |at| reason[..at].trim_end_matches("; "));
    match waits_for {
        None => plain.to_owned(),
        Some(what) if plain.is_empty() => what.to_owned(),
        Some(what) => format!("{plain}; {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_comes_and_goes() {
        let waits =
            format!("{WAITS}web/8000 as soon as 127.0.0.1:8000 is free, where python3 (pid 7, user root) listens");
        for plain in ["", "found serving"] {
            let told = with(plain, Some(&waits));
            assert!(told.ends_with(&waits) && told.starts_with(plain), "{told}");
            assert_eq!(with(&told, Some(&waits)), told);
            assert_eq!(with(&told, None), plain);
        }
        assert_eq!(with("found serving", None), "found serving");
    }
}
