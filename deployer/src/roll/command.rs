//! The commands that put a version in place.

use crate::command::{Call, CommandError, run};

/// Runs a command to its end; what it says is kept for the error message.
///
/// # Errors
/// What was run, and how it ended.
pub(super) async fn execute(call: &Call<'_>) -> Result<(), String> {
    let shown = call.argv.join(" ");
    match run(call).await {
        Err(CommandError::Late) => Err(format!(
            "`{shown}` was still running after {} s, and was killed with all that it had started",
            call.within.as_secs_f32()
        )),
        Err(CommandError::NotRun(error)) => Err(format!("`{shown}` cannot be run: {error}")),
        Ok(ended) if ended.status.success() => Ok(()),
        Ok(ended) => Err(format!("`{shown}` failed ({}): {}", ended.status, ended.said())),
    }
}
