//! Durations that outlast the daemon. They follow the boot clock: setting the time of day changes none of them.

use std::{sync::OnceLock, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The end of something that lasts for a while, as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lasting {
    /// The boot in which this was written (`/proc/sys/kernel/random/boot_id`).
    boot: String,
    /// The end, in milliseconds of `CLOCK_BOOTTIME` of that boot. That clock goes on while the machine is suspended.
    ends_ms: u64,
    /// What was left when this was written, in milliseconds.
    left_ms: u64,
}

impl Lasting {
    /// What lasts for so long from now on.
    #[must_use]
    pub fn new(left: Duration) -> Self {
        Self::at(boot(), now_ms(), left)
    }

    /// What lasts until an instant of the time of day, as that stands now, and for `most` at the longest: a former deployer
    /// has written down only the instant. Both are in milliseconds since 1970.
    #[must_use]
    pub fn until(until_ms: u64, unix_ms: u64, most: Duration) -> Self {
        Self::new(Duration::from_millis(until_ms.saturating_sub(unix_ms)).min(most))
    }

    /// What is left of it; zero: it is over. After a reboot this is what was left when it was written.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.left_at(boot(), now_ms())
    }

    fn at(boot: &str, now_ms: u64, left: Duration) -> Self {
        let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        Self { boot: boot.to_owned(), ends_ms: now_ms.saturating_add(left_ms), left_ms }
    }

    fn left_at(&self, boot: &str, now_ms: u64) -> Duration {
        let left_ms = if self.boot == boot { self.ends_ms.saturating_sub(now_ms) } else { self.left_ms };
        // A file may say anything.
        Duration::from_millis(left_ms.min(self.left_ms))
    }
}

/// Names this boot. Where the kernel does not say, every boot has the same name, and no time is lost.
fn boot() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| {
        let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        read.map(|id| id.trim().to_owned()).unwrap_or_default()
    })
}

/// Milliseconds of `CLOCK_BOOTTIME`.
fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn it_ends_by_the_boot_clock() {
        let lasting = Lasting::at("a", 5000, HOUR);
        assert_eq!(lasting.left_at("a", 5000), HOUR);
        assert_eq!(lasting.left_at("a", 5000 + 3_599_000), Duration::from_secs(1));
        assert_eq!(lasting.left_at("a", 5000 + 3_600_000), Duration::ZERO);
        assert_eq!(lasting.left_at("a", u64::MAX), Duration::ZERO);
        // After a reboot the clock begins anew.
        assert_eq!(lasting.left_at("b", 1), HOUR);
        assert_eq!(lasting.left_at("b", u64::MAX), HOUR);
    }

    #[test]
    fn an_instant_of_a_former_deployer_is_taken_over_once() {
        let left = |until_ms, now_ms| Lasting::until(until_ms, now_ms, HOUR).left();
        assert!(left(60_000, 50_000) > Duration::from_secs(9) && left(60_000, 50_000) <= Duration::from_secs(10));
        assert_eq!(left(60_000, 70_000), Duration::ZERO);
        // The clock was set back since.
        assert!(left(u64::MAX, 0) <= HOUR);
    }

    #[test]
    fn the_kernel_is_asked() {
        assert!(!boot().is_empty() && now_ms() > 0);
        let lasting = Lasting::new(HOUR);
        let read: Lasting = serde_json::from_str(&serde_json::to_string(&lasting).unwrap()).unwrap();
        assert_eq!(read, lasting);
        assert!(read.left() <= HOUR && read.left() > HOUR - Duration::from_secs(60));
    }

    proptest! {
        /// It never lasts longer than it was to last.
        #[test]
        fn no_time_is_gained(left in any::<u64>(), then in any::<u64>(), now in any::<u64>(), same: bool) {
            let lasting = Lasting::at("a", then, Duration::from_millis(left));
            let found = lasting.left_at(if same { "a" } else { "b" }, now);
            prop_assert!(found <= Duration::from_millis(left));
        }
    }
}
