//! How many files this process may have open. The daemon takes all that it may have; what it starts gets what it had.
#![expect(unsafe_code, reason = "a limit is given back between fork and exec")]

use std::{io, os::unix::process::CommandExt, process::Command, sync::OnceLock};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limits that this process was started with, once [`raise`] has changed them.
static FORMER: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit to the hard one. Returns how many files may be open from now on; `u64::MAX`: any number.
pub fn raise() -> u64 {
    let former = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: former.maximum, maximum: former.maximum };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => {
            // Only the first call changes anything.
            let _ = FORMER.set(former);
            raised
        }
        // The former limit stays in force.
        Err(_) => former,
    };
    now.current.unwrap_or(u64::MAX)
}

/// How many files may be open now.
#[must_use]
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Has a command start with the soft limit that this process was started with: a program that uses `select()` breaks at
/// descriptors above 1023, and some close every descriptor that they might have. The hard limit stays as it is: it may have
/// been lowered from outside, and only a privileged process may raise it again.
pub fn restore(command: &mut Command) {
    let Some(former) = FORMER.get().copied() else { return };
    let give_back = move || {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let current = lower(former.current, maximum);
        setrlimit(Resource::Nofile, Rlimit { current, maximum }).map_err(io::Error::from)
    };
    // SAFETY: two system calls, which neither allocate nor take a lock.
    unsafe { command.pre_exec(give_back) };
}

/// The lower of two limits; `None`: unlimited.
fn lower(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soft_limit_is_never_above_the_hard_one() {
        assert_eq!(lower(Some(1024), Some(4096)), Some(1024));
        assert_eq!(lower(Some(4096), Some(1024)), Some(1024));
        assert_eq!(lower(None, Some(1024)), Some(1024));
        assert_eq!(lower(Some(1024), None), Some(1024));
        assert_eq!(lower(None, None), None);
    }
}
