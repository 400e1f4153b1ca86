//! What this process is allowed to do.

use super::Finding;
use crate::kernel::host;

const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// Number, name, what it is for, and whether CAP_SYS_ADMIN stands in for it in the kernel.
const NEEDED: [(u32, &str, &str, bool); 3] = [
    (BPF, "CAP_BPF", "to create the tables and load the programs", true),
    (
        NET_ADMIN,
        "CAP_NET_ADMIN",
        "to attach to connections, to mark the daemon's warm-up connections, and to read nat rules",
        false,
    ),
    (PERFMON, "CAP_PERFMON", "for programs that tell callers by their executable", true),
];

pub(super) fn findings() -> Vec<Finding> {
    match host::text("/proc/self/status") {
        Ok(status) => judge(&status),
        Err(error) => vec![Finding::fail("privileges", format!("/proc/self/status: {error}"))],
    }
}

fn judge(status: &str) -> Vec<Finding> {
    let Some(held) = effective(status) else {
        return vec![Finding::fail("privileges", "/proc/self/status has no CapEff that makes sense")];
    };
    let has = |capability: u32| held & (1 << capability) != 0;
    let missing = NEEDED.iter().filter(|(number, .., sys_admin)| !(has(*number) || *sys_admin && has(SYS_ADMIN)));
    let missing: Vec<_> = missing
        .map(|(_, name, purpose, _)| {
            Finding::fail(*name, format!("missing; needed {purpose}"))
                .fix("do", format!("run as root, or with AmbientCapabilities={name} in the daemon's unit"))
        })
        .collect();
    match (missing.is_empty(), has(NET_RAW)) {
        (true, true) => vec![Finding::ok("privileges", "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_NET_RAW")],
        (_, true) => missing,
        (_, false) => missing.into_iter().chain([unwatched()]).collect(),
    }
}

/// Connections to workers cannot be watched (a packet socket, packet(7)).
fn unwatched() -> Finding {
    Finding::warn("CAP_NET_RAW", "missing; without it kept-alive connections are not closed, and hold drains")
        .fix("do", "run as root, or with AmbientCapabilities=CAP_NET_RAW in the daemon's unit")
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    fn missing(held: u64) -> Vec<String> {
        let found = judge(&format!("Name:\tx\nCapEff:\t{held:016x}\n"));
        found.into_iter().filter(|finding| finding.level == Level::Fail).map(|finding| finding.what).collect()
    }

    #[test]
    fn what_the_watch_needs_is_a_warning() {
        let all_others = u64::MAX ^ 1 << NET_RAW;
        let found = judge(&format!("CapEff:\t{all_others:016x}\n"));
        let [only] = &found[..] else { panic!("{found:?}") };
        assert!(only.level == Level::Warn && only.what == "CAP_NET_RAW", "{only:?}");
    }

    #[test]
    fn each_missing_one_is_named() {
        assert_eq!(missing(0), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
        assert_eq!(missing(u64::MAX), Vec::<String>::new());
        assert_eq!(missing(1 << BPF | 1 << NET_ADMIN | 1 << PERFMON), Vec::<String>::new());
        assert_eq!(missing(1 << SYS_ADMIN | 1 << NET_ADMIN), Vec::<String>::new());
        assert_eq!(missing(1 << SYS_ADMIN), ["CAP_NET_ADMIN"]);
        assert_eq!(missing(1 << BPF | 1 << NET_ADMIN), ["CAP_PERFMON"]);
    }

    #[test]
    fn a_garbled_status_fails() {
        assert_eq!(judge("").len(), 1);
        assert_eq!(judge("CapEff:\tmany\n")[0].level, Level::Fail);
    }
}
