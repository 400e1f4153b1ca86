//! `deployer deploy`, `flip`, `rollback`: two versions side by side. A deploy is followed like a roll; whoever follows it
//! may go at any time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, builder::NonEmptyStringValueParser};
use serde_json::json;

use super::{
    client::{Client, Failure, encoded},
    fleet, out,
    roll::{Follow, patience},
    signals::Signals,
};
use crate::{
    api::{DeployRequest, DeployStarted, Done, Exit, FlipRequest, RollbackStarted},
    version::Version,
};

/// What to deploy, and how.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The service
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    service: String,
    /// The version that the workers of the other pool must say they run
    #[arg(long, value_name = "VERSION", allow_hyphen_values = true)]
    to: Version,
    /// Flip at this instant, if all is ready by then: +30s, 14:30:00Z, 2026-01-31T14:30:00Z, or seconds since 1970
    #[arg(long, value_name = "TIME", value_parser = instant, conflicts_with = "hold")]
    at: Option<u64>,
    /// Wait for `deployer flip` when all is ready
    #[arg(long)]
    hold: bool,
    /// How long both versions stay side by side after the flip: 30s, 10m [default: as configured]
    #[arg(long, value_name = "TIME", value_parser = patience)]
    bake: Option<Duration>,
    /// End a deploy that is under way first
    #[arg(long)]
    supersede: bool,
    /// Also where there seems to be too little memory for two pools
    #[arg(long)]
    force: bool,
    /// Begin, and do not follow
    #[arg(long)]
    detach: bool,
    /// Print every event as one JSON object a line
    #[arg(long)]
    json: bool,
    /// How long to wait for a daemon that goes away in the middle: 30s, 5m
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = patience)]
    wait: Duration,
    #[command(flatten)]
    fleet: fleet::DeployFlags,
    #[command(flatten)]
    barriers: fleet::Barriers,
}

/// What to turn back.
#[derive(Debug, Args)]
pub(super) struct RollbackOptions {
    /// The service
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    service: String,
    /// On every host of the fleet
    #[arg(long)]
    fleet: bool,
    /// Print every event as one JSON object a line
    #[arg(long)]
    json: bool,
    /// How long to wait for a daemon that goes away in the middle: 30s, 5m
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = patience)]
    wait: Duration,
}

pub(super) async fn run(client: &Client, options: &Options) -> Result<Exit, Failure> {
    let (barrier, double_barrier) = (options.barriers.barrier.clone(), options.barriers.double());
    if options.fleet.fleet {
        let following = fleet::Following { detach: options.detach, json: options.json, wait: options.wait };
        let what = (options.service.as_str(), &options.to);
        return fleet::deploy(client, what, (&options.fleet, options.bake, barrier), &following).await;
    }
    let mut signals = caught()?;
    let request = DeployRequest {
        to: options.to.clone(),
        hold: options.hold,
        at_ms: options.at,
        bake_ms: options.bake.map(|bake| bake.as_millis() as u64),
        supersede: options.supersede,
        force: options.force,
        barrier,
        double_barrier,
    };
    let path = format!("/v1/services/{}/deploy", encoded(&options.service));
    let started: DeployStarted = tokio::select! {
        started = client.post(&path, &request) => started?,
        _ = signals.next() => return Err(unanswered("deploy")),
    };
    if options.detach {
        let text = format!("{} has begun; `deployer status` shows it", started.id);
        return out::say(&if options.json { json!({ "id": started.id }).to_string() } else { text });
    }
    Follow::new(client, started.id, options.json, options.wait).follow(&mut signals).await
}

pub(super) async fn flip(client: &Client, service: &str, at_ms: Option<u64>) -> Result<Exit, Failure> {
    let path = format!("/v1/services/{}/flip", encoded(service));
    let done: Done = client.post(&path, &FlipRequest { at_ms }).await?;
    out::say(&out::clean(&done.done))
}

pub(super) async fn rollback(client: &Client, options: &RollbackOptions) -> Result<Exit, Failure> {
    if options.fleet {
        let following = fleet::Following { detach: false, json: options.json, wait: options.wait };
        return fleet::rollback(client, &options.service, &following).await;
    }
    let mut signals = caught()?;
    let path = format!("/v1/services/{}/rollback", encoded(&options.service));
    let nothing = json!({});
    let started: RollbackStarted = tokio::select! {
        started = client.post(&path, &nothing) => started?,
        _ = signals.next() => return Err(unanswered("rollback")),
    };
    let mut follow = Follow::new(client, started.id, options.json, options.wait);
    // The rest is what the deploy would have done by itself.
    follow.until_returned = !started.is_deploy;
    follow.follow(&mut signals).await
}

/// Caught before anything begins: from then on, to go is to detach.
fn caught() -> Result<Signals, Failure> {
    Signals::catch()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot catch signals, nothing was done: {error}")))
}

fn unanswered(what: &str) -> Failure {
    let message = format!("the daemon has not answered yet; `deployer status` shows whether the {what} has begun");
    Failure::new(Exit::Incomplete, message)
}

/// An instant, in milliseconds since 1970: `+30s`, `14:30:00Z` (the next), `2026-01-31T14:30:00Z`, `1769869800`.
pub(super) fn instant(text: &str) -> Result<u64, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    instant_at(text, now)
}

fn instant_at(text: &str, now_ms: u64) -> Result<u64, String> {
    let wrong = || "write +30s, 14:30:00Z, 2026-01-31T14:30:00Z, or seconds since 1970".to_owned();
    if let Some(later) = text.strip_prefix('+') {
        let later = crate::config::duration(later).ok_or_else(wrong)?;
        return now_ms.checked_add(later.as_millis() as u64).ok_or_else(wrong);
    }
    if let Ok(seconds) = text.parse::<u64>() {
        return seconds.checked_mul(1000).ok_or_else(wrong);
    }
    let text = text.strip_suffix('Z').ok_or_else(wrong)?;
    match text.split_once('T') {
        Some((date, time)) => {
            Ok(days(date).and_then(|days| Some(days * DAY + seconds(time)?)).ok_or_else(wrong)? * 1000)
        }
        None => {
            let (time, today) = (seconds(text).ok_or_else(wrong)?, now_ms / 1000 / DAY * DAY);
            let at = (today + time) * 1000;
            Ok(if at < now_ms { at + DAY * 1000 } else { at })
        }
    }
}

/// Seconds of a day.
const DAY: u64 = 24 * 3600;

/// Seconds since midnight of `HH:MM:SS` or `HH:MM`.
fn seconds(text: &str) -> Option<u64> {
    let parts: Vec<u64> = text.split(':').map(two_digits).collect::<Option<_>>()?;
    let [hours, minutes, seconds] = match parts[..] {
        [hours, minutes, seconds] => [hours, minutes, seconds],
        [hours, minutes] => [hours, minutes, 0],
        _ => return None,
    };
    (hours < 24 && minutes < 60 && seconds < 60).then_some(hours * 3600 + minutes * 60 + seconds)
}

fn two_digits(text: &str) -> Option<u64> {
    (text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Days from 1970-01-01 to `YYYY-MM-DD`, by counting.
fn days(text: &str) -> Option<u64> {
    let mut parts = text.split('-');
    let year =
        parts.next().filter(|year| year.len() == 4)?.parse::<u64>().ok().filter(|year| (1970..2500).contains(year))?;
    let (month, day) = (two_digits(parts.next()?)?, two_digits(parts.next()?)?);
    let is_leap = |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    let february = if is_leap(year) { 29 } else { 28 };
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let this = *months.get(month.checked_sub(1)? as usize)?;
    if parts.next().is_some() || day == 0 || day > this {
        return None;
    }
    let years: u64 = (1970..year).map(|year| if is_leap(year) { 366 } else { 365 }).sum();
    Some(years + months[..month as usize - 1].iter().sum::<u64>() + day - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_read() {
        // 2026-01-31T14:00:00Z
        let now = 1_769_868_000_000;
        assert_eq!(instant_at("+30s", now), Ok(now + 30_000));
        assert_eq!(instant_at("14:30:00Z", now), Ok(now + 1_800_000));
        assert_eq!(instant_at("13:30Z", now), Ok(now - 1_800_000 + 86_400_000), "the next day");
        assert_eq!(instant_at("2026-01-31T14:30:00Z", now), Ok(now + 1_800_000));
        assert_eq!(instant_at("2024-02-29T00:00Z", now), Ok(1_709_164_800_000));
        assert_eq!(instant_at("1769869800", now), Ok(1_769_869_800_000));
        for wrong in
            ["", "soon", "14:30", "25:00Z", "2025-02-29T00:00Z", "2026-13-01T00:00Z", "2026-1-31T00:00Z", "+", "-5"]
        {
            assert!(instant_at(wrong, now).is_err(), "{wrong}");
        }
    }
}
