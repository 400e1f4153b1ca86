//! What a service is held to whoever drains or restarts its workers: `min_up`, `cold_limit`.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    Batch, Limits, OnFailure, Roll,
    raw::{Table, Value},
    roll,
};

const COLD_LIMIT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(1);

/// Both keys; the number of workers and `roll` as far as they are known.
pub(super) fn limits(table: &mut Table<'_>, workers: Option<usize>, roll: Option<&Roll>) -> Option<Limits> {
    let min_up = table.or("min_up", 1, |value| min_up(value, workers, roll));
    let cold_limit = table.or("cold_limit", Duration::from_secs(60), |value| value.duration(COLD_LIMIT));
    Some(Limits { min_up: min_up?, cold_limit: cold_limit? })
}

fn min_up(value: &Value<'_>, workers: Option<usize>, roll: Option<&Roll>) -> Option<usize> {
    let wanted = roll::batch(value)?;
    // What is wrong with the workers has been said.
    let workers = workers?;
    let min_up = match wanted {
        Batch::Count(count) => count,
        Batch::Percent(percent) => (workers * usize::from(percent)).div_ceil(100),
    };
    if min_up > workers {
        return value.refuse(format!("is {min_up}, and there are {workers} in `workers`; write at most {workers}"));
    }
    let Some(roll) = roll else { return Some(min_up) };
    // A service of one worker has its own answer: a roll of it needs a spare, or on_deadline = "kill".
    if min_up < workers || workers == 1 {
        return Some(min_up);
    }
    let most = workers - 1;
    if roll.surge == 0 {
        return value.refuse(format!(
            "is all {workers} workers, so that none of them could ever be drained; write at most {most}, or have \
             spares started first: spare = \"127.0.0.1:8040\", roll.surge = 1"
        ));
    }
    if roll.on_failure == OnFailure::Rollback {
        return value.refuse(format!(
            "is all {workers} workers, so that none of them could be rolled back, in which spares have no part; \
             write at most {most}, or roll.on_failure = \"stop\""
        ));
    }
    Some(min_up)
}
