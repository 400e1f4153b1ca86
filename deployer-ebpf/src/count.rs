//! Counters.

use aya_ebpf::btf_maps::Array;
use deployer_common::layout::{MAX_SERVICES, MAX_WORKERS, WorkerLife};

use crate::{
    atomic,
    maps::{
        LANE_COUNTS, MMAPABLE, SERVICE_COUNTS, SERVICE_USES, WORKER_COUNTS, WORKER_ENDS, WORKER_EVIDENCE, WORKER_LIVES,
        WORKER_PROOFS, WORKER_TIMES,
    },
};

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

/// Adds one to the field at byte `offset` of how a service's pools were found.
#[inline(always)]
pub fn lane(index: u32, offset: usize) {
    add::<_, MAX_SERVICES>(&LANE_COUNTS, index, 1, offset);
}

/// Notes at byte `offset` of a service's uses that it was used now.
#[inline(always)]
pub fn used(index: u32, offset: usize, now_ms: u64) {
    if let Some(entry) = SERVICE_USES.get_ptr_mut(index) {
        // SAFETY: a word of an entry of an array map; volatile, since user space reads it at any time.
        unsafe { entry.cast::<u8>().add(offset).cast::<u64>().write_volatile(now_ms) };
    }
}

/// Adds one to the field at byte `offset` of a worker's proofs.
#[inline(always)]
pub fn proof(index: u32, offset: usize) {
    add::<_, MAX_WORKERS>(&WORKER_PROOFS, index, 1, offset);
}

/// Adds one to the field at byte `offset` of what is counted at a worker's ends.
#[inline(always)]
pub fn end(index: u32, offset: usize) {
    add::<_, MAX_WORKERS>(&WORKER_ENDS, index, 1, offset);
}

/// Adds to the field at byte `offset` of a worker's durations.
#[inline(always)]
pub fn time(index: u32, by: u64, offset: usize) {
    add::<_, MAX_WORKERS>(&WORKER_TIMES, index, by as i64, offset);
}

/// Adds one to the field at byte `offset` of a worker's life.
#[inline(always)]
pub fn life(index: u32, offset: usize) {
    add::<_, MAX_WORKERS>(&WORKER_LIVES, index, 1, offset);
}

/// Adds to the field at byte `offset` of a worker's evidence.
#[inline(always)]
pub fn evidence(index: u32, by: i64, offset: usize) {
    add::<_, MAX_WORKERS>(&WORKER_EVIDENCE, index, by, offset);
}

/// Notes when a steered caller's connect() went on without a ticket.
#[inline(always)]
pub fn unnoted_at(index: u32, now_ns: u64) {
    if let Some(entry) = WORKER_EVIDENCE.get_ptr_mut(index) {
        // SAFETY: an entry of an array map; volatile, since user space reads this word at any time.
        unsafe { (&raw mut (*entry).unnoted_ns).write_volatile(now_ns) };
    }
}

/// Adds to the number of a worker's listening sockets, or takes one off; returns what it was. Below 0 it does not go: it
/// has been counted anew since the socket was.
#[inline(always)]
pub fn listeners(index: u32, by: i64) -> Option<u64> {
    let life: *mut WorkerLife = WORKER_LIVES.get_ptr_mut(index)?;
    // SAFETY: address arithmetic inside the entry.
    let at = unsafe { &raw mut (*life).listeners };
    let before = atomic::fetch_add(at, by);
    if by < 0 && before == 0 {
        atomic::add(at, 1);
        return None;
    }
    Some(before)
}

/// `offset` comes from `offset_of!` of a u64 field of T: aligned, and inside the entry.
#[inline(always)]
fn add<T, const ENTRIES: usize>(map: &Array<T, ENTRIES, MMAPABLE>, index: u32, by: i64, offset: usize) {
    if let Some(entry) = map.get_ptr_mut(index) {
        atomic::add(entry.wrapping_byte_add(offset).cast(), by);
    }
}
