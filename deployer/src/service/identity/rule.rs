//! The rule: whose a listening socket is, from facts alone.

use std::collections::BTreeSet;

/// What is known of a socket that listens at a worker's address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Facts {
    /// The user of the process that made it.
    pub user: u32,
    /// It was made in the cgroup that holds the worker's processes and no others, or below it.
    pub is_in_cgroup: bool,
    /// One of the worker's processes holds it.
    pub is_held: bool,
}

/// What the worker's sockets must be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// The manager says that the worker runs.
    pub runs: bool,
    /// The manager names a cgroup or a process, and the daemon can look at it: a socket must belong to that.
    pub is_traced: bool,
    /// The user that the configuration names.
    pub user: Option<u32>,
    /// The users of the worker's process, or of the service's other sockets; empty: not known.
    pub usual: BTreeSet<u32>,
}

/// Whose a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The worker's.
    Worker,
    /// Not the worker's, as far as can be told just now. A manager may be late to name a process that it has started.
    Doubtful,
    /// Another user's, so that no later answer can make it the worker's.
    Stranger,
}

/// Whose a socket is.
///
/// - A user other than the one that the configuration names makes it a stranger's. Root is always allowed: a socket is bound
///   before privileges are dropped. Where root is named, a worker may have become another user, if it can be traced.
/// - A socket in the worker's cgroup, or held by one of its processes, is the worker's.
/// - Where neither a cgroup nor a process is named, the user alone decides.
#[must_use]
pub fn whose(facts: Facts, expected: &Expected) -> Whose {
    if is_another(facts.user, expected.user, expected.is_traced) {
        return Whose::Stranger;
    }
    if facts.is_in_cgroup || facts.is_held {
        return Whose::Worker;
    }
    if is_unusual(facts.user, &expected.usual) {
        return Whose::Stranger;
    }
    if expected.runs && !expected.is_traced { Whose::Worker } else { Whose::Doubtful }
}

/// Whether a socket is plainly a stranger's although the manager has not said what it has started.
#[must_use]
pub fn is_foreign(user: u32, expected: Option<u32>, usual: &BTreeSet<u32>) -> bool {
    is_another(user, expected, true) || is_unusual(user, usual)
}

fn is_another(user: u32, expected: Option<u32>, is_traced: bool) -> bool {
    // What root starts may become another user.
    let may_change = expected == Some(0) && is_traced;
    user != 0 && !may_change && expected.is_some_and(|expected| expected != user)
}

fn is_unusual(user: u32, usual: &BTreeSet<u32>) -> bool {
    user != 0 && !usual.is_empty() && !usual.contains(&user)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOBODY: u32 = 65534;
    const WWW: u32 = 33;

    fn traced(user: Option<u32>, usual: &[u32]) -> Expected {
        Expected { runs: true, is_traced: true, user, usual: usual.iter().copied().collect() }
    }

    #[test]
    fn a_worker_is_known_by_cgroup_or_process() {
        let by = |is_in_cgroup, is_held| Facts { user: WWW, is_in_cgroup, is_held };
        for expected in [traced(None, &[]), traced(Some(WWW), &[]), traced(Some(0), &[0])] {
            // Socket activation: systemd has made the socket, the unit's process holds it.
            for facts in [by(true, false), by(false, true), Facts { user: 0, ..by(false, true) }] {
                assert_eq!(whose(facts, &expected), Whose::Worker, "{facts:?} {expected:?}");
            }
        }
        assert_eq!(whose(by(false, false), &traced(None, &[])), Whose::Doubtful);
        assert_eq!(whose(by(false, false), &traced(None, &[WWW])), Whose::Doubtful, "of the same user");
    }

    #[test]
    fn another_user_is_a_stranger_at_once() {
        let facts = Facts { user: NOBODY, ..Facts::default() };
        for expected in [traced(Some(WWW), &[]), traced(None, &[0]), traced(None, &[WWW])] {
            assert_eq!(whose(facts, &expected), Whose::Stranger, "{expected:?}");
        }
        let untraced = Expected { is_traced: false, ..traced(Some(0), &[]) };
        assert_eq!(whose(facts, &untraced), Whose::Stranger);
        assert_eq!(whose(Facts::default(), &untraced), Whose::Worker);
        assert!(is_foreign(NOBODY, Some(WWW), &BTreeSet::new()) && is_foreign(NOBODY, None, &[0].into()));
        assert!(!is_foreign(NOBODY, None, &BTreeSet::new()) && !is_foreign(0, Some(WWW), &[WWW].into()));
    }

    #[test]
    fn what_does_not_run_has_no_socket() {
        for is_traced in [false, true] {
            let stopped = Expected { runs: false, is_traced, ..Expected::default() };
            assert_eq!(whose(Facts::default(), &stopped), Whose::Doubtful);
        }
    }

    proptest! {
        /// Whatever else is known: nothing of another user than the configured one is ever the worker's.
        #[test]
        fn never_another_user_s(user in 1..5_u32, is_in_cgroup: bool, is_held: bool, runs: bool, is_traced: bool,
            expected in 1..5_u32, usual: BTreeSet<u32>)
        {
            let facts = Facts { user, is_in_cgroup, is_held };
            let found = whose(facts, &Expected { runs, is_traced, user: Some(expected), usual });
            prop_assert!(user == expected || found == Whose::Stranger);
        }

        /// Without a cgroup or a process that proves it, only an untraced worker that runs has a socket.
        #[test]
        fn never_without_evidence(user: u32, runs: bool, is_traced: bool, expected: Option<u32>, usual: BTreeSet<u32>) {
            let facts = Facts { user, ..Facts::default() };
            let found = whose(facts, &Expected { runs, is_traced, user: expected, usual });
            prop_assert!(found != Whose::Worker || runs && !is_traced);
        }

        /// Root's own socket is no stranger's by its user.
        #[test]
        fn root_is_no_stranger_by_its_user(is_in_cgroup: bool, is_held: bool, runs: bool, is_traced: bool,
            user: Option<u32>, usual: BTreeSet<u32>)
        {
            let facts = Facts { user: 0, is_in_cgroup, is_held };
            prop_assert_ne!(whose(facts, &Expected { runs, is_traced, user, usual }), Whose::Stranger);
        }
    }
}
