//! What the workers themselves have written down: the only witness of requests that nginx silently sent twice.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::time::{ClockId, clock_gettime};

use crate::report::Report;

/// How an entry's request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The answer was written, at this CLOCK_MONOTONIC.
    Answered(u64),
    /// The caller had gone away.
    CallerGone(u64),
    /// Never: the worker died inside it (or has it still in hand).
    Cut,
}

/// One request as one worker process saw it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The request's id.
    pub id: String,
    /// The worker's port.
    pub port: u16,
    /// The worker's process.
    pub pid: u32,
    /// The version it ran.
    pub version: String,
    /// Whether the request had to wait for a cold worker.
    pub cold: bool,
    /// CLOCK_MONOTONIC at its beginning.
    pub begin_ns: u64,
    /// Its end.
    pub end: End,
    /// The other end's port of the connection that brought it; 0 if the worker does not say.
    pub peer: u16,
    /// Method and path; empty if the worker does not say.
    pub asked: String,
}

/// A connection that a worker process accepted, if it says so ([`crate::pages`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The worker's port.
    pub port: u16,
    /// The worker's process.
    pub pid: u32,
    /// The version it ran.
    pub version: String,
    /// The other end's port.
    pub peer: u16,
    /// CLOCK_MONOTONIC, ns, when the worker had accepted it.
    pub at_ns: u64,
}

/// All workers' journals.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// Worker by worker, in the order of their beginnings.
    pub entries: Vec<Entry>,
    /// Worker by worker, in the order of their acceptance.
    pub connections: Vec<Accepted>,
}

impl Journal {
    /// Reads all journals in a directory ([`crate::app::App::journal_dir`]).
    pub fn read(dir: &Path) -> Result<Self> {
        let mut journal = Self::default();
        for file in fs::read_dir(dir).context("journals")? {
            let path = file?.path();
            let port = path.file_stem().and_then(|stem| stem.to_str());
            let port = port.and_then(|stem| stem.parse().ok());
            let port = port.with_context(|| format!("{} is no journal", path.display()))?;
            let text = fs::read_to_string(&path).context("read a journal")?;
            // A line that crosses a page of the file may be seen in the middle of its being written.
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            journal.add(port, whole).with_context(|| format!("journal of {port}"))?;
        }
        Ok(journal)
    }

    fn add(&mut self, port: u16, text: &str) -> Result<()> {
        // Begun here and not yet ended, by id: an end belongs to the latest beginning.
        let mut open: HashMap<&str, usize> = HashMap::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match *words.as_slice() {
                ["C", peer, at, pid, version] => self.connections.push(Accepted {
                    port,
                    pid: pid.parse().context("pid")?,
                    version: version.to_owned(),
                    peer: peer.parse().context("peer")?,
                    at_ns: at.parse().context("time")?,
                }),
                ["B", id, at, pid, version, cold, ref more @ ..] => {
                    open.insert(id, self.entries.len());
                    self.entries.push(Entry {
                        id: id.to_owned(),
                        port,
                        pid: pid.parse().context("pid")?,
                        version: version.to_owned(),
                        cold: cold == "1",
                        begin_ns: at.parse().context("begin")?,
                        end: End::Cut,
                        peer: more.first().map_or(Ok(0), |peer| peer.parse()).context("peer")?,
                        asked: more.get(1..).unwrap_or_default().join(" "),
                    });
                }
                [kind @ ("E" | "A"), id, at] => {
                    let index = open.remove(id).with_context(|| format!("{id} ends twice"))?;
                    let at = at.parse().context("end")?;
                    self.entries[index].end = match kind {
                        "E" => End::Answered(at),
                        _ => End::CallerGone(at),
                    };
                }
                _ => bail!("line {line:?}"),
            }
        }
        Ok(())
    }

    /// Ids that more than one process (or one process more than once) began: somebody sent them again.
    pub fn doubled(&self) -> Vec<&str> {
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        for entry in &self.entries {
            *times.entry(&entry.id).or_default() += 1;
        }
        times.retain(|_, times| *times > 1);
        times.into_keys().collect()
    }

    /// Begun and never ended.
    pub fn cut(&self) -> Vec<&Entry> {
        let cut = |entry: &&Entry| entry.end == End::Cut;
        self.entries.iter().filter(cut).collect()
    }

    /// Served cold.
    pub fn cold(&self) -> Vec<&Entry> {
        self.entries.iter().filter(|entry| entry.cold).collect()
    }

    /// When each version's requests began (CLOCK_MONOTONIC, ascending).
    pub fn begins_by_version(&self) -> BTreeMap<&str, Vec<u64>> {
        let mut begins: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for entry in &self.entries {
            begins.entry(&entry.version).or_default().push(entry.begin_ns);
        }
        begins.values_mut().for_each(|b| b.sort_unstable());
        begins
    }

    /// Contradictions between the workers and the load; read the journals after the load has stopped.
    ///
    /// An answer with status 200 must be that of a request which the worker it names began, in the version it names, and
    /// did not give up. One that is [cut](Self::cut) is none: a worker notes an answer's end after it has sent it, and may
    /// be killed in between.
    pub fn contradictions(&self, report: &Report) -> Vec<String> {
        let served: HashSet<(&str, u16, &str)> = self
            .entries
            .iter()
            .filter(|entry| !matches!(entry.end, End::CallerGone(_)))
            .map(|entry| (entry.id.as_str(), entry.port, entry.version.as_str()))
            .collect();
        let answered = report.outcomes.iter().filter(|outcome| !outcome.failed());
        answered
            .filter(|o| !served.contains(&(o.id.as_str(), o.port, o.version.as_str())))
            .map(|o| format!("{o} ({}), which that worker never had or gave up", o.version))
            .collect()
    }
}

/// CLOCK_MONOTONIC, the clock of the journals.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Never negative: it counts from the machine's start.
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
