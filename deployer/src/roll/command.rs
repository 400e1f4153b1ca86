//! The commands that put a version in place.

use std::time::Duration;

use crate::command::{CommandError, run};

/// Runs a command to its end; what it says is kept for the error message.
///
/// # Errors
/// What was run, and how it ended.
pub(super) async fn execute(argv: &[String], within: Duration) -> Result<(), String> {
    let shown = argv.join(" ");
    match run(argv, within).await {
        Err(CommandError::Late) => {
            Err(format!("`{shown}` was still running after {} s, and was ended", within.as_secs_f32()))
        }
        Err(CommandError::NotRun(error)) => Err(format!("`{shown}` cannot be run: {error}")),
        Ok(ended) if ended.status.success() => Ok(()),
        Ok(ended) => Err(format!("`{shown}` failed ({}): {}", ended.status, ended.said())),
    }
}
