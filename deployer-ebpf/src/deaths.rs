//! Processes that are being killed. The kernel goes on accepting connections for them until their files are closed, which
//! comes after their memory has been given back: 5 ms for a process of 50 MB, 42 ms for one of 500 MB (6.18). So a worker
//! is down as soon as it is certain that nobody will accept from its sockets any more: everybody who has them open is
//! being killed.
//!
//! Nothing is remembered of processes. An open file knows how many hold it; those of them that are being killed and have
//! not closed it yet are counted on the spot, among the relatives of the process: a server that forks has one socket open
//! in all of them, under the same number. Whoever cannot be counted is taken to live, and the socket's close tells later.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::{helpers::generated::bpf_loop, macros::btf_tracepoint, programs::BtfTracePointContext};
use deployer_common::layout::EVENT_KILLED;

use crate::{
    atomic,
    fields::{
        OFF_FDT_FD, OFF_FDT_MAX, OFF_FILE_COUNT, OFF_FILE_PRIVATE, OFF_FILE_REF, OFF_FILES_FDT, OFF_SIGNAL_FLAGS,
        OFF_SIGNAL_LIVE, OFF_SK_SOCKET, OFF_SK_STATE, OFF_TASK_CHILDREN, OFF_TASK_FILES, OFF_TASK_PARENT,
        OFF_TASK_SIBLING, OFF_TASK_SIGNAL, OFF_TASK_TGID, at_address, at_or_zero, is_known, place, read, value,
    },
    listeners::{self, TCP_LISTEN},
    maps::LISTENING,
};

/// Whether relatives are counted, which takes `bpf_loop` (Linux 5.17); set before loading.
#[unsafe(no_mangle)]
static COUNTS_RELATIVES: u32 = 1;

/// `include/linux/sched/signal.h`: the whole process is to end. Set with the signal that kills it, before anybody runs.
const SIGNAL_GROUP_EXIT: u32 = 4;
/// So many descriptors of a process are looked at; a server opens its socket before anything else.
const MAX_FDS: u32 = 256;
/// So many children of a process are looked at.
const MAX_CHILDREN: u32 = 64;

/// Somebody sends a signal: `signal_generate(sig, info, task, group, result)`.
#[btf_tracepoint(function = "signal_generate")]
pub fn signalled(ctx: BtfTracePointContext) -> i32 {
    let task = ctx.arg::<*const u8>(2) as u64;
    if is_killed(task) {
        dies(task);
    }
    0
}

/// A task ends, whatever the reason: `sched_process_exit(task, …)`. Kernels of late call it before they give the memory
/// back (6.18 does), older ones afterwards.
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

#[inline(always)]
fn is_killed(task: u64) -> bool {
    let signal = read(task, &OFF_TASK_SIGNAL).unwrap_or(0);
    read::<u32>(signal, &OFF_SIGNAL_FLAGS).is_some_and(|flags| flags & SIGNAL_GROUP_EXIT != 0)
}

/// A process is certain to die. A server has one socket, as a rule, or one for each family of addresses; of more, and of a
/// second one that others have as well, their close tells.
#[inline(always)]
fn dies(task: u64) {
    let Some(pid) = read::<u32>(task, &OFF_TASK_TGID) else { return };
    let Some((max, fds)) = descriptors(task) else { return };
    let (mut first, mut second, mut number) = (0, 0, 0);
    let mut fd = 0;
    while fd < MAX_FDS {
        if fd >= max {
            break;
        }
        let file = at_or_zero::<u64>(fds + 8 * u64::from(fd));
        if file != 0 && LISTENING.get_ptr(file).is_some() {
            if first != 0 {
                second = file;
                break;
            }
            (first, number) = (file, forgotten(fd));
        }
        fd += 1;
    }
    if first != 0 {
        last(task, pid, first, number);
    }
    if second != 0 && holders(second) == Some(1) {
        over(second, pid);
    }
}

/// Whether a process that is certain to die is the last that has a listening socket open, under a number.
#[inline(always)]
fn last(task: u64, pid: u32, file: u64, number: u32) {
    // In this order: who closes is not among the relatives any more before it lets go.
    let Some(holders) = holders(file) else { return };
    // SAFETY: a static of this file; volatile, since the loader sets it.
    let counts_relatives = unsafe { (&raw const COUNTS_RELATIVES).read_volatile() } != 0;
    if holders == 1 || counts_relatives && holders <= 1 + relatives(task, file, number) {
        over(file, pid);
    }
}

/// The same number, of which the verifier does not know what it is: it would follow all that comes after once for every
/// value.
#[inline(always)]
fn forgotten(number: u32) -> u32 {
    at_address((&raw const number) as u64).unwrap_or(0)
}

/// Everybody who has a listening socket open is being killed.
#[inline(always)]
fn over(file: u64, pid: u32) {
    let Some(entry) = LISTENING.get_ptr_mut(file) else { return };
    // SAFETY: an entry of the table, and address arithmetic inside it.
    let (over, detour) = unsafe { (&raw mut (*entry).over, &raw mut (*entry).detour) };
    // SAFETY: as above.
    let (sk, worker) = unsafe { ((*entry).sk, (*entry).worker as u32) };
    // The kernel may have used the address of the file again: both must still name the same `struct socket`. Of Multipath
    // TCP the listener is a subflow, which `socket->sk` does not name; it is grafted onto the outer socket's `struct socket`.
    let socket = read::<u64>(file, &OFF_FILE_PRIVATE).unwrap_or(0);
    let is_same = socket != 0 && read::<u64>(sk, &OFF_SK_SOCKET) == Some(socket);
    if !is_same || read::<u8>(sk, &OFF_SK_STATE) != Some(TCP_LISTEN) {
        return;
    }
    if atomic::set(over) == 0 {
        let word = listeners::lost(worker, EVENT_KILLED, pid);
        // SAFETY: as above; its close is yet to come.
        unsafe { detour.write_volatile(word) };
    }
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

/// Of a process's parent, siblings and children, those that are being killed and have a file open under a number.
/// What cannot be read is 0, which is the address of no process.
#[inline(always)]
fn relatives(task: u64, file: u64, number: u32) -> u64 {
    let (parent, own) = (value::<u64>(task, &OFF_TASK_PARENT), value::<u64>(task, &OFF_TASK_SIGNAL));
    dying(parent, file, number) + children(parent, own, file, number) + children(task, own, file, number)
}

/// A walk along the children of a process.
struct Walk {
    /// The list's head, in the parent.
    head: u64,
    /// The link in the child that was counted last.
    at: u64,
    /// Where a link lies in its task.
    sibling: u64,
    /// The child whose `struct signal_struct` is here is not counted.
    but: u64,
    file: u64,
    number: u32,
    count: u64,
}

/// The same of the children of a process, but for the one whose `struct signal_struct` is at `but`.
#[inline(always)]
fn children(of: u64, but: u64, file: u64, number: u32) -> u64 {
    let (Some(head), Some(sibling)) = (place(of, &OFF_TASK_CHILDREN), place(0, &OFF_TASK_SIBLING)) else { return 0 };
    let mut walk = Walk { head, at: head, sibling, but, file, number, count: 0 };
    // A loop of the program's own would be followed turn by turn, for 90 ms at each start of a daemon.
    // SAFETY: the helper calls `turn` with the walk, which outlives it.
    unsafe { bpf_loop(MAX_CHILDREN, turn as *mut c_void, (&raw mut walk).cast(), 0) };
    walk.count
}

/// Counts the next child, if it is to be counted; 1 at the end of the list, which ends the loop.
#[inline(never)]
extern "C" fn turn(_nth: u64, walk: *mut Walk) -> u64 {
    // SAFETY: `children` hands in a pointer to its own.
    let walk = unsafe { &mut *walk };
    walk.at = at_address(walk.at).unwrap_or(walk.head);
    if walk.at == walk.head {
        return 1;
    }
    let child = walk.at - walk.sibling;
    // A process is told by what its threads share: which of them is asked about is not always the first.
    walk.count += dying(child, walk.file, walk.number) & !is_zero(value::<u64>(child, &OFF_TASK_SIGNAL) ^ walk.but);
    0
}

/// 1 if a process is being killed and has a file open under a number, else 0.
#[inline(always)]
fn dying(task: u64, file: u64, number: u32) -> u64 {
    let signal = value::<u64>(task, &OFF_TASK_SIGNAL);
    // By a signal, or by themselves to the last thread.
    let killed = u64::from(value::<u32>(signal, &OFF_SIGNAL_FLAGS) / SIGNAL_GROUP_EXIT)
        | is_zero(value::<u32>(signal, &OFF_SIGNAL_LIVE).into());
    // Before it closes its files it has none.
    let table = value::<u64>(value(task, &OFF_TASK_FILES), &OFF_FILES_FDT);
    let is_number = u64::from(number).wrapping_sub(u64::from(value::<u32>(table, &OFF_FDT_MAX))) >> 63;
    let same = is_zero(file ^ at_or_zero::<u64>(value::<u64>(table, &OFF_FDT_FD) + 8 * u64::from(number)));
    black_box(killed & is_number & same & 1)
}

/// 1 for 0, else 0, without a branch.
#[inline(always)]
fn is_zero(value: u64) -> u64 {
    black_box((value | value.wrapping_neg()) >> 63 ^ 1)
}

/// Number and place of a process's descriptors.
#[inline(always)]
fn descriptors(task: u64) -> Option<(u32, u64)> {
    let table = read(read(task, &OFF_TASK_FILES)?, &OFF_FILES_FDT)?;
    Some((read(table, &OFF_FDT_MAX)?, read(table, &OFF_FDT_FD)?))
}
