//! The tables. deployer-common's `layout` describes their entries.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, HashMap, SkStorage},
    macros::btf_map,
};
use deployer_common::{
    endpoint::Endpoint,
    layout::{
        Frontend, MAX_FRONTENDS, MAX_SERVICES, MAX_SLOTS, MAX_WORKERS, ServiceCount, Slot, SockNote, Switchboard,
        WorkerAddr, WorkerCount,
    },
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
