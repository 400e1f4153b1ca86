//! Callers that were not steered, remembered so that the daemon can name them.

use core::mem::offset_of;

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_get_current_comm};
use deployer_common::layout::{Unsteered, UnsteeredKey};

use crate::{
    atomic, callers,
    listeners::{current, now_ns},
    maps::UNSTEERED,
};

/// The current process dials a service, and its callers' rules do not fit it. A function of its own, as the stack of the
/// connect hook has no room for it.
#[inline(never)]
pub fn executable(service: u32) {
    let (place, id) = callers::executable();
    let key = UnsteeredKey { service, place, id, addr: [0; 4] };
    remember(&key, current(), bpf_get_current_comm().unwrap_or_default());
}

/// A peer that is on another host, or in another network namespace, has reached a worker.
#[inline(never)]
pub fn peer(service: u32, addr: &[u32; 4]) {
    remember(&UnsteeredKey { service, place: 0, id: 0, addr: *addr }, 0, [0; 16]);
}

#[inline(always)]
fn remember(key: &UnsteeredKey, pid: u32, comm: [u8; 16]) {
    let last_ms = now_ns() / 1_000_000;
    let Some(entry) = UNSTEERED.get_ptr_mut(key) else {
        let first = Unsteered { count: 1, last_ms, pid, zero: 0, comm };
        // Of two that come first at one instant one is not counted.
        let _ = UNSTEERED.insert(key, first, u64::from(BPF_NOEXIST));
        return;
    };
    atomic::add(entry.wrapping_byte_add(offset_of!(Unsteered, count)).cast(), 1);
    // SAFETY: an entry of the table. What other processors write at the same time is as true as this.
    unsafe {
        (&raw mut (*entry).last_ms).write_volatile(last_ms);
        (&raw mut (*entry).pid).write_volatile(pid);
        (&raw mut (*entry).comm).write(comm);
    }
}
