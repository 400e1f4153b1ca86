//! The reaper: closes kept-alive connections that the daemon aims at, from the caller's side, while nobody can notice.
//!
//! `iter/tcp` holds the socket's lock: nothing is sent, received or acknowledged meanwhile. What is checked under it is
//! whether the ground holds (`ground`), and whether the owner is asleep and will see the error before it writes the next
//! request (`owner`): then it takes the connection for one that the server has closed, and dials anew.
#![no_std]
#![no_main]
// The BPF back end's `asm!`, for calls of kernel functions.
#![feature(asm_experimental_arch)]

mod ends;
mod fields;
mod ground;
mod kfunc;
mod owner;

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, seq_file},
    btf_maps::{Array, HashMap},
    helpers::generated::bpf_seq_write,
    macros::btf_map,
};
use deployer_common::reap::{CLOSED, Ends, GROUND_LEARN, LEARNT, MAX_TARGETS, Record, Target, UNREADABLE};

use crate::fields::{OFF_SK_STATE, address_of, value};

/// `include/net/tcp_states.h`
const TCP_ESTABLISHED: u8 = 1;
const TCP_TIME_WAIT: u8 = 6;
const TCP_LISTEN: u8 = 10;
const TCP_NEW_SYN_RECV: u8 = 12;

/// What is aimed at.
#[btf_map]
static TARGETS: HashMap<Ends, Target, MAX_TARGETS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// The function by which the kernel wakes who waits in `epoll_wait`; one entry.
#[btf_map]
static WAKER: Array<u64, 1> = Array::new();

/// `struct bpf_iter_meta`
#[repr(C)]
struct Meta {
    seq: *mut seq_file,
}

/// `struct bpf_iter__tcp`
#[repr(C)]
pub struct Context {
    meta: *const Meta,
    sk: *mut c_void,
    uid: u32,
}

/// Runs once a socket, which is locked, and once at the end without one.
///
/// # Safety
/// For the kernel to call.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub unsafe extern "C" fn reap(ctx: *mut Context) -> i32 {
    // SAFETY: the kernel hands every program of this type a valid context.
    let (seq, sk) = unsafe { ((*(*ctx).meta).seq, (*ctx).sk) };
    if sk.is_null() {
        return 0;
    }
    let address = address_of(sk);
    let state = value::<u8>(address, &OFF_SK_STATE);
    // These have no ends to speak of, or none that anybody owns.
    if matches!(state, TCP_TIME_WAIT | TCP_LISTEN | TCP_NEW_SYN_RECV) {
        return 0;
    }
    let ends = ends::of(address);
    // SAFETY: what is read may be half of one entry and half of another; that is what the seal is for.
    let Some(target) = unsafe { TARGETS.get(ends) }.copied() else { return 0 };
    let say = |outcome: u32, detail: u64| write(seq, &Record { ends, outcome, zero: 0, detail });
    if !target.is_of(&ends) {
        say(UNREADABLE, 0);
    } else if target.kind == GROUND_LEARN {
        say(LEARNT, owner::waker(address));
    } else if let Err(why) = ground::check(address, &target, state == TCP_ESTABLISHED) {
        say(why, 0);
    } else if say(CLOSED, 0) {
        // Said before it is done: where there was no room to say it, the kernel comes again with the same socket.
        if let Err(why) = kfunc::undisturbed(|| owner::check(address).and_then(|()| kfunc::destroy(sk))) {
            say(why, 0);
        }
    }
    0
}

/// Writes what user space reads from the iterator. `false`: there is no room.
#[inline(always)]
fn write(seq: *mut seq_file, record: &Record) -> bool {
    // SAFETY: the iterator's own file, and a whole record.
    unsafe { bpf_seq_write(seq, (&raw const *record).cast(), size_of::<Record>() as u32) == 0 }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Unreachable: the verifier admits no program that could get here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
