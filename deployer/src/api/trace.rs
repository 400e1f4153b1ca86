//! Decisions, as they are made.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::At;

/// What of a service's decisions is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceRequest {
    /// For so long, milliseconds: 1 to [`TraceRequest::LONGEST_MS`].
    pub duration_ms: u64,
    /// Only those that dialled this port or address, or got the worker there.
    #[serde(default, alias = "worker", skip_serializing_if = "Option::is_none")]
    pub port: Option<At>,
    /// One in so many, by lot.
    #[serde(default = "each")]
    pub every: u32,
}

impl TraceRequest {
    /// An hour.
    pub const LONGEST_MS: u64 = 3_600_000;
}

fn each() -> u32 {
    1
}

/// What is told of decisions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "trace", rename_all = "kebab-case")]
pub enum Traced {
    /// The first line: whatever is decided from now on is told.
    Begun,
    /// A decision.
    Decision {
        /// Milliseconds since 1970.
        time_ms: u64,
        /// The caller's process.
        pid: u32,
        /// What the caller's thread calls itself: the first 15 bytes, what is not UTF-8 replaced.
        command: String,
        /// What the caller dialled.
        dialled: SocketAddr,
        /// What came of it.
        outcome: Outcome,
        /// The worker that it got; `None`: none.
        chosen: Option<SocketAddr>,
        /// Why, in words.
        reason: String,
    },
    /// The last line.
    End {
        /// Decisions that were made, told or not.
        seen: u64,
        /// Those that were told.
        told: u64,
        /// Those that were not, because more came than are told in a second.
        skipped: u64,
    },
}

/// What came of a connect().
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The worker that was dialled got it.
    Direct,
    /// Another worker got it.
    Steered,
    /// A worker was picked, as the service address was dialled.
    Picked,
    /// The caller was refused.
    Refused,
    /// It went where it was dialled, whoever is there.
    Passed,
}

impl Outcome {
    /// In a word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Steered => "steered",
            Self::Picked => "picked",
            Self::Refused => "refused",
            Self::Passed => "passed",
        }
    }
}
