//! What is written, and how times and texts look. A reader that went away is an error here, never a panic, which is
//! why no verb uses `println!`.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use super::client::Failure;
use crate::api::Exit;

/// Writes lines, at once.
pub(super) fn print(to: &mut impl Write, text: &str) -> io::Result<()> {
    to.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        to.write_all(b"\n")?;
    }
    to.flush()
}

/// Writes the whole output of a verb that has done its work.
pub(super) fn say(text: &str) -> Result<Exit, Failure> {
    said(print(&mut io::stdout().lock(), text))
}

/// A reader that has seen enough (`| head`) takes nothing from what was done; a full disk is said.
pub(super) fn said(written: io::Result<()>) -> Result<Exit, Failure> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let message = format!("cannot write to standard output: {error}; the command itself has been carried out");
            Err(Failure::new(Exit::Failed, message))
        }
        _ => Ok(Exit::Done),
    }
}

/// Tells the user something that is not the verb's output.
pub(super) fn error(text: &str) {
    complain(&format!("deployer: {text}"));
}

/// As [`error`], for lines that say themselves where they come from.
pub(super) fn complain(text: &str) {
    let lines: Vec<_> = text.lines().map(clean).collect();
    // Where standard error is closed, nobody is left to be told.
    let _ = print(&mut io::stderr().lock(), &lines.join("\n"));
}

/// One line without control characters: names of processes and workers' answers must not move the cursor.
pub(super) fn clean(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() {
            line.extend(char.escape_debug());
        } else {
            line.push(char);
        }
    }
    line
}

/// `1 worker`, `2 workers`
pub(super) fn counted(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// Things in a row, cleaned.
pub(super) fn joined<T: ToString>(things: &[T], between: &str) -> String {
    let things: Vec<_> = things.iter().map(|thing| clean(&thing.to_string())).collect();
    things.join(between)
}

/// `0.4s`, `12s`, `4m05s`, `3h07m`, `5d03h`
pub(super) fn short(seconds: f64) -> String {
    // Saturates, and makes nonsense 0.
    let whole = seconds as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86_400);
    match whole {
        0..10 => format!("{:.1}s", seconds.max(0.0)),
        10..60 => format!("{whole}s"),
        60..3600 => format!("{minutes}m{:02}s", whole % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// Columns aligned by their widest cell and parted by two blanks; those in `right` end flush.
pub(super) fn columns(rows: &[Vec<String>], right: &[usize]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths.get(column).copied().unwrap_or(0);
            // Writing to a String cannot fail.
            let _ = if right.contains(&column) {
                write!(line, "  {cell:>width$}")
            } else {
                write!(line, "  {cell:<width$}")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
