//! getpeername(): the caller goes on seeing the address it dialled.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use deployer_common::{endpoint::MAPPED, layout::SockNote};

use crate::maps::NOTES;

/// getpeername() of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel hands every program of this type a valid context.
    let sa = unsafe { &mut *ctx.sock_addr };
    if let Some(note) = steered(&ctx, [0, 0, MAPPED, sa.user_ip4], sa.user_port) {
        sa.user_ip4 = note.dialled[3];
        sa.user_port = u32::from((note.dialled_port as u16).to_be());
    }
    1
}

/// getpeername() of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel hands every program of this type a valid context.
    let sa = unsafe { &mut *ctx.sock_addr };
    let peer = [sa.user_ip6[0], sa.user_ip6[1], sa.user_ip6[2], sa.user_ip6[3]];
    if let Some(note) = steered(&ctx, peer, sa.user_port) {
        sa.user_ip6[0] = note.dialled[0];
        sa.user_ip6[1] = note.dialled[1];
        sa.user_ip6[2] = note.dialled[2];
        sa.user_ip6[3] = note.dialled[3];
        sa.user_port = u32::from((note.dialled_port as u16).to_be());
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
        && note.target_port == u32::from(u16::from_be(port as u16));
    (same && note.dialled_port != 0).then_some(*note)
}
