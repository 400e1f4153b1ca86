//! The commands that put a version in place.

use std::{process::Stdio, time::Duration};

use tokio::process::Command;

/// Output of a command that is kept for its error message, in characters.
const SAID: usize = 400;

/// Runs a command to its end; what it says is kept for the error message.
///
/// # Errors
/// What was run, and how it ended.
pub(super) async fn execute(argv: &[String], within: Duration) -> Result<(), String> {
    let Some((program, arguments)) = argv.split_first() else { return Err("the command has no words".to_owned()) };
    let shown = argv.join(" ");
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(within, command.output()).await {
        Err(_) => Err(format!("`{shown}` was still running after {} s, and was ended", within.as_secs_f32())),
        Ok(Err(error)) => Err(format!("`{shown}` cannot be run: {error}")),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(SAID).collect();
            Err(format!("`{shown}` failed ({}): {said}", output.status))
        }
    }
}
