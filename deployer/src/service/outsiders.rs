//! Callers that a service does not steer: their connections and tickets are waited for until the deadline of a drain, and
//! do not stop a roll.
//!
//! A connection is an outsider's if the programs have noted so at the caller's end, when it was dialled. For connections
//! that are older than the programs, the processes that hold the caller's end are held against the service's rules. What
//! cannot be told is not an outsider's: a caller on another host or in another network namespace, a process that cannot be
//! looked at, a service without `callers`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::SocketAddr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use deployer_common::layout::{CALLER_CGROUP, CALLER_EXECUTABLE, CallerRule, TicketHolder};

use super::{
    Worker,
    holds::{Connection, connections},
};
use crate::{
    kernel::{
        Pair, Tables, cgroup,
        diag::{self, Evidence, Note, Socket},
        executables, procs,
    },
    log::recurring,
};

/// With looks for pending `connect()` calls.
static TROUBLE: recurring::Shared = recurring::Shared::new();
/// Callers that are named.
const NAMED: usize = 8;

/// What a drain has cut at its deadline.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cut {
    /// Connections.
    pub connections: u64,
    /// `connect()` calls on their way.
    pub tickets: u64,
    /// Whose they were, by process and user: "python3 (pid 4711, user nobody): 1 established, 127.0.0.1:43210".
    pub by: Vec<String>,
}

/// What holds a drain, sorted by who has dialled.
#[derive(Debug, Default)]
pub struct Sorted {
    /// Sockets of connections that stop a roll.
    pub callers: Vec<Socket>,
    /// Tickets that stop a roll.
    pub tickets: u64,
    outsiders: Vec<Outsider>,
    outsider_tickets: u64,
    held: Tickets,
}

/// A connection of a caller that is not steered.
#[derive(Debug)]
struct Outsider {
    caller: SocketAddr,
    state: &'static str,
    /// The caller's socket and the worker's, as far as they are there.
    ends: Vec<Socket>,
    inode: Option<u32>,
}

impl Sorted {
    /// Looks at everything that holds a drain of a worker. Blocks, for as long as a walk over /proc takes if it comes to that.
    ///
    /// # Errors
    /// When sock_diag, or the table of rules, cannot be read.
    pub fn look(tables: &Tables, at: SocketAddr, (index, service): (u32, u32), wildcard: bool) -> io::Result<Self> {
        let evidence = Evidence::look(at, wildcard, tables.notes().map(|notes| (notes, index)))?;
        let rules = tables.callers(tables.service_word(service).slot()).map_err(io::Error::other)?;
        let (tickets, outsider_tickets, held) = tickets(tables, index);
        if !tell_apart(&rules) {
            let tickets = tickets + outsider_tickets;
            return Ok(Self { callers: evidence.sockets, tickets, ..Self::default() });
        }
        let closing = match tables.notes() {
            Some(notes) => diag::half_closed(at.port(), notes)?,
            None => Default::default(),
        };
        let mut sorted = sort(&evidence, at, &closing, &mut |inodes| Rules::new(&rules).strangers(inodes));
        (sorted.tickets, sorted.outsider_tickets, sorted.held) = (tickets, outsider_tickets, held);
        Ok(sorted)
    }

    /// Whether all that is left is of callers that are not steered, or nothing is.
    #[must_use]
    pub fn is_without_callers(&self) -> bool {
        self.callers.is_empty() && self.tickets == 0
    }

    /// Closes the connections of callers that are not steered, at the worker's end, and counts them. Returns what there was.
    /// Where the kernel cannot close them, they end with the worker's process, which counts them.
    pub fn cut(&self, tables: &Tables, worker: u32) -> Cut {
        let mut closed = 0;
        for outsider in &self.outsiders {
            let ends = outsider.ends.iter().map(diag::destroy);
            closed += u64::from(ends.fold(false, |any, end| any | end.is_ok()));
        }
        tables.counts().add_outsiders_cut(worker, closed);
        let (connections, tickets) = (self.outsiders.len() as u64, self.outsider_tickets);
        Cut { connections, tickets, by: self.named() }
    }

    /// Who they are, in short.
    fn named(&self) -> Vec<String> {
        let inodes: BTreeSet<_> = self.outsiders.iter().filter_map(|outsider| outsider.inode).collect();
        let holders = if inodes.is_empty() { Default::default() } else { procs::holding(&inodes) };
        let mut groups: BTreeMap<(String, &str), Vec<SocketAddr>> = BTreeMap::new();
        for outsider in &self.outsiders {
            let process = outsider.inode.and_then(|inode| holders.get(&inode));
            let who = process.map_or_else(|| "no process".to_owned(), procs::Process::with_user);
            groups.entry((who, outsider.state)).or_default().push(outsider.caller);
        }
        let named = groups.iter().map(|((who, state), of)| format!("{who}: {} {state}, {}", of.len(), of[0]));
        named.chain(waiting(&self.held.live)).take(NAMED).collect()
    }
}

/// The tickets of a worker that may still become a connection, of callers and of others, and what is known of all.
fn tickets(tables: &Tables, worker: u32) -> (u64, u64, Tickets) {
    // In this order: a ticket that is taken between the two looks counts as a caller's.
    let counts = || (tables.counts().evidence(worker).outsider_tickets, tables.counts().worker(worker).tickets);
    let (outsiders, all) = counts();
    if all == 0 {
        return (0, 0, Tickets::default());
    }
    let held = Tickets::look(tables, worker);
    // Those that have come or gone meanwhile make what was found uncertain: then all of them count.
    let stale = if counts() == (outsiders, all) { held.stale } else { [0, 0] };
    let callers = all.saturating_sub(outsiders);
    (callers.saturating_sub(stale[0]), outsiders.min(all).saturating_sub(stale[1]), held)
}

/// Whether all tickets of a worker are of connect() calls that have failed. Looks at all open files of the machine.
pub fn are_stale(tables: &Tables, worker: u32) -> bool {
    let (callers, outsiders, _) = tickets(tables, worker);
    callers + outsiders == 0
}

impl Worker {
    /// What [`Sorted::look`] wants to know of it.
    #[must_use]
    pub fn places(&self) -> (u32, u32) {
        (self.index, self.pool)
    }
}

/// The tickets of a worker, as far as processes have their sockets open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tickets {
    /// Those that may still become a connection, with the processes.
    pub live: Vec<TicketHolder>,
    /// How many sockets have a ticket whose connect() has failed: of callers, and of others.
    pub stale: [u64; 2],
}

impl Tickets {
    /// Looks at all open files of the machine; nothing is found where the kernel cannot do that.
    pub fn look(tables: &Tables, worker: u32) -> Self {
        let found = tables.ticket_holders();
        TROUBLE.note(&found, "look for pending connect() calls");
        Self::of(found.ok().flatten().unwrap_or_default(), worker)
    }

    fn of(found: Vec<TicketHolder>, worker: u32) -> Self {
        let of_worker = found.into_iter().filter(|holder| holder.worker == worker);
        let (stale, live): (Vec<_>, Vec<_>) = of_worker.partition(|holder| holder.stale != 0);
        let sockets = |outsider| {
            let of = stale.iter().filter(|holder| (holder.outsider != 0) == outsider).map(|holder| holder.sk);
            of.collect::<BTreeSet<_>>().len() as u64
        };
        Self { stale: [sockets(false), sockets(true)], live }
    }
}

/// Names the holders of tickets, in short: "python3 (pid 4711, user nobody): 2 connect() calls".
pub(super) fn waiting(holders: &[TicketHolder]) -> Vec<String> {
    let mut calls: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
    for holder in holders {
        calls.entry(holder.pid).or_default().insert(holder.sk);
    }
    let say = |(pid, sockets): (&u32, &BTreeSet<u64>)| {
        let plural = if sockets.len() == 1 { "" } else { "s" };
        format!("{}: {} connect() call{plural}", procs::process(*pid).with_user(), sockets.len())
    };
    calls.iter().map(say).collect()
}

/// Sorts connections. `closing`: what is noted of callers' ends that are closed by half. `strangers`: those of some sockets
/// that no caller of the service holds.
fn sort(
    evidence: &Evidence,
    at: SocketAddr,
    closing: &std::collections::HashMap<(SocketAddr, SocketAddr), Note>,
    strangers: &mut dyn FnMut(&BTreeSet<u32>) -> BTreeSet<u32>,
) -> Sorted {
    let all = connections(&evidence.sockets, at);
    let note = |connection: &Connection<'_>| match connection.caller {
        Some(end) => evidence.notes.get(&end.cookie).copied(),
        None => closing.get(&(connection.pair.caller, connection.pair.worker)).copied(),
    };
    let unknown = |connection: &Connection<'_>| {
        let note = note(connection).unwrap_or_default();
        let inode = connection.caller.map_or(0, |end| end.inode);
        (note.leads_to.is_none() && !note.outsider && inode != 0).then_some(inode)
    };
    let asked: BTreeSet<u32> = all.iter().filter_map(unknown).collect();
    let strangers = if asked.is_empty() { BTreeSet::new() } else { strangers(&asked) };
    let mut sorted = Sorted::default();
    for connection in &all {
        let is_noted = note(connection).is_some_and(|note| note.outsider);
        let ends: Vec<Socket> = connection.ends().cloned().collect();
        if is_noted || unknown(connection).is_some_and(|inode| strangers.contains(&inode)) {
            sorted.outsiders.push(outsider(connection, ends));
        } else {
            sorted.callers.extend(ends);
        }
    }
    sorted
}

fn outsider(connection: &Connection<'_>, ends: Vec<Socket>) -> Outsider {
    let Pair { caller, .. } = connection.pair;
    let inode = connection.caller.map(|end| end.inode).filter(|inode| *inode != 0);
    Outsider { caller, state: connection.state(), ends, inode }
}

/// Whether a service's rules tell callers from others. Where every rule is for a cgroup or file that is not there, the real
/// callers would pass for outsiders.
pub(super) fn tell_apart(rules: &[CallerRule]) -> bool {
    rules.iter().any(|rule| rule.kind != 0)
}

/// Whether a caller's socket, of which the programs have noted nothing, is one of a caller that is not steered.
pub(super) fn strangers_among(rules: &[CallerRule], inodes: &BTreeSet<u32>) -> BTreeSet<u32> {
    if !tell_apart(rules) || inodes.is_empty() { BTreeSet::new() } else { Rules::new(rules).strangers(inodes) }
}

/// A service's rules, as the kernel has them.
struct Rules<'a> {
    rules: &'a [CallerRule],
    root: Option<PathBuf>,
}

impl<'a> Rules<'a> {
    fn new(rules: &'a [CallerRule]) -> Self {
        Self { rules, root: cgroup::root().ok() }
    }

    /// Those sockets that processes hold of which none is a caller.
    fn strangers(&self, inodes: &BTreeSet<u32>) -> BTreeSet<u32> {
        let (mut held, mut callers) = (BTreeSet::new(), BTreeSet::new());
        for (pid, sockets) in procs::sharing(inodes) {
            if pid == std::process::id() || self.may_fit(pid) {
                callers.extend(&sockets);
            }
            held.extend(sockets);
        }
        held.difference(&callers).copied().collect()
    }

    /// Whether a process fits a rule, or cannot be looked at.
    fn may_fit(&self, pid: u32) -> bool {
        self.rules.iter().any(|rule| match rule.kind {
            CALLER_CGROUP => self.is_in(pid, rule).unwrap_or(true),
            CALLER_EXECUTABLE => runs(pid, rule).unwrap_or(true),
            _ => false,
        })
    }

    fn is_in(&self, pid: u32, rule: &CallerRule) -> io::Result<bool> {
        let root = self.root.as_ref().ok_or_else(|| io::Error::other("no cgroup v2"))?;
        let text = fs::read(format!("/proc/{pid}/cgroup"))?;
        let Some(below) = below(&text) else { return Err(io::Error::other("no line for cgroup v2")) };
        let depth = rule.place as usize;
        let outer: PathBuf = below.components().take(depth).collect();
        if outer.components().count() < depth {
            return Ok(false);
        }
        let found = cgroup::id(root, &root.join(outer))?;
        Ok(found.id == rule.id)
    }
}

/// The cgroup below the root, from `/proc/PID/cgroup`: the line `0::/system.slice/nginx.service` (cgroups(7)).
fn below(text: &[u8]) -> Option<&Path> {
    let line = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::/"))?;
    Some(Path::new(std::ffi::OsStr::from_bytes(line)))
}

fn runs(pid: u32, rule: &CallerRule) -> io::Result<bool> {
    let found = executables::rule(Path::new(&format!("/proc/{pid}/exe")))?;
    Ok((found.place, found.id) == (rule.place, rule.id))
}

#[cfg(test)]
mod tests;
