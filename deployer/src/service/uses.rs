//! Whether an address that only steering can serve is in use.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

/// A use that is older than this is over, as a daemon sees it. Load balancers check the health of what they name more often.
pub const RECENT: Duration = Duration::from_secs(10);
/// The same without a daemon, when nothing tells of the time in between.
pub const RECENT_ALONE: Duration = Duration::from_secs(60);

/// Whether two addresses are one: `localhost` is both 127.0.0.1 and ::1.
#[must_use]
pub fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    let ip = |at: SocketAddr| if at.ip() == Ipv6Addr::LOCALHOST { Ipv4Addr::LOCALHOST.into() } else { at.ip() };
    (ip(one), one.port()) == (ip(other), other.port())
}

/// How something was used last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Since the last connection was made; `None`: none ever was.
    pub ago: Option<Duration>,
    /// Connections that were made so and are open now.
    pub open: usize,
}

impl Used {
    /// By the instant of the last connection, in milliseconds of `CLOCK_MONOTONIC`; 0: there was none.
    #[must_use]
    pub fn at(last_ms: u64, now_ms: u64, open: usize) -> Self {
        let ago = (last_ms > 0).then(|| Duration::from_millis(now_ms.saturating_sub(last_ms)));
        Self { ago, open }
    }

    /// Whether a connection was made less than `recent` ago, or is open.
    #[must_use]
    pub fn is_in_use(&self, recent: Duration) -> bool {
        self.open > 0 || self.ago.is_some_and(|ago| ago < recent)
    }

    /// Why a service address cannot be given up, and what to do.
    #[must_use]
    pub fn refuse_address(&self, address: &str, recent: Duration, verb: &str) -> String {
        format!(
            "the service address {address} is in use ({self}), and no process listens there: new connections would be \
             refused. Next: have the load balancer name the workers, and try again when no connection has come for {} s; or \
             accept the refusals: deployer {verb} --force",
            recent.as_secs()
        )
    }

    /// The same of a pool that is not current, of a service.
    #[must_use]
    pub fn refuse_pool(&self, of: &str, recent: Duration, verb: &str) -> String {
        format!(
            "workers of the pool{of} that is not current are dialled ({self}), and they do not listen as a rule: new \
             connections would be refused. Next: have the load balancer name the service address, and try again when no \
             connection has come for {} s; or accept the refusals: deployer {verb} --force",
            recent.as_secs()
        )
    }
}

/// "last connection 2 s ago, 1 open"
impl fmt::Display for Used {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(ago) = self.ago {
            write!(f, "last connection {} s ago, ", ago.as_secs())?;
        }
        write!(f, "{} open", self.open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_over_is_no_use() {
        let used = |last_ms, open| Used::at(last_ms, 60_000, open);
        assert!(!used(0, 0).is_in_use(RECENT) && !used(50_000, 0).is_in_use(RECENT));
        assert!(used(50_001, 0).is_in_use(RECENT) && used(61_000, 0).is_in_use(RECENT));
        assert!(used(0, 1).is_in_use(RECENT) && used(1, 2).is_in_use(RECENT));
        assert_eq!(used(57_900, 2).to_string(), "last connection 2 s ago, 2 open");
        assert_eq!(used(0, 1).to_string(), "1 open");
    }

    #[test]
    fn localhost_is_one_address() {
        let is = |one: &str, other: &str| is_same(one.parse().unwrap(), other.parse().unwrap());
        assert!(is("127.0.0.1:1", "[::1]:1") && is("[::1]:1", "127.0.0.1:1") && is("10.0.0.1:1", "10.0.0.1:1"));
        assert!(!is("127.0.0.1:1", "127.0.0.1:2") && !is("127.0.0.2:1", "[::1]:1"));
    }

    #[test]
    fn a_refusal_says_what_helps() {
        let said = Used::at(1, 1, 0).refuse_address("127.0.0.1:9000 of web", RECENT, "bypass web");
        assert!(said.contains("127.0.0.1:9000 of web is in use (last connection 0 s ago, 0 open)"), "{said}");
        assert!(said.contains("for 10 s;") && said.ends_with("deployer bypass web --force"), "{said}");
    }
}
