//! bind(): addresses of a protected service are for root, and for what the manager starts.
//!
//! `bind4` and `bind6` see the address that is asked for, `post_bind4` and `post_bind6` the port that the kernel has chosen
//! for `bind(port 0)`. Multipath TCP binds its first subflow, which is a TCP socket.

use core::mem::offset_of;

use aya_ebpf::{
    EbpfContext,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_get_netns_cookie,
    },
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use deployer_common::{
    endpoint::Endpoint,
    lanes::frontend_key,
    protect::{BindCount, Protected},
};

use crate::{
    address, atomic,
    maps::{BIND_COUNTS, PROTECTED},
};

const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;
const ALLOW: i32 = 1;
/// EPERM
const DENY: i32 = 0;

/// bind() of an IPv4 socket.
#[cgroup_sock_addr(bind4)]
pub fn bind4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel hands every program of this type a valid context.
    let sa: &bpf_sock_addr = unsafe { &*ctx.sock_addr };
    if !is_tcp(sa.protocol) {
        return ALLOW;
    }
    judge(&Endpoint::v4(netns(&ctx), sa.user_ip4, address::port(sa)))
}

/// bind() of an IPv6 socket, also to an IPv4 address in mapped form.
#[cgroup_sock_addr(bind6)]
pub fn bind6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel hands every program of this type a valid context.
    let sa: &bpf_sock_addr = unsafe { &*ctx.sock_addr };
    if !is_tcp(sa.protocol) {
        return ALLOW;
    }
    judge(&Endpoint::v6(netns(&ctx), address::ip6(sa), address::port(sa)))
}

/// An IPv4 socket has got its port.
#[cgroup_sock(post_bind4)]
pub fn post_bind4(ctx: SockContext) -> i32 {
    // SAFETY: the kernel hands every program of this type a valid context.
    let sock: &bpf_sock = unsafe { &*ctx.as_ptr().cast() };
    if !is_tcp(sock.protocol) {
        return ALLOW;
    }
    judge(&Endpoint::v4(netns(&ctx), sock.src_ip4, sock.src_port))
}

/// An IPv6 socket has got its port.
#[cgroup_sock(post_bind6)]
pub fn post_bind6(ctx: SockContext) -> i32 {
    // SAFETY: the kernel hands every program of this type a valid context.
    let sock: &bpf_sock = unsafe { &*ctx.as_ptr().cast() };
    if !is_tcp(sock.protocol) {
        return ALLOW;
    }
    // SAFETY: a field of a live reference; volatile, since the verifier allows reads of these words one by one only.
    let addr = core::array::from_fn(|nth| unsafe { (&raw const sock.src_ip6[nth]).read_volatile() });
    judge(&Endpoint::v6(netns(&ctx), addr, sock.src_port))
}

#[inline(always)]
fn is_tcp(protocol: u32) -> bool {
    matches!(protocol, IPPROTO_TCP | IPPROTO_MPTCP)
}

#[inline(always)]
fn netns(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: a valid context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// Looks the address up, decides, and counts what is refused. All lane addresses of a port are one entry.
#[inline(always)]
fn judge(at: &Endpoint) -> i32 {
    // SAFETY: a copy is made at once.
    let Some(protected) = (unsafe { PROTECTED.get(frontend_key(at)) }).copied() else { return ALLOW };
    let uid = bpf_get_current_uid_gid() as u32;
    if protected.admits(uid, is_inside) {
        return ALLOW;
    }
    refused(protected.service, uid, at.port);
    DENY
}

#[inline(always)]
fn is_inside(protected: &Protected) -> bool {
    // SAFETY: the helper takes any level and answers 0 for one that is too deep; no cgroup has the id 0.
    protected.cgroup == unsafe { bpf_get_current_ancestor_cgroup_id(protected.level as i32) }
}

#[inline(always)]
fn refused(service: u32, uid: u32, port: u32) {
    let Some(count) = BIND_COUNTS.get_ptr_mut(service) else { return };
    let pid = bpf_get_current_pid_tgid() >> 32;
    atomic::add(count.wrapping_byte_add(offset_of!(BindCount, refused)).cast(), 1);
    // SAFETY: address arithmetic inside the entry; volatile, since user space reads it at any time.
    unsafe {
        (&raw mut (*count).last).write_volatile(pid << 32 | u64::from(uid));
        (&raw mut (*count).port).write_volatile(u64::from(port));
    }
}
