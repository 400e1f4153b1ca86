//! Who is steered.

use aya_ebpf::helpers::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_task, bpf_probe_read_kernel};
use deployer_common::layout::{CALLER_CGROUP, CALLER_EXECUTABLE, CallerRule, MAX_CALLERS, Slot};

/// Offsets of kernel fields, from the running kernel's BTF, set before loading. All 0: unknown, executables never match.
#[unsafe(no_mangle)]
static OFF_TASK_MM: u64 = 0;
#[unsafe(no_mangle)]
static OFF_MM_EXE_FILE: u64 = 0;
#[unsafe(no_mangle)]
static OFF_FILE_INODE: u64 = 0;
#[unsafe(no_mangle)]
static OFF_INODE_INO: u64 = 0;
#[unsafe(no_mangle)]
static OFF_INODE_SB: u64 = 0;
#[unsafe(no_mangle)]
static OFF_SB_DEV: u64 = 0;

/// Whether the current process is one of the slot's callers.
#[inline(always)]
pub fn is_steered(slot: &Slot) -> bool {
    let len = slot.callers_len;
    if len == 0 {
        return true;
    }
    let executable = executable();
    let mut nth = 0;
    while nth < MAX_CALLERS {
        if nth as u32 >= len {
            break;
        }
        if matches(&slot.callers[nth], executable) {
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
fn executable() -> (u32, u64) {
    let Some(mm_offset) = offset(&raw const OFF_TASK_MM) else { return (0, 0) };
    // SAFETY: no arguments; the result is only ever read through bpf_probe_read_kernel.
    let task = unsafe { bpf_get_current_task() };
    let inode = read::<u64>(task, Some(mm_offset))
        .and_then(|mm| read::<u64>(mm, offset(&raw const OFF_MM_EXE_FILE)))
        .and_then(|file| read::<u64>(file, offset(&raw const OFF_FILE_INODE)));
    let Some(inode) = inode else { return (0, 0) };
    let dev = read::<u64>(inode, offset(&raw const OFF_INODE_SB))
        .and_then(|sb| read::<u32>(sb, offset(&raw const OFF_SB_DEV)));
    match (dev, read::<u64>(inode, offset(&raw const OFF_INODE_INO))) {
        (Some(dev), Some(ino)) => (dev, ino),
        _ => (0, 0),
    }
}

/// An offset that the loader has set; none is 0, since each of these structures begins with another field, but for
/// those that the loader marks by [`u64::MAX`] as *at 0*.
#[inline(always)]
fn offset(global: *const u64) -> Option<u64> {
    // SAFETY: `global` is one of the statics above; volatile, since the loader changes it behind the compiler's back.
    match unsafe { global.read_volatile() } {
        0 => None,
        u64::MAX => Some(0),
        offset => Some(offset),
    }
}

#[inline(always)]
fn read<T>(base: u64, offset: Option<u64>) -> Option<T> {
    let at = base.checked_add(offset?)?;
    if base == 0 {
        return None;
    }
    // SAFETY: the helper checks the address and fails on a bad one.
    unsafe { bpf_probe_read_kernel(at as *const T) }.ok()
}
