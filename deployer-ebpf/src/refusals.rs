//! Resets that answer a segment: a SYN for a worker's address at which no socket listens, and data for a connection that
//! the worker's end has closed already. Resets of connections that are open are seen by their change of state (`sockets`).
//!
//! `tcp_send_reset(sk, skb, ...)`: from Linux 6.10 on for every reset; before that only for those of whole sockets.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use deployer_common::endpoint::{Endpoint, MAPPED};

use crate::{
    ends,
    fields::{
        OFF_DEV_NET, OFF_NET_COOKIE, OFF_SK_NET, OFF_SKB_DEV, OFF_SKB_HEAD, OFF_SKB_NETWORK, OFF_SKB_TRANSPORT,
        at_address, read,
    },
    maps::LISTENERS,
};

/// Flags of a TCP header (RFC 9293), and where they stand.
const SYN: u8 = 2;
const ACK: u8 = 16;
const FLAGS_AT: u64 = 13;
/// Where addresses stand in the headers of IPv4 (RFC 791) and IPv6 (RFC 8200).
const IP4: (u64, u64) = (12, 16);
const IP6: (u64, u64) = (8, 24);

#[btf_tracepoint(function = "tcp_send_reset")]
pub fn refusals(ctx: BtfTracePointContext) -> i32 {
    let (sk, skb) = (ctx.arg::<*const u8>(0) as u64, ctx.arg::<*const u8>(1) as u64);
    // Without a segment it is one of a connection that was open.
    if skb != 0
        && let Some(segment) = segment(sk, skb)
    {
        answered(sk, &segment);
    }
    0
}

struct Segment {
    to: Endpoint,
    from: Endpoint,
    flags: u8,
}

#[inline(always)]
fn answered(sk: u64, segment: &Segment) {
    // SAFETY: user space never removes an entry while a program that found it may run.
    let Some(worker) = (unsafe { LISTENERS.get(&segment.to) }.copied()) else { return };
    if ends::is_local(&segment.to, &segment.from) && ends::is_own(segment.from.port) {
        return;
    }
    if segment.flags & (SYN | ACK) != SYN {
        ends::reset(worker, &segment.from);
    } else if sk == 0 {
        ends::refused(worker, &segment.from);
    }
}

#[inline(always)]
fn segment(sk: u64, skb: u64) -> Option<Segment> {
    // A segment that has found its socket has no device any more.
    let net = if sk == 0 { read::<u64>(read(skb, &OFF_SKB_DEV)?, &OFF_DEV_NET)? } else { read(sk, &OFF_SK_NET)? };
    let netns = read::<u64>(net, &OFF_NET_COOKIE)?;
    let head = read::<u64>(skb, &OFF_SKB_HEAD)?;
    let ip = head + u64::from(read::<u16>(skb, &OFF_SKB_NETWORK)?);
    let tcp = head + u64::from(read::<u16>(skb, &OFF_SKB_TRANSPORT)?);
    let ports: [u16; 2] = at_address(tcp)?;
    let (from, to) = (u32::from(u16::from_be(ports[0])), u32::from(u16::from_be(ports[1])));
    let flags = at_address(tcp + FLAGS_AT)?;
    let is_ip4 = at_address::<u8>(ip)? >> 4 == 4;
    let (source, destination) =
        if is_ip4 { (ip4(ip + IP4.0)?, ip4(ip + IP4.1)?) } else { (ip6(ip + IP6.0)?, ip6(ip + IP6.1)?) };
    Some(Segment { to: Endpoint::v6(netns, destination, to), from: Endpoint::v6(0, source, from), flags })
}

#[inline(always)]
fn ip4(at: u64) -> Option<[u32; 4]> {
    Some([0, 0, MAPPED, at_address(at)?])
}

#[inline(always)]
fn ip6(at: u64) -> Option<[u32; 4]> {
    at_address(at)
}
