//! Atomic instructions. The target has no atomic read-modify-write in `core`; these are the instructions that it would be.

use core::arch::asm;

use deployer_common::{
    layout::{MAX_WORKERS, Switchboard},
    word::{State, WorkerWord},
};

use crate::maps::SWITCHBOARD;

/// How often a word is tried again that somebody else has written meanwhile. Two writers are the most: a controller that
/// holds the worker, and the other of its process's two ends.
const TRIES: u32 = 4;

/// Adds. `at` is an aligned word inside an entry of a table.
#[inline(always)]
pub fn add(at: *mut u64, by: i64) {
    // SAFETY: as the caller says.
    unsafe { asm!("lock *(u64 *)({p} + 0) += {v}", p = in(reg) at, v = in(reg) by) }
}

/// Adds, and returns what was there before. Orders everything around it (Linux's `atomic_fetch_add`). `at` as for [`add`].
#[inline(always)]
pub fn fetch_add(at: *mut u64, by: i64) -> u64 {
    let before;
    // SAFETY: as the caller says.
    unsafe {
        asm!("{v} = atomic_fetch_add((u64 *)({p} + 0), {v})", p = in(reg) at, v = inlateout(reg) by => before);
    }
    before
}

/// Writes 1, and returns what was there before. `at` as for [`add`].
#[inline(always)]
pub fn set(at: *mut u64) -> u64 {
    let before;
    // SAFETY: as the caller says.
    unsafe { asm!("{v} = xchg_64({p} + 0, {v})", p = in(reg) at, v = inlateout(reg) 1_u64 => before) }
    before
}

/// Writes `new` if `old` is there; returns what was there. `at` as for [`add`].
#[inline(always)]
fn swap(at: *mut u64, old: u64, new: u64) -> u64 {
    let before;
    // SAFETY: as the caller says.
    unsafe {
        asm!("r0 = cmpxchg_64({p} + 0, r0, {n})", p = in(reg) at, n = in(reg) new, inlateout("r0") old => before);
    }
    before
}

/// Where a worker's word stands.
#[inline(always)]
fn word_of(worker: u32) -> Option<*mut u64> {
    let board: *mut Switchboard = SWITCHBOARD.get_ptr_mut(0)?;
    // SAFETY: inside the array by the mask, which the verifier asks for.
    Some(unsafe { (&raw mut (*board).workers).cast::<u64>().add(worker as usize & (MAX_WORKERS - 1)) })
}

/// A worker's word as it stands.
#[inline(always)]
pub fn word(worker: u32) -> Option<WorkerWord> {
    // SAFETY: a word of the table; volatile, since user space writes it at any time.
    word_of(worker).map(|at| WorkerWord(unsafe { at.read_volatile() }))
}

/// Puts a worker that counts as one of the states `from` (one bit each) just now into another. Returns the new word.
#[inline(always)]
pub fn turn(worker: u32, from: u32, to: State, now_ms: u64, lease_ms: u64) -> Option<WorkerWord> {
    let at = word_of(worker)?;
    let mut tries = 0;
    while tries < TRIES {
        // SAFETY: as in `word`.
        let old = WorkerWord(unsafe { at.read_volatile() });
        if from >> (old.at(now_ms) as u32) & 1 == 0 {
            return None;
        }
        let new = old.next(to, lease_ms);
        if swap(at, old.0, new.0) == old.0 {
            return Some(new);
        }
        tries += 1;
    }
    None
}

/// Puts a worker whose word is still `old` into another state.
#[inline(always)]
pub fn turn_back(worker: u32, old: WorkerWord, to: State) {
    if let Some(at) = word_of(worker) {
        swap(at, old.0, old.next(to, 0).0);
    }
}
