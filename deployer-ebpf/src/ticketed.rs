//! Which processes hold tickets: an iterator over all open files, run while a ticket holds a drain.
//!
//! It also says of each ticket whether it still means something. connect() holds the socket's lock from the hook to its end,
//! and the hook writes the ticket. So a ticket on a socket that is not locked is one of a connect() that has ended. If that
//! had sent its SYN, the ticket would be back. If it had put the SYN off until the first write (TCP_FASTOPEN_CONNECT), the
//! socket would be connecting. A socket that is neither connecting nor connected has failed to connect.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::seq_file,
    helpers::generated::{bpf_seq_write, bpf_sock_from_file},
};
use deployer_common::layout::TicketHolder;

use crate::{
    atomic,
    fields::{OFF_SK_OWNED, OFF_SK_STATE, OFF_SOCKET_SK, OFF_SOCKET_STATE, OFF_TASK_TGID, address_of, read},
    notes,
};

/// `include/net/tcp_states.h`
const TCP_CLOSE: u8 = 7;
/// `include/uapi/linux/net.h`
const SS_UNCONNECTED: u32 = 1;

/// `struct bpf_iter_meta`
#[repr(C)]
struct Meta {
    seq: *mut seq_file,
}

/// `struct bpf_iter__task_file`
#[repr(C)]
pub struct Context {
    meta: *const Meta,
    task: *mut c_void,
    fd: u64,
    file: *mut c_void,
}

/// Runs once a descriptor of a process, and once at the end without one.
///
/// # Safety
/// For the kernel to call.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub unsafe extern "C" fn ticketed(ctx: *mut Context) -> i32 {
    // SAFETY: the kernel hands every program of this type a valid context.
    let (task, file) = unsafe { ((*ctx).task, (*ctx).file) };
    if task.is_null() || file.is_null() {
        return 0;
    }
    // SAFETY: an open file.
    let socket: *mut c_void = unsafe { bpf_sock_from_file(file.cast()) }.cast();
    if socket.is_null() {
        return 0;
    }
    // SAFETY: the static is the loader's; volatile, since the loader changes it behind the compiler's back.
    let offset = unsafe { (&raw const OFF_SOCKET_SK).read_volatile() } as usize;
    // SAFETY: a member of the socket, which the verifier knows at this offset.
    let sk = unsafe { socket.byte_add(offset).cast::<*mut c_void>().read() };
    if sk.is_null() {
        return 0;
    }
    // Of Multipath TCP this is the outer socket, which has the note.
    let note = notes::of(sk, core::ptr::null_mut());
    // SAFETY: null, or a SockNote that lives as long as the socket, which the open file holds.
    let Some(note) = (unsafe { note.as_ref() }) else { return 0 };
    if note.ticket == 0 {
        return 0;
    }
    let (ticket, outsider) = (note.ticket, u32::from(note.is_outsiders()));
    // Orders the reads: the ticket first, then whether the socket is locked.
    let mut nothing = 0;
    atomic::fetch_add(&raw mut nothing, 0);
    let (sk, socket) = (address_of(sk), address_of(socket));
    let is_failed = read::<u32>(sk, &OFF_SK_OWNED) == Some(0)
        && read::<u8>(sk, &OFF_SK_STATE) == Some(TCP_CLOSE)
        && read::<u32>(socket, &OFF_SOCKET_STATE) == Some(SS_UNCONNECTED);
    let pid = read(address_of(task), &OFF_TASK_TGID).unwrap_or(0);
    let holder = TicketHolder { sk, pid, worker: ticket - 1, outsider, stale: u32::from(is_failed) };
    // SAFETY: the iterator's own file, and a whole record.
    unsafe { bpf_seq_write((*(*ctx).meta).seq, (&raw const holder).cast(), size_of::<TicketHolder>() as u32) };
    0
}
