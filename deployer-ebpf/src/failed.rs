//! connect() that fails although a SYN was about to go out (EADDRNOTAVAIL, ENOBUFS): its ticket comes back at once. Without
//! this program, for Multipath TCP, and where connect() fails earlier (ENETUNREACH), the ticket stays with the socket; a
//! drain sees by itself that it means nothing (`ticketed`).

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use deployer_common::layout::WorkerEvidence;

use crate::{count, notes};

/// `include/net/tcp_states.h`
const SYN_SENT: i32 = 2;
const CLOSE: i32 = 7;

/// A socket comes into another state: `inet_sock_set_state(sk, oldstate, newstate)`. It is locked.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn failed(ctx: BtfTracePointContext) -> i32 {
    if ctx.arg::<i32>(1) != SYN_SENT || ctx.arg::<i32>(2) != CLOSE {
        return 0;
    }
    let sk = ctx.arg::<*mut c_void>(0);
    if sk.is_null() {
        return 0;
    }
    // The helper that leads from a subflow of Multipath TCP to its socket does not take what tracepoints give.
    let note = notes::of(sk, core::ptr::null_mut());
    // SAFETY: null, or a SockNote that lives as long as the socket.
    let Some(kept) = (unsafe { note.as_mut() }) else { return 0 };
    if kept.ticket != 0 {
        count::evidence(kept.ticket - 1, 1, offset_of!(WorkerEvidence, returned));
        notes::hand_back(note);
    }
    0
}
