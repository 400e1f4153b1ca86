//! How workers are replaced: `roll`.

use std::time::Duration;

use super::{
    Batch, OnFailure, Policy, Roll,
    check::UP_TO_AN_HOUR,
    command::command,
    manager::account,
    raw::{Table, Value},
};

const EXAMPLE: &str = "[\"ln\", \"-sfn\", \"/srv/{version}\", \"/srv/current\"]";

/// `roll = { batch, surge, max_failures, on_failure, user, switch, unswitch, switch_within }`; `spares` and `policy` as far as
/// they are known.
pub(super) fn roll(mut table: Table<'_>, spares: Option<usize>, policy: Option<Policy>) -> Option<Roll> {
    let choices = [("stop", OnFailure::Stop), ("rollback", OnFailure::Rollback)];
    let batch = table.take("batch");
    let surge = table.or("surge", 0, |value| surge(value, spares, policy));
    let batch = batch.map_or(Some(Batch::Count(surge.unwrap_or(0).max(1))), |value| self::batch(&value));
    let max_failures = table.or("max_failures", 1, |value| value.number(1..=256).map(usize_of));
    let on_failure = table.take("on_failure");
    let user = table.maybe("user", account);
    let switch = table.maybe("switch", |value| command(value, EXAMPLE));
    let unswitch = table.maybe("unswitch", |value| command(value, EXAMPLE));
    let switch_within = table.or("switch_within", Duration::from_secs(60), |value| value.duration(UP_TO_AN_HOUR));
    table.done();
    let chosen = on_failure.as_ref().map_or(Some(OnFailure::Stop), |value| value.choice(&choices));
    if let (Some(value), Some(OnFailure::Rollback), Some(Some(_)), Some(None)) =
        (&on_failure, chosen, &switch, &unswitch)
    {
        return value.refuse(
            "rollback has no way back to the former version; \
             write unswitch, the command that undoes switch",
        );
    }
    Some(Roll {
        batch: batch?,
        surge: surge?,
        max_failures: max_failures?,
        on_failure: chosen?,
        user: user?,
        switch: switch?,
        unswitch: unswitch?,
        switch_within: switch_within?,
    })
}

/// A number of spares that are there. Without a frontend of their own they are reached by steering only.
fn surge(value: &Value<'_>, spares: Option<usize>, policy: Option<Policy>) -> Option<usize> {
    let surge = value.number(0..=256).map(usize_of)?;
    if surge > 0 && policy == Some(Policy::Refuse) {
        return value
            .refuse("needs drain.policy = \"steer\": where connections are refused, none of them reaches a spare");
    }
    match spares {
        Some(0) if surge > 0 => {
            value.refuse("has no spares to start; write their addresses, spare = \"127.0.0.1:8040-8043\"")
        }
        Some(spares) if surge > spares => {
            value.refuse(format!("is {surge}, and there are {spares} in `spare`; write at most {spares}"))
        }
        _ => Some(surge),
    }
}

/// `4` or `"10%"`
pub(super) fn batch(value: &Value<'_>) -> Option<Batch> {
    if value.is_integer() {
        return value.number(1..=256).map(|count| Batch::Count(usize_of(count)));
    }
    if !value.is_text() {
        return value.wrong_type("a number of workers, 4, or a share of them, \"10%\"");
    }
    match value.text()?.parse() {
        Ok(batch) => Some(batch),
        Err(reason) => value.refuse(format!("{reason}; write 4 or \"10%\"")),
    }
}

fn usize_of(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
