//! What a daemon that has ended has left in the kernel, for a client that finds no daemon.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    os::{
        fd::AsFd,
        unix::fs::{DirEntryExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use aya::{
    maps::{HashMap, Map, MapData, MapInfo},
    programs::loaded_programs,
};
use deployer_common::{
    endpoint::Endpoint,
    lanes::FlipWord,
    layout::{Frontend, LANE_FRONTEND, Lanes, MAX_SERVICES, NO_WORKER, ServiceCount, ServiceUse, Switchboard, TABLES},
    word::{Mode, ServiceWord},
};
use std::{mem::offset_of, sync::atomic::Ordering::SeqCst};

use super::{
    bpf, cgroup, diag, host,
    mapping::Mapping,
    pins::{self, Generation, Pins},
    tables::address,
    versions::pin_name,
};

const WORD: usize = size_of::<u64>();
/// Programs that decide about connections, by their names in the kernel.
const STEERING: [&str; 2] = ["connect4", "connect6"];

/// What a service is used for that only steering can serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// The service address; `None`: workers of the pool that is not current.
    pub address: Option<SocketAddr>,
    /// When a connection was made so last, in milliseconds of `CLOCK_MONOTONIC`; 0: never.
    pub last_ms: u64,
    /// Connections that were made so and are open.
    pub open: usize,
}

/// Takes out of the kernel what a daemon that has ended has left there. `false`: there was nothing.
///
/// # Errors
/// When a daemon lives that holds the pins, or a pin cannot be removed.
pub fn detach_leftovers(pins: &Path) -> Result<bool> {
    if pins::survey(pins).with_context(|| format!("looking at {}", pins.display()))?.is_none() {
        return Ok(false);
    }
    Pins::open(pins)?.remove()?;
    Ok(true)
}

/// How services are used whose connections the programs steer that are pinned in a directory; none where nothing is.
///
/// # Errors
/// When the tables cannot be read, or another version has made them.
pub fn uses(pins: &Path) -> Result<Vec<Use>> {
    let Some(live) = pins::live(pins) else { return Ok(Vec::new()) };
    let board = words::<Switchboard>(&live, "SWITCHBOARD", 1)?;
    let word = |offset: usize| board.words()[offset / WORD].load(SeqCst);
    if word(offset_of!(Switchboard, bypass)) != 0 {
        return Ok(Vec::new());
    }
    let lanes = words::<Lanes>(&live, "LANES", 1)?;
    let frontends = frontends(&live)?;
    let workers: BTreeSet<u16> =
        frontends.iter().filter(|(_, it)| it.worker != NO_WORKER).map(|(at, _)| at.port()).collect();
    let dialled = dialled(&live, &workers);
    let (mut uses, now) = (Vec::new(), host::now_ms());
    for service in 0..MAX_SERVICES {
        let mode = ServiceWord(word(offset_of!(Switchboard, services) + WORD * service)).mode();
        if mode != Mode::Enforce {
            continue;
        }
        let mine = || frontends.iter().filter(|(_, it)| usize::from(it.service) == service);
        let last = last_used(&live, service, now)?;
        let flip = FlipWord(lanes.words()[offset_of!(Lanes, services) / WORD + service].load(SeqCst));
        let current = flip.current(now);
        // In all its spellings; the one that an operator has written is none of the wildcards, and IPv4 where there is a choice.
        let spellings = mine().filter(|(_, it)| it.worker == NO_WORKER && u32::from(it.pool) != LANE_FRONTEND);
        let spellings: BTreeSet<_> = spellings.map(|(at, _)| (at.ip().is_unspecified(), at.is_ipv6(), *at)).collect();
        if let Some((_, _, at)) = spellings.first() {
            let open = dialled.iter().filter(|one| spellings.iter().any(|(_, _, at)| at == *one)).count();
            uses.push(Use { address: Some(*at), last_ms: last.address_ms, open });
        }
        if current == 1 {
            let others = mine().filter(|(_, it)| it.worker != NO_WORKER && u32::from(it.pool) != current);
            let others: Vec<_> = others.map(|(at, _)| *at).collect();
            let open = dialled.iter().filter(|one| others.contains(one)).count();
            uses.push(Use { address: None, last_ms: last.moved_ms, open });
        }
    }
    Ok(uses)
}

/// A table of words as it is pinned, of this version's layout.
fn words<T>(live: &Generation, table: &str, entries: usize) -> Result<Mapping> {
    let path = pin(live, table);
    let info = MapInfo::from_pin(&path).with_context(|| format!("looking at table {}", path.display()))?;
    if (info.value_size() as usize, info.max_entries() as usize) != (size_of::<T>(), entries) {
        bail!("another version of deployer has made table {}", path.display());
    }
    let fd = bpf::get(&path).with_context(|| format!("opening table {}", path.display()))?;
    Mapping::new(fd.as_fd(), size_of::<T>() * entries).with_context(|| format!("mapping {}", path.display()))
}

fn pin(live: &Generation, table: &str) -> PathBuf {
    let version = TABLES.iter().find(|(name, _)| *name == table).map_or(1, |(_, version)| *version);
    live.path(&pin_name(table, version))
}

/// Addresses that are dialled, and what they lead to.
fn frontends(live: &Generation) -> Result<Vec<(SocketAddr, Frontend)>> {
    let path = pin(live, "FRONTENDS");
    let map = MapData::from_pin(&path).with_context(|| format!("opening table {}", path.display()))?;
    let map: HashMap<_, Endpoint, Frontend> =
        HashMap::try_from(Map::HashMap(map)).with_context(|| format!("reading table {}", path.display()))?;
    let all = map.iter().map(|entry| {
        let (key, frontend) = entry.with_context(|| format!("reading table {}", path.display()))?;
        Ok((SocketAddr::new(address(key.addr), key.port as u16), frontend))
    });
    all.collect()
}

/// When a service was used last. Programs of a version that did not note that have counted at least: then it may have been
/// now.
fn last_used(live: &Generation, service: usize, now_ms: u64) -> Result<ServiceUse> {
    if pin(live, "SERVICE_USES").exists() {
        let uses = words::<ServiceUse>(live, "SERVICE_USES", MAX_SERVICES)?;
        let word = |offset: usize| uses.words()[(size_of::<ServiceUse>() * service + offset) / WORD].load(SeqCst);
        let (address_ms, moved_ms) = (word(offset_of!(ServiceUse, address_ms)), word(offset_of!(ServiceUse, moved_ms)));
        return Ok(ServiceUse { address_ms, moved_ms });
    }
    let counts = words::<ServiceCount>(live, "SERVICE_COUNTS", MAX_SERVICES)?;
    let at = (size_of::<ServiceCount>() * service + offset_of!(ServiceCount, dialled)) / WORD;
    let address_ms = if counts.words()[at].load(SeqCst) > 0 { now_ms } else { 0 };
    Ok(ServiceUse { address_ms, moved_ms: 0 })
}

/// What was dialled by the callers of open connections that were steered elsewhere. What the kernel does not say is not
/// known.
fn dialled(live: &Generation, ports: &BTreeSet<u16>) -> Vec<SocketAddr> {
    let Ok(notes) = bpf::get(&pin(live, "NOTES")) else { return Vec::new() };
    let open = ports.iter().filter_map(|port| diag::activity(*port, Some(notes.as_fd())).ok());
    open.flat_map(|open| open.into_values().filter_map(|one| one.dialled)).collect()
}

/// Programs of deployer's that steer connections.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attached {
    /// The cgroup of the callers; `None`: it is not found below the root of cgroup v2.
    pub cgroup: Option<PathBuf>,
    /// The directory in which they are pinned; `None`: it is not found in a bpf file system that is mounted here.
    pub pins: Option<PathBuf>,
}

/// The programs of any deployer that steer connections on this machine.
///
/// # Errors
/// When the kernel does not say what is loaded: that takes root.
pub fn attached() -> Result<Vec<Attached>> {
    let mut ours = BTreeSet::new();
    for program in loaded_programs() {
        let program = program.context("listing the eBPF programs of the kernel")?;
        let is_named = program.name_as_str().is_some_and(|name| STEERING.contains(&name));
        let maps = || program.map_ids().ok().flatten().unwrap_or_default();
        let is_board = |id: &u32| MapInfo::from_id(*id).is_ok_and(|map| map.name_as_str() == Some("SWITCHBOARD"));
        if is_named && maps().iter().any(is_board) {
            ours.insert(program.id());
        }
    }
    let links = bpf::links().context("listing the eBPF links of the kernel")?;
    let links: BTreeMap<_, _> =
        links.into_iter().filter(|link| ours.contains(&link.program)).map(|link| (link.program, link.cgroup)).collect();
    if links.is_empty() {
        return Ok(Vec::new());
    }
    let cgroups = cgroups_of(&links.values().copied().collect());
    let pinned = pinned();
    let found = links.iter().map(|(program, cgroup)| Attached {
        cgroup: cgroups.get(cgroup).cloned(),
        pins: pinned.iter().find(|(_, programs)| programs.contains(program)).map(|(dir, _)| dir.clone()),
    });
    Ok(found.collect::<BTreeSet<_>>().into_iter().collect())
}

/// The directories of cgroups, by their ids.
fn cgroups_of(ids: &BTreeSet<u64>) -> BTreeMap<u64, PathBuf> {
    let (mut found, Ok(root)) = (BTreeMap::new(), cgroup::root()) else { return BTreeMap::new() };
    let mut left = vec![root];
    while let Some(dir) = left.pop() {
        let id = fs::metadata(&dir).map(|it| it.ino()).unwrap_or_default();
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.ino() != id && entry.file_type().is_ok_and(|kind| kind.is_dir()));
        left.extend(below.map(|entry| entry.path()));
        if ids.contains(&id) {
            found.insert(id, dir);
        }
    }
    found
}

/// The directories of pins in the bpf file systems that are mounted here, and the programs of their links.
fn pinned() -> Vec<(PathBuf, BTreeSet<u32>)> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let roots = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (at, kind) = (fields.next()?, fields.next()?);
        (kind == "bpf").then(|| PathBuf::from(at))
    });
    let dirs = roots.flat_map(|root| fs::read_dir(root).into_iter().flatten().flatten()).map(|entry| entry.path());
    let programs = |live: &Generation| {
        let links = STEERING.iter().filter_map(|name| bpf::get(&live.path(&format!("link-{name}"))).ok());
        links.filter_map(|link| bpf::info(link.as_fd()).ok()).map(|info| info.program).collect()
    };
    dirs.filter_map(|dir| Some((dir.clone(), programs(&pins::live(&dir)?)))).collect()
}
