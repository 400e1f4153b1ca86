//! The lives of sockets: tickets are handed back, open connections counted.

use core::mem::offset_of;

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
    },
    helpers::{bpf_get_netns_cookie, generated::bpf_sk_storage_get},
    macros::{cgroup_sock, sock_ops},
    programs::{SockContext, SockOpsContext},
};
use deployer_common::{
    endpoint::{Endpoint, MAPPED},
    layout::{SockNote, WorkerCount},
};

use crate::{
    count,
    maps::{LISTENERS, NOTES},
};

const AF_INET6: u32 = 10;
/// States of `include/net/tcp_states.h` in which a worker may still have work with a connection.
const ESTABLISHED: u32 = 1;
const CLOSE_WAIT: u32 = 8;

/// Always answers 1: 0 would become -EPERM and throw away the answers of other programs.
#[sock_ops]
pub fn sockets(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => syn_is_out(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => opened(&ctx),
        BPF_SOCK_OPS_STATE_CB => state_changed(&ctx),
        _ => {}
    }
    1
}

/// A socket is closed whose connect() may never have got as far as a SYN.
#[cgroup_sock(sock_release)]
pub fn released(ctx: SockContext) -> i32 {
    // SAFETY: the context is the socket itself; the map is ours.
    let note =
        unsafe { bpf_sk_storage_get((&raw const NOTES).cast_mut().cast(), ctx.as_ptr(), core::ptr::null_mut(), 0) };
    hand_back(note.cast());
    1
}

/// By now the socket stands in the table of sockets, where user space sees it: the ticket has done its work.
#[inline(always)]
fn syn_is_out(ctx: &SockOpsContext) {
    hand_back(note(ctx, core::ptr::null_mut()));
}

#[inline(always)]
fn hand_back(note: *mut SockNote) {
    if note.is_null() {
        return;
    }
    // SAFETY: the kernel gave a pointer to a SockNote that lives as long as the socket, whose lock is held.
    let note = unsafe { &mut *note };
    if note.ticket != 0 {
        count::worker(note.ticket - 1, -1, offset_of!(WorkerCount, tickets));
        note.ticket = 0;
    }
}

/// A worker's end of a connection is established.
#[inline(always)]
fn opened(ctx: &SockOpsContext) {
    // SAFETY: user space never removes an entry while a program that found it may run.
    let Some(worker) = (unsafe { LISTENERS.get(local(ctx)) }).copied() else { return };
    let mut blank = SockNote::default();
    let note = note(ctx, &raw mut blank);
    if note.is_null() {
        return;
    }
    // SAFETY: as in hand_back.
    let note = unsafe { &mut *note };
    // Two attachments (callers' and workers' cgroups) may run this program twice for one socket.
    if note.counted == 0 {
        note.counted = worker + 1;
        count::worker(worker, 1, offset_of!(WorkerCount, established));
        count::worker(worker, 1, offset_of!(WorkerCount, open));
        // Others' flags stay.
        let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
    }
}

/// A connection that was counted leaves the states in which it can carry a request.
#[inline(always)]
fn state_changed(ctx: &SockOpsContext) {
    let new = ctx.arg(1);
    if new == ESTABLISHED || new == CLOSE_WAIT {
        return;
    }
    let note = note(ctx, core::ptr::null_mut());
    if note.is_null() {
        return;
    }
    // SAFETY: as in hand_back.
    let note = unsafe { &mut *note };
    if note.counted != 0 {
        count::worker(note.counted - 1, -1, offset_of!(WorkerCount, open));
        note.counted = 0;
    }
}

/// The note of the context's socket; made from `blank` where there is none, unless that is null.
#[inline(always)]
fn note(ctx: &SockOpsContext, blank: *mut SockNote) -> *mut SockNote {
    // SAFETY: the kernel hands every program of this type a valid context.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return core::ptr::null_mut();
    }
    let flags = if blank.is_null() { 0 } else { u64::from(BPF_SK_STORAGE_GET_F_CREATE) };
    // SAFETY: `sk` is not null, `blank` is null or a whole SockNote; the map is ours.
    unsafe { bpf_sk_storage_get((&raw const NOTES).cast_mut().cast(), sk.cast(), blank.cast(), flags) }.cast()
}

/// The local end of the context's socket.
#[inline(always)]
fn local(ctx: &SockOpsContext) -> Endpoint {
    // SAFETY: a valid context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let port = ctx.local_port();
    if ctx.family() != AF_INET6 {
        return Endpoint::v4(netns, ctx.local_ip4(), port);
    }
    // SAFETY: a valid context; volatile, since the verifier allows reads of these words one by one only.
    let addr: [u32; 4] = core::array::from_fn(|nth| unsafe { (&raw const (*ctx.ops).local_ip6[nth]).read_volatile() });
    if addr[2] == MAPPED { Endpoint::v4(netns, addr[3], port) } else { Endpoint::v6(netns, addr, port) }
}
