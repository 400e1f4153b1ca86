//! Which of a service's two pools takes a connection.

use core::{hint::black_box, mem::offset_of};

use aya_ebpf::helpers::bpf_ktime_get_ns;
use deployer_common::{
    endpoint::Endpoint,
    lanes::{self, Dialled, FlipWord, Way, frontend_key, lane_of},
    layout::{Frontend, LANE_FRONTEND, LaneCount, Lanes, MAX_MEMBERS, MAX_SERVICES, NO_WORKER, ServiceUse, Slot},
};

use crate::{
    callers, count,
    maps::{FRONTENDS, LANES},
};

/// The pool that takes a connection.
#[derive(Clone, Copy)]
pub struct Pool {
    /// Its first member in the slot.
    first: u32,
    /// Number of its members.
    pub len: u32,
    /// The worker that was dialled, if it is of this pool; else [`NO_WORKER`].
    pub own: u32,
}

impl Pool {
    /// Place of a member in the slot.
    #[inline(always)]
    pub fn place(&self, nth: u32) -> usize {
        // Masked because the verifier must see that it stays inside.
        (self.first + nth) as usize & (MAX_MEMBERS - 1)
    }
}

/// What an address is in the tables. All lane addresses of a port are one frontend.
#[inline(never)]
pub fn frontend(dialled: &Endpoint) -> Option<&'static Frontend> {
    // SAFETY: entries are never removed while a program that found them runs: user space waits for a grace period.
    unsafe { FRONTENDS.get(frontend_key(dialled)) }
}

/// Finds the pool, and counts how.
#[inline(always)]
pub fn find(slot: &Slot, frontend: Frontend, dialled: &Endpoint) -> Pool {
    let choice = choose(slot, frontend.service, frontend.pool, frontend.worker, lane_of(dialled));
    // All ones, or all zeros. No branches, since the verifier would follow each of them through the decision; the black box
    // keeps LLVM from making some of a mask of one bit.
    let mask = |bit: u64| black_box((choice >> bit & 1).wrapping_neg() as u32);
    let (is_second, is_moved) = (mask(0), mask(1));
    let [len, second] = slot.len;
    Pool {
        first: u32::from(len) & is_second,
        len: u32::from(len) & !is_second | u32::from(second) & is_second,
        own: frontend.worker | is_moved,
    }
}

/// The pool in bit 0, whether the worker that was dialled is passed over in bit 1. The verifier does not know that the
/// number is one of four, so that it goes through what follows once.
#[inline(never)]
fn choose(slot: &Slot, service: u16, pool: u16, worker: u32, lane: u8) -> u64 {
    let word = word_of(service);
    let what = match u32::from(pool) {
        LANE_FRONTEND if lane != 0 => Dialled::Lane(lane),
        pool if pool < LANE_FRONTEND && worker != NO_WORKER => Dialled::Worker(pool),
        _ => Dialled::Current,
    };
    // SAFETY: no arguments.
    let now_ms = unsafe { bpf_ktime_get_ns() } / 1_000_000;
    let (pool, way) = lanes::choose(what, word, now_ms, || callers::may_preview(slot));
    let counted = match way {
        Way::Current => None,
        Way::Lane => Some(offset_of!(LaneCount, lane)),
        Way::Preview => Some(offset_of!(LaneCount, preview)),
        Way::Stale => Some(offset_of!(LaneCount, stale)),
        Way::Unopened => Some(offset_of!(LaneCount, unopened)),
        Way::Moved => Some(offset_of!(LaneCount, moved)),
    };
    if let Some(offset) = counted {
        count::lane(u32::from(service), offset);
    }
    if worker == NO_WORKER {
        count::used(u32::from(service), offset_of!(ServiceUse, address_ms), now_ms);
    } else if way == Way::Moved {
        count::used(u32::from(service), offset_of!(ServiceUse, moved_ms), now_ms);
    }
    (u64::from(pool) | u64::from(way == Way::Moved) << 1) ^ word.unknown_zero()
}

#[inline(always)]
fn word_of(service: u16) -> FlipWord {
    let Some(lanes) = LANES.get_ptr(0) else { return FlipWord(0) };
    // SAFETY: address arithmetic inside the entry, by the mask; volatile, since user space writes these words at any time.
    FlipWord(unsafe {
        (&raw const (*lanes).services).cast::<u64>().add(service as usize & (MAX_SERVICES - 1)).read_volatile()
    })
}

const _: () = assert!(size_of::<Lanes>() == 8 * MAX_SERVICES);
