//! Counters.

use core::arch::asm;

use aya_ebpf::btf_maps::Array;
use deployer_common::layout::{MAX_SERVICES, MAX_WORKERS};

use crate::maps::{MMAPABLE, SERVICE_COUNTS, WORKER_COUNTS};

/// Adds to the field at byte `offset` of a worker's counters.
#[inline(always)]
pub fn worker(index: u32, by: i64, offset: usize) {
    add::<_, MAX_WORKERS>(&WORKER_COUNTS, index, by, offset);
}

/// Adds one to the field at byte `offset` of a service's counters.
#[inline(always)]
pub fn service(index: u32, offset: usize) {
    add::<_, MAX_SERVICES>(&SERVICE_COUNTS, index, 1, offset);
}

/// Adds atomically. The target has no atomic read-modify-write in `core`; this is the instruction that it would be.
#[inline(always)]
fn add<T, const ENTRIES: usize>(map: &Array<T, ENTRIES, MMAPABLE>, index: u32, by: i64, offset: usize) {
    let Some(entry) = map.get_ptr_mut(index) else { return };
    let counter = entry.wrapping_byte_add(offset);
    // SAFETY: `offset` comes from offset_of! of a u64 field of T: aligned, and inside the entry.
    unsafe { asm!("lock *(u64 *)({p} + 0) += {v}", p = in(reg) counter, v = in(reg) by) }
}
