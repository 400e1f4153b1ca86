//! Errors as answers.

use std::fmt;

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};

use crate::api::{ErrorBody, Exit};

/// What an action could not do.
#[derive(Debug)]
pub(super) struct Refusal {
    exit: Exit,
    error: String,
}

impl Refusal {
    /// The request makes no sense.
    pub(super) fn usage(error: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, error: error.into() }
    }

    /// Somebody else is at it.
    pub(super) fn busy(error: impl Into<String>) -> Self {
        Self { exit: Exit::Busy, error: error.into() }
    }

    /// What is wrong.
    pub(super) fn message(&self) -> &str {
        &self.error
    }

    /// How a client ends with it.
    pub(super) fn exit(&self) -> Exit {
        self.exit
    }

    /// It was tried, and failed; or it is refused as the host is now.
    pub(super) fn failed(error: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, error: error.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self.exit {
            Exit::Usage => StatusCode::BAD_REQUEST,
            Exit::Busy => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(ErrorBody { error: self.error, exit: self.exit })).into_response()
    }
}
