//! How many workers are taken at a time.

use serde::Serialize;

/// A number of workers, or a share of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Batch {
    /// So many, at least 1.
    Count(usize),
    /// 1-100 % of the workers, rounded down, at least one.
    Percent(u8),
}

impl Batch {
    /// The number of workers out of `total`: at least 1, and where there are several one fewer than all, so that one of
    /// them serves.
    #[must_use]
    pub fn of(self, total: usize) -> usize {
        self.count(total).clamp(1, total.saturating_sub(1).max(1))
    }

    /// The same where this many spares serve meanwhile: no more than there are of them, and it may be all.
    #[must_use]
    pub fn of_surge(self, total: usize, surge: usize) -> usize {
        self.count(total).min(surge).clamp(1, total.max(1))
    }

    /// So many of `total`, rounded down; it may be none, and more than there are.
    #[must_use]
    pub fn count(self, total: usize) -> usize {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => total * usize::from(percent) / 100,
        }
    }
}

impl std::str::FromStr for Batch {
    type Err = String;

    /// `4` or `10%`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is neither a number of workers from 1 (`4`) nor a share from 1% to 100% (`10%`)");
        match text.strip_suffix('%') {
            Some(share) => match share.trim().parse() {
                Ok(percent @ 1..=100) => Ok(Self::Percent(percent)),
                _ => Err(wrong()),
            },
            None => match text.trim().parse() {
                Ok(count) if count > 0 => Ok(Self::Count(count)),
                _ => Err(wrong()),
            },
        }
    }
}
