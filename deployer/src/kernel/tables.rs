//! The tables, as user space writes and reads them.

mod address;
mod gone;
mod members;
mod protect;
mod tickets;
mod wildcard;

use std::{
    collections::{BTreeMap, HashSet},
    mem::offset_of,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData},
};
use deployer_common::{
    endpoint::Endpoint,
    lanes::FlipWord,
    layout::{
        CallerRule, Frontend, Lanes, Limits, MAX_SERVICES, MAX_WORKERS, NO_WORKER, OwnPorts, Slot, Switchboard,
        Unsteered, UnsteeredKey, WorkerAddr,
    },
    protect::Protected,
    word::{LimitsWord, ServiceWord, State, WorkerWord},
};

pub use self::address::address;
use self::address::spellings;
pub(super) use self::address::words;
use super::{bpf, counts::Counts, host, links::Steering, mapping::Mapping, own_ports};

const WORD: usize = size_of::<u64>();

/// Every table. Words are written through a mapping, atomically; the rest by system calls.
pub struct Tables {
    board: Mapping,
    limits: Mapping,
    lanes: Mapping,
    counts: Counts,
    entries: Mutex<Entries>,
    netns: u64,
    steering: Arc<Steering>,
    iterators: Iterators,
    /// The programs' notes on sockets.
    notes: Option<OwnedFd>,
}

/// Programs that are run now and then; `None`: this kernel does without.
pub(super) struct Iterators {
    /// Goes over TCP sockets.
    pub(super) arm: Option<OwnedFd>,
    /// Goes over open files.
    pub(super) ticketed: Option<OwnedFd>,
}

/// What an earlier daemon has entered into the tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The workers that have a place.
    pub workers: Vec<FoundWorker>,
    /// Service addresses, with the service each belongs to.
    pub addresses: BTreeMap<SocketAddr, u32>,
    /// The services that have a place.
    pub services: Vec<u32>,
    /// Places of workers that are not to be had here: a daemon in another network namespace has left them.
    pub strays: Vec<u32>,
}

/// A worker that has a place in the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundWorker {
    /// Its place.
    pub index: u32,
    /// Where it listens.
    pub at: SocketAddr,
    /// Its service's place.
    pub service: u32,
}

/// The tables that take system calls.
struct Entries {
    frontends: HashMap<MapData, Endpoint, Frontend>,
    listeners: HashMap<MapData, Endpoint, u32>,
    slots: Array<MapData, Slot>,
    worker_addrs: Array<MapData, WorkerAddr>,
    unsteered: HashMap<MapData, UnsteeredKey, Unsteered>,
    protected: HashMap<MapData, Endpoint, Protected>,
    gone: HashMap<MapData, u64, u32>,
}

impl Tables {
    /// Takes the tables out of loaded programs. `netns`: the cookie of the namespace whose connections are steered.
    pub(super) fn take(ebpf: &mut Ebpf, netns: u64, steering: Arc<Steering>, iterators: Iterators) -> Result<Self> {
        let entries = Entries {
            frontends: HashMap::try_from(take(ebpf, "FRONTENDS")?)?,
            listeners: HashMap::try_from(take(ebpf, "LISTENERS")?)?,
            slots: Array::try_from(take(ebpf, "SLOTS")?)?,
            worker_addrs: Array::try_from(take(ebpf, "WORKER_ADDRS")?)?,
            unsteered: HashMap::try_from(take(ebpf, "UNSTEERED")?)?,
            protected: HashMap::try_from(take(ebpf, "PROTECTED")?)?,
            gone: HashMap::try_from(take(ebpf, "GONE")?)?,
        };
        own_ports::publish(map(ebpf, "OWN_PORTS", size_of::<OwnPorts>())?);
        let notes = match ebpf.map("NOTES") {
            Some(Map::SkStorage(data)) => Some(data.fd().as_fd().try_clone_to_owned()?),
            _ => None,
        };
        Ok(Self {
            board: map(ebpf, "SWITCHBOARD", size_of::<Switchboard>())?,
            limits: map(ebpf, "LIMITS", size_of::<Limits>())?,
            lanes: map(ebpf, "LANES", size_of::<Lanes>())?,
            counts: Counts::take(ebpf)?,
            entries: Mutex::new(entries),
            netns,
            steering,
            iterators,
            notes,
        })
    }

    /// The programs' notes on sockets, as [`activity`](super::diag::activity) reads them.
    #[must_use]
    pub fn notes(&self) -> Option<BorrowedFd<'_>> {
        self.notes.as_ref().map(AsFd::as_fd)
    }

    /// Notes that callers went unsteered for a while.
    pub fn interrupted(&self) {
        self.steering.interrupted();
    }

    /// How often steering has been interrupted so far, if it is not just now.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn steering(&self) -> Result<u64, String> {
        self.steering.check()
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        // A panic elsewhere leaves the handles as good as they were.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn board(&self, offset: usize, index: u32) -> &AtomicU64 {
        &self.board.words()[offset / WORD + index as usize]
    }

    fn worker_word(&self, worker: u32) -> &AtomicU64 {
        self.board(offset_of!(Switchboard, workers), worker)
    }

    /// A worker's word as it stands.
    #[must_use]
    pub fn word(&self, worker: u32) -> WorkerWord {
        WorkerWord(self.worker_word(worker).load(SeqCst))
    }

    /// Puts a worker into a state, whatever it was in. Returns the new word.
    pub fn publish(&self, worker: u32, state: State, lease_ms: u64) -> WorkerWord {
        loop {
            let old = self.word(worker);
            if let Ok(new) = self.swap(worker, old, state, lease_ms) {
                return new;
            }
        }
    }

    /// Drains a worker until the lease is over, but one that is down or cold. Returns the word that counts.
    pub fn drain(&self, worker: u32, lease_ms: u64) -> WorkerWord {
        loop {
            let old = self.word(worker);
            if matches!(old.state(), State::Down | State::Cold) {
                return old;
            }
            if let Ok(new) = self.swap(worker, old, State::Draining, lease_ms) {
                return new;
            }
        }
    }

    /// Puts a worker into a state if its word is still `old`. One that is to be up, or to be up again after a drain, and
    /// whose last socket was closed just now, is down.
    ///
    /// # Errors
    /// The word that was found instead.
    pub fn swap(&self, worker: u32, old: WorkerWord, state: State, lease_ms: u64) -> Result<WorkerWord, WorkerWord> {
        let new = self.replace(worker, old, old.next(state, lease_ms))?;
        // Who closes the socket counts first and looks at the word then; here it is the other way round, so that one of
        // the two sees the other.
        if matches!(state, State::Up | State::Draining) && self.counts.life(worker).is_dead() {
            return self.replace(worker, new, new.next(State::Down, 0));
        }
        Ok(new)
    }

    /// Writes a word if `old` is still there.
    ///
    /// # Errors
    /// The word that was found instead.
    pub fn replace(&self, worker: u32, old: WorkerWord, new: WorkerWord) -> Result<WorkerWord, WorkerWord> {
        match self.worker_word(worker).compare_exchange(old.0, new.0, SeqCst, SeqCst) {
            Ok(_) => Ok(new),
            Err(found) => Err(WorkerWord(found)),
        }
    }

    /// Publishes a service: its mode, policy and slot, in one write.
    pub fn publish_service(&self, service: u32, word: ServiceWord) {
        self.board(offset_of!(Switchboard, services), service).store(word.0, SeqCst);
    }

    /// The service's word as it stands.
    #[must_use]
    pub fn service_word(&self, service: u32) -> ServiceWord {
        ServiceWord(self.board(offset_of!(Switchboard, services), service).load(SeqCst))
    }

    /// Bypasses every service, or no longer, in one write.
    pub fn bypass(&self, on: bool) {
        self.board(offset_of!(Switchboard, bypass), 0).store(u64::from(on), SeqCst);
    }

    /// Whether every service is bypassed.
    #[must_use]
    pub fn bypassed(&self) -> bool {
        self.board(offset_of!(Switchboard, bypass), 0).load(SeqCst) != 0
    }

    /// A worker's connections that are older than the programs.
    #[must_use]
    pub fn seed(&self, worker: u32) -> u64 {
        self.board(offset_of!(Switchboard, seeds), worker).load(SeqCst)
    }

    /// Sets the number of a worker's connections that are older than the programs.
    pub fn set_seed(&self, worker: u32, connections: u64) {
        self.board(offset_of!(Switchboard, seeds), worker).store(connections, SeqCst);
    }

    /// What the programs count.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// What a service is held to.
    #[must_use]
    pub fn limits(&self, service: u32) -> LimitsWord {
        LimitsWord(self.limit(service).load(SeqCst))
    }

    /// Says what a service is held to.
    pub fn set_limits(&self, service: u32, limits: LimitsWord) {
        self.limit(service).store(limits.0, SeqCst);
    }

    /// Which pool of a service is current, or will be, and how they are named.
    #[must_use]
    pub fn flip(&self, service: u32) -> FlipWord {
        FlipWord(self.lane(service).load(SeqCst))
    }

    /// Says it, in one write.
    pub fn publish_flip(&self, service: u32, word: FlipWord) {
        self.lane(service).store(word.0, SeqCst);
    }

    fn lane(&self, service: u32) -> &AtomicU64 {
        &self.lanes.words()[offset_of!(Lanes, services) / WORD + service as usize]
    }

    /// The end of a quarantine that begins now, in milliseconds of `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn quarantine(&self, service: u32) -> u64 {
        host::now_ms() + self.limits(service).cold_limit_ms()
    }

    fn limit(&self, service: u32) -> &AtomicU64 {
        &self.limits.words()[offset_of!(Limits, services) / WORD + service as usize]
    }

    /// Counts the sockets that listen for workers now, as they are entered: those that were there before, and those whose
    /// worker is another since.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn count_listeners(&self) -> Result<()> {
        let Some(arm) = &self.iterators.arm else { return Ok(()) };
        bpf::iterate(arm.as_fd()).context("counting the sockets that listen (an iterator over TCP sockets)")
    }

    /// Writes a slot. Nobody may be reading it: no word names it, and a grace period has passed since one did.
    ///
    /// # Errors
    /// When the kernel refuses the write.
    pub fn write_slot(&self, index: u32, slot: &Slot) -> Result<()> {
        self.entries().slots.set(index, slot, 0).with_context(|| format!("writing pool slot {index}"))
    }

    /// The caller rules of a slot.
    ///
    /// # Errors
    /// When the kernel refuses the read.
    pub fn callers(&self, slot: u32) -> Result<Vec<CallerRule>> {
        let slot = self.entries().slots.get(&slot, 0).with_context(|| format!("reading pool slot {slot}"))?;
        let len = (slot.callers_len as usize).min(slot.callers.len());
        Ok(slot.callers[..len].to_vec())
    }

    /// The callers that were not steered, of all services; without those that the programs have just forgotten.
    #[must_use]
    pub fn unsteered(&self) -> Vec<(UnsteeredKey, Unsteered)> {
        self.entries().unsteered.iter().filter_map(Result::ok).collect()
    }

    /// Says where a worker listens. Not while it is a member of a slot that is in use.
    ///
    /// # Errors
    /// When the kernel refuses the write.
    pub fn write_worker(&self, worker: u32, service: u32, at: SocketAddr) -> Result<()> {
        let (addr, port) = (words(at.ip()), u32::from(at.port()));
        let mut entries = self.entries();
        entries
            .worker_addrs
            .set(worker, WorkerAddr { addr, port, service }, 0)
            .with_context(|| format!("writing the address of worker {at}"))?;
        for spelling in spellings(at) {
            entries
                .listeners
                .insert(self.key(spelling), worker, 0)
                .with_context(|| format!("entering listener {spelling}"))?;
        }
        Ok(())
    }

    /// Makes an address, in all its spellings, a frontend.
    ///
    /// # Errors
    /// When the kernel refuses the write.
    pub fn insert_frontend(&self, at: SocketAddr, frontend: Frontend) -> Result<()> {
        let mut entries = self.entries();
        for spelling in spellings(at) {
            entries
                .frontends
                .insert(self.key(spelling), frontend, 0)
                .with_context(|| format!("entering frontend {spelling}"))?;
        }
        Ok(())
    }

    /// Removes every frontend and listener but these, in all their spellings; those of other network namespaces too, which
    /// a daemon has left that ran there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn retain(&self, frontends: &[SocketAddr], workers: &[SocketAddr]) -> Result<()> {
        let keys = |all: &[SocketAddr]| -> HashSet<Endpoint> {
            all.iter().flat_map(|at| spellings(*at)).map(|spelling| self.key(spelling)).collect()
        };
        let mut entries = self.entries();
        let keep = keys(frontends);
        for key in entries.frontends.keys().collect::<Result<Vec<_>, _>>().context("reading the frontends")? {
            if !keep.contains(&key) {
                entries.frontends.remove(&key).context("removing a frontend")?;
            }
        }
        let mut keep = keys(workers);
        keep.extend(workers.iter().flat_map(|at| wildcard::serving(*at)).map(|at| self.key(at)));
        for key in entries.listeners.keys().collect::<Result<Vec<_>, _>>().context("reading the listeners")? {
            if !keep.contains(&key) {
                entries.listeners.remove(&key).context("removing a listener")?;
            }
        }
        Ok(())
    }

    /// Says for which of these workers (address and index) a listener on a wildcard address counts.
    ///
    /// # Errors
    /// When the kernel refuses the write.
    pub fn enter_wildcards(&self, workers: &[(SocketAddr, u32)]) -> Result<()> {
        let mut entries = self.entries();
        for (wildcard, worker) in wildcard::owners(workers) {
            entries
                .listeners
                .insert(self.key(wildcard), worker, 0)
                .with_context(|| format!("entering listener {wildcard}"))?;
        }
        Ok(())
    }

    /// Removes an address from frontends and listeners, in all its spellings. What is missing is no error.
    pub fn forget(&self, at: SocketAddr) {
        let mut entries = self.entries();
        for spelling in spellings(at) {
            let _ = entries.frontends.remove(&self.key(spelling));
            let _ = entries.listeners.remove(&self.key(spelling));
        }
    }

    /// What an earlier daemon has entered.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn found(&self) -> Result<Found> {
        let entries = self.entries();
        let mut found = Found::default();
        for index in 0..MAX_WORKERS as u32 {
            if self.word(index).state() != State::Absent {
                let entry = entries.worker_addrs.get(&index, 0).context("reading a worker's address")?;
                let at = SocketAddr::new(address(entry.addr), entry.port as u16);
                match entries.listeners.get(&self.key(at), 0) {
                    Ok(listener) if listener == index => {
                        found.workers.push(FoundWorker { index, at, service: entry.service });
                    }
                    _ => found.strays.push(index),
                }
            }
        }
        for entry in entries.frontends.iter() {
            let (key, frontend) = entry.context("reading the frontends")?;
            if key.netns == self.netns && frontend.worker == NO_WORKER {
                found
                    .addresses
                    .insert(SocketAddr::new(address(key.addr), key.port as u16), u32::from(frontend.service));
            }
        }
        found.services = (0..MAX_SERVICES as u32).filter(|index| self.service_word(*index).0 != 0).collect();
        Ok(found)
    }

    fn key(&self, at: SocketAddr) -> Endpoint {
        Endpoint::v6(self.netns, words(at.ip()), u32::from(at.port()))
    }
}

pub(super) fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name)
        .ok_or_else(|| anyhow!("the eBPF object has no table {name}: it was not built with this deployer"))
}

pub(super) fn map(ebpf: &Ebpf, name: &str, bytes: usize) -> Result<Mapping> {
    let Some(Map::Array(data)) = ebpf.map(name) else {
        return Err(anyhow!("the eBPF object has no array {name}: it was not built with this deployer"));
    };
    Mapping::new(data.fd().as_fd(), bytes).with_context(|| format!("mapping table {name} into memory"))
}
