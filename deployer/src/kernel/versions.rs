//! Tables outlive the daemon, so a daemon finds tables that another version has made. Which can be taken over as they are,
//! which are moved into a new layout, and which are from a future that this version knows nothing of.
//!
//! A pin's name carries the version of its table's layout: `SWITCHBOARD-1`.

use std::{
    collections::BTreeMap,
    sync::atomic::Ordering::{Relaxed, SeqCst},
};

use anyhow::{Context, Result, bail};
use aya::maps::MapInfo;
use deployer_common::{
    endpoint::Endpoint,
    layout::{
        Dial, EVENT_BYTES, Frontend, LaneCount, Lanes, Limits, ListenerNote, Listening, MAX_FRONTENDS, MAX_LISTENING,
        MAX_RESETS, MAX_SERVICES, MAX_SLOTS, MAX_WORKERS, ServiceCount, ServiceUse, Slot, SockNote, Switchboard,
        TABLES, WorkerAddr, WorkerCount, WorkerEnd, WorkerEvidence, WorkerLife, WorkerProof, WorkerTimes,
    },
    protect::{BindCount, Protected},
};

use super::{bpf, mapping::Mapping, pins::Generation};

/// How a table of words is moved from an older layout into that of [`TABLES`].
struct Migration {
    table: &'static str,
    from: u32,
    /// Length of the older table in words.
    words: usize,
    /// Where a word of the older table stands now.
    place: fn(usize) -> usize,
}

/// Every step from an older layout; the first change of a table that is no array of words brings its own kind of step.
const MIGRATIONS: &[Migration] = &[
    #[cfg(feature = "next-layout")]
    Migration { table: "SWITCHBOARD", from: 1, words: 1 + MAX_SERVICES + 2 * MAX_WORKERS, place: |word| word + 1 },
    #[cfg(feature = "next-layout")]
    Migration {
        table: "WORKER_COUNTS",
        from: 1,
        words: 10 * MAX_WORKERS,
        place: |word| word / 10 * 11 + 1 + word % 10,
    },
];

/// The name under which a table is pinned.
pub(super) fn pin_name(table: &str, version: u32) -> String {
    format!("{table}-{version}")
}

/// What becomes of each table that was found.
#[derive(Default)]
pub(super) struct Inheritance {
    /// Taken over as it is: the table's name, and that of its pin.
    pub(super) kept: BTreeMap<&'static str, String>,
    /// Moved into a new layout.
    moved: Vec<&'static Migration>,
}

/// Looks at what is pinned, and changes nothing.
///
/// # Errors
/// When a table is from a newer version, or is not what its name says; with what to do.
pub(super) fn inherit(found: &Generation) -> Result<Inheritance> {
    let mut inheritance = Inheritance::default();
    for name in found.names() {
        let Some((table, version)) = name.rsplit_once('-') else { continue };
        let Some((table, current)) = TABLES.iter().find(|(known, _)| *known == table) else { continue };
        let Ok(version) = version.parse::<u32>() else { continue };
        if version == *current {
            verify(found, table, &name)?;
            inheritance.kept.insert(table, name);
        } else if version > *current {
            bail!(
                "the tables in {} were made by a newer deployer ({name}; this one knows up to {current}), and nothing was \
                 changed. Start that version again, or take everything out of the kernel first (deployer detach; \
                 connections go where they are dialled from then on)",
                found.dir().display()
            );
        } else {
            let step = MIGRATIONS.iter().find(|step| step.table == *table && step.from == version);
            inheritance.moved.push(step.with_context(|| {
                format!("this version has no way from {name} to {table}-{current}; deployer detach starts anew")
            })?);
        }
    }
    Ok(inheritance)
}

/// aya opens a pinned table by its name alone; the kernel would let programs read past its entries only at load time, but
/// our own mapping of it must not be too long.
fn verify(found: &Generation, table: &str, name: &str) -> Result<()> {
    let path = found.path(name);
    let info = MapInfo::from_pin(&path).with_context(|| format!("looking at table {}", path.display()))?;
    let (key, value, entries) = shape(table);
    let seen = (info.key_size(), info.value_size(), info.max_entries());
    if seen != (key, value, entries) {
        bail!(
            "{} is not the table that its name says (key, value, entries: {seen:?}, not {:?}), and nothing was changed; \
             take everything out of the kernel (deployer detach) and start again",
            path.display(),
            (key, value, entries)
        );
    }
    Ok(())
}

/// Sizes of key and value in bytes, and the number of entries.
fn shape(table: &str) -> (u32, u32, u32) {
    let array = |value: usize, entries: usize| (4, value as u32, entries as u32);
    match table {
        "SWITCHBOARD" => array(size_of::<Switchboard>(), 1),
        "FRONTENDS" => (size_of::<Endpoint>() as u32, size_of::<Frontend>() as u32, MAX_FRONTENDS as u32),
        "LISTENERS" => (size_of::<Endpoint>() as u32, size_of::<u32>() as u32, MAX_FRONTENDS as u32),
        "SLOTS" => array(size_of::<Slot>(), MAX_SLOTS),
        "WORKER_ADDRS" => array(size_of::<WorkerAddr>(), MAX_WORKERS),
        "WORKER_COUNTS" => array(size_of::<WorkerCount>(), MAX_WORKERS),
        "SERVICE_COUNTS" => array(size_of::<ServiceCount>(), MAX_SERVICES),
        "LIMITS" => array(size_of::<Limits>(), 1),
        "LANES" => array(size_of::<Lanes>(), 1),
        "LANE_COUNTS" => array(size_of::<LaneCount>(), MAX_SERVICES),
        "WORKER_LIVES" => array(size_of::<WorkerLife>(), MAX_WORKERS),
        "WORKER_PROOFS" => array(size_of::<WorkerProof>(), MAX_WORKERS),
        "WORKER_ENDS" => array(size_of::<WorkerEnd>(), MAX_WORKERS),
        "RESETS" => (size_of::<Endpoint>() as u32, size_of::<u64>() as u32, MAX_RESETS as u32),
        "WORKER_TIMES" => array(size_of::<WorkerTimes>(), MAX_WORKERS),
        "WORKER_EVIDENCE" => array(size_of::<WorkerEvidence>(), MAX_WORKERS),
        "LISTENING" => (size_of::<u64>() as u32, size_of::<Listening>() as u32, MAX_LISTENING as u32),
        "EVENTS" => (0, 0, EVENT_BYTES as u32),
        "PROTECTED" => (size_of::<Endpoint>() as u32, size_of::<Protected>() as u32, MAX_FRONTENDS as u32),
        "BIND_COUNTS" => array(size_of::<BindCount>(), MAX_SERVICES),
        "SERVICE_USES" => array(size_of::<ServiceUse>(), MAX_SERVICES),
        // Storage of sockets has no entries of its own.
        "DIALS" => array(size_of::<Dial>(), 0),
        "LISTENER_NOTES" => array(size_of::<ListenerNote>(), 0),
        _ => array(size_of::<SockNote>(), 0),
    }
}

/// Tables being moved: counted on in the old ones until the last program has been swapped.
#[derive(Default)]
pub(super) struct Moving(Vec<Pair>);

struct Pair {
    old: Mapping,
    new: Mapping,
    copied: Vec<u64>,
    place: fn(usize) -> usize,
}

impl Inheritance {
    /// Copies the words of the tables that are moved, before any program reads the new ones.
    pub(super) fn copy(&self, from: &Generation, to: &Generation) -> Result<Moving> {
        let mut moving = Moving::default();
        for step in &self.moved {
            let open = |generation: &Generation, version: u32, bytes: usize| {
                let path = generation.path(&pin_name(step.table, version));
                let fd = bpf::get(&path).with_context(|| format!("opening {}", path.display()))?;
                use std::os::fd::AsFd;
                Mapping::new(fd.as_fd(), bytes).with_context(|| format!("mapping {} into memory", path.display()))
            };
            let current = TABLES.iter().find(|(name, _)| *name == step.table).map_or(0, |(_, version)| *version);
            let (_, value, entries) = shape(step.table);
            let old = open(from, step.from, 8 * step.words)?;
            let new = open(to, current, value as usize * entries as usize)?;
            let copied: Vec<u64> = old.words().iter().map(|word| word.load(SeqCst)).collect();
            for (at, word) in copied.iter().enumerate() {
                new.words()[(step.place)(at)].store(*word, SeqCst);
            }
            moving.0.push(Pair { old, new, copied, place: step.place });
        }
        Ok(moving)
    }
}

impl Moving {
    /// Adds what was counted in the old tables since they were copied. No program writes to them any more.
    pub(super) fn finish(self) {
        for Pair { old, new, copied, place } in self.0 {
            for (at, (word, before)) in old.words().iter().zip(copied).enumerate() {
                let since = word.load(SeqCst).wrapping_sub(before);
                new.words()[place(at)].fetch_add(since, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_older_layout_has_a_way_to_this_one() {
        for (table, version) in TABLES {
            for older in 1..version {
                let ways = MIGRATIONS.iter().filter(|step| step.table == table && step.from == older).count();
                assert_eq!(ways, 1, "{table}-{older}");
            }
        }
    }

    #[test]
    fn no_two_words_meet() {
        for step in MIGRATIONS {
            let (_, value, entries) = shape(step.table);
            let mut places: Vec<_> = (0..step.words).map(step.place).collect();
            assert!(places.iter().all(|place| *place < value as usize * entries as usize / 8), "{}", step.table);
            places.dedup();
            assert_eq!(places.len(), step.words, "{}", step.table);
        }
    }
}
