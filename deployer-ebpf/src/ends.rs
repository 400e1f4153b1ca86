//! A connection at the worker's end, where every peer is seen: those on other hosts and in other network namespaces, too.

use core::mem::offset_of;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use deployer_common::{
    endpoint::{Endpoint, MAPPED},
    layout::{OWN_PORT_WORDS, OwnPorts, SockNote, WorkerCount, WorkerEnd, WorkerProof},
    word::State,
};

use crate::{
    atomic, count,
    listeners::now_ns,
    maps::{OWN_PORTS, RESETS, WORKER_ADDRS},
    unsteered,
};

/// For so long a reset of the same pair of ends is the same: data that was on its way is reset as well.
const SAME_RESET_NS: u64 = 10_000_000_000;
/// For so long a refusal of the same pair of ends is the same, seen by the programs of two daemons in an upgrade.
const SAME_REFUSAL_NS: u64 = 100_000_000;
const EEXIST: i32 = 17;
/// `::1`, network byte order.
const LOOPBACK6: [u32; 4] = [0, 0, 0, 1_u32.to_be()];

/// A worker's end of a connection is established: should the worker have got it?
#[inline(always)]
pub fn judge(worker: u32, here: &Endpoint, peer: &Endpoint, note: &mut SockNote) {
    let is_local = is_local(here, peer);
    if is_local && is_own(peer.port) {
        return note.set_own();
    }
    count::worker(worker, 1, offset_of!(WorkerCount, established));
    if let Some(word) = atomic::word(worker) {
        let now_ms = now_ns() / 1_000_000;
        if word.is_sealed(now_ms) {
            count::proof(worker, offset_of!(WorkerProof, late));
        }
        if word.at(now_ms) == State::Cold {
            count::proof(worker, offset_of!(WorkerProof, cold));
        }
    }
    if !is_local && let Some(at) = WORKER_ADDRS.get(worker) {
        unsteered::peer(at.service, &peer.addr);
    }
}

/// A worker's end has reset a connection of a peer. Counts it, once.
#[inline(always)]
pub fn reset(worker: u32, peer: &Endpoint) {
    if is_first(worker, 0, peer, SAME_RESET_NS) {
        count::proof(worker, offset_of!(WorkerProof, reset));
    }
}

/// A peer has met a worker's address at which no socket listens. Counts it, once.
#[inline(always)]
pub fn refused(worker: u32, peer: &Endpoint) {
    if is_first(worker, 1, peer, SAME_REFUSAL_NS) {
        count::end(worker, offset_of!(WorkerEnd, refused));
    }
}

/// Whether a connection is within this host, as far as its two addresses tell.
#[inline(always)]
pub fn is_local(here: &Endpoint, peer: &Endpoint) -> bool {
    let is_loopback4 = peer.addr[2] == MAPPED && u32::from_be(peer.addr[3]) >> 24 == 127;
    is_loopback4 || peer.addr == LOOPBACK6 || peer.addr == here.addr
}

/// Whether the daemon has a connection of its own from this port.
#[inline(always)]
pub fn is_own(port: u32) -> bool {
    let Some(ports) = OWN_PORTS.get_ptr(0) else { return false };
    let ports: *const OwnPorts = ports;
    // SAFETY: inside the entry by the mask, which the verifier asks for; volatile, since user space writes it at any time.
    let word = unsafe {
        (&raw const (*ports).words).cast::<u64>().add((port >> 6) as usize & (OWN_PORT_WORDS - 1)).read_volatile()
    };
    word >> (port & 63) & 1 != 0
}

/// Whether this has not been counted yet.
#[inline(always)]
fn is_first(worker: u32, kind: u64, peer: &Endpoint, within_ns: u64) -> bool {
    // The place of the network namespace is free: the worker tells it.
    let key = Endpoint { netns: u64::from(worker) | kind << 32, addr: peer.addr, port: peer.port, zero: 0 };
    let now = now_ns();
    // SAFETY: the value is read once, at once.
    if let Some(seen) = unsafe { RESETS.get(&key) }.copied() {
        let is_old = now.wrapping_sub(seen) > within_ns;
        if is_old {
            let _ = RESETS.insert(&key, now, u64::from(BPF_ANY));
        }
        return is_old;
    }
    // Where there is no room it is counted, perhaps twice.
    RESETS.insert(&key, now, u64::from(BPF_NOEXIST)) != Err(-EEXIST)
}
