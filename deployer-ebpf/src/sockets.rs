//! The lives of sockets: tickets are handed back, open connections counted.

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB,
    },
    helpers::{bpf_get_current_task, bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::{cgroup_sock, sock_ops},
    programs::{SockContext, SockOpsContext},
};
use deployer_common::{
    endpoint::{Endpoint, MAPPED},
    histogram::{self, BUCKETS},
    layout::{
        Dial, EVENT_CUT, Event, SockNote, WorkerCount, WorkerEnd, WorkerEvidence, WorkerLife, WorkerProof, WorkerTimes,
    },
};

use crate::{
    count, ends,
    fields::{OFF_SK_ERR, OFF_SK_SOCKET, OFF_TASK_FLAGS, address_of, read},
    listeners::{self, now_ns},
    maps::{DIALS, GONE, LISTENERS},
    notes,
};

const AF_INET6: u32 = 10;
/// States of `include/net/tcp_states.h`. In these two a worker may still have work with a connection.
const ESTABLISHED: u32 = 1;
const CLOSE_WAIT: u32 = 8;
const SYN_SENT: u32 = 2;
const CLOSE: u32 = 7;
const LISTEN: u32 = 10;
/// What a connection comes to that another process has ended (`ss -K`).
const ECONNABORTED: i32 = 103;
/// `include/linux/sched.h`
const PF_EXITING: u32 = 4;

/// Always answers 1: 0 would become -EPERM and throw away the answers of other programs.
#[sock_ops]
pub fn sockets(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => syn_is_out(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => reached(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => opened(&ctx),
        BPF_SOCK_OPS_TCP_LISTEN_CB => listens(&ctx),
        BPF_SOCK_OPS_STATE_CB => state_changed(&ctx),
        _ => {}
    }
    1
}

/// A socket is closed whose connect() may never have got as far as a SYN.
#[cgroup_sock(sock_release)]
pub fn released(ctx: SockContext) -> i32 {
    // The context is the socket itself.
    notes::hand_back(notes::of(ctx.as_ptr(), core::ptr::null_mut()));
    1
}

/// By now the socket stands in the table of sockets, where user space sees it: the ticket has done its work.
#[inline(always)]
fn syn_is_out(ctx: &SockOpsContext) {
    let note = callers(ctx);
    notes::hand_back(note);
    // SAFETY: as in notes::hand_back.
    if !note.is_null() && unsafe { (*note).to } != 0 {
        report_state(ctx);
        if let Some(sk) = socket(ctx) {
            let mut now = Dial { since: now_ns() };
            let dial = notes::stored(&DIALS, sk, &raw mut now);
            // SAFETY: as in notes::hand_back. A socket that dials once more has the time of before.
            match unsafe { dial.as_mut() } {
                Some(dial) => *dial = now,
                // SAFETY: as above.
                None => {
                    count::evidence(u32::from(unsafe { (*note).to }) - 1, 1, offset_of!(WorkerEvidence, unmeasured))
                }
            }
        }
    }
}

/// Counts how long it took to establish a connection, once.
#[inline(always)]
fn dialled(ctx: &SockOpsContext, worker: u32) {
    let Some(sk) = socket(ctx) else { return };
    // SAFETY: as in notes::hand_back.
    let Some(dial) = (unsafe { notes::stored(&DIALS, sk, core::ptr::null_mut()).as_mut() }) else { return };
    if dial.since == 0 {
        return;
    }
    let took = (now_ns() - dial.since) / 1000;
    dial.since = 0;
    let bucket = histogram::bucket(took) & (BUCKETS - 1);
    count::time(worker, 1, offset_of!(WorkerTimes, connects) + size_of::<u64>() * bucket);
    count::time(worker, took, offset_of!(WorkerTimes, connect_us));
}

/// A steered caller's connection is established. Whether the worker should have got it is judged at the worker's end.
#[inline(always)]
fn reached(ctx: &SockOpsContext) {
    let note = callers(ctx);
    // SAFETY: as in notes::hand_back.
    let to = if note.is_null() { 0 } else { unsafe { (*note).to } };
    if to == 0 {
        return;
    }
    let worker = u32::from(to) - 1;
    dialled(ctx, worker);
    count::end(worker, offset_of!(WorkerEnd, steered));
}

/// A worker's end of a connection is established.
#[inline(always)]
fn opened(ctx: &SockOpsContext) {
    let Some(worker) = worker_at(ctx) else { return };
    if dialled_itself(ctx) {
        return;
    }
    let mut blank = SockNote::default();
    let note = note(ctx, &raw mut blank);
    if note.is_null() {
        return count::evidence(worker, 1, offset_of!(WorkerEvidence, uncounted));
    }
    // SAFETY: as in notes::hand_back.
    let note = unsafe { &mut *note };
    // Two attachments (callers' and workers' cgroups) may run this program twice for one socket.
    if note.counted == 0 {
        note.counted = worker + 1;
        note.set_since(now_ns());
        count::worker(worker, 1, offset_of!(WorkerCount, open));
        report_state(ctx);
        ends::judge(worker, &local(ctx), &remote(ctx), note);
    }
}

/// Whether the context's socket has dialled, although it is now established passively: two sockets have dialled each other,
/// or one has dialled itself. No listener has accepted it: what a listener accepts has no process before accept().
#[inline(always)]
fn dialled_itself(ctx: &SockOpsContext) -> bool {
    socket(ctx).and_then(|sk| read::<u64>(address_of(sk), &OFF_SK_SOCKET)).is_some_and(|socket| socket != 0)
}

/// A socket begins to listen.
#[inline(always)]
fn listens(ctx: &SockOpsContext) {
    let Some(worker) = worker_at(ctx) else { return };
    let Some(sk) = socket(ctx) else { return };
    report_state(ctx);
    if listeners::counted(sk, address_of(sk), worker) {
        listeners::first(worker);
    }
}

#[inline(always)]
fn state_changed(ctx: &SockOpsContext) {
    let (old, new) = (ctx.arg(0), ctx.arg(1));
    if old == LISTEN {
        if let Some(sk) = socket(ctx) {
            listeners::closed(sk, local(ctx));
        }
        return;
    }
    if new == ESTABLISHED || new == CLOSE_WAIT {
        return;
    }
    // SAFETY: as in notes::hand_back.
    if let Some(note) = unsafe { note(ctx, core::ptr::null_mut()).as_mut() }
        && note.counted != 0
    {
        return over(ctx, note, new);
    }
    // SAFETY: as in notes::hand_back.
    if let Some(note) = unsafe { callers(ctx).as_mut() }
        && note.to != 0
    {
        left(ctx, note, old, new);
    }
}

/// A worker's end of a connection that was counted leaves the states in which it can carry a request.
#[inline(always)]
fn over(ctx: &SockOpsContext, note: &mut SockNote, new: u32) {
    let (worker, is_own) = (note.counted - 1, note.is_own());
    note.counted = 0;
    count::worker(worker, -1, offset_of!(WorkerCount, open));
    // How the daemon's own connections end is its own affair.
    if is_own {
        return;
    }
    let error = error(ctx);
    // On a connection whose caller is gone nothing can be lost.
    let is_harm = (error == 0 || error == ECONNABORTED) && (new == CLOSE || is_exiting()) && !is_left(ctx);
    // At once, and not by what its peer or the network has done: it is reset.
    if new == CLOSE && is_harm {
        ends::reset(worker, &remote(ctx));
    }
    let now = now_ns();
    let lasted = now - note.since();
    let bucket = histogram::bucket(lasted / 1000);
    count::time(worker, lasted / 1000, offset_of!(WorkerTimes, lifetime_us));
    count::proof(worker, offset_of!(WorkerProof, lifetimes) + size_of::<u64>() * (bucket & (BUCKETS - 1)));
    // Not closed by its process, which has not come to it, but by the process's end; a caller's reset is an error.
    if is_harm && is_exiting() && error == 0 {
        count::life(worker, offset_of!(WorkerLife, cut));
        let peer = remote(ctx);
        let pid = listeners::current();
        let (kind, addr, port) = (EVENT_CUT, peer.addr, peer.port);
        listeners::send(Event { at_ns: now, kind, worker, pid, port, addr, value: lasted });
    }
}

/// The caller's end of a connection is closed, one way or another.
#[inline(always)]
fn left(ctx: &SockOpsContext, note: &mut SockNote, old: u32, new: u32) {
    let worker = u32::from(note.to) - 1;
    note.to = 0;
    if old == SYN_SENT && new == CLOSE {
        count::proof(worker, offset_of!(WorkerProof, failed));
    }
}

/// Has the socket report its changes of state; others' flags stay.
#[inline(always)]
fn report_state(ctx: &SockOpsContext) {
    let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}

/// The error that the context's socket has come to; 0: none.
#[inline(always)]
fn error(ctx: &SockOpsContext) -> i32 {
    socket(ctx).and_then(|sk| read(address_of(sk), &OFF_SK_ERR)).unwrap_or(0)
}

/// Whether the daemon has seen that the other end of the context's socket is gone.
#[inline(always)]
fn is_left(ctx: &SockOpsContext) -> bool {
    // SAFETY: a valid context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: only whether there is an entry is looked at.
    unsafe { GONE.get(cookie) }.is_some()
}

/// Whether the current task is ending.
#[inline(always)]
fn is_exiting() -> bool {
    // SAFETY: no arguments; the result is only ever read through bpf_probe_read_kernel.
    read::<u32>(unsafe { bpf_get_current_task() }, &OFF_TASK_FLAGS).is_some_and(|flags| flags & PF_EXITING != 0)
}

/// The worker that listens at the context's local end.
#[inline(always)]
fn worker_at(ctx: &SockOpsContext) -> Option<u32> {
    // SAFETY: user space never removes an entry while a program that found it may run.
    unsafe { LISTENERS.get(local(ctx)) }.copied()
}

/// The context's socket.
#[inline(always)]
fn socket(ctx: &SockOpsContext) -> Option<*mut c_void> {
    // SAFETY: the kernel hands every program of this type a valid context.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() { None } else { Some(sk.cast()) }
}

/// The note of the context's socket; made from `blank` where there is none, unless that is null.
#[inline(always)]
fn note(ctx: &SockOpsContext, blank: *mut SockNote) -> *mut SockNote {
    socket(ctx).map_or(core::ptr::null_mut(), |sk| notes::of(sk, blank))
}

/// The note of a caller's socket.
#[inline(always)]
fn callers(ctx: &SockOpsContext) -> *mut SockNote {
    socket(ctx).map_or(core::ptr::null_mut(), |sk| notes::of(notes::owner(sk), core::ptr::null_mut()))
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

/// The far end of the context's socket; its network namespace is nobody's business.
#[inline(always)]
fn remote(ctx: &SockOpsContext) -> Endpoint {
    // Network byte order, in the upper half on little-endian machines (`include/uapi/linux/bpf.h`).
    let port = u32::from_be(ctx.remote_port());
    if ctx.family() != AF_INET6 {
        return Endpoint::v4(0, ctx.remote_ip4(), port);
    }
    let addr: [u32; 4] = core::array::from_fn(|nth| {
        // SAFETY: a valid context; volatile, since the verifier allows reads of these words one by one only.
        unsafe { (&raw const (*ctx.ops).remote_ip6[nth]).read_volatile() }
    });
    Endpoint::v6(0, addr, port)
}
