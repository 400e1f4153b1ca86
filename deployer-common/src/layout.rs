//! The tables, entry by entry. See ARCHITECTURE.md for who writes which.

mod counts;

pub use self::counts::{
    LaneCount, ServiceCount, ServiceUse, WorkerCount, WorkerEnd, WorkerEvidence, WorkerLife, WorkerProof, WorkerTimes,
};

/// Most workers on one host.
pub const MAX_WORKERS: usize = 1024;
/// Most services on one host.
pub const MAX_SERVICES: usize = 64;
/// Most workers of one service, of both pools where it has two: every unsettled decision reads all words of a pool.
pub const MAX_MEMBERS: usize = 256;
/// Most caller rules of one service, those of who may preview included.
pub const MAX_CALLERS: usize = 8;
/// Pool slots: twice the services, so that each can publish a new slot while its old one is still being read.
pub const MAX_SLOTS: usize = 2 * MAX_SERVICES;
/// Most sockets of workers that listen at a time: one each as a rule, one a process under SO_REUSEPORT.
pub const MAX_LISTENING: usize = 4 * MAX_WORKERS;
/// Most resets that are remembered, so that none counts twice; the least recently used are forgotten.
pub const MAX_RESETS: usize = 4096;
/// Most connections that are remembered because their caller is gone; the least recently used are forgotten.
pub const MAX_GONE: usize = 8192;
/// Most callers that are remembered because they were not steered; the least recently used are forgotten.
pub const MAX_UNSTEERED: usize = 1024;
/// Bytes of events that the daemon has not fetched yet; what does not fit is dropped. A power of two.
pub const EVENT_BYTES: usize = 256 * 1024;
/// Most frontends: every worker's address, its other spellings (`::1`, `0.0.0.0`, `::`) and the service addresses.
pub const MAX_FRONTENDS: usize = 8 * MAX_WORKERS;

/// Name and layout version of every table. Tables outlive the daemon, so whoever changes an entry raises its table's
/// version here, and says in deployer's `kernel/versions.rs` where each word goes.
pub const TABLES: [(&str, u32); 24] = [
    ("SWITCHBOARD", if cfg!(feature = "next-layout") { 2 } else { 1 }),
    ("FRONTENDS", 1),
    ("LISTENERS", 1),
    ("SLOTS", 1),
    ("WORKER_ADDRS", 1),
    ("WORKER_COUNTS", if cfg!(feature = "next-layout") { 2 } else { 1 }),
    ("SERVICE_COUNTS", 1),
    ("NOTES", 1),
    ("LIMITS", 1),
    ("WORKER_LIVES", 1),
    ("WORKER_PROOFS", 1),
    ("WORKER_TIMES", 1),
    ("DIALS", 1),
    ("LISTENING", 1),
    ("LISTENER_NOTES", 1),
    ("EVENTS", 1),
    ("LANES", 1),
    ("LANE_COUNTS", 1),
    ("WORKER_EVIDENCE", 1),
    ("WORKER_ENDS", 1),
    ("RESETS", 1),
    ("PROTECTED", 1),
    ("BIND_COUNTS", 1),
    ("SERVICE_USES", 1),
];

/// Words that the tests' next layout has more at the beginning of an entry; none in what is shipped.
pub const MORE: usize = if cfg!(feature = "next-layout") { 1 } else { 0 };

/// Everything user space publishes, word by word. Written atomically through a mapping, read by every program.
#[repr(C)]
pub struct Switchboard {
    /// Nothing, so far.
    #[cfg(feature = "next-layout")]
    pub more: [u64; MORE],
    /// Not 0: every service is bypassed.
    pub bypass: u64,
    /// [`crate::word::ServiceWord`] of each service.
    pub services: [u64; MAX_SERVICES],
    /// [`crate::word::WorkerWord`] of each worker.
    pub workers: [u64; MAX_WORKERS],
    /// Connections of each worker that were open before the programs were attached.
    pub seeds: [u64; MAX_WORKERS],
}

/// An address that load balancers connect to.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frontend {
    /// Index of the service.
    pub service: u16,
    /// The pool of that worker, 0 or 1; [`LANE_FRONTEND`]: the lane addresses of a port.
    pub pool: u16,
    /// Index of the worker whose own address this is; [`NO_WORKER`] for a service address.
    pub worker: u32,
}

/// In place of a pool: this frontend is all lane addresses of its port.
pub const LANE_FRONTEND: u32 = 2;

/// Socket mark of the daemon's own connections, which the connect hook lets pass: "dp" in ASCII. Setting a mark takes
/// CAP_NET_ADMIN, so no ordinary process gets past the steering.
pub const BYPASS_MARK: u32 = 0x6470;

/// No worker.
pub const NO_WORKER: u32 = u32::MAX;

/// Members and callers of a service: immutable while a service's word names it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    /// Number of members of each pool, at most [`MAX_MEMBERS`] together.
    pub len: [u16; 2],
    /// Number of caller rules; 0: every process is steered.
    pub callers_len: u16,
    /// Number of the rules after those, for who may dial a lane that is not open; 0: nobody may.
    pub previewers_len: u16,
    /// The rules; one that fits is enough.
    pub callers: [CallerRule; MAX_CALLERS],
    /// Indices of the workers: those of pool 0, then those of pool 1.
    pub members: [u16; MAX_MEMBERS],
}

/// Who is steered.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallerRule {
    /// [`CALLER_CGROUP`] or [`CALLER_EXECUTABLE`].
    pub kind: u32,
    /// Cgroup: its depth below the cgroup v2 root. Executable: the device, as the kernel's `dev_t`.
    pub place: u32,
    /// Cgroup: its id (the inode of its directory). Executable: its inode.
    pub id: u64,
}

/// The caller is in or below a cgroup.
pub const CALLER_CGROUP: u32 = 1;
/// The caller runs an executable.
pub const CALLER_EXECUTABLE: u32 = 2;

/// Where a worker listens: the destination of steered connections. Immutable while the worker is in a slot.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerAddr {
    /// IPv4 in mapped form, network byte order.
    pub addr: [u32; 4],
    /// Host byte order.
    pub port: u32,
    /// Index of its service.
    pub service: u32,
}

/// What user space publishes and hardly ever changes, word by word.
#[repr(C)]
pub struct Limits {
    /// [`crate::word::LimitsWord`] of each service.
    pub services: [u64; MAX_SERVICES],
}

/// Which pools are current, and their lanes, word by word.
#[repr(C)]
pub struct Lanes {
    /// [`crate::lanes::FlipWord`] of each service.
    pub services: [u64; MAX_SERVICES],
}

/// Which local ports the daemon's own connections to workers use just now: a bit a port. One entry; not pinned, so that a
/// daemon that dies leaves no port behind for the next.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnPorts {
    /// The bit of port P is bit P % 64 of word P / 64.
    pub words: [u64; OWN_PORT_WORDS],
}

/// Words of [`OwnPorts`].
pub const OWN_PORT_WORDS: usize = 65536 / 64;

/// A caller that was not steered.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct UnsteeredKey {
    /// Index of the service.
    pub service: u32,
    /// A caller in the callers' cgroup: the device of its executable, as the kernel's `dev_t`; else 0.
    pub place: u32,
    /// The same: the executable's inode.
    pub id: u64,
    /// A peer that is not on this host, or in another network namespace: its address, as [`WorkerAddr::addr`]; else zeros.
    pub addr: [u32; 4],
}

/// What is remembered of it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unsteered {
    /// Its connections so far.
    pub count: u64,
    /// When it dialled last, in milliseconds of `CLOCK_MONOTONIC`.
    pub last_ms: u64,
    /// The process that dialled last, as the machine's own pid namespace numbers it; 0: not known.
    pub pid: u32,
    /// Always 0.
    pub zero: u32,
    /// Its command, as in `/proc/PID/comm`.
    pub comm: [u8; 16],
}

/// What is remembered of a caller's socket while its connection is being established, in its socket storage.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dial {
    /// When its SYN went out, in nanoseconds of `CLOCK_MONOTONIC`; 0: it is established.
    pub since: u64,
}

/// A socket that listens for a worker, by the address of its `struct file`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Listening {
    /// Address of its `struct sock`.
    pub sk: u64,
    /// Not 0: it counts as closed already, since all who had it open are being killed.
    pub over: u64,
    /// The worker.
    pub worker: u64,
    /// The word of the worker while callers are led around it, until this socket is closed; 0: they are not.
    pub detour: u64,
}

/// What is remembered of a socket that listens, in its socket storage.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ListenerNote {
    /// Its key in the table of [`Listening`]; 0: it has none.
    pub file: u64,
    /// Worker + 1; 0: none.
    pub worker: u64,
}

/// A process that has a socket with a ticket open: what the iterator over open files writes. Not a table's entry.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TicketHolder {
    /// Address of the `struct sock`, which tells sockets apart that several processes or descriptors share.
    pub sk: u64,
    /// The process, as the machine's own pid namespace numbers it.
    pub pid: u32,
    /// The worker.
    pub worker: u32,
    /// 1: the caller is not steered; else 0.
    pub outsider: u32,
    /// 1: the connect() that took the ticket has failed, so no SYN will come of it; else 0.
    pub stale: u32,
}

/// What the programs tell the daemon as it happens.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// [`EVENT_LISTENS`] and so on.
    pub kind: u32,
    /// The worker.
    pub worker: u32,
    /// Process, as the machine's own pid namespace numbers it; 0: none.
    pub pid: u32,
    /// [`EVENT_CUT`]: the caller's port.
    pub port: u32,
    /// [`EVENT_CUT`]: the caller's address, as [`WorkerAddr::addr`].
    pub addr: [u32; 4],
    /// [`EVENT_CUT`]: how long the connection had been open, in nanoseconds. [`EVENT_KILLED`] and [`EVENT_CLOSED`]: how many
    /// connections were open.
    pub value: u64,
}

/// A worker listens: it was down, and is cold.
pub const EVENT_LISTENS: u32 = 1;
/// A worker's last listening socket was closed, also one whose process's end has been told by [`EVENT_KILLED`].
pub const EVENT_CLOSED: u32 = 2;
/// A worker's process is being killed, or ends, and nobody else listens for it.
pub const EVENT_KILLED: u32 = 3;
/// A connection was open in a process when it ended.
pub const EVENT_CUT: u32 = 4;

/// Which decisions are told one by one, and how many were. One entry; not pinned: it ends with the daemon's lease on it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trace {
    /// Milliseconds of `CLOCK_MONOTONIC` until which they are told; 0: nobody wants to hear.
    pub until_ms: u64,
    /// Those of this service.
    pub service: u64,
    /// Of those that dialled this port, or are about `worker`; 0: all.
    pub port: u64,
    /// A worker; [`NO_WORKER`]: none.
    pub worker: u64,
    /// One in so many, by lot; 0 and 1: each.
    pub every: u64,
    /// How many may still be told; renewed by user space, and less than 0 where more came.
    pub left: u64,
    /// Decisions that were wanted.
    pub seen: u64,
    /// Decisions that were not told for want of `left`.
    pub skipped: u64,
}

/// A verdict that was carried out.
pub const TRACE_DECIDED: u32 = 0;
/// Let through: everything is bypassed, or the service.
pub const TRACE_BYPASSED: u32 = 1;
/// Let through: a connection of the daemon's own.
pub const TRACE_DAEMON: u32 = 2;
/// Let through: this caller is not steered.
pub const TRACE_UNSTEERED: u32 = 3;
/// Let through: the service is observed, and the verdict is what would have been.
pub const TRACE_OBSERVED: u32 = 4;

/// What is remembered of a socket, in its socket storage.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct SockNote {
    /// The address that was dialled; port 0: nothing to hide from `getpeername()`.
    pub dialled: [u32; 4],
    /// The address it was steered to.
    pub target: [u32; 4],
    /// Port dialled, host byte order.
    pub dialled_port: u32,
    /// Port steered to, host byte order. Where `dialled_port` is 0: [`SockNote::OUTSIDER`], or nothing.
    pub target_port: u16,
    /// Worker + 1 to which a steered caller's connection goes, whether that was dialled or chosen; 0: nobody's business.
    pub to: u16,
    /// Worker + 1 whose ticket this socket holds; 0: none.
    pub ticket: u32,
    /// Worker + 1 whose `open` this socket has raised; 0: none.
    pub counted: u32,
}

impl SockNote {
    /// In place of a port that a connection was steered to: its caller is not steered.
    pub const OUTSIDER: u16 = 1;

    /// Whether the socket belongs to a caller that is not steered and has dialled a worker.
    #[inline(always)]
    #[must_use]
    pub const fn is_outsiders(&self) -> bool {
        self.dialled_port == 0 && self.target_port == Self::OUTSIDER && self.counted == 0
    }

    /// When the connection was established, in nanoseconds of `CLOCK_MONOTONIC`. Kept for sockets that are `counted`,
    /// which are a worker's end and so have dialled nobody.
    #[inline(always)]
    #[must_use]
    pub const fn since(&self) -> u64 {
        (self.dialled[0] as u64) << 32 | self.dialled[1] as u64
    }

    /// Sets [`SockNote::since`].
    #[inline(always)]
    pub const fn set_since(&mut self, ns: u64) {
        self.dialled = [(ns >> 32) as u32, ns as u32, 0, 0];
    }

    /// Whether the other end of a worker's connection is the daemon itself. Kept where a caller's socket keeps the port that
    /// it was steered to.
    #[inline(always)]
    #[must_use]
    pub const fn is_own(&self) -> bool {
        self.target_port != 0
    }

    /// Sets [`SockNote::is_own`].
    #[inline(always)]
    pub const fn set_own(&mut self) {
        self.target_port = 1;
    }
}

const _: () = assert!(size_of::<Frontend>() == 8);
const _: () = assert!(size_of::<CallerRule>() == 16);
const _: () = assert!(size_of::<Slot>() == 8 + 16 * MAX_CALLERS + 2 * MAX_MEMBERS);
const _: () = assert!(size_of::<WorkerAddr>() == 24);
const _: () = assert!(size_of::<SockNote>() == 48);
const _: () = assert!(size_of::<Lanes>() == 8 * MAX_SERVICES);
const _: () = assert!(size_of::<Limits>() == 8 * MAX_SERVICES);
const _: () = assert!(size_of::<OwnPorts>() == 8192);
const _: () = assert!(size_of::<UnsteeredKey>() == 32);
const _: () = assert!(size_of::<Unsteered>() == 40);
const _: () = assert!(size_of::<Dial>() == 8);
const _: () = assert!(size_of::<Listening>() == 32);
const _: () = assert!(size_of::<ListenerNote>() == 16);
const _: () = assert!(size_of::<Event>() == 48);
const _: () = assert!(size_of::<Trace>() == 64);
const _: () = assert!(size_of::<TicketHolder>() == 24);
const _: () = assert!(size_of::<Switchboard>() == 8 * (MORE + 1 + MAX_SERVICES + 2 * MAX_WORKERS));
