//! What `POST /v1/reload` answers.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The configuration was read again, and is in force for all services but those that wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The file.
    pub file: String,
    /// Services that were changed, added or taken out.
    pub applied: Vec<String>,
    /// Services that are in use: they are changed by themselves as soon as they are free.
    pub deferred: Vec<Deferred>,
    /// What takes effect at the next start of the daemon, a sentence each.
    pub notes: Vec<String>,
}

/// A service whose new configuration waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deferred {
    /// Its name.
    pub service: String,
    /// What it waits for, in words.
    pub why: String,
}

impl fmt::Display for Deferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.service, self.why)
    }
}
