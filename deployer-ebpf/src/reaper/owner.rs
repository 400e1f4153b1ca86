//! Whether the owner of a connection sleeps in `epoll_wait` with nothing to see, and will see the error there before it
//! does anything else: a process of one thread that watches the socket for input, and has it for itself.
//!
//! Not told by process ids but by what the kernel itself follows to wake the owner, from the socket to the task. All of it
//! may change while it is read, but only by the owner's hand, which is awake then; so the task's state is read last. Who
//! wakes after that and writes has to wait for the socket's lock.

use deployer_common::reap::{AWAKE, NOT_POLLED, SHARED, THREADS};

use crate::{
    WAKER,
    fields::{
        OFF_FDT_FD, OFF_FDT_MAX, OFF_FILE_COUNT, OFF_FILE_REF, OFF_FILES_FDT, OFF_FILES_USERS, OFF_ITEM_EVENTS,
        OFF_ITEM_FD, OFF_ITEM_FILE, OFF_ITEM_POLL, OFF_POLL_OVERFLOW, OFF_POLL_READY, OFF_POLL_WAITERS,
        OFF_POLLED_ITEM, OFF_POLLED_WAITER, OFF_SIGNAL_THREADS, OFF_SK_SOCKET, OFF_SK_WAITERS, OFF_SOCKET_FILE,
        OFF_TASK_FILES, OFF_TASK_SIGNAL, OFF_TASK_STATE, OFF_WAITER_FUNC, OFF_WAITER_NEXT, OFF_WAITER_TASK,
        OFF_WAITERS_HEAD, at_or_zero, is_known, place, value,
    },
};

/// `include/uapi/linux/eventpoll.h`; errors are told to whoever waits for anything.
const EPOLLIN: u32 = 1;
/// `EP_UNACTIVE_PTR` (fs/eventpoll.c): nobody is carrying events out just now.
const INACTIVE: u64 = u64::MAX;
/// `include/linux/sched.h`
const TASK_INTERRUPTIBLE: u32 = 1;

/// The reason why not.
#[inline(always)]
pub fn check(sk: u64) -> Result<(), u32> {
    let waiter = only(waiters(sk));
    let func = value::<u64>(waiter, &OFF_WAITER_FUNC);
    let known = WAKER.get(0).copied().unwrap_or(0);
    if waiter == 0 || func == 0 || func != known {
        return Err(NOT_POLLED);
    }
    // The waiter is a member of a `struct eppoll_entry`.
    let entry = waiter.wrapping_sub(place(0, &OFF_POLLED_WAITER).unwrap_or(0));
    let item = value::<u64>(entry, &OFF_POLLED_ITEM);
    let poll = value::<u64>(item, &OFF_ITEM_POLL);
    if item == 0 || poll == 0 || value::<u32>(item, &OFF_ITEM_EVENTS) & EPOLLIN == 0 {
        return Err(NOT_POLLED);
    }
    let file = value::<u64>(value(sk, &OFF_SK_SOCKET), &OFF_SOCKET_FILE);
    if file == 0 || !is_only_one(file) {
        return Err(SHARED);
    }
    let sleeper = value::<u64>(only(place(poll, &OFF_POLL_WAITERS).unwrap_or(0)), &OFF_WAITER_TASK);
    if sleeper == 0 || !nothing_to_see(poll) {
        return Err(AWAKE);
    }
    if value::<u32>(value(sleeper, &OFF_TASK_SIGNAL), &OFF_SIGNAL_THREADS) != 1 {
        return Err(THREADS);
    }
    if !has_for_itself(sleeper, item, file) {
        return Err(SHARED);
    }
    // Last: see above.
    if value::<u32>(sleeper, &OFF_TASK_STATE) != TASK_INTERRUPTIBLE || !nothing_to_see(poll) {
        return Err(AWAKE);
    }
    Ok(())
}

/// The function by which who waits for a socket is woken, if there is only one; else 0.
#[inline(always)]
pub fn waker(sk: u64) -> u64 {
    let waiter = only(waiters(sk));
    if waiter == 0 { 0 } else { value(waiter, &OFF_WAITER_FUNC) }
}

/// The queue (`struct wait_queue_head`) of those who wait for a socket.
#[inline(always)]
fn waiters(sk: u64) -> u64 {
    // `struct socket_wq` begins with it.
    value(sk, &OFF_SK_WAITERS)
}

/// The one entry (`struct wait_queue_entry`) of a queue; 0: there is none, or there are several.
#[inline(always)]
fn only(queue: u64) -> u64 {
    if queue == 0 {
        return 0;
    }
    let head = place(queue, &OFF_WAITERS_HEAD).unwrap_or(0);
    let first = at_or_zero::<u64>(head);
    if first == 0 || first == head || at_or_zero::<u64>(first) != head {
        return 0;
    }
    first.wrapping_sub(place(0, &OFF_WAITER_NEXT).unwrap_or(0))
}

/// Whether an event poll has no event that somebody could fetch.
#[inline(always)]
fn nothing_to_see(poll: u64) -> bool {
    let ready = place(poll, &OFF_POLL_READY).unwrap_or(0);
    at_or_zero::<u64>(ready) == ready && value::<u64>(poll, &OFF_POLL_OVERFLOW) == INACTIVE
}

/// Whether an open file has one reference: one descriptor of one process, and no call in which it is used.
#[inline(always)]
fn is_only_one(file: u64) -> bool {
    // 6.13 and later count from 0 (`file_ref_t`), older kernels from 1.
    if is_known(&OFF_FILE_REF) {
        return value::<u64>(file, &OFF_FILE_REF) == 0;
    }
    value::<u64>(file, &OFF_FILE_COUNT) == 1
}

/// Whether a file is the task's, under the number that it is watched by, and its descriptors are no other process's.
#[inline(always)]
fn has_for_itself(task: u64, item: u64, file: u64) -> bool {
    let files = value::<u64>(task, &OFF_TASK_FILES);
    let table = value::<u64>(files, &OFF_FILES_FDT);
    let number = value::<u32>(item, &OFF_ITEM_FD);
    let place = value::<u64>(table, &OFF_FDT_FD).wrapping_add(8 * u64::from(number));
    files != 0
        && value::<u32>(files, &OFF_FILES_USERS) == 1
        && value::<u64>(item, &OFF_ITEM_FILE) == file
        && number < value::<u32>(table, &OFF_FDT_MAX)
        && at_or_zero::<u64>(place) == file
}
