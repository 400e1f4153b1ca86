//! A report as it is kept beside its roll's events, with what a daemon needs to go on with it. Read with distrust.

use std::{io, net::SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    api::{Tally, Window},
    journal::events::Shelf,
};

/// Version of the format; a later one is for a later deployer.
const FORMAT: u32 = 1;
/// No counter is larger: a million connections a second for nine years.
const MOST: u64 = 1 << 48;
/// No span of time is longer: 30 years of seconds.
const LONGEST: f64 = 1e9;

/// A report as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    pub(super) format: u32,
    /// The roll.
    pub roll: String,
    /// What the workers said they ran before it.
    pub from: Option<String>,
    /// The last seconds before it began.
    pub before: Window,
    /// From its beginning to its end.
    pub during: Window,
    /// After its end.
    pub after: Window,
    /// When it ended, milliseconds since 1970; `None`: it runs.
    pub ended_ms: Option<u64>,
    /// Nothing more is added to it.
    pub complete: bool,
    /// How often another daemon has taken it up.
    pub restarts: u32,
    /// What is missing, in words.
    pub missing: Option<String>,
    /// When this was written, milliseconds since 1970.
    pub saved_ms: u64,
    /// The service's counter, as of the last look.
    pub(super) exhausted: Option<u64>,
    /// The workers' counters, as of the last look.
    pub(super) workers: Vec<Known>,
}

/// A worker as of the last look.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) at: SocketAddr,
    /// Its place in the tables.
    pub(super) index: u32,
    /// What it runs.
    pub(super) version: Option<String>,
    /// Its process was stopped, and no other has been found warm yet.
    pub(super) out: bool,
    /// All that had been counted for it.
    pub(super) last: Tally,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no file.
    #[error(
        "roll {roll} has no report: there is no {path}. It was begun by a deployer that wrote none, or the file was \
         removed; what the roll did is in its events"
    )]
    Missing {
        /// The roll.
        roll: String,
        /// Where it should be.
        path: String,
    },
    /// It is of no use.
    #[error("the report of roll {roll}, {path}, is of no use: {why}; what the roll did is in its events")]
    Bad {
        /// The roll.
        roll: String,
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
}

impl Kept {
    /// One of a roll that begins.
    pub(super) fn new(roll: &str, from: Option<String>) -> Self {
        Self {
            format: FORMAT,
            roll: roll.to_owned(),
            from,
            before: Window::default(),
            during: Window::default(),
            after: Window::default(),
            ended_ms: None,
            complete: false,
            restarts: 0,
            missing: None,
            saved_ms: 0,
            exhausted: None,
            workers: Vec::new(),
        }
    }

    /// One of a roll that was under way, of which nothing is known any more.
    pub(super) fn lost(roll: &str, why: &str) -> Self {
        Self { restarts: 1, missing: Some(why.to_owned()), ..Self::new(roll, None) }
    }

    /// It has not ended after all.
    pub(super) fn go_on(&mut self) {
        if self.ended_ms.take().is_some() {
            let after = std::mem::take(&mut self.after);
            self.during.add(after);
            self.complete = false;
        }
    }

    /// The window that is open.
    pub(super) fn part(&mut self) -> &mut Window {
        if self.ended_ms.is_none() { &mut self.during } else { &mut self.after }
    }

    /// Reads the report of a roll.
    ///
    /// # Errors
    /// [`ReadError`]
    pub fn read(shelf: &Shelf, roll: &str) -> Result<Self, ReadError> {
        let named = || (roll.to_owned(), shelf.report_path(roll).display().to_string());
        let bad = |why: String| {
            let (roll, path) = named();
            ReadError::Bad { roll, path, why }
        };
        match shelf.report(roll) {
            Ok(bytes) => parse(&bytes, roll).map_err(bad),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (roll, path) = named();
                Err(ReadError::Missing { roll, path })
            }
            Err(error) => Err(bad(format!("it cannot be read: {error}"))),
        }
    }

    /// Writes it, as of `unix_ms`.
    ///
    /// # Errors
    /// What was written before is untouched then.
    pub(super) fn write(mut self, shelf: &Shelf, unix_ms: u64, durable: bool) -> io::Result<()> {
        self.saved_ms = unix_ms;
        if self.complete {
            self.workers.clear();
        }
        shelf.keep_report(&self.roll, &serde_json::to_vec(&self)?, durable)
    }

    /// Whether its numbers can be added to others.
    fn check(&self, roll: &str) -> Result<(), String> {
        if self.roll != roll {
            return Err(format!("it is the report of roll `{}`", self.roll.escape_debug()));
        }
        let windows = [&self.before, &self.during, &self.after];
        let tallies = windows.iter().flat_map(|window| &window.versions);
        let workers = self.workers.iter().map(|worker| &worker.last);
        let largest = tallies.chain(workers).map(Tally::largest).max().unwrap_or(0);
        if largest >= MOST || windows.iter().any(|window| window.exhausted >= MOST) {
            return Err("it counts more connections than there can have been".to_owned());
        }
        if windows.iter().any(|window| !(0.0..LONGEST).contains(&window.seconds)) {
            return Err("it covers a time that cannot have been".to_owned());
        }
        Ok(())
    }
}

/// The part that every format has.
#[derive(Deserialize)]
struct Head {
    format: u64,
}

fn parse(bytes: &[u8], roll: &str) -> Result<Kept, String> {
    if bytes.is_empty() {
        return Err("it is empty".to_owned());
    }
    let bad = |error: serde_json::Error| match error.is_eof() {
        true => format!("it is cut short after {} bytes", bytes.len()),
        false => format!("it is not understood: {error}"),
    };
    let head: Head = serde_json::from_slice(bytes).map_err(bad)?;
    if head.format > u64::from(FORMAT) {
        return Err(format!(
            "it was written in format {}, and this deployer knows formats up to {FORMAT}",
            head.format
        ));
    }
    let kept: Kept = serde_json::from_slice(bytes).map_err(bad)?;
    kept.check(roll)?;
    Ok(kept)
}
