//! What holds a drain: in short, for the events of a roll, and connection by connection, for whoever asks.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::Arc,
};

use deployer_common::layout::{CallerRule, TicketHolder};

use super::{Worker, blocking, floor::Short, outsiders};
use crate::{
    api::{Hold, TicketHold},
    kernel::{
        Pair, Tables,
        diag::{self, Activity, Evidence, Socket, states},
        procs::{self, Process},
    },
};

/// Groups of connections named in short.
const NAMED: usize = 4;
/// Why a connection holds of which its sockets tell no more.
const ESTABLISHED: &str = "established";
/// Connections listed of a worker.
const LISTED: usize = 30;

/// What holds a drain, in short.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Connections: sockets at the worker's end, or callers' that have not got through to it.
    pub open: u64,
    /// connect() calls on their way.
    pub tickets: u64,
    /// Who: "nginx (pid 4711): 3 established, 127.0.0.1:43210".
    pub by: Vec<String>,
    /// Others that would have to be up. If it is draining already, callers go on to it meanwhile.
    pub short: Option<Short>,
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plural = |count| if count == 1 { "" } else { "s" };
        write!(f, "{} connection{}", self.open, plural(self.open))?;
        if self.tickets > 0 {
            write!(f, " and {} connect() call{}", self.tickets, plural(self.tickets))?;
        }
        if !self.by.is_empty() {
            write!(f, " ({})", self.by.join("; "))?;
        }
        self.short.map_or(Ok(()), |short| write!(f, "; {short}, so that callers go on to it"))
    }
}

/// The connections that hold a worker's drain.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Holds {
    /// The oldest first, those whose age is not known before them; not all where there are very many.
    pub listed: Vec<Hold>,
    /// So many more.
    pub more: usize,
    /// So many connections hold nothing: their callers are gone, and the worker has not closed them.
    pub gone: usize,
    /// The processes whose `connect()` calls hold it.
    pub tickets: Vec<TicketHold>,
}

/// A connection, by those of its ends that are on this host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Connection<'a> {
    pub(super) pair: Pair,
    pub(super) caller: Option<&'a Socket>,
    worker: Option<&'a Socket>,
}

/// Sockets of which some are two ends of one connection to a worker.
pub(super) fn connections(sockets: &[Socket], at: SocketAddr) -> Vec<Connection<'_>> {
    let mut found: BTreeMap<Pair, Connection<'_>> = BTreeMap::new();
    for socket in sockets {
        let (local, peer) = (socket.local, socket.peer);
        // A caller may have the same port, at another address.
        let is_callers = match (local.port() == peer.port(), local.ip() == at.ip(), peer.ip() == at.ip()) {
            (false, ..) => local.port() != at.port(),
            (true, true, false) => false,
            (true, false, true) => true,
            (true, ..) => local > peer,
        };
        let pair = if is_callers { Pair { caller: local, worker: peer } } else { Pair { caller: peer, worker: local } };
        let connection = found.entry(pair).or_insert(Connection { pair, caller: None, worker: None });
        *(if is_callers { &mut connection.caller } else { &mut connection.worker }) = Some(socket);
    }
    found.into_values().collect()
}

impl<'a> Connection<'a> {
    /// The end at which to look: the caller's, where it is here.
    fn end(&self) -> Option<&'a Socket> {
        self.caller.or(self.worker)
    }

    /// Its ends that are on this host.
    pub(super) fn ends(&self) -> impl Iterator<Item = &'a Socket> {
        self.caller.into_iter().chain(self.worker)
    }

    /// Who calls; `None`: nobody here.
    fn process<'p>(&self, holders: &'p Holders) -> Option<&'p Process> {
        holders.get(&self.caller?.inode)
    }

    pub(super) fn state(&self) -> &'static str {
        self.end().map_or("closing", Socket::state_name)
    }

    /// Why it holds, as far as its sockets tell.
    fn why(&self) -> &'static str {
        let is_in = |end: Option<&Socket>, states| end.is_some_and(|end| end.is_in(states));
        if is_in(self.caller, states::SYN_SENT) || is_in(self.worker, states::SYN_RECV) {
            "not connected yet"
        } else if is_in(self.worker, states::CLOSE_WAIT) {
            "its caller has closed it, the worker has not"
        } else if self.worker.is_some_and(|end| end.inode == 0) {
            "waits to be accepted"
        } else if is_in(self.caller, states::CLOSE_WAIT) {
            "the worker has closed it, its caller has not"
        } else {
            ESTABLISHED
        }
    }

    /// The same, with what else is known of a connection that is established and whose caller is on this host.
    fn explained(&self, explain: &dyn Fn(&Pair) -> Option<String>) -> String {
        let why = self.why();
        let more = if why == ESTABLISHED && self.caller.is_some() { explain(&self.pair) } else { None };
        more.unwrap_or_else(|| why.to_owned())
    }
}

/// Processes by the sockets that they hold.
type Holders = std::collections::HashMap<u32, Process>;

/// Who holds the callers' ends, or, of connections from elsewhere, the workers'. All of /proc is walked.
fn holders<'a>(connections: impl Iterator<Item = &'a Connection<'a>>) -> Holders {
    let inodes = connections.filter_map(|connection| Some(connection.end()?.inode));
    let inodes: BTreeSet<_> = inodes.filter(|inode| *inode != 0).collect();
    if inodes.is_empty() { Holders::new() } else { procs::holding(&inodes) }
}

/// Names what holds it, in short.
pub(super) async fn held(tables: &Arc<Tables>, worker: &Worker, sockets: Vec<Socket>, tickets: u64) -> Held {
    let (at, index, tables) = (worker.at, worker.index, Arc::clone(tables));
    let open = connections(&sockets, at).len() as u64;
    let look = move || {
        let calls = if tickets == 0 { Vec::new() } else { outsiders::Tickets::look(&tables, index).live };
        let connections = if sockets.is_empty() { Vec::new() } else { named(&sockets, at) };
        Ok(connections.into_iter().chain(outsiders::waiting(&calls)).take(NAMED).collect())
    };
    let by = blocking(look).await.unwrap_or_default();
    Held { open, tickets, by, short: None }
}

/// By process and state, callers' ends where these are on this host.
fn named(sockets: &[Socket], at: SocketAddr) -> Vec<String> {
    let mut shown = connections(sockets, at);
    if shown.iter().any(|connection| connection.caller.is_some()) {
        shown.retain(|connection| connection.caller.is_some());
    }
    let holders = holders(shown.iter());
    let mut groups: BTreeMap<(String, &str), Vec<SocketAddr>> = BTreeMap::new();
    for end in shown.iter().filter_map(Connection::end) {
        let who = holders.get(&end.inode).map_or_else(|| "no process".to_owned(), ToString::to_string);
        groups.entry((who, end.state_name())).or_default().push(end.local);
    }
    let by = groups.iter().map(|((who, state), of)| format!("{who}: {} {state}, {}", of.len(), of[0]));
    by.collect()
}

/// A worker whose drain is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Draining {
    /// Where it listens.
    pub at: SocketAddr,
    /// Its index and its service's in the tables.
    pub places: (u32, u32),
}

/// What holds the drains of several workers, by their addresses, with one walk over /proc. `explain` says of a connection why
/// it holds, where more is known of it than its sockets tell. Blocks for as long as the walk takes.
///
/// # Errors
/// When sock_diag fails.
pub fn look(
    tables: &Tables,
    workers: &[Draining],
    explain: &dyn Fn(&Pair) -> Option<String>,
) -> io::Result<BTreeMap<SocketAddr, Holds>> {
    let mut seen = Vec::with_capacity(workers.len());
    for Draining { at, places: (index, _) } in workers {
        let wildcard = diag::listens_on_all(*at)?;
        let evidence = Evidence::look(*at, wildcard, tables.notes().map(|notes| (notes, *index)))?;
        seen.push((*at, evidence, diag::activity(at.port(), tables.notes())?));
    }
    let listed: Vec<_> =
        seen.iter().map(|(at, evidence, past)| (oldest(connections(&evidence.sockets, *at), past), evidence)).collect();
    let holders = holders(listed.iter().flat_map(|((listed, _), _)| listed).map(|(connection, _)| connection));
    let is_ticketed = |worker: &Draining| tables.counts().worker(worker.places.0).tickets > 0;
    let tickets =
        if workers.iter().any(is_ticketed) { tables.ticket_holders()?.unwrap_or_default() } else { Vec::new() };
    let holds = workers.iter().zip(listed).map(|(worker, ((listed, more), evidence))| {
        let rules = tables.callers(tables.service_word(worker.places.1).slot()).unwrap_or_default();
        let mut listed: Vec<_> = listed.iter().map(|(it, past)| hold(it, *past, &holders, explain)).collect();
        mark_outsiders(&mut listed, evidence, &rules);
        let is_its = |holder: &&TicketHolder| holder.worker == worker.places.0 && holder.stale == 0;
        let tickets = tickets.iter().filter(is_its).map(ticket);
        let (gone, tickets) = (evidence.left(worker.at).count(), tickets.take(LISTED).collect());
        (worker.at, Holds { listed, more, gone, tickets })
    });
    Ok(holds.collect())
}

/// Says of each connection whether its caller is not steered.
fn mark_outsiders(listed: &mut [Hold], evidence: &Evidence, rules: &[CallerRule]) {
    let end = |hold: &Hold| evidence.sockets.iter().find(|socket| socket.local == hold.peer);
    let note = |socket: &Socket| evidence.notes.get(&socket.cookie).copied().unwrap_or_default();
    let is_unknown = |socket: &&Socket| note(socket).leads_to.is_none() && socket.inode != 0;
    let unknown = listed.iter().filter_map(end).filter(is_unknown).map(|socket| socket.inode).collect();
    let strangers = outsiders::strangers_among(rules, &unknown);
    for hold in listed {
        let found = end(hold);
        hold.outsider = outsiders::tell_apart(rules)
            && found.is_some_and(|socket| note(socket).outsider || strangers.contains(&socket.inode));
    }
}

fn ticket(holder: &TicketHolder) -> TicketHold {
    let process = procs::process(holder.pid);
    TicketHold { pid: holder.pid, user: process.user(), process: process.command, outsider: holder.outsider != 0 }
}

/// The oldest, and how many are left out.
fn oldest<'a>(
    connections: Vec<Connection<'a>>,
    past: &std::collections::HashMap<u64, Activity>,
) -> (Vec<(Connection<'a>, Activity)>, usize) {
    let of = |end: Option<&Socket>| end.and_then(|end| past.get(&end.cookie)).copied().unwrap_or_default();
    let known = |connection: Connection<'a>| {
        let (caller, worker) = (of(connection.caller), of(connection.worker));
        // What one end has sent the other may not have read yet.
        let idle = [caller.idle, worker.idle].into_iter().flatten().min();
        (connection, Activity { idle, age: worker.age, dialled: None })
    };
    let mut all: Vec<_> = connections.into_iter().map(known).collect();
    all.sort_by_key(|(connection, past)| (past.age.is_some(), std::cmp::Reverse(past.age), connection.pair));
    let more = all.len().saturating_sub(LISTED);
    all.truncate(LISTED);
    (all, more)
}

fn hold(
    connection: &Connection<'_>,
    past: Activity,
    holders: &Holders,
    explain: &dyn Fn(&Pair) -> Option<String>,
) -> Hold {
    let process = connection.process(holders);
    Hold {
        peer: connection.pair.caller,
        process: process.map(|process| process.command.clone()),
        pid: process.map(|process| process.pid),
        user: process.and_then(Process::user),
        outsider: false,
        state: connection.state().to_owned(),
        age_s: past.age.map(|age| age.as_secs_f64()),
        idle_s: past.idle.map(|idle| idle.as_secs_f64()),
        why: connection.explained(explain),
    }
}

#[cfg(test)]
mod tests;
