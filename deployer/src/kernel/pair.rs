//! A connection between a caller and a worker on this host, by its two ends.

use std::{fmt, net::SocketAddr};

/// The ends of a connection, as the *caller's* socket has them: a steered one has the worker that it was steered to.
/// IPv4-mapped addresses are written as IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    /// The caller's end.
    pub caller: SocketAddr,
    /// The worker's end.
    pub worker: SocketAddr,
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.caller, self.worker)
    }
}
