//! What is asked of workers: how they are warmed, and which version they run.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::{Tls, filled};

/// How a started worker is warmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warm {
    /// Sent in this order, straight to the worker.
    pub requests: Vec<Request>,
    /// How often the whole list is sent; 1-1000, default 1.
    pub repeat: u32,
    /// Time limit from the start of the process to the end of the last answer; 100 ms to 1 h, default
    /// 20 s. A worker that does not listen by then has failed.
    pub within: Duration,
}

/// One HTTP request and the answer it must get. `{port}`, `{address}` and `{service}` are replaced in its path, the values
/// of its headers and its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Upper case.
    pub method: String,
    /// How it is sent under TLS; `None`: it is not.
    pub tls: Option<Arc<Tls>>,
    /// Begins with `/`.
    pub path: String,
    /// In the order given.
    pub headers: Vec<(String, String)>,
    /// Empty: none.
    pub body: String,
    /// The status it must have; `None`: any 2xx or 3xx.
    pub status: Option<u16>,
}

impl Request {
    /// As it is sent to a worker.
    #[must_use]
    pub fn to(&self, worker: SocketAddr) -> Self {
        self.with(|text| filled(text, "{service}", worker))
    }

    /// For the workers of a service.
    pub(super) fn of(&self, service: &str, tls: Option<&Arc<Tls>>) -> Self {
        Self { tls: tls.cloned(), ..self.with(|text| text.replace("{service}", service)) }
    }

    fn with(&self, fill: impl Fn(&str) -> String) -> Self {
        let headers = self.headers.iter().map(|(name, value)| (name.clone(), fill(value))).collect();
        Self { path: fill(&self.path), headers, body: fill(&self.body), ..self.clone() }
    }
}

/// How a worker says which version it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRequest {
    /// Usually `GET` of some path.
    pub request: Request,
    /// Where the version stands in the answer.
    pub place: VersionPlace,
}

/// Where the version stands in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionPlace {
    /// The whole body, trimmed.
    Body,
    /// This header.
    Header(String),
    /// This field of a JSON object; dots go deeper (`build.version`).
    Json(String),
}
