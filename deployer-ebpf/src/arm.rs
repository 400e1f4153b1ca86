//! Sockets that have listened since before the programs were attached, or their worker was entered: found by an iterator
//! over all TCP sockets, they are counted, and report their close like any other (6.12 and later; before that, user space
//! notices by itself).

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_getsockopt, bpf_setsockopt};
use deployer_common::endpoint::{Endpoint, MAPPED};

use crate::{
    fields::{
        OFF_NET_COOKIE, OFF_SK_ADDR4, OFF_SK_ADDR6, OFF_SK_FAMILY, OFF_SK_NET, OFF_SK_NUM, OFF_SK_STATE, address_of,
        read,
    },
    listeners::{self, TCP_LISTEN},
    maps::LISTENERS,
};

const SOL_TCP: i32 = 6;
/// `include/uapi/linux/bpf.h`
const TCP_BPF_SOCK_OPS_CB_FLAGS: i32 = 1008;
const BPF_SOCK_OPS_STATE_CB_FLAG: i32 = 4;
const AF_INET6: u16 = 10;

/// `struct bpf_iter__tcp`
#[repr(C)]
pub struct Context {
    meta: *const c_void,
    sk: *mut c_void,
    uid: u32,
}

/// Runs once a socket, which is locked, and once at the end without one.
///
/// # Safety
/// For the kernel to call.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub unsafe extern "C" fn arm(ctx: *mut Context) -> i32 {
    // SAFETY: the kernel hands every program of this type a valid context.
    let sk = unsafe { (*ctx).sk };
    if sk.is_null() {
        return 0;
    }
    let address = address_of(sk);
    if read::<u8>(address, &OFF_SK_STATE) != Some(TCP_LISTEN) {
        return 0;
    }
    // SAFETY: user space never removes an entry while a program that found it may run.
    let worker = local(address).and_then(|local| unsafe { LISTENERS.get(local) }.copied());
    listeners::uncounted(sk, worker);
    if let Some(worker) = worker
        && report_state(sk)
    {
        listeners::counted(sk, address, worker);
    }
    0
}

/// Has the socket report its changes of state; other programs' flags stay.
#[inline(always)]
fn report_state(sk: *mut c_void) -> bool {
    let mut flags = 0_i32;
    let (at, len) = ((&raw mut flags).cast(), size_of::<i32>() as i32);
    // SAFETY: a socket that the iterator has locked, and a value of the length given.
    let known = unsafe { bpf_getsockopt(sk, SOL_TCP, TCP_BPF_SOCK_OPS_CB_FLAGS, at, len) };
    if known < 0 {
        flags = 0;
    }
    flags |= BPF_SOCK_OPS_STATE_CB_FLAG;
    // SAFETY: as above.
    unsafe { bpf_setsockopt(sk, SOL_TCP, TCP_BPF_SOCK_OPS_CB_FLAGS, (&raw mut flags).cast(), len) == 0 }
}

#[inline(always)]
fn local(sk: u64) -> Option<Endpoint> {
    let netns = read(read(sk, &OFF_SK_NET)?, &OFF_NET_COOKIE)?;
    let port = u32::from(read::<u16>(sk, &OFF_SK_NUM)?);
    if read::<u16>(sk, &OFF_SK_FAMILY)? != AF_INET6 {
        return Some(Endpoint::v4(netns, read(sk, &OFF_SK_ADDR4)?, port));
    }
    let addr: [u32; 4] = read(sk, &OFF_SK_ADDR6)?;
    Some(if addr[2] == MAPPED { Endpoint::v4(netns, addr[3], port) } else { Endpoint::v6(netns, addr, port) })
}
