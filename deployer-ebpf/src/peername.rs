//! getpeername(): the caller goes on seeing the address it dialled.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use deployer_common::{endpoint::MAPPED, layout::SockNote};

use crate::{address, maps::NOTES};

/// getpeername() of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel hands every program of this type a valid context.
    let sa = unsafe { &mut *ctx.sock_addr };
    if let Some(note) = steered(&ctx, [0, 0, MAPPED, sa.user_ip4], address::port(sa)) {
        sa.user_ip4 = note.dialled[3];
        address::set_port(sa, note.dialled_port);
    }
    1
}

/// getpeername() of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel hands every program of this type a valid context.
    let sa = unsafe { &mut *ctx.sock_addr };
    let peer = address::ip6(sa);
    if let Some(note) = steered(&ctx, peer, address::port(sa)) {
        address::set_ip6(sa, note.dialled);
        address::set_port(sa, note.dialled_port);
    }
    1
}

/// The note of a socket whose peer is the very one it was steered to. The hook also runs inside accept(), and for sockets
/// that have since been connected elsewhere: those show what they have.
#[inline(always)]
fn steered(ctx: &SockAddrContext, peer: [u32; 4], port: u32) -> Option<SockNote> {
    // SAFETY: the context is valid.
    let note = unsafe { NOTES.get_ptr_mut(ctx) };
    if note.is_null() {
        return None;
    }
    // SAFETY: the kernel gave a pointer to a SockNote that lives as long as the socket.
    let note = unsafe { &*note };
    let same = note.target[0] == peer[0]
        && note.target[1] == peer[1]
        && note.target[2] == peer[2]
        && note.target[3] == peer[3]
        && u32::from(note.target_port) == port;
    (same && note.dialled_port != 0).then_some(*note)
}
