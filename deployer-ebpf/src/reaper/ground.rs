//! Whether a connection may be closed as far as its bytes go. Read under the socket's lock.

use deployer_common::reap::{
    FAILING, GROUND_ANSWERED, GROUND_COMPLETE, GROUND_QUIET, MOVED_ON, MULTIPATH, NOT_ESTABLISHED, NOT_QUIET,
    OUT_OF_ORDER, REDIRECTED, Target, UNACKNOWLEDGED, UNANSWERED, UNREAD, UNREADABLE,
};

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;

use crate::fields::{
    OFF_SK_BACKLOG, OFF_SK_ERR, OFF_SK_USER_DATA, OFF_TCP_ACKNOWLEDGED, OFF_TCP_COPIED, OFF_TCP_MULTIPATH,
    OFF_TCP_OUT_OF_ORDER, OFF_TCP_PACKET_AT, OFF_TCP_RECEIVED, OFF_TCP_RECEIVED_AT, OFF_TCP_SENT_AT,
    OFF_TCP_WINDOW_SEQ, OFF_TCP_WRITTEN, is_known, value,
};

/// The reason why not.
#[inline(always)]
pub fn check(sk: u64, target: &Target, established: bool) -> Result<(), u32> {
    if !established {
        return Err(NOT_ESTABLISHED);
    }
    // A kernel without Multipath TCP has no such field.
    if is_known(&OFF_TCP_MULTIPATH) && value::<u8>(sk, &OFF_TCP_MULTIPATH) != 0 {
        return Err(MULTIPATH);
    }
    // A socket in a sockmap has its psock here (`include/linux/skmsg.h`). What its owner writes may go straight to the
    // worker's socket, and back: no sequence number tells of it.
    if value::<u64>(sk, &OFF_SK_USER_DATA) != 0 {
        return Err(REDIRECTED);
    }
    if value::<u32>(sk, &OFF_SK_ERR) != 0 {
        return Err(FAILING);
    }
    let (written, received): (u32, u32) = (value(sk, &OFF_TCP_WRITTEN), value(sk, &OFF_TCP_RECEIVED));
    if value::<u32>(sk, &OFF_TCP_ACKNOWLEDGED) != written {
        return Err(UNACKNOWLEDGED);
    }
    // What came while the iterator holds the lock has not been looked at by anybody.
    if value::<u32>(sk, &OFF_TCP_COPIED) != received || value::<u64>(sk, &OFF_SK_BACKLOG) != 0 {
        return Err(UNREAD);
    }
    if value::<u64>(sk, &OFF_TCP_OUT_OF_ORDER) != 0 {
        return Err(OUT_OF_ORDER);
    }
    match target.kind {
        GROUND_COMPLETE if target.asked() == written && target.answered() == received => Ok(()),
        GROUND_COMPLETE => Err(MOVED_ON),
        GROUND_QUIET | GROUND_ANSWERED if quiet_ms(sk) < target.word => Err(NOT_QUIET),
        GROUND_QUIET => Ok(()),
        GROUND_ANSWERED if is_answered(sk, received) => Ok(()),
        GROUND_ANSWERED => Err(UNANSWERED),
        _ => Err(UNREADABLE),
    }
}

/// Milliseconds since a packet was last sent or received, bare acknowledgements included: `tcp_mstamp` is the time of
/// `bpf_ktime_get_ns` in microseconds, and so needs no jiffies, whose rate no program can know.
#[inline(always)]
fn quiet_ms(sk: u64) -> u64 {
    // SAFETY: no arguments.
    let now_us = unsafe { bpf_ktime_get_ns() } / 1000;
    now_us.saturating_sub(value(sk, &OFF_TCP_PACKET_AT)) / 1000
}

/// Whether the last that was sent on a connection without anything under way is the worker's. `snd_wl1` is the sequence
/// number of the packet that has moved the send window last: before what was received, that packet brought data, and
/// acknowledged everything that the caller has sent. A connection that was never used counts as answered, too.
#[inline(always)]
fn is_answered(sk: u64, received: u32) -> bool {
    let is_before = |a: u32, b: u32| a.wrapping_sub(b).cast_signed() < 0;
    is_before(value(sk, &OFF_TCP_WINDOW_SEQ), received)
        || is_before(value(sk, &OFF_TCP_SENT_AT), value(sk, &OFF_TCP_RECEIVED_AT))
}
