//! What is remembered of a socket, and with which socket.

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::{
    bindings::BPF_SK_STORAGE_GET_F_CREATE,
    btf_maps::SkStorage,
    helpers::generated::{bpf_sk_storage_get, bpf_skc_to_mptcp_sock},
};
use deployer_common::layout::{SockNote, WorkerCount, WorkerEvidence};

use crate::{count, maps::NOTES};

/// Whether the kernel has Multipath TCP, and the helper that leads from a subflow to its socket (5.19); set before loading.
#[unsafe(no_mangle)]
static HAS_MPTCP: u32 = 0;

/// The socket that a process holds: of Multipath TCP the outer one. connect() passes the hooks with a subflow, which is the
/// kernel's own: no hook sees its end, and getpeername() does not ask it.
///
/// `sk` is a socket that the verifier knows, and not null.
#[inline(always)]
pub fn owner(sk: *mut c_void) -> *mut c_void {
    // SAFETY: the static above; volatile, since the loader sets it.
    if unsafe { (&raw const HAS_MPTCP).read_volatile() } == 0 {
        return sk;
    }
    // SAFETY: `sk` is a socket.
    let outer = unsafe { bpf_skc_to_mptcp_sock(sk) };
    if outer.is_null() { sk } else { outer.cast() }
}

/// The note of a socket that the verifier knows; made from `blank` where there is none, unless that is null.
#[inline(always)]
pub fn of(sk: *mut c_void, blank: *mut SockNote) -> *mut SockNote {
    stored(&NOTES, sk, blank)
}

/// The same of any table of this kind.
#[inline(always)]
pub fn stored<T>(table: &'static SkStorage<T>, sk: *mut c_void, blank: *mut T) -> *mut T {
    let flags = if blank.is_null() { 0 } else { u64::from(BPF_SK_STORAGE_GET_F_CREATE) };
    // SAFETY: `sk` is a socket, `blank` null or a whole entry, which is copied; the map is ours.
    unsafe { bpf_sk_storage_get((&raw const *table).cast_mut().cast(), sk, blank.cast(), flags) }.cast()
}

/// Hands back the ticket of a note, if it has one. `note` is null, or what [`of`] has returned for a socket that is locked.
#[inline(always)]
pub fn hand_back(note: *mut SockNote) {
    // SAFETY: null, or a SockNote that lives as long as the socket.
    let Some(note) = (unsafe { note.as_mut() }) else { return };
    if note.ticket != 0 {
        if note.is_outsiders() {
            count::evidence(note.ticket - 1, -1, offset_of!(WorkerEvidence, outsider_tickets));
        }
        count::worker(note.ticket - 1, -1, offset_of!(WorkerCount, tickets));
        note.ticket = 0;
    }
}
