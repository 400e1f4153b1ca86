//! What came of each cell, as a table.

use std::fmt;

use anyhow::Result;
use deployer_tests::api::Ending;

/// A column of the matrix.
pub(crate) struct Table {
    fault: &'static str,
    rows: Vec<(String, String)>,
}

impl Table {
    pub(crate) fn new(fault: &'static str) -> Self {
        Self { fault, rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, point: &str, outcome: &Result<Ending>) {
        let shown = match outcome {
            Ok(Ending { result, text, seconds, .. }) => format!("{result:<12} {seconds:>5.1} s  {text}"),
            Err(error) => format!("WRONG        {error}"),
        };
        self.rows.push((point.to_owned(), shown));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{:<20} {}", "at", self.fault)?;
        self.rows.iter().try_for_each(|(point, shown)| writeln!(f, "{point:<20} {shown}"))
    }
}
