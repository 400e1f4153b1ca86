//! What went wrong with a worker, before it is known as part of which request.

use std::io;

use super::super::ManagerError;

pub(super) const MANAGER: &str = "the built-in manager";

/// What the system refused, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub(super) struct Trouble {
    /// "trying to run /usr/bin/python3"
    pub(super) doing: String,
    pub(super) source: io::Error,
    pub(super) hint: &'static str,
}

impl Trouble {
    pub(super) fn new(doing: impl Into<String>, source: io::Error, hint: &'static str) -> Self {
        Self { doing: doing.into(), source, hint }
    }

    /// As part of what was asked for: "start web/8003".
    pub(super) fn in_(self, tried: &str) -> ManagerError {
        let Self { doing, source, hint } = self;
        ManagerError::Impossible { manager: MANAGER, tried: tried.to_owned(), doing, hint, source }
    }
}
