//! A worker's life, as a table. Everything that moves a worker asks it.

use crate::api::Phase;

/// The moves there are. `Failed` and `Stranger` can be reached from any phase. `Failed` is left only by being stopped, or by
/// passing a warm-up; `Stranger` only when the stranger has gone, and the worker itself listens, is warmed, or is started.
const MOVES: &[(Phase, &[Phase])] = &[
    (Phase::Up, &[Phase::Draining, Phase::Down, Phase::Listening, Phase::Stopping]),
    (Phase::Draining, &[Phase::Drained, Phase::Up, Phase::Down, Phase::Listening]),
    (Phase::Drained, &[Phase::Stopping, Phase::Draining, Phase::Up, Phase::Down, Phase::Listening]),
    (Phase::Stopping, &[Phase::Starting, Phase::Up, Phase::Listening, Phase::Down]),
    (Phase::Starting, &[Phase::Listening]),
    (Phase::Listening, &[Phase::Warming, Phase::Down, Phase::Draining, Phase::Stopping]),
    (Phase::Warming, &[Phase::Up, Phase::Down, Phase::Listening, Phase::Draining, Phase::Stopping]),
    (Phase::Down, &[Phase::Listening, Phase::Stopping, Phase::Up, Phase::Draining, Phase::Warming]),
    (Phase::Failed, &[Phase::Drained, Phase::Stopping, Phase::Warming]),
    (Phase::Stranger, &[Phase::Down, Phase::Listening, Phase::Drained, Phase::Stopping]),
];

/// Whether a worker may go from one phase to another.
#[must_use]
pub fn is_move(from: Phase, to: Phase) -> bool {
    matches!(to, Phase::Failed | Phase::Stranger)
        || MOVES.iter().any(|(phase, next)| *phase == from && next.contains(&to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_one_path() {
        let path = [
            Phase::Up,
            Phase::Draining,
            Phase::Drained,
            Phase::Stopping,
            Phase::Starting,
            Phase::Listening,
            Phase::Warming,
            Phase::Up,
        ];
        assert!(path.windows(2).all(|pair| is_move(pair[0], pair[1])));
    }

    #[test]
    fn nothing_serves_unwarmed() {
        for from in [Phase::Starting, Phase::Listening, Phase::Failed, Phase::Stranger] {
            assert!(!is_move(from, Phase::Up), "{from:?}");
        }
    }

    #[test]
    fn nothing_is_stopped_undrained() {
        for from in [Phase::Draining, Phase::Starting] {
            assert!(!is_move(from, Phase::Stopping), "{from:?}");
        }
    }
}
