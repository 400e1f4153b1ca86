//! Functions of the kernel that are no helpers: the loader writes the function's BTF id over the marker of a call, since
//! neither Rust nor aya has a relocation for it.

use core::{arch::asm, ffi::c_void};

use deployer_common::reap::{MARK_DESTROY, MARK_HOLD, MARK_RELEASE, REFUSED};

/// A call by its marker; all registers that a call clobbers are named.
macro_rules! call {
    ($mark:ident, $argument:expr) => {{
        let result: u64;
        asm!(
            "call {mark}",
            mark = const $mark,
            inlateout("r1") $argument => _,
            lateout("r0") result,
            lateout("r2") _,
            lateout("r3") _,
            lateout("r4") _,
            lateout("r5") _,
        );
        result
    }};
}

/// Closes a socket that the iterator has locked: its owner sees ECONNABORTED, the other end a reset. From 6.5
/// (`bpf_sock_destroy`, net/core/filter.c).
#[inline(always)]
pub fn destroy(sk: *mut c_void) -> Result<(), u32> {
    // SAFETY: the socket of the context.
    let result = unsafe { call!(MARK_DESTROY, sk) };
    if result as u32 == 0 { Ok(()) } else { Err(REFUSED) }
}

/// Does something that no other task of this processor comes between, where the kernel has such a thing (6.10,
/// `bpf_preempt_disable`).
#[inline(always)]
pub fn undisturbed<T>(action: impl FnOnce() -> T) -> T {
    // SAFETY: takes nothing; the two always come in pairs.
    unsafe { call!(MARK_HOLD, 0_u64) };
    let result = action();
    // SAFETY: as above.
    unsafe { call!(MARK_RELEASE, 0_u64) };
    result
}
