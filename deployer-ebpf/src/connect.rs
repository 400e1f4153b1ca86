//! connect(): the steering decision, applied.

use core::mem::offset_of;

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use deployer_common::{
    decide::{Rank, Tables, Verdict, decide},
    endpoint::{Endpoint, MAPPED},
    layout::{
        BYPASS_MARK, Frontend, LANE_FRONTEND, MAX_SERVICES, MAX_WORKERS, NO_WORKER, ServiceCount, Slot, SockNote,
        Switchboard, TRACE_BYPASSED, TRACE_DAEMON, TRACE_DECIDED, TRACE_OBSERVED, TRACE_UNSTEERED, WorkerCount,
        WorkerEvidence, WorkerProof,
    },
    word::{LimitsWord, Mode, ServiceWord, State, WorkerWord},
};

use crate::{
    address, callers, count,
    listeners::now_ns,
    maps::{LIMITS, SLOTS, SWITCHBOARD, WORKER_ADDRS, WORKER_COUNTS},
    notes,
    pools::{self, Pool},
    trace::{self, Decision},
    unsteered,
};

const IPPROTO_TCP: u32 = 6;
const ECONNREFUSED: i32 = 111;
const ALLOW: i32 = 1;
const DENY: i32 = 0;
/// ::ffff:127.0.0.1 and ::1, network byte order.
const LOOPBACK4: [u32; 4] = [0, 0, MAPPED, 0x7f00_0001_u32.to_be()];
const LOOPBACK6: [u32; 4] = [0, 0, 0, 1_u32.to_be()];

/// Whether the kernel has bpf_set_retval in these hooks (6.1); set before loading.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: u32 = 1;

/// What the hook does with the connection.
enum Action {
    Pass,
    Refuse,
    To { addr: [u32; 4], port: u32 },
}

/// connect() of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel hands every program of this type a valid context.
    let sa = unsafe { &mut *ctx.sock_addr };
    if sa.protocol != IPPROTO_TCP {
        return ALLOW;
    }
    let dialled = Endpoint::v4(netns(&ctx), sa.user_ip4, address::port(sa));
    match route(&ctx, &dialled) {
        Action::Pass => ALLOW,
        Action::Refuse => refuse(sa),
        Action::To { addr, port } => {
            sa.user_ip4 = addr[3];
            address::set_port(sa, port);
            ALLOW
        }
    }
}

/// connect() of an IPv6 socket, also when it dials an IPv4 address in mapped form.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel hands every program of this type a valid context.
    let sa = unsafe { &mut *ctx.sock_addr };
    if sa.protocol != IPPROTO_TCP {
        return ALLOW;
    }
    let addr = address::ip6(sa);
    let dialled = Endpoint::v6(netns(&ctx), addr, address::port(sa));
    match route(&ctx, &dialled) {
        Action::Pass => ALLOW,
        Action::Refuse => refuse(sa),
        Action::To { addr, port } => {
            address::set_ip6(sa, addr);
            address::set_port(sa, port);
            ALLOW
        }
    }
}

#[inline(always)]
fn netns(ctx: &SockAddrContext) -> u64 {
    // SAFETY: a valid context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// ECONNREFUSED from inside connect(). Older kernels can only say EPERM there, which load balancers do not read as "try
/// the next": the connection is sent to port 0 instead, where nothing can listen.
#[inline(always)]
fn refuse(sa: &mut bpf_sock_addr) -> i32 {
    // SAFETY: one of the statics above; volatile, since the loader sets it.
    if unsafe { (&raw const HAS_SET_RETVAL).read_volatile() } == 0 {
        address::set_port(sa, 0);
        return ALLOW;
    }
    // SAFETY: no pointer is passed.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    DENY
}

/// Looks the destination up, decides, counts, and takes the ticket.
#[inline(always)]
fn route(ctx: &SockAddrContext, dialled: &Endpoint) -> Action {
    let Some(frontend) = pools::frontend(dialled).copied() else { return Action::Pass };
    let service = u32::from(frontend.service);
    let Some(board) = SWITCHBOARD.get_ptr(0) else { return Action::Pass };
    // SAFETY: address arithmetic inside the entry.
    let services = |board: *const Switchboard| unsafe { (&raw const (*board).services).cast() };
    let word = ServiceWord(word_at(board, services, service, MAX_SERVICES));
    // SAFETY: `board` is the one entry of an array map; volatile, since user space writes it at any time.
    let bypassed = unsafe { (&raw const (*board).bypass).read_volatile() } != 0 || word.mode() == Mode::Bypass;
    let Some(slot) = SLOTS.get(word.slot()) else { return pass(ctx, frontend, 0) };
    let as_dialled = Verdict { worker: frontend.worker, rank: Rank::Up, floor: false };
    let (why, verdict) = if bypassed {
        (TRACE_BYPASSED, as_dialled)
    } else if is_daemon(ctx) {
        (TRACE_DAEMON, as_dialled)
    } else if !callers::is_steered(slot) && !previews(slot, frontend) {
        count::service(service, offset_of!(ServiceCount, unsteered));
        unsteered::executable(service);
        (TRACE_UNSTEERED, as_dialled)
    } else {
        let pool = pools::find(slot, frontend, dialled);
        let within = Frontend { worker: pool.own, ..frontend };
        let verdict = decide(within, word, &InKernel { board, slot, pool, service });
        (if word.mode() == Mode::Observe { TRACE_OBSERVED } else { TRACE_DECIDED }, verdict)
    };
    let action = match why {
        TRACE_DECIDED => {
            tally(frontend, verdict);
            apply(ctx, dialled, frontend, verdict, board)
        }
        TRACE_OBSERVED => {
            observe(frontend, verdict);
            pass(ctx, frontend, 0)
        }
        TRACE_UNSTEERED => pass_outsider(ctx, frontend),
        _ => pass(ctx, frontend, 0),
    };
    // Last, when there is least that the verifier has to tell apart.
    trace::tell(&Decision { dialled, frontend, why, verdict });
    action
}

/// Whether a caller that is not steered dials a lane that it may look at: nobody listens there.
#[inline(always)]
fn previews(slot: &Slot, frontend: Frontend) -> bool {
    u32::from(frontend.pool) == LANE_FRONTEND && callers::may_preview(slot)
}

/// Lets a connection go where it was dialled. If that is a worker, its ticket is taken all the same: it is evidence. `to`
/// is as in [`SockNote`].
#[inline(always)]
fn pass(ctx: &SockAddrContext, frontend: Frontend, to: u32) -> Action {
    if frontend.worker != NO_WORKER {
        note(ctx, SockNote { ticket: frontend.worker + 1, to: to as u16, ..SockNote::default() });
    }
    Action::Pass
}

/// The same for a caller that is not steered: its ticket and its connection do not stop a roll.
#[inline(always)]
fn pass_outsider(ctx: &SockAddrContext, frontend: Frontend) -> Action {
    if frontend.worker != NO_WORKER {
        let target_port = SockNote::OUTSIDER;
        note(ctx, SockNote { ticket: frontend.worker + 1, target_port, ..SockNote::default() });
    }
    Action::Pass
}

#[inline(always)]
fn apply(
    ctx: &SockAddrContext,
    dialled: &Endpoint,
    frontend: Frontend,
    verdict: Verdict,
    board: *const Switchboard,
) -> Action {
    if verdict.worker == NO_WORKER {
        return if may_be_back(frontend, verdict, board) { pass(ctx, frontend, 0) } else { Action::Refuse };
    }
    if verdict.worker == frontend.worker {
        return pass(ctx, frontend, frontend.worker + 1);
    }
    let Some(target) = WORKER_ADDRS.get(verdict.worker) else { return Action::Refuse };
    let (addr, port) = (reached(dialled, frontend, target.addr), target.port);
    note(
        ctx,
        SockNote {
            dialled: shown(dialled.addr),
            target: addr,
            dialled_port: dialled.port,
            target_port: port as u16,
            to: verdict.worker as u16 + 1,
            ticket: verdict.worker + 1,
            counted: 0,
        },
    );
    Action::To { addr, port }
}

/// Nobody can take the connection, and the worker that was dialled was last seen not listening. It may be back by now, if
/// no daemon runs to see it; if not, its closed port refuses by itself.
#[inline(always)]
fn may_be_back(frontend: Frontend, verdict: Verdict, board: *const Switchboard) -> bool {
    if verdict.rank != Rank::None || frontend.worker == NO_WORKER {
        return false;
    }
    // SAFETY: address arithmetic inside the entry.
    let workers = |board: *const Switchboard| unsafe { (&raw const (*board).workers).cast() };
    WorkerWord(word_at(board, workers, frontend.worker, MAX_WORKERS)).state() == State::Down
}

/// Where a sibling is reached by whoever dialled a worker at ::1: at ::1, too. A socket that speaks IPv6 only, or is bound
/// to ::1, cannot go to 127.0.0.1 (ENETUNREACH); and siblings that do not listen at ::1 are not dialled there.
#[inline(always)]
fn reached(dialled: &Endpoint, frontend: Frontend, addr: [u32; 4]) -> [u32; 4] {
    let is_ipv6 = frontend.worker != NO_WORKER && !Endpoint::is_v4(&dialled.addr);
    match addr {
        LOOPBACK4 if is_ipv6 => LOOPBACK6,
        addr => addr,
    }
}

/// A dialled address as getpeername() shows it without us: for a wildcard address Linux takes loopback.
#[inline(always)]
fn shown(dialled: [u32; 4]) -> [u32; 4] {
    match dialled {
        [0, 0, 0, 0] => LOOPBACK6,
        [0, 0, MAPPED, 0] => LOOPBACK4,
        dialled => dialled,
    }
}

/// Writes the socket's note and opens its ticket. A ticket that an earlier connect() of the socket has left is handed back.
///
/// Where the kernel refuses socket storage (`net.core.optmem_max`), nothing could ever hand a ticket back, so none is
/// taken: the connection is counted as unnoted, and a drain waits a little longer.
#[inline(always)]
fn note(ctx: &SockAddrContext, new: SockNote) {
    let worker = new.ticket - 1;
    let mut blank = SockNote::default();
    // SAFETY: the context is valid, and its socket is there in every connect hook.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if sk.is_null() {
        return;
    }
    let kept = notes::of(notes::owner(sk.cast()), &raw mut blank);
    if kept.is_null() {
        count::evidence(worker, 1, offset_of!(WorkerEvidence, unnoted));
        if !new.is_outsiders() {
            count::unnoted_at(worker, now_ns());
        }
        return;
    }
    notes::hand_back(kept);
    count::worker(worker, 1, offset_of!(WorkerCount, tickets));
    if new.is_outsiders() {
        count::evidence(worker, 1, offset_of!(WorkerEvidence, outsider_tickets));
    }
    // SAFETY: the kernel gave a pointer to a SockNote that lives as long as the socket, whose lock connect() holds.
    unsafe { *kept = new };
}

/// Counts a decision that is carried out.
#[inline(always)]
fn tally(frontend: Frontend, verdict: Verdict) {
    let own = frontend.worker;
    if own == NO_WORKER {
        count::service(u32::from(frontend.service), offset_of!(ServiceCount, dialled));
    }
    if verdict.worker == NO_WORKER {
        if verdict.rank == Rank::None {
            count::service(u32::from(frontend.service), offset_of!(ServiceCount, exhausted));
        } else {
            count::worker(own, 1, offset_of!(WorkerCount, refused));
        }
        return;
    }
    if own == verdict.worker {
        count::worker(own, 1, offset_of!(WorkerCount, direct));
    } else if own == NO_WORKER {
        count::worker(verdict.worker, 1, offset_of!(WorkerCount, picked));
    } else {
        count::worker(own, 1, offset_of!(WorkerCount, away));
        count::worker(verdict.worker, 1, offset_of!(WorkerCount, steered));
    }
    match verdict.rank {
        Rank::Draining if verdict.floor => count::proof(verdict.worker, offset_of!(WorkerProof, fallback_floor)),
        Rank::Draining => count::worker(verdict.worker, 1, offset_of!(WorkerCount, fallback_draining)),
        Rank::Cold => count::worker(verdict.worker, 1, offset_of!(WorkerCount, fallback_cold)),
        Rank::Up | Rank::None => {}
    }
}

/// Counts a decision that is not carried out.
#[inline(always)]
fn observe(frontend: Frontend, verdict: Verdict) {
    if verdict.worker != frontend.worker {
        count::service(u32::from(frontend.service), offset_of!(ServiceCount, would_change));
    } else {
        count::worker(frontend.worker, 1, offset_of!(WorkerCount, direct));
    }
}

/// Whether the socket bears the daemon's mark: its warm-up requests reach the worker that they name.
#[inline(always)]
fn is_daemon(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is valid, and its socket is there in every connect hook.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    // SAFETY: as above.
    !sk.is_null() && unsafe { (*sk).mark } == BYPASS_MARK
}

/// Reads the word at `index` of an array in the switchboard. `len` is its length, a power of two: masked, because the
/// verifier must see that the index stays inside.
#[inline(always)]
fn word_at(
    board: *const Switchboard,
    array: impl FnOnce(*const Switchboard) -> *const u64,
    index: u32,
    len: usize,
) -> u64 {
    // SAFETY: inside the array by the mask; volatile, since user space writes these words at any time.
    unsafe { array(board).add(index as usize & (len - 1)).read_volatile() }
}

/// The tables as the decision reads them.
struct InKernel<'a> {
    board: *const Switchboard,
    slot: &'a Slot,
    pool: Pool,
    service: u32,
}

impl Tables for InKernel<'_> {
    #[inline(always)]
    fn members(&self) -> u32 {
        self.pool.len
    }

    #[inline(always)]
    fn member(&self, nth: u32) -> u32 {
        // SAFETY: inside the array by the mask, which the verifier asks for.
        u32::from(unsafe { *self.slot.members.as_ptr().add(self.pool.place(nth)) })
    }

    #[inline(always)]
    fn word(&self, worker: u32) -> WorkerWord {
        // SAFETY: address arithmetic inside the entry.
        WorkerWord(word_at(self.board, |board| unsafe { (&raw const (*board).workers).cast() }, worker, MAX_WORKERS))
    }

    #[inline(always)]
    fn open(&self, worker: u32) -> u64 {
        // SAFETY: address arithmetic inside the entry.
        let seed = word_at(self.board, |board| unsafe { (&raw const (*board).seeds).cast() }, worker, MAX_WORKERS);
        match WORKER_COUNTS.get_ptr(worker) {
            // SAFETY: an entry of an array map; volatile, since other programs add to it.
            Some(count) => seed + unsafe { (&raw const (*count).open).read_volatile() },
            None => seed,
        }
    }

    #[inline(always)]
    fn min_up(&self) -> u64 {
        let Some(limits) = LIMITS.get_ptr(0) else { return 0 };
        let service = self.service as usize & (MAX_SERVICES - 1);
        // SAFETY: inside the array by the mask; volatile, since user space writes these words at any time.
        LimitsWord(unsafe { (&raw const (*limits).services).cast::<u64>().add(service).read_volatile() }).min_up()
    }

    #[inline(always)]
    fn now_ms(&self) -> u64 {
        // SAFETY: no arguments.
        unsafe { bpf_ktime_get_ns() / 1_000_000 }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_prandom_u32() }
    }
}
