//! The time of day, by which hosts agree on an instant, and how far it is to be trusted.
#![expect(unsafe_code, reason = "adjtimex has no safe wrapper")]

use std::time::{SystemTime, UNIX_EPOCH};

use super::host;

/// What the kernel says of an error that nobody knows, in microseconds (`NTP_PHASE_LIMIT`).
const UNKNOWN_US: u64 = 16_000_000;
/// Two looks at one clock, with one at the other between them, that are further apart say nothing of the two; milliseconds.
const BETWEEN_MS: u64 = 2;
/// How often the two are looked at, until the looks are close.
const LOOKS: usize = 5;

/// How far the time of day is to be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Something (chrony, ntpd, systemd-timesyncd) keeps it in step, and has said so to the kernel.
    pub synchronised: bool,
    /// How much it may be off, by the kernel's own account, in microseconds.
    pub error_us: u64,
}

/// Milliseconds since 1970, by which instants are armed and compared.
#[must_use]
pub fn wall_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    given::look().map_or(now, |given| now.saturating_add_signed(given.offset_ms))
}

/// An instant of the time of day, in milliseconds since 1970, by [`host::now_ms`], as the two clocks stand now; one that has
/// passed is the moment that comes.
#[must_use]
pub fn monotonic_ms(wall: u64) -> u64 {
    let mut looks = (0..LOOKS).map(|_| (host::now_ms(), wall_ms(), host::now_ms()));
    let close = looks.find(|(before, _, after)| after.saturating_sub(*before) <= BETWEEN_MS);
    let (before, now, _) = close.unwrap_or_else(|| (host::now_ms(), wall_ms(), 0));
    before.saturating_add(wall.saturating_sub(now).max(1))
}

/// Whether the time of day is kept in step with others.
#[must_use]
pub fn synchronised() -> Clock {
    let asked = asked();
    match given::look().and_then(|given| given.clock) {
        Some(synchronised) => Clock { synchronised, error_us: if synchronised { 0 } else { UNKNOWN_US } },
        None => asked,
    }
}

/// The kernel's account of it (adjtimex(2)). Where it may not be asked, nothing is known.
fn asked() -> Clock {
    // SAFETY: a `timex` is made of numbers alone, of which 0 is one.
    let mut about: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `about` lives through the call, which changes nothing of the clock, since no mode is set.
    let state = unsafe { libc::adjtimex(&raw mut about) };
    if state < 0 {
        return Clock { synchronised: false, error_us: UNKNOWN_US };
    }
    let synchronised = state != libc::TIME_ERROR && about.status & libc::STA_UNSYNC == 0;
    Clock { synchronised, error_us: about.maxerror.try_into().unwrap_or(UNKNOWN_US) }
}

/// A clock that a test gives in place of the host's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Given {
    /// So much it is ahead.
    offset_ms: i64,
    /// `None`: as the host's.
    clock: Option<bool>,
}

#[cfg(not(feature = "failpoints"))]
mod given {
    #[inline(always)]
    pub(super) fn look() -> Option<super::Given> {
        None
    }
}

/// The file that `DEPLOYER_CLOCK` names: `offset_ms = -200`, `synchronised = true`.
#[cfg(feature = "failpoints")]
mod given {
    use std::{
        sync::{Mutex, PoisonError},
        time::{Duration, Instant},
    };

    use super::Given;

    /// Between two looks at the file.
    const EVERY: Duration = Duration::from_millis(20);

    static LAST: Mutex<Option<(Instant, Given)>> = Mutex::new(None);

    pub(super) fn look() -> Option<Given> {
        let path = std::env::var_os("DEPLOYER_CLOCK")?;
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.map(|(_, given)| given);
        if last.is_none_or(|(at, _)| at.elapsed() >= EVERY) {
            // A file that is just being written says what it said before.
            let text = std::fs::read_to_string(path).ok().filter(|text| text.ends_with('\n'));
            let given = text.map(|text| super::parse(&text)).or(before).unwrap_or_default();
            *last = Some((Instant::now(), given));
        }
        last.map(|(_, given)| given)
    }
}

/// Lines that are not known are left out.
#[cfg(any(test, feature = "failpoints"))]
fn parse(text: &str) -> Given {
    let mut given = Given::default();
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        match key.trim() {
            "offset_ms" => given.offset_ms = value.trim().parse().unwrap_or_default(),
            "synchronised" => given.clock = value.trim().parse().ok(),
            _ => {}
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_gives_a_clock() {
        let given = |offset_ms, clock| Given { offset_ms, clock };
        assert_eq!(parse("offset_ms = -200\nsynchronised = true\n"), given(-200, Some(true)));
        assert_eq!(parse("synchronised=false\n"), given(0, Some(false)));
        assert_eq!(parse("offset_ms = much\n# nothing\n\nx = 1\n"), given(0, None));
    }

    #[test]
    fn instants_are_the_same_by_both_clocks() {
        let (wall, now) = (wall_ms(), host::now_ms());
        let ahead = monotonic_ms(wall + 60_000) - now;
        assert!((59_900..61_000).contains(&ahead), "{ahead} ms ahead");
        let past = monotonic_ms(wall - 60_000);
        assert!(past > now && past < now + 1000, "what has passed is now");
    }

    #[test]
    fn the_kernel_is_asked() {
        let clock = asked();
        assert!(clock.error_us <= UNKNOWN_US || !clock.synchronised, "{clock:?}");
    }
}
