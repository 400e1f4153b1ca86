//! How an order of the fleet is shown while it goes on: a block of hosts on a terminal, plain lines elsewhere, or JSON.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget};

use super::lines::{self, Teller};
use crate::{
    api::{HostStatus, ServiceFleet},
    cli::{
        out::{self, clean},
        terminal::Terminal,
        view::{DRAWN_HZ, is_lively, style},
    },
    fleet::paths::Mark,
};

// The blanks at the end leave room for `^C`.
const HEAD: &str = "{wide_msg}  ";
const ROW: &str = "  {prefix}  {wide_msg}  ";

/// Hosts that are shown at a time; of more, those that are waited for.
const ROWS: usize = 20;

/// One look.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// As the daemon has written it.
    pub(super) line: String,
    pub(super) service: ServiceFleet,
    /// May be some looks old, or missing.
    pub(super) hosts: Vec<HostStatus>,
    /// When it was taken, milliseconds since 1970.
    pub(super) now_ms: u64,
}

/// Shows an order. An error means that nobody sees it any more.
pub(super) trait View {
    fn seen(&mut self, seen: &Seen) -> io::Result<()>;

    /// Something that the client itself has to say.
    fn note(&mut self, text: &str) {
        out::error(text);
    }

    /// Time has passed.
    fn tick(&mut self) {}
}

/// The view that fits standard output.
pub(super) fn fitting(json: bool) -> Box<dyn View> {
    let stdout = io::stdout();
    if json {
        Box::new(Json { to: stdout, last: String::new() })
    } else if is_lively() {
        Box::new(Live::new(Terminal::new(stdout)))
    } else {
        Box::new(Plain { to: stdout, teller: Teller::default() })
    }
}

/// How things stand, a line a change.
#[derive(Debug)]
pub(super) struct Json<W> {
    pub(super) to: W,
    pub(super) last: String,
}

impl<W: Write> View for Json<W> {
    fn seen(&mut self, seen: &Seen) -> io::Result<()> {
        if self.last == seen.line {
            return Ok(());
        }
        self.last.clone_from(&seen.line);
        out::print(&mut self.to, &seen.line)
    }
}

/// Lines for a log.
#[derive(Debug)]
pub(super) struct Plain<W> {
    pub(super) to: W,
    pub(super) teller: Teller,
}

impl<W: Write> View for Plain<W> {
    fn seen(&mut self, seen: &Seen) -> io::Result<()> {
        for line in self.teller.tell(&seen.service, &seen.hosts) {
            out::print(&mut self.to, &format!("{} {line}", since(seen)))?;
        }
        Ok(())
    }
}

/// ` 12.3s`, since the order was given.
fn since(seen: &Seen) -> String {
    let begun_ms = seen.service.state.order.at_ms;
    format!("{:>5.1}s", seen.now_ms.saturating_sub(begun_ms) as f64 / 1000.0)
}

/// A line of where it stands, below it the hosts, above it what has happened.
#[derive(Debug)]
pub(super) struct Live {
    teller: Teller,
    all: MultiProgress,
    head: ProgressBar,
    rows: BTreeMap<String, ProgressBar>,
}

impl Live {
    pub(super) fn new(terminal: Terminal<impl Write + Send + 'static>) -> Self {
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(terminal), DRAWN_HZ);
        let all = MultiProgress::with_draw_target(target);
        let head = all.add(ProgressBar::new_spinner().with_style(style(HEAD)));
        Self { teller: Teller::default(), all, head, rows: BTreeMap::new() }
    }

    fn draw(&mut self, seen: &Seen) {
        self.head.set_message(format!("{}  {}", since(seen).trim_start(), head(&seen.service)));
        let rows = rows(&seen.service, &seen.hosts);
        let gone: Vec<_> = self.rows.keys().filter(|host| !rows.contains_key(*host)).cloned().collect();
        for bar in gone.iter().filter_map(|host| self.rows.remove(host)) {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
        let width = rows.keys().map(|host| host.chars().count()).max().unwrap_or(0);
        for (host, text) in rows {
            let new = || self.all.add(ProgressBar::new_spinner().with_style(style(ROW)));
            let bar = self.rows.entry(host.clone()).or_insert_with(new);
            bar.set_prefix(format!("{:<width$}", clean(&host)));
            bar.set_message(text);
        }
    }
}

impl View for Live {
    fn seen(&mut self, seen: &Seen) -> io::Result<()> {
        let lines = self.teller.tell(&seen.service, &seen.hosts);
        self.draw(seen);
        lines.iter().try_for_each(|line| self.all.println(format!("{} {line}", since(seen))))
    }

    fn note(&mut self, text: &str) {
        // Where the terminal is gone, the next look says so.
        let _ = self.all.println(text);
    }

    fn tick(&mut self) {
        self.head.tick();
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // What the shell writes next must not stand in the middle of the block.
        let _ = self.all.clear();
        self.all.set_draw_target(ProgressDrawTarget::hidden());
    }
}

/// `prepare: 3 of 5 ready; slowest: app3`
pub(super) fn head(now: &ServiceFleet) -> String {
    let phase = now.state.phase.name();
    let count = match lines::count(now) {
        count if count.is_empty() => clean(&now.waits),
        count => count,
    };
    let slowest = now.waiting_for.first().map(|host| format!("; slowest: {}", clean(host))).unwrap_or_default();
    format!("{phase}: {count}{slowest}")
}

/// What each host that is shown is at.
pub(super) fn rows(now: &ServiceFleet, hosts: &[HostStatus]) -> BTreeMap<String, String> {
    let all = &now.state.expected;
    let wanted: BTreeSet<_> =
        if all.len() <= ROWS { all.iter().collect() } else { now.waiting_for.iter().chain(all).take(ROWS).collect() };
    let slowest = now.waiting_for.first();
    let row = |name: &String| {
        let host = hosts.iter().find(|host| host.host == *name);
        let stage = host.map_or_else(|| "?".to_owned(), |host| lines::stage(host, &now.service));
        let slowest = if slowest == Some(name) { "  <- slowest" } else { "" };
        format!("{:<9}  {stage}{slowest}", mark(now, name))
    };
    wanted.into_iter().map(|name| (name.clone(), row(name))).collect()
}

/// What a host has said last; failures before all else.
fn mark(now: &ServiceFleet, host: &str) -> &'static str {
    let order = [
        Mark::Failed,
        Mark::Rolled,
        Mark::Retired,
        Mark::Back,
        Mark::Flipped,
        Mark::Disarmed,
        Mark::Confirmed,
        Mark::Ready,
    ];
    let has_said = |mark: &&Mark| lines::said(now, **mark).iter().any(|name| name == host);
    order.iter().find(has_said).map_or("-", |mark| mark.name())
}

/// A test renders every template, so that a mistake in one is not met by a user.
#[cfg(test)]
pub(super) const TEMPLATES: [&str; 2] = [HEAD, ROW];
