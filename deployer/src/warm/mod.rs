//! Warm-up: configured HTTP requests straight to a worker, past all steering, and its word on its version.

mod http;
mod stream;
#[cfg(test)]
mod tests;
mod tls;
mod version;

use std::{net::SocketAddr, time::Duration};

use deployer_common::layout::BYPASS_MARK;
use tokio::time::timeout;

pub(crate) use self::{stream::Stream, tls::authorities};
use crate::{
    config::{Request, VersionRequest, Warm},
    version::Version,
};

/// Why a worker is not warm.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WarmError {
    /// Its port did not listen in time.
    #[error("nothing listened at {worker} within {} s of the start", within.as_secs_f32())]
    NotListening {
        /// The worker.
        worker: SocketAddr,
        /// The limit.
        within: Duration,
    },
    /// A request failed.
    #[error("warm-up request `{request}` ({nth} of {of}) to {worker}: {why}")]
    Request {
        /// The worker.
        worker: SocketAddr,
        /// "GET /pin/1"
        request: String,
        /// From 1.
        nth: u32,
        /// All that would have been sent.
        of: u32,
        /// "status 500, expected 200", "no answer within 20 s", "connection refused"
        why: String,
    },
    /// The version request failed, or its answer has no version.
    #[error("version request `{request}` to {worker}: {why}")]
    NoVersion {
        /// The worker.
        worker: SocketAddr,
        /// "GET /version"
        request: String,
        /// Why.
        why: String,
    },
    /// The worker's answer holds something else where the version should be.
    #[error("{worker} {}", reports_invalid(shown))]
    InvalidVersion {
        /// The worker.
        worker: SocketAddr,
        /// What it holds: quoted, cut, in printable ASCII.
        shown: String,
    },
}

/// What is said of a worker whose version is not valid.
pub(crate) fn reports_invalid(shown: &str) -> String {
    format!("reports a version that is not valid: {shown}")
}

/// Sends the warm-up requests, one after the other, each on a connection of its own, until all have been answered as
/// they must. `left` is what remains of [`Warm::within`]. Returns the number of requests answered.
///
/// # Errors
/// The first request that fails ends it.
pub async fn warm(worker: SocketAddr, warm: &Warm, left: Duration) -> Result<u32, WarmError> {
    http::warm(worker, warm, left).await
}

/// Asks a worker for its version.
///
/// # Errors
/// [`WarmError::NoVersion`], [`WarmError::InvalidVersion`]
pub async fn version(worker: SocketAddr, ask: &VersionRequest, within: Duration) -> Result<Version, WarmError> {
    version::ask(worker, ask, within).await
}

/// Sends one request to a worker, past all steering, once. The answer is as it must be, or the error says why not:
/// "status 500, expected 200", "connection refused", "no answer within 5 s".
pub(crate) async fn ask(worker: SocketAddr, request: &Request, within: Duration) -> Result<(), String> {
    let whole = async {
        let stream = connect(worker, within).await?;
        http::exchange(stream, worker, request, http::DRAIN).await
    };
    let answer = timeout(within, whole).await;
    answer.unwrap_or_else(|_| Err(format!("no answer within {:.1} s", within.as_secs_f32()))).map(drop)
}

/// Connects to a worker, past all steering; the error says why not.
pub(crate) async fn connect(worker: SocketAddr, within: Duration) -> Result<Stream, String> {
    http::connect(worker, within).await.map_err(http::ConnectError::words)
}

/// "GET /pin/1"
pub(crate) fn label(request: &Request) -> String {
    http::label(request)
}
