//! What a roll writes down before it goes on.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use super::record::Record;
use crate::journal::{HANG_PATIENCE, Journal, PATIENCE, State, disk::HANGS_AFTER};

/// Between two looks whether the roll still may wait.
const LOOK: Duration = Duration::from_millis(200);

/// Changes the journal, and waits until that is on the disk. A disk that hangs is waited for, which the roll's events tell; a
/// roll that was asked to stop, or is left to the next daemon, waits for 10 s only.
///
/// # Errors
/// Why the change is not on the disk, in words.
pub(super) fn commit<'a>(
    journal: &'a Journal,
    record: &'a Record,
    change: impl FnOnce(&mut State),
) -> impl Future<Output = Result<(), String>> + Send + 'a {
    let generation = journal.update(change);
    async move {
        let result = wait(journal, record, generation).await;
        if result.is_ok() {
            record.waits_for_journal(None);
        }
        result
    }
}

async fn wait(journal: &Journal, record: &Record, generation: u64) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        if let Some(result) = journal.durable_within(generation, LOOK).await {
            return result;
        }
        let waited = begun.elapsed();
        if waited > HANGS_AFTER {
            record.waits_for_journal(Some(journal.hangs_for(HANGS_AFTER)));
        }
        let is_to_end = record.stop_asked() || record.is_suspended();
        if waited > if is_to_end { PATIENCE } else { HANG_PATIENCE } {
            return Err(journal.hangs_for(waited));
        }
    }
}
