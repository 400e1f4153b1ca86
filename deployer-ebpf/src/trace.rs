//! Decisions told one by one, while somebody asks for them.

use core::mem::offset_of;

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_prandom_u32};
use aya_log_ebpf::info;
use deployer_common::{
    decide::Verdict,
    endpoint::Endpoint,
    layout::{Frontend, NO_WORKER, Trace},
    word::State,
};

use crate::{atomic, listeners::now_ns, maps::TRACE};

/// A decision, and what it was about.
pub struct Decision<'a> {
    pub dialled: &'a Endpoint,
    pub frontend: Frontend,
    /// [`deployer_common::layout::TRACE_DECIDED`] and so on.
    pub why: u32,
    pub verdict: Verdict,
}

/// Tells a decision if somebody wants to hear it. Nobody, as a rule: that is all that it costs then.
#[inline(always)]
pub fn tell(decision: &Decision<'_>) {
    let Some(trace) = TRACE.get_ptr_mut(0) else { return };
    if read(trace, offset_of!(Trace, until_ms)) != 0 {
        sample(trace, decision);
    }
}

/// One in so many of those that are wanted, and no more than user space has allowed for.
#[inline(always)]
fn sample(trace: *mut Trace, decision: &Decision<'_>) {
    let (own, chosen) = (decision.frontend.worker, decision.verdict.worker);
    let port = read(trace, offset_of!(Trace, port));
    let is_at = |index: u32| index != NO_WORKER && u64::from(index) == read(trace, offset_of!(Trace, worker));
    let is_wanted = u64::from(decision.frontend.service) == read(trace, offset_of!(Trace, service))
        && (port == 0 || port == u64::from(decision.dialled.port) || is_at(own) || is_at(chosen));
    let now = now_ns();
    if !is_wanted || now / 1_000_000 >= read(trace, offset_of!(Trace, until_ms)) {
        return;
    }
    add(trace, offset_of!(Trace, seen));
    let every = read(trace, offset_of!(Trace, every));
    // SAFETY: no arguments.
    if every > 1 && u64::from(unsafe { bpf_get_prandom_u32() }) % every != 0 {
        return;
    }
    if atomic::fetch_add(word(trace, offset_of!(Trace, left)), -1) as i64 <= 0 {
        return add(trace, offset_of!(Trace, skipped));
    }
    let was = if own == NO_WORKER { None } else { atomic::word(own) };
    let state = was.map_or(State::Absent, |word| word.at(now / 1_000_000));
    let verdict = &decision.verdict;
    let packed = u64::from(decision.why) | (verdict.rank as u64) << 8 | u64::from(verdict.floor) << 16;
    // 0, which the verifier does not know: it would go through the rest once for each value that these can have.
    let zero = port >> 32;
    write(&Line {
        now,
        addr: decision.dialled.addr,
        port: decision.dialled.port,
        own: own ^ zero as u32,
        chosen: chosen ^ zero as u32,
        packed: (packed | (state as u64) << 24) ^ zero,
    });
}

/// What is written of a decision, but for who made the call.
struct Line {
    now: u64,
    addr: [u32; 4],
    port: u32,
    own: u32,
    chosen: u32,
    /// Why, rank, floor and the state of the worker dialled, a byte each.
    packed: u64,
}

/// Numbers alone: what a caller calls itself need not be UTF-8, and is of two words here. A function of its own, as the
/// stack of one has no room for it.
#[inline(never)]
fn write(line: &Line) {
    // SAFETY: no arguments.
    let pid = unsafe { bpf_get_current_pid_tgid() } >> 32;
    let [high, low] = halves(bpf_get_current_comm().unwrap_or_default());
    let [a, b, c, d] = line.addr;
    info!(
        (),
        target: "trace",
        "{} {} {} {} {} {} {} {} {} {} {} {}",
        line.now, pid, high, low, a, b, c, d, line.port, line.own, line.chosen, line.packed
    );
}

#[inline(always)]
fn halves(bytes: [u8; 16]) -> [u64; 2] {
    let half = |from: usize| u64::from_be_bytes(core::array::from_fn(|nth| bytes[from + nth]));
    [half(0), half(8)]
}

/// `offset` comes from `offset_of!` of a u64 field of the entry.
#[inline(always)]
fn word(trace: *mut Trace, offset: usize) -> *mut u64 {
    trace.wrapping_byte_add(offset).cast()
}

#[inline(always)]
fn read(trace: *mut Trace, offset: usize) -> u64 {
    // SAFETY: a word of the one entry of an array map; volatile, since user space writes it at any time.
    unsafe { word(trace, offset).read_volatile() }
}

#[inline(always)]
fn add(trace: *mut Trace, offset: usize) {
    atomic::add(word(trace, offset), 1);
}
