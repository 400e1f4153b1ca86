//! A histogram whose buckets grow with what they hold: four to each doubling, so that a value is known to within a fifth.

/// Number of buckets; the last one takes whatever is longer than an hour.
pub const BUCKETS: usize = 128;

/// The bucket of a value.
#[inline(always)]
#[must_use]
pub const fn bucket(value: u64) -> usize {
    if value < 4 {
        return value as usize;
    }
    let doublings = 63 - value.leading_zeros();
    let bucket = 4 * (doublings - 1) + (value >> (doublings - 2) & 3) as u32;
    if bucket as usize >= BUCKETS { BUCKETS - 1 } else { bucket as usize }
}

/// The smallest value of a bucket.
#[must_use]
pub const fn floor(bucket: usize) -> u64 {
    match bucket {
        0..=3 => bucket as u64,
        _ => (4 + bucket as u64 % 4) << (bucket / 4 - 1),
    }
}

/// The value that `share` (0.99, say) of what was counted does not exceed, as the middle of its bucket; `None`: nothing was
/// counted.
#[cfg(any(test, feature = "user"))]
#[must_use]
pub fn percentile(counts: &[u64; BUCKETS], share: f64) -> Option<u64> {
    let total = counts.iter().fold(0_u64, |total, count| total.saturating_add(*count));
    let mut left = (total as f64 * share) as u64;
    for (nth, count) in counts.iter().enumerate() {
        if *count > left {
            return Some(u64::midpoint(floor(nth), floor(nth + 1)));
        }
        left -= count;
    }
    let last = counts.iter().rposition(|count| *count > 0)?;
    Some(u64::midpoint(floor(last), floor(last + 1)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_follow_each_other() {
        for nth in 0..BUCKETS {
            assert_eq!(bucket(floor(nth)), nth);
            assert!(nth == 0 || bucket(floor(nth) - 1) == nth - 1, "{nth}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        // An hour in microseconds.
        assert!(floor(BUCKETS - 1) > 3_600_000_000);
    }

    #[test]
    fn of_nothing_there_is_no_percentile() {
        assert_eq!(percentile(&[0; BUCKETS], 0.5), None);
    }

    proptest! {
        #[test]
        fn a_value_is_known_to_within_a_fifth(value in 4_u64..3_600_000_000) {
            let nth = bucket(value);
            prop_assert!(floor(nth) <= value && value < floor(nth + 1));
            prop_assert!(floor(nth + 1) - floor(nth) <= value / 4 + 1);
        }

        #[test]
        fn percentiles_are_values_that_were_counted(values in prop::collection::vec(1_u64..10_000_000, 1..200), share in 0.0..1.0) {
            let mut counts = [0; BUCKETS];
            values.iter().for_each(|value| counts[bucket(*value)] += 1);
            let found = percentile(&counts, share).unwrap();
            prop_assert!(counts[bucket(found)] > 0);
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let exact = sorted[((values.len() as f64 * share) as usize).min(values.len() - 1)];
            prop_assert_eq!(bucket(found), bucket(exact));
        }
    }
}
