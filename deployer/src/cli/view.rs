//! How a roll is shown while it goes on: a live view on a terminal, plain lines elsewhere, or JSON.

use std::{
    collections::BTreeMap,
    env,
    io::{self, IsTerminal, Write},
    net::SocketAddr,
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    board::{Board, Row},
    client::Received,
    lines, out,
    terminal::Terminal,
};
use crate::api::Phase;

// The blanks at the end leave room for `^C`.
const BAR: &str = "{bar:30} {pos}/{len} workers  {elapsed}  {wide_msg}  ";
const ROW: &str = "  {prefix}  {elapsed:>4}  {wide_msg}  ";
const WAITING: &str = "  {prefix}     -  {wide_msg}  ";

/// More often nobody sees.
pub(super) const DRAWN_HZ: u8 = 20;

/// Shows a roll. An error means that nobody sees it any more.
pub(super) trait View {
    fn event(&mut self, received: &Received) -> io::Result<()>;

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
        Box::new(Json(stdout))
    } else if is_lively() {
        Box::new(Live::new(Terminal::new(stdout)))
    } else {
        Box::new(Plain { to: stdout, begun_ms: None })
    }
}

/// Standard output is a terminal on which something can be drawn again.
pub(super) fn is_lively() -> bool {
    let dumb = env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    io::stdout().is_terminal() && !dumb
}

/// Each event as the daemon has written it, a line each.
#[derive(Debug)]
pub(super) struct Json<W>(pub(super) W);

impl<W: Write> View for Json<W> {
    fn event(&mut self, received: &Received) -> io::Result<()> {
        out::print(&mut self.0, &received.line)
    }
}

/// Lines for a log.
#[derive(Debug)]
pub(super) struct Plain<W> {
    pub(super) to: W,
    pub(super) begun_ms: Option<u64>,
}

impl<W: Write> View for Plain<W> {
    fn event(&mut self, received: &Received) -> io::Result<()> {
        let begun_ms = *self.begun_ms.get_or_insert(received.event.time_ms);
        out::print(&mut self.to, &lines::line(&received.event, begun_ms))
    }
}

/// A bar, below it the workers of the batch in hand, above it those that are through.
#[derive(Debug)]
pub(super) struct Live {
    board: Board,
    all: MultiProgress,
    bar: ProgressBar,
    rows: BTreeMap<SocketAddr, (ProgressBar, Option<Phase>)>,
}

impl Live {
    pub(super) fn new(terminal: Terminal<impl Write + Send + 'static>) -> Self {
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(terminal), DRAWN_HZ);
        let all = MultiProgress::with_draw_target(target);
        let bar = all.add(ProgressBar::new(0).with_style(style(BAR)));
        Self { board: Board::default(), all, bar, rows: BTreeMap::new() }
    }

    /// Brings what is drawn in line with the board.
    fn draw(&mut self) {
        self.bar.set_length(self.board.total as u64);
        self.bar.set_position(self.board.done() as u64);
        self.bar.set_message(self.board.message());
        let gone: Vec<_> = self.rows.keys().filter(|worker| !self.board.rows.contains_key(worker)).copied().collect();
        for (bar, _) in gone.iter().filter_map(|worker| self.rows.remove(worker)) {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
        let name = |worker: &SocketAddr, row: &Row| lines::name(*worker, row.spare);
        let width = self.board.rows.iter().map(|(worker, row)| name(worker, row).len()).max().unwrap_or(0);
        for (worker, row) in &self.board.rows {
            let new = || (self.all.add(ProgressBar::new_spinner().with_style(style(WAITING))), None);
            let (bar, phase) = self.rows.entry(*worker).or_insert_with(new);
            if *phase != row.phase {
                *phase = row.phase;
                bar.set_style(style(ROW));
                bar.reset_elapsed();
            }
            bar.set_prefix(format!("{:<width$}", name(worker, row)));
            bar.set_message(row.text());
        }
    }
}

impl View for Live {
    fn event(&mut self, received: &Received) -> io::Result<()> {
        let line = self.board.apply(&received.event);
        self.draw();
        line.map_or(Ok(()), |line| self.all.println(line))
    }

    fn note(&mut self, text: &str) {
        // Where the terminal is gone, the next event says so.
        let _ = self.all.println(text);
    }

    fn tick(&mut self) {
        self.bar.tick();
        for (bar, _) in self.rows.values() {
            bar.tick();
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // What the shell writes next must not stand in the middle of a bar.
        let _ = self.all.clear();
        self.all.set_draw_target(ProgressDrawTarget::hidden());
    }
}

/// A test renders every template, so that a mistake in one is not met by a user.
pub(super) fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
pub(super) const TEMPLATES: [&str; 3] = [BAR, ROW, WAITING];
