//! Trouble that a loop meets again and again: it is logged when it begins, once in a while as it lasts, and when it is over.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{info, warn};

/// Between two words on trouble that lasts.
const AGAIN: Duration = Duration::from_secs(60);

/// Trouble of one kind.
#[derive(Debug, Default)]
pub struct Recurring {
    failed: u64,
    told: Option<Instant>,
}

impl Recurring {
    /// None so far.
    #[must_use]
    pub const fn new() -> Self {
        Self { failed: 0, told: None }
    }

    /// Logs what came of a try, where it is news. `what` was tried: "look at the listening sockets".
    pub fn note<T, E: fmt::Display>(&mut self, tried: &Result<T, E>, what: &str) {
        match tried {
            Ok(_) => {
                if let Some(failed) = self.works() {
                    info!(failed, "can {what} again");
                }
            }
            Err(error) => {
                if let Some(failed) = self.failed_at(Instant::now()) {
                    warn!(%error, failed, "cannot {what}; trying again");
                }
            }
        }
    }

    /// A try has failed. Says how many have failed in a row, if that is to be logged.
    fn failed_at(&mut self, now: Instant) -> Option<u64> {
        self.failed = self.failed.saturating_add(1);
        if self.told.is_some_and(|told| now.saturating_duration_since(told) < AGAIN) {
            return None;
        }
        self.told = Some(now);
        Some(self.failed)
    }

    /// A try has worked. Says how many have failed in a row before it; `None`: none has.
    fn works(&mut self) -> Option<u64> {
        let failed = std::mem::take(self).failed;
        (failed > 0).then_some(failed)
    }
}

/// The same, where several tasks try it.
#[derive(Debug)]
pub struct Shared(Mutex<Recurring>);

impl Shared {
    /// None so far.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Recurring::new()))
    }

    /// As [`Recurring::note`].
    pub fn note<T, E: fmt::Display>(&self, tried: &Result<T, E>, what: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).note(tried, what);
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_once_in_a_while_and_when_it_is_over() {
        let (mut trouble, begun) = (Recurring::new(), Instant::now());
        assert_eq!(trouble.works(), None);
        let told = (0..1300_u32).filter_map(|nth| trouble.failed_at(begun + nth * Duration::from_millis(100)));
        assert_eq!(told.collect::<Vec<_>>(), [1, 601, 1201]);
        assert_eq!((trouble.works(), trouble.works()), (Some(1300), None));
        assert_eq!(trouble.failed_at(begun), Some(1), "trouble anew");
    }
}
