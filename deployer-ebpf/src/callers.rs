//! Who is steered.

use aya_ebpf::helpers::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_task};
use deployer_common::layout::{CALLER_CGROUP, CALLER_EXECUTABLE, CallerRule, MAX_CALLERS, Slot};

use crate::fields::{OFF_FILE_INODE, OFF_INODE_INO, OFF_INODE_SB, OFF_MM_EXE_FILE, OFF_SB_DEV, OFF_TASK_MM, read};

/// Whether the current process is one of the slot's callers.
#[inline(always)]
pub fn is_steered(slot: &Slot) -> bool {
    slot.callers_len == 0 || is_among(slot, 0, slot.callers_len)
}

/// Whether it may dial a lane that is not open.
pub fn may_preview(slot: &Slot) -> bool {
    slot.previewers_len != 0 && is_among(slot, slot.callers_len, slot.callers_len + slot.previewers_len)
}

/// Whether the current process is one that the rules from `first` to before `end` mean.
#[inline(never)]
fn is_among(slot: &Slot, first: u16, end: u16) -> bool {
    let executable = executable();
    let mut nth = 0;
    while nth < MAX_CALLERS {
        if nth as u16 >= first && (nth as u16) < end && matches(&slot.callers[nth], executable) {
            return true;
        }
        nth += 1;
    }
    false
}

#[inline(always)]
fn matches(rule: &CallerRule, (dev, ino): (u32, u64)) -> bool {
    match rule.kind {
        // SAFETY: the helper takes any level and answers 0 for one that is too deep; no cgroup has the id 0.
        CALLER_CGROUP => rule.id == unsafe { bpf_get_current_ancestor_cgroup_id(rule.place as i32) },
        CALLER_EXECUTABLE => rule.id == ino && rule.place == dev && ino != 0,
        _ => false,
    }
}

/// Device and inode of the file that the current process runs; zeros where that cannot be told.
#[inline(always)]
pub fn executable() -> (u32, u64) {
    // SAFETY: no arguments; the result is only ever read through bpf_probe_read_kernel.
    let task = unsafe { bpf_get_current_task() };
    let inode = read::<u64>(task, &OFF_TASK_MM)
        .and_then(|mm| read::<u64>(mm, &OFF_MM_EXE_FILE))
        .and_then(|file| read::<u64>(file, &OFF_FILE_INODE));
    let Some(inode) = inode else { return (0, 0) };
    let dev = read::<u64>(inode, &OFF_INODE_SB).and_then(|sb| read::<u32>(sb, &OFF_SB_DEV));
    match (dev, read::<u64>(inode, &OFF_INODE_INO)) {
        (Some(dev), Some(ino)) => (dev, ino),
        _ => (0, 0),
    }
}
