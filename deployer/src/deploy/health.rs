//! The judge of the bake: whether the pool that callers were led to keeps well.

use serde::{Deserialize, Serialize};

use crate::kernel::Tables;

/// Connections without which a share of failures says nothing: with fewer, one that fails may be most of them.
const TELLING: u64 = 20;

/// What is counted of a pool's workers, all together. Each grows until the kernel's tables are made anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Connections established, seen at the workers' ends; the daemon's own are among them.
    pub established: u64,
    /// Connections of steered callers that could not be established.
    pub failed: u64,
    /// How often a worker's process ended, or closed its last listener, unasked.
    pub crashes: u64,
}

/// What a new pool may do before callers are led back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// So many crashes are borne.
    pub max_crashes: u64,
    /// Share of the connections that may fail, 0 to 1.
    pub max_failed: f64,
}

/// Judges a pool by what it has done since callers were led to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Health {
    limits: Limits,
    base: Figures,
}

impl Health {
    /// Of a pool whose counters stood like this at the flip. A resumed daemon makes it anew from what [`Health::base`] was.
    #[must_use]
    pub fn new(limits: Limits, at_flip: Figures) -> Self {
        Self { limits, base: at_flip }
    }

    /// What is counted from: the counters at the flip, or what [`Health::restart`] has made of them. All that must outlive
    /// the daemon.
    #[must_use]
    pub fn base(&self) -> Figures {
        self.base
    }

    /// To be told every reading before it is judged. Where counters went backwards, they are counted from their new
    /// beginning from here on, even when they have grown beyond where they were. Returns whether [`Health::base`] is
    /// another one now, which is then to be written down.
    pub fn restart(&mut self, now: &Figures) -> bool {
        let base = based(self.base, now);
        std::mem::replace(&mut self.base, base) != base
    }

    /// Whether the pool keeps well.
    ///
    /// # Errors
    /// What it did, and what it may do, in words.
    pub fn judge(&self, now: &Figures) -> Result<(), String> {
        let since = since(based(self.base, now), now);
        let Limits { max_crashes, max_failed } = self.limits;
        if since.crashes > max_crashes {
            let crashes = if since.crashes == 1 { "1 crash".to_owned() } else { format!("{} crashes", since.crashes) };
            return Err(format!(
                "{crashes} of workers of the new pool since the flip, more than max_crashes = {max_crashes}"
            ));
        }
        let tried = since.failed.saturating_add(since.established);
        let share = since.failed as f64 / tried as f64;
        if tried >= TELLING && share > max_failed {
            return Err(format!(
                "{} of {tried} connections to the new pool since the flip have failed, {}, more than max_failed = {}",
                since.failed,
                percent(share),
                percent(max_failed)
            ));
        }
        Ok(())
    }
}

/// What a pool's counters stand at; `workers` are places in the tables.
#[must_use]
pub fn figures(tables: &Tables, workers: &[u32]) -> Figures {
    let counts = tables.counts();
    workers.iter().fold(Figures::default(), |sum, worker| Figures {
        established: sum.established.saturating_add(counts.worker(*worker).established),
        failed: sum.failed.saturating_add(counts.proof(*worker).failed),
        crashes: sum.crashes.saturating_add(counts.life(*worker).ended),
    })
}

/// What to count from. Connections are counted as long as the tables last: where there are fewer than before, the tables
/// are new, and all that is in them has happened since. Crashes alone are also counted anew when a worker gets another's
/// place; what the others did before is not held against them.
fn based(base: Figures, now: &Figures) -> Figures {
    if now.established < base.established || now.failed < base.failed {
        return Figures::default();
    }
    Figures { crashes: base.crashes.min(now.crashes), ..base }
}

/// `base` is no larger in any of its parts.
fn since(base: Figures, now: &Figures) -> Figures {
    Figures {
        established: now.established.saturating_sub(base.established),
        failed: now.failed.saturating_sub(base.failed),
        crashes: now.crashes.saturating_sub(base.crashes),
    }
}

fn percent(share: f64) -> String {
    format!("{:.2}%", share * 100.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { max_crashes: 1, max_failed: 0.1 };

    fn counted(established: u64, failed: u64, crashes: u64) -> Figures {
        Figures { established, failed, crashes }
    }

    fn health() -> Health {
        Health::new(LIMITS, counted(1000, 50, 3))
    }

    #[test]
    fn what_was_before_the_flip_does_not_count() {
        assert_eq!(health().judge(&counted(1000, 50, 3)), Ok(()));
        assert_eq!(health().judge(&counted(1090, 60, 4)), Ok(()), "a tenth failed and one crash, as is allowed");
    }

    #[test]
    fn crashes() {
        let why = health().judge(&counted(2000, 50, 5)).unwrap_err();
        assert_eq!(why, "2 crashes of workers of the new pool since the flip, more than max_crashes = 1");
    }

    #[test]
    fn failures() {
        let why = health().judge(&counted(1089, 61, 3)).unwrap_err();
        assert_eq!(
            why,
            "11 of 100 connections to the new pool since the flip have failed, 11.00%, more than max_failed = 10.00%"
        );
        assert_eq!(health().judge(&counted(1000, 69, 3)), Ok(()), "19 connections say nothing");
        assert!(health().judge(&counted(1000, 70, 3)).is_err(), "20 do");
    }

    #[test]
    fn new_tables() {
        let mut health = health();
        let early = counted(10, 0, 1);
        assert_eq!(health.judge(&early), Ok(()));
        assert!(health.judge(&counted(10, 0, 2)).is_err(), "all that is in them happened since the flip");
        assert!(health.restart(&early));
        assert_eq!(health.base(), Figures::default());
        assert!(!health.restart(&early), "it is news once");
        // More than at the flip.
        assert!(health.judge(&counted(1500, 51, 4)).is_err());
    }

    /// A worker at whose place another one was has crashed as often as that one no more.
    #[test]
    fn a_place_that_is_given_away() {
        let mut health = health();
        let now = counted(1000, 50, 2);
        assert_eq!(health.judge(&now), Ok(()));
        assert!(health.restart(&now));
        assert_eq!(health.base(), now);
        assert!(health.judge(&counted(1000, 50, 4)).is_err());
    }

    #[test]
    fn it_outlives_a_daemon() {
        let text = serde_json::to_string(&health().base()).unwrap();
        assert_eq!(text, r#"{"established":1000,"failed":50,"crashes":3}"#);
        assert_eq!(Health::new(LIMITS, serde_json::from_str(&text).unwrap()), health());
    }

    prop_compose! {
        fn any_figures()(established in part(), failed in part(), crashes in part()) -> Figures {
            counted(established, failed, crashes)
        }
    }

    /// Small numbers, where the limits are, and any.
    fn part() -> impl Strategy<Value = u64> {
        prop_oneof![0..50_u64, any::<u64>()]
    }

    fn grown(by: Figures, from: Figures) -> Figures {
        let add = u64::saturating_add;
        counted(add(from.established, by.established), add(from.failed, by.failed), add(from.crashes, by.crashes))
    }

    proptest! {
        /// Whether a reading is noted before it is judged makes no difference to it.
        #[test]
        fn any_figures_are_judged(at_flip in any_figures(), now in any_figures(), max_crashes in part(), max_failed in 0.0..=1.0) {
            let mut health = Health::new(Limits { max_crashes, max_failed }, at_flip);
            let before = health.judge(&now);
            let went_back = now.established < at_flip.established || now.failed < at_flip.failed || now.crashes < at_flip.crashes;
            prop_assert_eq!(health.restart(&now), went_back);
            prop_assert_eq!(health.judge(&now), before);
            prop_assert_eq!(health.judge(&health.base()), Ok(()));
        }

        /// What was counted before makes no difference, as long as nothing overflows.
        #[test]
        fn only_the_difference_counts(at_flip in any_figures(), more in any_figures(), max_failed in 0.0..=1.0) {
            let half = |figures: Figures| counted(figures.established / 2, figures.failed / 2, figures.crashes / 2);
            let (at_flip, more) = (half(at_flip), half(more));
            let limits = Limits { max_crashes: 2, max_failed };
            let judged = Health::new(limits, at_flip).judge(&grown(more, at_flip));
            prop_assert_eq!(judged, Health::new(limits, Figures::default()).judge(&more));
        }

        /// A pool that did worse is not judged better.
        #[test]
        fn worse_is_not_better(more in any_figures(), crashes in part(), failed in part(), max_failed in 0.0..=1.0) {
            let health = Health::new(Limits { max_crashes: 2, max_failed }, Figures::default());
            if health.judge(&more).is_err() {
                let worse = counted(more.established, more.failed.saturating_add(failed), more.crashes.saturating_add(crashes));
                prop_assert!(health.judge(&worse).is_err());
            }
        }
    }
}
