//! Processes that are being killed. The kernel goes on accepting connections for them until their files are closed, which
//! comes after their memory has been given back: 5 ms for a process of 50 MB, 42 ms for one of 500 MB (6.18). So a worker
//! is down as soon as it is certain that nobody will accept from its sockets any more: everybody who has them open has
//! been sent SIGKILL, or is ending.

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_NOEXIST,
    macros::{btf_tracepoint, fentry},
    programs::{BtfTracePointContext, FEntryContext},
};
use deployer_common::layout::{EVENT_KILLED, Listening};

use crate::{
    atomic,
    fields::{
        OFF_FDT_FD, OFF_FDT_MAX, OFF_FILE_COUNT, OFF_FILE_PRIVATE, OFF_FILE_REF, OFF_FILES_FDT, OFF_SIGNAL_LIVE,
        OFF_SK_STATE, OFF_SOCKET_SK, OFF_TASK_FILES, OFF_TASK_SIGNAL, OFF_TASK_TGID, at_address, is_known, read,
    },
    listeners,
    maps::{DYING, LIMITS, LISTENING},
};

const SIGKILL: i32 = 9;
/// Result of `signal_generate`: neither ignored nor pending already (`include/trace/events/signal.h`).
const DELIVERED: i32 = 0;
/// So many descriptors of a process are looked at; a server opens its socket before anything else.
const MAX_FDS: u32 = 256;
const TCP_LISTEN: u8 = 10;

/// Somebody sends a signal: `signal_generate(sig, info, task, group, result)`.
#[btf_tracepoint(function = "signal_generate")]
pub fn signalled(ctx: BtfTracePointContext) -> i32 {
    if ctx.arg::<i32>(0) == SIGKILL && ctx.arg::<i32>(4) == DELIVERED {
        dies(ctx.arg::<*const u8>(2) as u64);
    }
    0
}

/// A task ends, whatever the reason: `sched_process_exit(task, …)`. 6.18 calls it before it gives the memory back; older
/// kernels afterwards.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn exits(ctx: BtfTracePointContext) -> i32 {
    let task = ctx.arg::<*const u8>(0) as u64;
    let signal = read(task, &OFF_TASK_SIGNAL).unwrap_or(0);
    // Not before the last thread of the process.
    if read::<i32>(signal, &OFF_SIGNAL_LIVE) == Some(0) {
        dies(task);
    }
    0
}

/// The files of a task are about to be closed: `exit_files(task)`.
#[fentry(function = "exit_files")]
pub fn closing(ctx: FEntryContext) -> i32 {
    let task = ctx.arg::<*const u8>(0) as u64;
    let Some(tgid) = read::<u32>(task, &OFF_TASK_TGID) else { return 0 };
    // Of a process with many threads the first one to come here speaks for all: rather late than wrong.
    if DYING.remove(tgid).is_ok() {
        each(task, |_, entry| {
            // SAFETY: an entry of the table, and address arithmetic inside it.
            atomic::add(unsafe { &raw mut (*entry).dying }, -1);
            true
        });
    }
    0
}

/// A process is certain to die.
#[inline(always)]
fn dies(task: u64) {
    let Some(tgid) = read::<u32>(task, &OFF_TASK_TGID) else { return };
    let has_closing = has_closing();
    let mut is_first = false;
    each(task, |file, entry| {
        if !is_first {
            // It was killed before it ends; and while versions change, both their programs come here.
            if has_closing && DYING.insert(tgid, 1, u64::from(BPF_NOEXIST)).is_err() {
                return false;
            }
            is_first = true;
        }
        loses_holder(file, entry, tgid, has_closing);
        true
    });
}

/// Whether `closing` is attached. Without it nobody says when a process that is being killed has let go of its sockets, so
/// only a process that has them to itself is certain.
#[inline(always)]
fn has_closing() -> bool {
    // SAFETY: the one entry of an array map; volatile, since user space writes it.
    LIMITS.get_ptr(0).is_some_and(|limits| unsafe { (&raw const (*limits).closing).read_volatile() != 0 })
}

/// A descriptor of a listening socket is in a process that dies.
#[inline(always)]
fn loses_holder(file: u64, entry: *mut Listening, tgid: u32, has_closing: bool) {
    // In this order: who closes takes itself off `dying` before it lets go.
    let Some(holders) = holders(file) else { return };
    // SAFETY: an entry of the table, and address arithmetic inside it.
    let dying = unsafe { &raw mut (*entry).dying };
    let dying = if has_closing { atomic::fetch_add(dying, 1) + 1 } else { 1 };
    // SAFETY: as above.
    let (over, detour) = unsafe { (&raw mut (*entry).over, &raw mut (*entry).detour) };
    // SAFETY: as above.
    let (sk, worker) = unsafe { ((*entry).sk, (*entry).worker as u32) };
    if holders > dying || !still_listens(file, sk) || atomic::set(over) != 0 {
        return;
    }
    let word = listeners::lost(worker, EVENT_KILLED, tgid);
    // SAFETY: as above; its close is yet to come.
    unsafe { detour.write_volatile(word) };
}

/// References to an open file: descriptors, as a rule, of one process or several.
#[inline(always)]
fn holders(file: u64) -> Option<u64> {
    // 6.13 and later count from 0 (`file_ref_t`), older kernels from 1.
    if is_known(&OFF_FILE_REF) {
        return read::<u64>(file, &OFF_FILE_REF).map(|others| others.wrapping_add(1));
    }
    read::<u64>(file, &OFF_FILE_COUNT)
}

/// Whether the file is still that of the socket: its address may have been used again.
#[inline(always)]
fn still_listens(file: u64, sk: u64) -> bool {
    let socket = read(file, &OFF_FILE_PRIVATE).unwrap_or(0);
    read::<u64>(socket, &OFF_SOCKET_SK) == Some(sk) && read::<u8>(sk, &OFF_SK_STATE) == Some(TCP_LISTEN)
}

/// Calls `with` for each descriptor of a task that is a listening socket of a worker, until that says `false`.
#[inline(always)]
fn each(task: u64, mut with: impl FnMut(u64, *mut Listening) -> bool) {
    let table = read(task, &OFF_TASK_FILES).and_then(|files| read::<u64>(files, &OFF_FILES_FDT)).unwrap_or(0);
    let (Some(max), Some(fds)) = (read::<u32>(table, &OFF_FDT_MAX), read::<u64>(table, &OFF_FDT_FD)) else { return };
    let mut fd = 0;
    while fd < MAX_FDS {
        if fd >= max {
            return;
        }
        if let Some(file) = at_address::<u64>(fds + 8 * u64::from(fd))
            && file != 0
            && let Some(entry) = LISTENING.get_ptr_mut(file)
            && !with(file, entry)
        {
            return;
        }
        fd += 1;
    }
}
