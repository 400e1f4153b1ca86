//! What the daemon logs: text for people, JSON for journald. A line that belongs to a roll bears the roll's id, once.

pub mod recurring;

use std::{
    ffi::OsStr,
    fmt,
    fs::File,
    io::{IsTerminal as _, stderr},
    os::fd::AsFd,
    sync::OnceLock,
    time::Duration,
};

use rustix::fs::fstat;
use serde::Serialize;
use serde_json::{Map, Value};
use tracing::{Event, Span, Subscriber, error_span};
use tracing_subscriber::{
    EnvFilter,
    fmt::writer::BoxMakeWriter,
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields,
        format::{JsonFields, Writer},
        time::{FormatTime as _, SystemTime},
    },
    registry::LookupSpan,
};

use self::writer::Lines;

mod writer;

/// How long lines are waited for when the daemon ends.
const LAST_LINES: Duration = Duration::from_secs(1);
/// What writes lines; none: nothing is logged yet, or another program has set logging up.
static LINES: OnceLock<Lines> = OnceLock::new();

/// The field that names a roll, of spans and of events that are about a roll without being part of it.
const ROLL: &str = "roll";

/// What is done for a roll is done in here. tokio's tasks and threads do not inherit it: `in_current_span`.
#[must_use]
pub fn of_roll(id: &str) -> Span {
    error_span!(target: "deployer_roll", "roll", roll = %id)
}

/// From here on what is logged goes to standard error; `DEPLOYER_LOG` filters it, as `EnvFilter` understands it.
pub(crate) fn to_stderr() {
    // Not through the lock of Rust's own handle: a panic must be told while the thread waits here.
    let lines = stderr().as_fd().try_clone_to_owned().and_then(|to| Lines::start(File::from(to)));
    let writer = match lines {
        Ok(lines) => BoxMakeWriter::new(LINES.get_or_init(|| lines).clone()),
        // No thread can be had.
        Err(_) => BoxMakeWriter::new(stderr),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(std::env::var("DEPLOYER_LOG").ok().as_deref()))
        .with_writer(writer);
    let result = if is_journal(std::env::var_os("JOURNAL_STREAM").as_deref(), stderr()) {
        builder.fmt_fields(JsonFields::new()).event_format(Json).try_init()
    } else {
        builder.with_ansi(stderr().is_terminal()).event_format(Text).try_init()
    };
    if let Err(error) = result {
        // Logging is set up already, by a program that embeds us.
        tracing::debug!(%error, "logging not set up again");
    }
}

/// Waits for the last lines; not for a log that is not read.
pub(crate) fn flush() {
    LINES.get().into_iter().for_each(|lines| lines.flush(LAST_LINES));
}

/// What is let through. Spans of rolls always are, so that no filter parts the lines that it lets through from their roll:
/// they have a target of their own, in which nothing is logged, and which no shorter directive speaks for.
fn filter(asked: Option<&str>) -> EnvFilter {
    let filter = asked.and_then(|asked| EnvFilter::try_new(asked).ok()).unwrap_or_else(|| EnvFilter::new("info"));
    match "deployer_roll=error".parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    }
}

/// Whether this is the stream that `$JOURNAL_STREAM` names by device and inode (systemd.exec(5)). A shell that a service
/// has started hands the variable on to whatever it runs, with another standard error.
fn is_journal(named: Option<&OsStr>, stream: impl AsFd) -> bool {
    let is = |named: &str| fstat(stream).is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino));
    named.and_then(OsStr::to_str).is_some_and(is)
}

/// Time, level, message, fields; at the end the roll.
struct Text;

/// An object a line: `timestamp`, `level`, `roll` if it belongs to one, `fields` with the `message`, `target`.
struct Json;

#[derive(Serialize)]
struct Line<'a> {
    timestamp: String,
    level: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    roll: Option<Value>,
    fields: Map<String, Value>,
    target: &'a str,
}

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, of: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        SystemTime.format_time(&mut to)?;
        let level = event.metadata().level();
        if to.has_ansi_escapes() {
            let colour = match *level {
                tracing::Level::ERROR => 31,
                tracing::Level::WARN => 33,
                tracing::Level::INFO => 32,
                _ => 34,
            };
            write!(to, " \x1b[{colour}m{level:>5}\x1b[0m ")?;
        } else {
            write!(to, " {level:>5} ")?;
        }
        of.format_fields(to.by_ref(), event)?;
        match around(of) {
            Some(roll) if event.metadata().fields().field(ROLL).is_none() => writeln!(to, " {roll}"),
            _ => writeln!(to),
        }
    }
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, of: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let (mut timestamp, mut fields) = (String::new(), String::new());
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        of.format_fields(Writer::new(&mut fields), event)?;
        let read = |text: &str| serde_json::from_str::<Map<_, _>>(text).map_err(|_| fmt::Error);
        let mut fields = read(&fields)?;
        let roll = fields.remove(ROLL).or_else(|| read(&around(of)?).ok()?.remove(ROLL));
        let (level, target) = (event.metadata().level().as_str(), event.metadata().target());
        let line = serde_json::to_string(&Line { timestamp, level, roll, fields, target }).map_err(|_| fmt::Error)?;
        writeln!(to, "{line}")
    }
}

/// The roll in whose span this happens, formatted as fields are.
fn around<S, N>(of: &FmtContext<'_, S, N>) -> Option<String>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let span = of.event_scope()?.find(|span| span.metadata().fields().field(ROLL).is_some());
    Some(span?.extensions().get::<FormattedFields<N>>()?.fields.clone())
}

#[cfg(test)]
mod tests;
