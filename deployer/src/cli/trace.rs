//! `deployer trace`: decisions as they are made.

use std::io;

use clap::{Args, builder::NonEmptyStringValueParser};

use super::{
    client::{Client, Failure, encoded},
    drain::time,
    out::{self, clean, counted},
};
use crate::api::{At, Exit, Traced};

/// Options of `deployer trace`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The service
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    service: String,
    /// Only what dials this port or address, or gets the worker there: 8000, 127.0.0.1:8000
    #[arg(long, visible_alias = "worker", value_name = "PORT|ADDRESS")]
    port: Option<At>,
    /// For so long: 500ms, 10s, 5m; an hour at most
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "10s")]
    duration: u64,
    /// One decision in so many, by lot; more than a thousand a second are counted, and not shown
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    every: u32,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(client: &Client, options: &Options) -> Result<Exit, Failure> {
    let Options { service, port, duration, every, json } = options;
    let port = port.map(|port| format!("&port={}", encoded(&port.to_string()))).unwrap_or_default();
    let path = format!("/v1/services/{}/trace?duration_ms={duration}&every={every}{port}", encoded(service));
    let mut lines = client.events::<Traced>(&path).await?;
    let mut begun = None;
    while let Some(line) = lines.next().await {
        let received = line?;
        let is_end = matches!(received.event, Traced::End { .. });
        let text = if *json { clean(&received.line) } else { text(&received.event, &mut begun) };
        match out::print(&mut io::stdout().lock(), &text) {
            Ok(()) if !is_end => {}
            written => return out::said(written),
        }
    }
    Err(Failure::new(Exit::NoDaemon, "the daemon went away before the trace had ended; nothing is traced any more"))
}

/// A line for people; times since the first of them.
fn text(traced: &Traced, begun: &mut Option<u64>) -> String {
    match traced {
        Traced::Begun => "seconds  caller                    dialled -> got  outcome: why".to_owned(),
        Traced::Decision { time_ms, pid, command, dialled, outcome, chosen, reason } => {
            let since = time_ms.saturating_sub(*begun.get_or_insert(*time_ms)) as f64 / 1000.0;
            let to = chosen.map_or_else(|| "nobody".to_owned(), |chosen| chosen.to_string());
            let caller = format!("{} (pid {pid})", clean(command));
            format!("{since:8.3}  {caller:<24}  {dialled} -> {to}  {}: {}", outcome.word(), clean(reason))
        }
        Traced::End { seen, told, skipped } => {
            let seen = counted(usize::try_from(*seen).unwrap_or(usize::MAX), "decision");
            let skipped =
                if *skipped > 0 { format!(", {skipped} left out: more than 1000 a second") } else { String::new() };
            format!("{seen}, {told} shown{skipped}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Outcome;

    #[test]
    fn what_a_caller_calls_itself_moves_no_cursor() {
        let decision = Traced::Decision {
            time_ms: 1_500,
            pid: 7,
            command: "a\u{1b}[2Jb".to_owned(),
            dialled: "127.0.0.1:8000".parse().unwrap(),
            outcome: Outcome::Refused,
            chosen: None,
            reason: "nobody can take it".to_owned(),
        };
        let text = text(&decision, &mut Some(1_000));
        assert_eq!(text, "   0.500  a\\u{1b}[2Jb (pid 7)       127.0.0.1:8000 -> nobody  refused: nobody can take it");
    }

    #[test]
    fn what_was_left_out_is_said() {
        let end = |seen, skipped| text(&Traced::End { seen, told: 1, skipped }, &mut None);
        assert_eq!(end(1, 0), "1 decision, 1 shown");
        assert_eq!(end(5000, 4999), "5000 decisions, 1 shown, 4999 left out: more than 1000 a second");
    }
}
