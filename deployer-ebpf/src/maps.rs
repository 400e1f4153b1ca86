//! The tables. deployer-common's `layout` describes their entries.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, HashMap, LruHashMap, RingBuf, SkStorage},
    macros::btf_map,
};
use deployer_common::{
    endpoint::Endpoint,
    layout::{
        Dial, EVENT_BYTES, Event, Frontend, LaneCount, Lanes, Limits, ListenerNote, Listening, MAX_FRONTENDS, MAX_GONE,
        MAX_LISTENING, MAX_RESETS, MAX_SERVICES, MAX_SLOTS, MAX_UNSTEERED, MAX_WORKERS, OwnPorts, ServiceCount,
        ServiceUse, Slot, SockNote, Switchboard, Trace, Unsteered, UnsteeredKey, WorkerAddr, WorkerCount, WorkerEnd,
        WorkerEvidence, WorkerLife, WorkerProof, WorkerTimes,
    },
    protect::{BindCount, Protected},
};

pub const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// The words that user space publishes; one entry.
#[btf_map]
pub static SWITCHBOARD: Array<Switchboard, 1, MMAPABLE> = Array::new();

/// What load balancers dial.
#[btf_map]
pub static FRONTENDS: HashMap<Endpoint, Frontend, MAX_FRONTENDS> = HashMap::new();

/// Where workers listen, to the index of the worker.
#[btf_map]
pub static LISTENERS: HashMap<Endpoint, u32, MAX_FRONTENDS> = HashMap::new();

/// Members and callers of services, immutable while named.
#[btf_map]
pub static SLOTS: Array<Slot, MAX_SLOTS> = Array::new();

/// Where workers listen, by index.
#[btf_map]
pub static WORKER_ADDRS: Array<WorkerAddr, MAX_WORKERS> = Array::new();

/// Counters by worker.
#[btf_map]
pub static WORKER_COUNTS: Array<WorkerCount, MAX_WORKERS, MMAPABLE> = Array::new();

/// Counters by service.
#[btf_map]
pub static SERVICE_COUNTS: Array<ServiceCount, MAX_SERVICES, MMAPABLE> = Array::new();

/// What is remembered of each socket; freed with it.
#[btf_map]
pub static NOTES: SkStorage<SockNote> = SkStorage::new();

/// What services are held to; one entry.
#[btf_map]
pub static LIMITS: Array<Limits, 1, MMAPABLE> = Array::new();

/// Which pools are current, and their lanes; one entry.
#[btf_map]
pub static LANES: Array<Lanes, 1, MMAPABLE> = Array::new();

/// How pools were found, by service.
#[btf_map]
pub static LANE_COUNTS: Array<LaneCount, MAX_SERVICES, MMAPABLE> = Array::new();

/// The lives of workers' processes, by worker.
#[btf_map]
pub static WORKER_LIVES: Array<WorkerLife, MAX_WORKERS, MMAPABLE> = Array::new();

/// Proofs, by worker.
#[btf_map]
pub static WORKER_PROOFS: Array<WorkerProof, MAX_WORKERS, MMAPABLE> = Array::new();

/// Durations, by worker.
#[btf_map]
pub static WORKER_TIMES: Array<WorkerTimes, MAX_WORKERS, MMAPABLE> = Array::new();

/// What a drain must know beside the counters, by worker.
#[btf_map]
pub static WORKER_EVIDENCE: Array<WorkerEvidence, MAX_WORKERS, MMAPABLE> = Array::new();

/// Callers' connections that are being established; freed with the socket.
#[btf_map]
pub static DIALS: SkStorage<Dial> = SkStorage::new();

/// Workers' sockets that listen, by the address of their `struct file`.
#[btf_map]
pub static LISTENING: HashMap<u64, Listening, MAX_LISTENING> = HashMap::new();

/// What is remembered of each socket that listens for a worker; freed with it.
#[btf_map]
pub static LISTENER_NOTES: SkStorage<ListenerNote> = SkStorage::new();

/// Addresses that only some may bind.
#[btf_map]
pub static PROTECTED: HashMap<Endpoint, Protected, MAX_FRONTENDS> = HashMap::new();

/// What was refused by those, by service.
#[btf_map]
pub static BIND_COUNTS: Array<BindCount, MAX_SERVICES, MMAPABLE> = Array::new();

/// When services were used last, by service.
#[btf_map]
pub static SERVICE_USES: Array<ServiceUse, MAX_SERVICES, MMAPABLE> = Array::new();

/// Which decisions are told one by one; one entry.
#[btf_map]
pub static TRACE: Array<Trace, 1, MMAPABLE> = Array::new();

/// What happens, for the daemon.
#[btf_map]
pub static EVENTS: RingBuf<Event, EVENT_BYTES> = RingBuf::new();

/// What is counted at both ends of workers' connections, by worker.
#[btf_map]
pub static WORKER_ENDS: Array<WorkerEnd, MAX_WORKERS, MMAPABLE> = Array::new();

/// Local ports of the daemon's own connections; one entry.
#[btf_map]
pub static OWN_PORTS: Array<OwnPorts, 1, MMAPABLE> = Array::new();

/// Resets and refusals that have been counted, by the peer, to when they were, in nanoseconds of `CLOCK_MONOTONIC`.
#[btf_map]
pub static RESETS: LruHashMap<Endpoint, u64, MAX_RESETS> = LruHashMap::new();

/// Callers that were not steered.
#[btf_map]
pub static UNSTEERED: LruHashMap<UnsteeredKey, Unsteered, MAX_UNSTEERED> = LruHashMap::new();

/// Workers' ends of connections whose callers are gone, by the cookies of their sockets; the daemon enters them. The value
/// means nothing.
#[btf_map]
pub static GONE: LruHashMap<u64, u32, MAX_GONE> = LruHashMap::new();
