//! What the running kernel can do, found by trying. Its release does not tell: distributions bring BPF features of years
//! later to old releases (RHEL 9 and SLES 15 call theirs 5.14).

use std::fmt;

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported},
};

use super::btf::Structs;

/// `bpf_skc_to_mptcp_sock`, which aya's list of helpers has under this name.
const TO_MPTCP: BpfHelper = BpfHelper::BPF_FUNC_skc_to_mptcp_sock;

/// Something that no program of ours works without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    what: &'static str,
    since: (u32, u32),
}

#[cfg(test)]
impl Missing {
    /// For tests of what is said of it.
    #[must_use]
    pub fn example() -> Self {
        Self { what: "ring buffers", since: (5, 8) }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (Linux {}.{} has it)", self.what, self.since.0, self.since.1)
    }
}

/// What is tried.
enum Try {
    Helper(ProgramType, BpfHelper),
    Map(MapType),
}

/// Name, first release of kernel.org that has it, and how it is tried. Programs that are attached by BTF cannot be tried so;
/// each of them is optional.
const NEEDED: [(&str, (u32, u32), Try); 9] = [
    ("ring buffers", (5, 8), Try::Map(MapType::RingBuf)),
    ("socket storage", (5, 2), Try::Map(MapType::SkStorage)),
    (
        "bpf_get_netns_cookie in connect hooks of cgroups",
        (5, 7),
        Try::Helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_get_netns_cookie),
    ),
    (
        "bpf_get_current_ancestor_cgroup_id in connect hooks of cgroups",
        (5, 7),
        Try::Helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_get_current_ancestor_cgroup_id),
    ),
    (
        "socket storage in connect hooks of cgroups",
        (5, 8),
        Try::Helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_sk_storage_get),
    ),
    (
        "bpf_get_netns_cookie in sock_ops programs",
        (5, 15),
        Try::Helper(ProgramType::SockOps, BpfHelper::BPF_FUNC_get_netns_cookie),
    ),
    (
        "socket storage in sock_ops programs",
        (5, 2),
        Try::Helper(ProgramType::SockOps, BpfHelper::BPF_FUNC_sk_storage_get),
    ),
    (
        "bpf_ringbuf_output in sock_ops programs",
        (5, 8),
        Try::Helper(ProgramType::SockOps, BpfHelper::BPF_FUNC_ringbuf_output),
    ),
    (
        "socket storage in programs for sockets of cgroups",
        (5, 10),
        Try::Helper(ProgramType::CgroupSock, BpfHelper::BPF_FUNC_sk_storage_get),
    ),
];

impl Try {
    /// Whether the kernel says that it has it not. What cannot be tried, for want of privileges say, is taken to be there:
    /// loading the programs tells.
    fn is_missing(&self) -> bool {
        match self {
            Self::Helper(kind, helper) => matches!(is_helper_supported(*kind, *helper), Ok(false)),
            Self::Map(kind) => matches!(is_map_supported(*kind), Ok(false)),
        }
    }
}

/// What of the things that are needed this kernel has not.
#[must_use]
pub fn missing() -> Vec<Missing> {
    let missing = NEEDED.iter().filter(|(_, _, attempt)| attempt.is_missing());
    missing.map(|(what, since, _)| Missing { what, since: *since }).collect()
}

/// Whether a connect hook can choose the error that its caller gets (`bpf_set_retval`; Linux 6.1, and backports).
#[must_use]
pub fn sets_retval() -> bool {
    matches!(is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval), Ok(true))
}

/// Whether the connection to which a subflow of Multipath TCP belongs can be found (`bpf_skc_to_mptcp_sock`; Linux 5.19,
/// and backports).
pub(super) fn finds_multipath(kernel: &Structs<'_>) -> bool {
    // The helper's result has a type that only a kernel with Multipath TCP knows.
    let has_type = kernel.offset("mptcp_sock", "token").is_some();
    has_type && matches!(is_helper_supported(ProgramType::SockOps, TO_MPTCP), Ok(true))
}

/// Whether an iterator over TCP sockets can have one report its close (`TCP_BPF_SOCK_OPS_CB_FLAGS` for `bpf_setsockopt`; Linux
/// 6.12, and backports). Older kernels load the program as well, and refuse when it runs.
#[must_use]
pub fn arms(kernel: &Structs<'_>) -> bool {
    kernel.has_enumerator("TCP_BPF_SOCK_OPS_CB_FLAGS")
}

/// Whether the kernel tells of every reset, also where there is no socket (`tcp_send_reset` with a reason; Linux 6.10, and
/// backports).
#[must_use]
pub fn tells_refusals(kernel: &Structs<'_>) -> bool {
    kernel.has_enum("sk_rst_reason")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_a_release() {
        assert_eq!(Missing::example().to_string(), "ring buffers (Linux 5.8 has it)");
        assert!(NEEDED.iter().all(|(what, since, _)| !what.is_empty() && *since <= (5, 15)));
    }

    #[test]
    fn the_running_kernel_is_tried() {
        // Without privileges nothing is found missing either.
        assert_eq!(missing(), vec![]);
        // There is no such map.
        assert!(Try::Map(MapType::Unspecified).is_missing());
    }
}
