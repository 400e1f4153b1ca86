//! Workers that are killed, and an account of what was lost with them: each loss must be of a connection that was inside
//! the killed worker when the signal was sent.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::capture::Connection;
use crate::journal::{End, Journal, monotonic_ns};
use crate::process::send;
use crate::report::{Outcome, Report};

/// The resolution of the account: from the look at the tables inside `connect()` to the SYN takes some microseconds.
const RESOLUTION_NS: u64 = 1_000_000;
/// A caller can lose the processor on that way. It is rare, so few may be late, and none of them later than this.
const PREEMPTED_NS: u64 = 50_000_000;

/// What nginx says of a connection that its worker has dropped.
const DROPPED: [&str; 3] =
    ["upstream prematurely closed connection", "104: Connection reset by peer", "32: Broken pipe"];
/// What it says of a closed port.
const REFUSED: &str = "111: Connection refused";
/// What it says beside either, of a server that it leaves alone for a while.
const BENCHED: &str = "upstream server temporarily disabled";

/// Processes of a worker that were killed by SIGKILL.
#[derive(Clone, Debug)]
pub struct Kill {
    /// The worker's port.
    pub port: u16,
    /// The processes, at least one.
    pub pids: Vec<u32>,
    /// CLOCK_MONOTONIC just before and just after `kill()`; the signal came in between.
    pub span_ns: (u64, u64),
    /// What is to be known of it, for the table.
    pub what: String,
}

impl Kill {
    /// Kills a worker's process.
    pub fn strike(port: u16, pid: u32, what: &str) -> Result<Self> {
        Self::by(port, vec![pid], what, || send(pid, Signal::KILL))
    }

    /// Kills processes in another way.
    pub fn by(port: u16, pids: Vec<u32>, what: &str, strike: impl FnOnce() -> Result<()>) -> Result<Self> {
        let before = monotonic_ns();
        strike()?;
        Ok(Self { port, pids, span_ns: (before, monotonic_ns()), what: what.to_owned() })
    }
}

/// Requests that killed processes had in hand, by id, and which kills those were.
type Cut<'a> = HashMap<&'a str, Vec<usize>>;

/// What everybody has seen.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Who was killed, in the order of time.
    pub kills: &'a [Kill],
    /// What the callers saw.
    pub report: &'a Report,
    /// What the workers wrote down.
    pub journal: &'a Journal,
    /// What went over the wire.
    pub connections: &'a [Connection],
    /// What nginx complained of.
    pub nginx_errors: &'a [String],
}

/// Where a connection was that came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the hands of the process that was killed, which had written its request down.
    Hand,
    /// In the killed worker's accept queue, or not read yet.
    Queue,
    /// On its way: its caller was inside `connect()`, and had lost the processor there.
    Way,
    /// It was begun after the signal, while the kernel still accepted for the dying process.
    Late,
    /// It was begun after the signal, and nobody listened.
    Refused,
}

/// One kill, and the connections that came to nothing by it.
#[derive(Clone, Debug)]
pub struct Row {
    /// The kill.
    pub kill: Kill,
    /// Requests that failed for their callers.
    pub failed: usize,
    /// Connections in the hands of the process.
    pub hand: usize,
    /// Connections in its accept queue.
    pub queue: usize,
    /// Connections on their way.
    pub way: usize,
    /// Connections begun after the signal, and accepted by nobody.
    pub late: usize,
    /// Connections begun after the signal, and refused.
    pub refused: usize,
    /// From the signal to the end of the last connection, in ns.
    pub gone_ns: u64,
}

impl Row {
    /// Connections that were inside the worker, or on their way to it, when the signal was sent.
    pub fn inside(&self) -> usize {
        self.hand + self.queue + self.way
    }

    fn add(&mut self, place: Place, end_ns: u64) {
        *match place {
            Place::Hand => &mut self.hand,
            Place::Queue => &mut self.queue,
            Place::Way => &mut self.way,
            Place::Late => &mut self.late,
            Place::Refused => &mut self.refused,
        } += 1;
        if place != Place::Refused {
            self.gone_ns = self.gone_ns.max(end_ns.saturating_sub(self.kill.span_ns.1));
        }
    }
}

/// What was lost, and by which kill.
#[derive(Clone, Debug)]
pub struct Account {
    /// A row a kill.
    pub rows: Vec<Row>,
    /// Requests, and connections, that came to nothing by no kill at all; and what else nginx complained of.
    pub unexplained: Vec<String>,
    /// Requests sent.
    pub requests: usize,
    /// nginx's lines of refused connections.
    pub refused_lines: usize,
    /// Requests that a cold worker served.
    pub cold: usize,
    /// Connections inside a killed worker whose requests did not fail: nginx has sent them again.
    pub resent: usize,
    /// Requests that were begun twice for another reason.
    pub doubled: Vec<String>,
}

impl Account {
    /// Draws it up.
    pub fn of(evidence: Evidence<'_>) -> Self {
        let rows = evidence.kills.iter().map(|kill| Row::of(kill.clone())).collect();
        let cold: BTreeSet<&str> = evidence.journal.cold().iter().map(|entry| entry.id.as_str()).collect();
        let cut = evidence.cut();
        let doubled = evidence.journal.doubled().into_iter().filter(|id| !cut.contains_key(id));
        let mut account = Self {
            rows,
            unexplained: evidence.complaints(),
            requests: evidence.report.requests,
            refused_lines: evidence.nginx_errors.iter().filter(|line| line.contains(REFUSED)).count(),
            cold: cold.len().max(evidence.report.cold),
            resent: 0,
            doubled: doubled.map(str::to_owned).collect(),
        };
        let failed = account.connections(&evidence, &cut);
        account.failures(&evidence, &cut, &failed);
        account
    }

    /// Enters every connection that came to nothing; says which kill each of the failed requests is due to.
    fn connections<'a>(&mut self, evidence: &Evidence<'a>, cut: &Cut<'_>) -> HashMap<&'a str, usize> {
        let mut failed: BTreeMap<&str, (&Outcome, Option<usize>)> =
            evidence.report.failures().map(|outcome| (outcome.id.as_str(), (outcome, None))).collect();
        let named: HashSet<&str> = evidence.connections.iter().filter_map(|one| one.id.as_deref()).collect();
        for connection in evidence.connections {
            // One that was dropped before its caller could say anything belongs to a request that had none else; of all
            // that it can belong to, the one that ended first, so that the others are left for later connections.
            let came_to_nothing = connection.is_lost() || connection.is_refused();
            let id = connection.id.as_deref().or_else(|| {
                let nameless = failed.values().filter(|(outcome, by)| by.is_none() && !named.contains(&*outcome.id));
                let within = |o: &Outcome| o.start_ns <= connection.begin_ns && connection.begin_ns <= o.end_ns;
                let fit = nameless.filter(|(outcome, _)| within(outcome)).min_by_key(|(outcome, _)| outcome.end_ns);
                fit.filter(|_| came_to_nothing).map(|(outcome, _)| outcome.id.as_str())
            });
            let of_failed = id.and_then(|id| failed.get_mut(id));
            if !came_to_nothing && of_failed.is_none() {
                continue;
            }
            let Some(end) = connection.end_ns.or_else(|| of_failed.as_ref().map(|(outcome, _)| outcome.end_ns)) else {
                continue;
            };
            match evidence.place(connection, end, cut) {
                Some((by, place)) => {
                    self.rows[by].add(place, end);
                    let inside = matches!(place, Place::Hand | Place::Queue | Place::Way);
                    match of_failed {
                        Some((_, due)) => *due = Some(by),
                        None => self.resent += usize::from(inside),
                    }
                }
                None => self.unexplained.push(format!("{connection:?}")),
            }
        }
        failed.into_iter().filter_map(|(id, (_, by))| Some((id, by?))).collect()
    }

    /// Enters every failed request, and those in the workers' hands that are older than the capture.
    fn failures(&mut self, evidence: &Evidence<'_>, cut: &Cut<'_>, failed: &HashMap<&str, usize>) {
        for outcome in evidence.report.failures() {
            let by = failed.get(&*outcome.id).or_else(|| cut.get(&*outcome.id)?.last());
            match by {
                Some(by) => self.rows[*by].failed += 1,
                None => self.unexplained.push(outcome.to_string()),
            }
        }
        let captured =
            |id: &str, port| evidence.connections.iter().any(|one| one.port == port && one.id.as_deref() == Some(id));
        let doubled: HashSet<&str> = evidence.journal.doubled().into_iter().collect();
        let failed: HashSet<&str> = evidence.report.failures().map(|outcome| outcome.id.as_str()).collect();
        for (id, by) in cut.iter().flat_map(|(id, by)| by.iter().map(move |by| (*id, *by))) {
            // Otherwise the worker died between its answer and its note of it.
            let came_to_nothing = failed.contains(id) || doubled.contains(id);
            if came_to_nothing && !captured(id, self.rows[by].kill.port) {
                self.rows[by].hand += 1;
                self.resent += usize::from(!failed.contains(id));
            }
        }
        let lost = evidence.report.requests.saturating_sub(evidence.report.outcomes.len());
        if lost > 0 {
            self.unexplained.push(format!("{lost} requests without an end"));
        }
    }

    /// A figure over all kills.
    pub fn sum(&self, figure: impl Fn(&Row) -> usize) -> usize {
        self.rows.iter().map(figure).sum()
    }

    /// Connections begun after a signal and refused, or not accepted.
    pub fn late(&self) -> usize {
        self.sum(|row| row.late + row.refused)
    }

    /// Whether all that was lost was inside a killed worker, and nobody was refused, served twice or served cold.
    pub fn must_be_clean(&self) -> Result<()> {
        ensure!(self.unexplained.is_empty(), "lost by no kill: {:#?}", self.unexplained);
        ensure!(self.late() == 0, "{} connections came after the signal", self.late());
        let (way, most) = (self.sum(|row| row.way), 1 + self.rows.len() / 20);
        ensure!(way <= most, "{way} connections, more than {most}, were under way when the signal came");
        ensure!(self.refused_lines == 0, "nginx was refused {} times", self.refused_lines);
        ensure!(self.cold == 0, "{} requests were served cold", self.cold);
        ensure!(self.doubled.is_empty(), "{:?} were begun twice", self.doubled);
        Ok(())
    }
}

impl Row {
    fn of(kill: Kill) -> Self {
        Self { kill, failed: 0, hand: 0, queue: 0, way: 0, late: 0, refused: 0, gone_ns: 0 }
    }
}

impl Evidence<'_> {
    fn cut(&self) -> Cut<'_> {
        let died = |(n, kill): (usize, &Kill)| kill.pids.iter().map(move |pid| (*pid, n)).collect::<Vec<_>>();
        let by: HashMap<u32, usize> = self.kills.iter().enumerate().flat_map(died).collect();
        let mut cut = Cut::new();
        for entry in self.journal.entries.iter().filter(|entry| entry.end == End::Cut) {
            by.get(&entry.pid).into_iter().for_each(|by| cut.entry(entry.id.as_str()).or_default().push(*by));
        }
        cut
    }

    /// The kill that ended a connection, and where that was when the signal came.
    fn place(&self, connection: &Connection, end_ns: u64, cut: &Cut<'_>) -> Option<(usize, Place)> {
        let before = |(_, kill): &(usize, &Kill)| kill.port == connection.port && kill.span_ns.0 <= end_ns;
        let (by, kill) = self.kills.iter().enumerate().rfind(before)?;
        let late = connection.begin_ns.saturating_sub(kill.span_ns.1);
        let place = match connection {
            _ if connection.is_refused() => Place::Refused,
            _ if late > PREEMPTED_NS => Place::Late,
            _ if late > RESOLUTION_NS => Place::Way,
            Connection { id: Some(id), .. } if cut.get(&**id).is_some_and(|of| of.contains(&by)) => Place::Hand,
            _ => Place::Queue,
        };
        Some((by, place))
    }

    /// What nginx complained of and no kill explains.
    fn complaints(&self) -> Vec<String> {
        let known = |line: &String| DROPPED.iter().chain([&REFUSED, &BENCHED]).any(|said| line.contains(said));
        self.nginx_errors.iter().filter(|line| !known(line)).cloned().collect()
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kill  port     pid  failed  hand  queue  way  late  refused  gone, ms")?;
        for (n, row) in self.rows.iter().enumerate() {
            let Row { kill, failed, hand, queue, way, late, refused, gone_ns } = row;
            let (nth, port, pid) = (n + 1, kill.port, kill.pids.first().copied().unwrap_or_default());
            write!(f, "{nth:>4}  {port:>4} {pid:>7}  {failed:>6}  {hand:>4}  {queue:>5}  {way:>3}  ")?;
            writeln!(f, "{late:>4}  {refused:>7}  {:>8.1}  {}", *gone_ns as f64 / 1e6, kill.what)?;
        }
        let sum = |figure: fn(&Row) -> usize| self.sum(figure);
        writeln!(
            f,
            "{} requests, {} kills: {} failed; lost {} in hand, {} in accept queues, {} on the way; begun after a signal {} lost, \
             {} refused; {} lines of refusal, {} cold, {} sent again, {} doubled, {} unexplained",
            self.requests,
            self.rows.len(),
            sum(|row| row.failed),
            sum(|row| row.hand),
            sum(|row| row.queue),
            sum(|row| row.way),
            sum(|row| row.late),
            sum(|row| row.refused),
            self.refused_lines,
            self.cold,
            self.resent,
            self.doubled.len(),
            self.unexplained.len()
        )?;
        self.unexplained.iter().take(5).try_for_each(|one| writeln!(f, "  unexplained: {one}"))
    }
}
