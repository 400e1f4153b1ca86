//! How workers are emptied: `drain`.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    Drain, OnDeadline, Outsiders, Policy,
    raw::{Table, Value, shown},
};

const DEADLINE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);
const LEAVE_MAX: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(7 * 24);
const QUIET_AFTER: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);

/// `drain = { policy, deadline, on_deadline, leave_max, quiet_after, outsiders }`
pub(super) fn drain(mut table: Table<'_>) -> Option<Drain> {
    let policies = [("steer", Policy::Steer), ("refuse", Policy::Refuse)];
    let ends = [("stop-roll", OnDeadline::StopRoll), ("kill", OnDeadline::Kill), ("leave", OnDeadline::Leave)];
    let policy = table.or("policy", Policy::Steer, |value| value.choice(&policies));
    let deadline = table.or("deadline", Duration::from_secs(60), |value| value.duration(DEADLINE));
    let on_deadline = table.or("on_deadline", OnDeadline::StopRoll, |value| value.choice(&ends));
    let leave_max = table.or("leave_max", Duration::from_hours(1), |value| leave_max(value, on_deadline));
    let waits = Waits { deadline, on_deadline, leave_max };
    let quiet_after = table.maybe("quiet_after", |value| quiet_after(value, &waits));
    let fates = [("cut", Outsiders::Cut), ("hold", Outsiders::Hold)];
    let outsiders = table.or("outsiders", Outsiders::Cut, |value| value.choice(&fates));
    table.done();
    Some(Drain {
        policy: policy?,
        deadline: deadline?,
        on_deadline: on_deadline?,
        leave_max: leave_max?,
        quiet_after: quiet_after?,
        outsiders: outsiders?,
    })
}

/// How long a drain waits, as far as it is known.
struct Waits {
    deadline: Option<Duration>,
    on_deadline: Option<OnDeadline>,
    leave_max: Option<Duration>,
}

/// A connection has to be quiet for so long while the drain still waits for it.
fn quiet_after(value: &Value<'_>, waits: &Waits) -> Option<Duration> {
    let quiet_after = value.duration(QUIET_AFTER)?;
    let deadline = waits.deadline?;
    // A worker that is left is waited for after the deadline, too.
    let longest = match waits.on_deadline? {
        OnDeadline::Leave => deadline.saturating_add(waits.leave_max?),
        OnDeadline::StopRoll | OnDeadline::Kill => deadline,
    };
    if quiet_after <= longest {
        return Some(quiet_after);
    }
    value.refuse(format!(
        "is longer than a drain waits ({}), so that no connection is ever quiet for so long; write a shorter \
         quiet_after, or a longer deadline",
        shown(longest)
    ))
}

/// Where nobody is left, nobody is waited for; `on_deadline` as far as it is known.
fn leave_max(value: &Value<'_>, on_deadline: Option<OnDeadline>) -> Option<Duration> {
    let leave_max = value.duration(LEAVE_MAX)?;
    match on_deadline {
        Some(OnDeadline::StopRoll | OnDeadline::Kill) => value.refuse(
            "says how long workers that were left are waited for, and none is left; write on_deadline = \"leave\" as \
             well, or leave it out",
        ),
        Some(OnDeadline::Leave) | None => Some(leave_max),
    }
}
