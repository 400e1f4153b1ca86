//! The sockets on which workers listen. A worker is cold when the first of them begins to listen, and down when the last
//! is closed, or everybody who has it open is being killed (`deaths`).

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_SK_STORAGE_GET_F_CREATE},
    helpers::{bpf_get_current_task, bpf_ktime_get_ns, generated::bpf_sk_storage_get},
};
use deployer_common::{
    endpoint::Endpoint,
    layout::{
        EVENT_CLOSED, EVENT_KILLED, EVENT_LISTENS, Event, ListenerNote, Listening, MAX_SERVICES, WorkerCount,
        WorkerEvidence, WorkerLife,
    },
    word::{LimitsWord, State, WorkerWord},
};

use crate::{
    atomic, count,
    fields::{OFF_SK_SOCKET, OFF_SOCKET_FILE, OFF_TASK_TGID, read},
    maps::{EVENTS, LIMITS, LISTENER_NOTES, LISTENERS, LISTENING, WORKER_ADDRS, WORKER_COUNTS},
};

/// `include/net/tcp_states.h`
pub const TCP_LISTEN: u8 = 10;
/// How long a worker is out of rotation at most, of whose processes one is being killed while others listen on.
const DETOUR_MS: u64 = 1000;
/// One bit a state: those in which a worker has a process that serves, or may.
const ALIVE: u32 = 1 << State::Up as u32 | 1 << State::Draining as u32 | 1 << State::Cold as u32;

/// A socket of a worker listens: it is counted, once. Returns whether it is the first.
///
/// `sk` is what the helper for socket storage takes in this program, `address` that of the same socket.
#[inline(always)]
pub fn counted(sk: *mut c_void, address: u64, worker: u32) -> bool {
    let mut blank = ListenerNote::default();
    let Some(note) = note(sk, &raw mut blank) else {
        count::evidence(worker, 1, offset_of!(WorkerEvidence, unlisted));
        return false;
    };
    if note.worker == u64::from(worker) + 1 {
        return false;
    }
    let socket = read::<u64>(address, &OFF_SK_SOCKET).unwrap_or(0);
    let file = read::<u64>(socket, &OFF_SOCKET_FILE).unwrap_or(0);
    *note = ListenerNote { file, worker: u64::from(worker) + 1 };
    if file != 0 {
        let entry = Listening { sk: address, worker: u64::from(worker), ..Listening::default() };
        // Where the table is full, the socket's close is seen all the same.
        if LISTENING.insert(file, entry, u64::from(BPF_ANY)).is_err() {
            count::evidence(worker, 1, offset_of!(WorkerEvidence, unlisted));
        }
    }
    count::life(worker, offset_of!(WorkerLife, listened));
    count::listeners(worker, 1) == Some(0)
}

/// A socket that listens is `wanted`'s, or nobody's: if it was counted for another worker, it is no longer.
#[inline(always)]
pub fn uncounted(sk: *mut c_void, wanted: Option<u32>) {
    let Some(note) = note(sk, core::ptr::null_mut()) else { return };
    if note.worker == 0 || Some(note.worker - 1) == wanted.map(u64::from) {
        return;
    }
    let (file, worker) = (note.file, (note.worker - 1) as u32);
    *note = ListenerNote::default();
    // SAFETY: an entry of the table, and address arithmetic inside it.
    let over = LISTENING.get_ptr_mut(file).map_or(0, |entry| atomic::set(unsafe { &raw mut (*entry).over }));
    let _ = LISTENING.remove(file);
    if over == 0 {
        count::listeners(worker, -1);
    }
}

/// A worker that was down listens: it is cold until somebody has warmed it, or its quarantine is over.
#[inline(always)]
pub fn first(worker: u32) {
    let now = now_ms();
    if atomic::turn(worker, 1 << State::Down as u32, State::Cold, now, now + cold_limit_ms(worker)).is_some() {
        tell(worker, EVENT_LISTENS, current());
    }
}

/// A listening socket is closed; `local` is where it listened.
#[inline(always)]
pub fn closed(sk: *mut c_void, local: Endpoint) {
    let Some(note) = note(sk, core::ptr::null_mut()) else { return };
    let (file, worker) = (note.file, note.worker);
    *note = ListenerNote::default();
    if worker == 0 {
        return;
    }
    let worker = (worker - 1) as u32;
    let (mut over, mut detour) = (0, 0);
    if let Some(entry) = LISTENING.get_ptr_mut(file) {
        // SAFETY: an entry of the table, and address arithmetic inside it.
        over = atomic::set(unsafe { &raw mut (*entry).over });
        // SAFETY: as above.
        detour = unsafe { (&raw const (*entry).detour).read_volatile() };
        let _ = LISTENING.remove(file);
    }
    // SAFETY: user space never removes an entry while a program that found it may run. One that names another worker
    // says that this one was taken out of the configuration meanwhile.
    if unsafe { LISTENERS.get(local) }.copied() != Some(worker) {
        return;
    }
    if over == 0 {
        lost(worker, EVENT_CLOSED, current());
    } else if detour != 0 {
        atomic::turn_back(worker, WorkerWord(detour), State::Up);
    } else {
        // Its end has been told, and now is over.
        tell(worker, EVENT_CLOSED, current());
    }
}

/// A worker has one socket less that listens. Returns the word of a detour around it, if there must be one: others
/// listen on, but what now arrives may still be given to the one that is going.
#[inline(always)]
pub fn lost(worker: u32, why: u32, pid: u32) -> u64 {
    let (before, now) = (count::listeners(worker, -1), now_ms());
    if before == Some(1) {
        if atomic::turn(worker, ALIVE, State::Down, now, 0).is_some() {
            count::life(worker, offset_of!(WorkerLife, ended));
            tell(worker, why, pid);
        }
    } else if why == EVENT_KILLED
        && before.is_some()
        && let Some(word) = atomic::turn(worker, 1 << State::Up as u32, State::Draining, now, now + DETOUR_MS)
    {
        return word.0;
    }
    0
}

/// The note of a listening socket; made from `blank` where there is none, unless that is null.
#[inline(always)]
fn note<'a>(sk: *mut c_void, blank: *mut ListenerNote) -> Option<&'a mut ListenerNote> {
    let flags = if blank.is_null() { 0 } else { u64::from(BPF_SK_STORAGE_GET_F_CREATE) };
    // SAFETY: the caller's `sk` is a socket, `blank` is null or a whole ListenerNote; the map is ours.
    let note = unsafe { bpf_sk_storage_get((&raw const LISTENER_NOTES).cast_mut().cast(), sk, blank.cast(), flags) };
    // SAFETY: null, or a ListenerNote that lives as long as the socket, whose lock is held.
    unsafe { note.cast::<ListenerNote>().as_mut() }
}

#[inline(always)]
fn cold_limit_ms(worker: u32) -> u64 {
    let (Some(addr), Some(limits)) = (WORKER_ADDRS.get(worker), LIMITS.get_ptr(0)) else { return 0 };
    let service = addr.service as usize & (MAX_SERVICES - 1);
    // SAFETY: inside the array by the mask; volatile, since user space writes these words at any time.
    LimitsWord(unsafe { (&raw const (*limits).services).cast::<u64>().add(service).read_volatile() }).cold_limit_ms()
}

/// Tells the daemon, with the number of connections that are open.
#[inline(always)]
fn tell(worker: u32, kind: u32, pid: u32) {
    let count: *const WorkerCount = WORKER_COUNTS.get_ptr(worker).unwrap_or(core::ptr::null());
    let open = if count.is_null() {
        0
    } else {
        // SAFETY: an entry of an array map; volatile, since other programs add to it.
        unsafe { (&raw const (*count).open).read_volatile() }
    };
    send(Event { at_ns: now_ns(), kind, worker, pid, value: open, ..Event::default() });
}

/// Sends an event; one for which there is no room is dropped, and counted.
#[inline(always)]
pub fn send(event: Event) {
    if EVENTS.output(event, 0).is_err() {
        count::evidence(event.worker, 1, offset_of!(WorkerEvidence, untold));
    }
}

/// The current process, as the machine's own pid namespace numbers it.
#[inline(always)]
pub fn current() -> u32 {
    // SAFETY: no arguments; the result is only ever read through bpf_probe_read_kernel.
    read(unsafe { bpf_get_current_task() }, &OFF_TASK_TGID).unwrap_or(0)
}

/// `CLOCK_MONOTONIC` in nanoseconds.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn now_ms() -> u64 {
    now_ns() / 1_000_000
}
