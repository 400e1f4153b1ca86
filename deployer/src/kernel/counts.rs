//! What the programs count, read through mappings. Each number is exact; together they are as of nearly one instant.

use std::{mem::offset_of, sync::atomic::Ordering::SeqCst};

use anyhow::Result;
use aya::Ebpf;
use deployer_common::{
    histogram::BUCKETS,
    layout::{
        LaneCount, MAX_SERVICES, MAX_WORKERS, ServiceCount, ServiceUse, WorkerCount, WorkerEnd, WorkerEvidence,
        WorkerLife, WorkerProof, WorkerTimes,
    },
    protect::BindCount,
};

use super::{mapping::Mapping, tables::map};

const WORD: usize = size_of::<u64>();

/// The counters of workers and services.
pub struct Counts {
    workers: Mapping,
    services: Mapping,
    lanes: Mapping,
    lives: Mapping,
    proofs: Mapping,
    times: Mapping,
    evidence: Mapping,
    ends: Mapping,
    binds: Mapping,
    uses: Mapping,
}

impl Counts {
    pub(super) fn take(ebpf: &Ebpf) -> Result<Self> {
        Ok(Self {
            workers: map(ebpf, "WORKER_COUNTS", size_of::<WorkerCount>() * MAX_WORKERS)?,
            services: map(ebpf, "SERVICE_COUNTS", size_of::<ServiceCount>() * MAX_SERVICES)?,
            lanes: map(ebpf, "LANE_COUNTS", size_of::<LaneCount>() * MAX_SERVICES)?,
            lives: map(ebpf, "WORKER_LIVES", size_of::<WorkerLife>() * MAX_WORKERS)?,
            proofs: map(ebpf, "WORKER_PROOFS", size_of::<WorkerProof>() * MAX_WORKERS)?,
            times: map(ebpf, "WORKER_TIMES", size_of::<WorkerTimes>() * MAX_WORKERS)?,
            evidence: map(ebpf, "WORKER_EVIDENCE", size_of::<WorkerEvidence>() * MAX_WORKERS)?,
            ends: map(ebpf, "WORKER_ENDS", size_of::<WorkerEnd>() * MAX_WORKERS)?,
            binds: map(ebpf, "BIND_COUNTS", size_of::<BindCount>() * MAX_SERVICES)?,
            uses: map(ebpf, "SERVICE_USES", size_of::<ServiceUse>() * MAX_SERVICES)?,
        })
    }

    /// The connections of a worker.
    #[must_use]
    pub fn worker(&self, worker: u32) -> WorkerCount {
        let count = reader::<WorkerCount>(&self.workers, worker);
        WorkerCount {
            #[cfg(feature = "next-layout")]
            more: [0; deployer_common::layout::MORE],
            open: count(offset_of!(WorkerCount, open)),
            tickets: count(offset_of!(WorkerCount, tickets)),
            established: count(offset_of!(WorkerCount, established)),
            direct: count(offset_of!(WorkerCount, direct)),
            away: count(offset_of!(WorkerCount, away)),
            steered: count(offset_of!(WorkerCount, steered)),
            picked: count(offset_of!(WorkerCount, picked)),
            fallback_draining: count(offset_of!(WorkerCount, fallback_draining)),
            fallback_cold: count(offset_of!(WorkerCount, fallback_cold)),
            refused: count(offset_of!(WorkerCount, refused)),
        }
    }

    /// The connections of a service.
    #[must_use]
    pub fn service(&self, service: u32) -> ServiceCount {
        let count = reader::<ServiceCount>(&self.services, service);
        ServiceCount {
            exhausted: count(offset_of!(ServiceCount, exhausted)),
            unsteered: count(offset_of!(ServiceCount, unsteered)),
            dialled: count(offset_of!(ServiceCount, dialled)),
            would_change: count(offset_of!(ServiceCount, would_change)),
        }
    }

    /// How the pools of a service's connections were found.
    #[must_use]
    pub fn lanes(&self, service: u32) -> LaneCount {
        let count = reader::<LaneCount>(&self.lanes, service);
        LaneCount {
            lane: count(offset_of!(LaneCount, lane)),
            preview: count(offset_of!(LaneCount, preview)),
            stale: count(offset_of!(LaneCount, stale)),
            unopened: count(offset_of!(LaneCount, unopened)),
            moved: count(offset_of!(LaneCount, moved)),
        }
    }

    /// When a service was used last in ways that work only while its connections are steered.
    #[must_use]
    pub fn used(&self, service: u32) -> ServiceUse {
        let at = reader::<ServiceUse>(&self.uses, service);
        ServiceUse {
            address_ms: at(offset_of!(ServiceUse, address_ms)),
            moved_ms: at(offset_of!(ServiceUse, moved_ms)),
        }
    }

    /// A worker's process.
    #[must_use]
    pub fn life(&self, worker: u32) -> WorkerLife {
        let count = reader::<WorkerLife>(&self.lives, worker);
        WorkerLife {
            listeners: count(offset_of!(WorkerLife, listeners)),
            listened: count(offset_of!(WorkerLife, listened)),
            ended: count(offset_of!(WorkerLife, ended)),
            cut: count(offset_of!(WorkerLife, cut)),
        }
    }

    /// What proves promises kept by a worker.
    #[must_use]
    pub fn proof(&self, worker: u32) -> WorkerProof {
        let count = reader::<WorkerProof>(&self.proofs, worker);
        let lifetimes = offset_of!(WorkerProof, lifetimes);
        WorkerProof {
            late: count(offset_of!(WorkerProof, late)),
            cold: count(offset_of!(WorkerProof, cold)),
            fallback_floor: count(offset_of!(WorkerProof, fallback_floor)),
            failed: count(offset_of!(WorkerProof, failed)),
            reset: count(offset_of!(WorkerProof, reset)),
            lifetimes: std::array::from_fn::<_, BUCKETS, _>(|nth| count(lifetimes + WORD * nth)),
        }
    }

    /// Where a worker's connections come from.
    #[must_use]
    pub fn end(&self, worker: u32) -> WorkerEnd {
        let count = reader::<WorkerEnd>(&self.ends, worker);
        WorkerEnd { refused: count(offset_of!(WorkerEnd, refused)), steered: count(offset_of!(WorkerEnd, steered)) }
    }

    /// How long a worker's connections took.
    #[must_use]
    pub fn times(&self, worker: u32) -> WorkerTimes {
        let count = reader::<WorkerTimes>(&self.times, worker);
        let connects = offset_of!(WorkerTimes, connects);
        WorkerTimes {
            lifetime_us: count(offset_of!(WorkerTimes, lifetime_us)),
            connect_us: count(offset_of!(WorkerTimes, connect_us)),
            connects: std::array::from_fn::<_, BUCKETS, _>(|nth| count(connects + WORD * nth)),
        }
    }

    /// What a drain of a worker must know beside the counters.
    #[must_use]
    pub fn evidence(&self, worker: u32) -> WorkerEvidence {
        let count = reader::<WorkerEvidence>(&self.evidence, worker);
        WorkerEvidence {
            outsider_tickets: count(offset_of!(WorkerEvidence, outsider_tickets)),
            returned: count(offset_of!(WorkerEvidence, returned)),
            unnoted: count(offset_of!(WorkerEvidence, unnoted)),
            unnoted_ns: count(offset_of!(WorkerEvidence, unnoted_ns)),
            uncounted: count(offset_of!(WorkerEvidence, uncounted)),
            unmeasured: count(offset_of!(WorkerEvidence, unmeasured)),
            unlisted: count(offset_of!(WorkerEvidence, unlisted)),
            untold: count(offset_of!(WorkerEvidence, untold)),
            outsiders_cut: count(offset_of!(WorkerEvidence, outsiders_cut)),
        }
    }

    /// Counts connections of callers that are not steered which a drain has cut.
    pub fn add_outsiders_cut(&self, worker: u32, connections: u64) {
        let at =
            size_of::<WorkerEvidence>() / WORD * worker as usize + offset_of!(WorkerEvidence, outsiders_cut) / WORD;
        self.evidence.words()[at].fetch_add(connections, SeqCst);
    }

    /// The `bind()` calls to a service's protected addresses that were refused.
    #[must_use]
    pub fn binds(&self, service: u32) -> BindCount {
        let count = reader::<BindCount>(&self.binds, service);
        BindCount {
            refused: count(offset_of!(BindCount, refused)),
            last: count(offset_of!(BindCount, last)),
            port: count(offset_of!(BindCount, port)),
        }
    }

    /// Begins to count anew what is told of the worker at a place: it is another one. What is told by version has a
    /// reckoning of its own, and reports take differences.
    pub fn begin_worker(&self, worker: u32) {
        self.forget_listeners(worker);
        let at = size_of::<WorkerLife>() / WORD * worker as usize;
        self.lives.words()[at + offset_of!(WorkerLife, ended) / WORD].store(0, SeqCst);
        let at = size_of::<WorkerEnd>() / WORD * worker as usize;
        self.ends.words()[at + offset_of!(WorkerEnd, refused) / WORD].store(0, SeqCst);
    }

    /// The same for the service at a place.
    pub fn begin_service(&self, service: u32) {
        let tables = [
            (&self.services, size_of::<ServiceCount>()),
            (&self.lanes, size_of::<LaneCount>()),
            (&self.binds, size_of::<BindCount>()),
            (&self.uses, size_of::<ServiceUse>()),
        ];
        for (table, bytes) in tables {
            let (words, at) = (bytes / WORD, bytes / WORD * service as usize);
            table.words()[at..at + words].iter().for_each(|word| word.store(0, SeqCst));
        }
    }

    /// Forgets that sockets have listened for a worker, before it is entered anew: they are counted again.
    pub fn forget_listeners(&self, worker: u32) {
        let at = size_of::<WorkerLife>() / WORD * worker as usize;
        for field in [offset_of!(WorkerLife, listeners), offset_of!(WorkerLife, listened)] {
            self.lives.words()[at + field / WORD].store(0, SeqCst);
        }
    }
}

/// Reads the words of an entry by their offsets in it.
fn reader<T>(table: &Mapping, entry: u32) -> impl Fn(usize) -> u64 {
    let at = size_of::<T>() / WORD * entry as usize;
    move |offset| table.words()[at + offset / WORD].load(SeqCst)
}
