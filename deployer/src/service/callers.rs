//! Who is steered: a service's `callers`, as rules for the kernel.

use std::path::Path;

use deployer_common::layout::{CALLER_CGROUP, CallerRule};

use crate::{
    config::Caller,
    kernel::{cgroup, executables},
};

/// A rule that fits nobody.
const NOBODY: CallerRule = CallerRule { kind: 0, place: 0, id: 0 };

/// The rules as of now. A cgroup or file that is missing fits nobody until it is there: the daemon asks again every
/// second, since a restarted unit gets a new cgroup and an upgraded package a new file under the same name.
#[must_use]
pub fn rules(callers: &[Caller], root: &Path) -> Vec<CallerRule> {
    callers.iter().map(|caller| rule(caller, root).unwrap_or(NOBODY)).collect()
}

fn rule(caller: &Caller, root: &Path) -> std::io::Result<CallerRule> {
    match caller {
        Caller::Cgroup(path) => {
            let found = cgroup::id(root, path)?;
            Ok(CallerRule { kind: CALLER_CGROUP, place: found.depth, id: found.id })
        }
        Caller::Executable(path) => executables::rule(path),
    }
}

/// The rules to publish after those in force: what a process that still runs the former file was steered by stays,
/// behind the new, as far as there is room.
#[must_use]
pub fn succeed(before: &[CallerRule], now: &[CallerRule], room: usize) -> Vec<CallerRule> {
    let old = before.iter().filter(|rule| rule.kind != 0 && !now.contains(rule));
    now.iter().chain(old).take(room).copied().collect()
}
