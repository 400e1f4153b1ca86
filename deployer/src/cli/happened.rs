//! An event of the host's history as a line: when, of whom, what, by whom.

use super::{lines, out};
use crate::api::{Change, Configured, Entry, TestResult};

/// `2026-07-30 12:34:56.789Z  web 127.0.0.1:8000  up -> draining  (roll web-1785414896789)`
pub(super) fn line(entry: &Entry) -> String {
    let of = match (&entry.service, entry.worker) {
        (Some(service), Some(worker)) => format!("{service} {worker}"),
        (Some(service), None) => service.clone(),
        (None, _) => "deployer".to_owned(),
    };
    let by = match &entry.roll {
        Some(roll) if !entry.by.contains(roll.as_str()) => format!("{}; roll {roll}", entry.by),
        _ => entry.by.clone(),
    };
    out::clean(&format!("{}  {of}  {}  ({by})", time(entry.time_ms), text(&entry.change)))
}

fn text(change: &Change) -> String {
    match change {
        Change::Started { version, pid, was: None } => format!("daemon {version} (pid {pid}) has started"),
        Change::Started { version, pid, was: Some(was) } => {
            format!("daemon {version} (pid {pid}) has started, after {was}")
        }
        Change::Stopped { version, pid } => format!("daemon {version} (pid {pid}) stops; steering goes on"),
        Change::Service { now, was } => service(now.as_deref(), was.as_deref()),
        Change::Reloaded { error: None } => "configuration read again".to_owned(),
        Change::Reloaded { error: Some(why) } => format!("configuration not read again, the former stays: {why}"),
        Change::Phase { phase, was, reason, .. } => {
            let was = match was {
                Some(was) if was == phase => String::new(),
                Some(was) => format!("{was} -> "),
                None => "unknown -> ".to_owned(),
            };
            format!("{was}{phase}{}", because(reason))
        }
        Change::ProcessEnded { text, cut, callers } => format!("{text}; {}", lines::was_cut(*cut, callers)),
        Change::LetIn { now: Some(short), .. } => format!("drained, but connections go on to it: {short}"),
        Change::LetIn { now: None, .. } => "no more connections go to it: enough others are up".to_owned(),
        Change::Bypass { on: true, .. } => "steered -> bypassed".to_owned(),
        Change::Bypass { on: false, .. } => "bypassed -> steered".to_owned(),
        Change::Detached => "attached -> detached: every program is out of the kernel".to_owned(),
        Change::Trouble { text, on: true } => format!("trouble: {text}"),
        Change::Trouble { text, on: false } => format!("no longer: {text}"),
        Change::SelfTest { result, was, detail } => {
            let was = was.map_or(String::new(), |was| format!("{} -> ", tested(was)));
            format!("self-test: {was}{}{}", tested(*result), because(detail))
        }
        Change::Lost { lines } => {
            format!("{} of this history could not be written", out::counted(*lines as usize, "line"))
        }
        Change::FleetConnected { coordinator } => format!("connected to the fleet: {coordinator}"),
        Change::FleetLost { why } => {
            format!("no connection to the fleet, what is served stays as it is{}", because(why))
        }
        Change::FleetPhase { epoch, phase, text } => format!("fleet, epoch {epoch}: {phase}{}", because(text)),
        Change::FleetHost { host, what } => format!("fleet: {host} is {what}"),
        _ => roll(change),
    }
}

fn roll(change: &Change) -> String {
    match change {
        Change::RollBegun { to, was, workers, batches } => {
            let version = match (was, to) {
                (Some(was), Some(to)) => format!("{was} -> {to}, "),
                (None, Some(to)) => format!("to {to}, "),
                (_, None) => String::new(),
            };
            if *workers == 0 {
                return format!("deploy begins: {}", version.trim_end_matches(", "));
            }
            let (workers, batches) = (out::counted(*workers, "worker"), lines::batches(*batches));
            format!("roll begins: {version}{workers} in {batches}")
        }
        Change::RollCommand { which, argv, error } => {
            format!("{which}: {}{}", argv.join(" "), error.as_ref().map_or(String::new(), |why| format!(": {why}")))
        }
        Change::Gate { error: None } => "gate passed".to_owned(),
        Change::Gate { error: Some(why) } => format!("gate did not pass: {why}"),
        Change::BarrierAwaited { barrier } => format!("waits for the barrier {barrier}"),
        Change::BarrierPassed => "barrier passed".to_owned(),
        Change::FlipArmed { at_ms, lane } => format!("flip to lane {lane} armed for {}", time(*at_ms)),
        Change::FlipDisarmed => "flip taken back before its instant".to_owned(),
        Change::Flipped { at_ms, lane, version } => {
            format!("flipped to lane {lane}{} at {}", of_version(version.as_deref()), time(*at_ms))
        }
        Change::FlippedBack { at_ms, lane, why } => {
            format!("flipped back to lane {lane} at {}{}", time(*at_ms), because(why))
        }
        Change::DeployIll { why } => format!("the new version is ill{}", because(why)),
        Change::DeployAsked { what } => format!("{what} asked for"),
        Change::RollStopAsked => "roll is to stop after the batch in hand".to_owned(),
        Change::RollResumed { text } => format!("roll {text}"),
        Change::RollEnded { result, text, seconds, .. } => {
            format!("roll ends, {}, after {}{}", lines::ending(*result), out::short(*seconds), because(text))
        }
        _ => String::new(),
    }
}

fn tested(result: TestResult) -> &'static str {
    match result {
        TestResult::Ok => "ok",
        TestResult::Bypassed => "bypassed",
        TestResult::Detached => "detached",
        TestResult::Failed => "FAILED",
        TestResult::Untested => "untested",
    }
}

fn of_version(version: Option<&str>) -> String {
    version.map_or(String::new(), |version| format!(" ({version})"))
}

fn because(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(": {why}") }
}

/// What has changed, or all of a service that is new.
fn service(now: Option<&Configured>, was: Option<&Configured>) -> String {
    let Some(now) = now else { return "no longer configured".to_owned() };
    let (new, old) = (parts(now), was.map(parts));
    let changed = |nth: usize| match &old {
        None => (!new[nth].1.is_empty()).then(|| format!("{} {}", new[nth].0, new[nth].1)),
        Some(old) if old[nth].1 == new[nth].1 => None,
        Some(old) => Some(format!("{} {} -> {}", new[nth].0, or_none(&old[nth].1), or_none(&new[nth].1))),
    };
    let changes: Vec<_> = (0..new.len()).filter_map(changed).collect();
    format!("configured: {}", changes.join(", "))
}

fn parts(it: &Configured) -> [(&'static str, String); 7] {
    [
        ("mode", it.mode.clone()),
        ("policy", it.policy.clone()),
        ("min_up", it.min_up.to_string()),
        ("address", it.address.map_or(String::new(), |at| at.to_string())),
        ("workers", it.workers.clone()),
        ("spares", it.spares.clone()),
        ("second pool", it.second.clone()),
    ]
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

/// `2026-07-30 12:34:56.789Z`, as the log writes it.
pub(super) fn time(ms: u64) -> String {
    let (days, second) = (ms / 86_400_000, ms / 1000 % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1000)
}

/// Year, month and day, so many days after 1970-01-01: <https://howardhinnant.github.io/date_algorithms.html>,
/// `civil_from_days`. Years begin with March there, so that the leap day is the last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}
