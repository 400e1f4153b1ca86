//! Which processes may bind an address of a service that is protected: root, and what the manager starts.

/// An address that only some may bind, in network namespaces and cgroups where the programs are attached.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protected {
    /// User that may bind it beside root, as the initial user namespace numbers it; [`ROOT_ONLY`]: no other.
    pub uid: u32,
    /// Index of the service that is protected; its refusals are counted there.
    pub service: u32,
    /// Id of the cgroup in or below which that user's process must be; 0: anywhere.
    pub cgroup: u64,
    /// Depth of that cgroup below the cgroup v2 root.
    pub level: u32,
    /// Always 0.
    pub zero: u32,
}

/// In place of a user: root alone may bind it. The kernel uses this number for "no user", too.
pub const ROOT_ONLY: u32 = u32::MAX;

/// What was refused, by service. `refused` is written by atomic adds; the rest is of the last refusal, or of two at once.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BindCount {
    /// How many `bind()` calls were refused.
    pub refused: u64,
    /// The last of them: `process id:32 | user:32`, as the initial namespaces number them.
    pub last: u64,
    /// Its port, in host byte order.
    pub port: u64,
}

const _: () = assert!(size_of::<Protected>() == 24);
const _: () = assert!(size_of::<BindCount>() == 24);

impl Protected {
    /// Whether a process of user `uid` may bind the address; `inside` tells whether it is in the cgroup, and is asked only
    /// where that matters.
    #[inline(always)]
    pub fn admits(&self, uid: u32, inside: impl FnOnce(&Self) -> bool) -> bool {
        uid == 0 || uid == self.uid && uid != ROOT_ONLY && (self.cgroup == 0 || inside(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(uid: u32, cgroup: u64) -> Protected {
        Protected { uid, service: 0, cgroup, level: 2, zero: 0 }
    }

    #[test]
    fn root_may_and_strangers_may_not() {
        for protected in [of(33, 0), of(33, 7), of(ROOT_ONLY, 0), of(ROOT_ONLY, 7), of(0, 0)] {
            assert!(protected.admits(0, |_| false));
            for stranger in [1, 34, 65534, ROOT_ONLY] {
                assert!(!protected.admits(stranger, |_| true), "{protected:?} {stranger}");
            }
        }
    }

    #[test]
    fn the_worker_s_user_may_where_the_worker_is() {
        assert!(of(33, 0).admits(33, |_| false));
        assert!(of(33, 7).admits(33, |_| true));
        assert!(!of(33, 7).admits(33, |_| false));
    }
}
