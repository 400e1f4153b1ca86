//! `deployer events`: what happened on this host, from the daemon's history, and what goes on happening.

use std::{
    collections::VecDeque,
    io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::{Args, builder::NonEmptyStringValueParser};
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    client::{Client, Failure, Received},
    happened, out,
    pump::{self, Heard},
};
use crate::{
    api::{Entry, Exit},
    config::duration,
};

/// Shown where nothing else is asked for.
const LAST: usize = 50;
const GONE: &str = "the daemon has gone; waiting for it to come back";
const BACK: &str = "the daemon is back";

/// Which events, and how.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Go on with what happens from now on, over restarts of the daemon, until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Print every event as one JSON object a line
    #[arg(long)]
    json: bool,
    /// The last so many [default: 50; with --since all]
    #[arg(long, short = 'n', value_name = "COUNT")]
    last: Option<usize>,
    /// Only of the last so long: 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Duration>,
    /// Only of this service
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    service: Option<String>,
}

fn since(text: &str) -> Result<Duration, String> {
    duration(text).ok_or_else(|| "write a whole number and ms, s, m or h: 10m".to_owned())
}

pub(super) async fn run(client: &Client, options: &Options) -> Result<Exit, Failure> {
    let mut events = client.events("/v1/events").await?;
    let (mut shown, mut next) = (VecDeque::new(), 0);
    let most = options.last.unwrap_or(if options.since.is_some() { usize::MAX } else { LAST });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let begin = options.since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
    while let Some(received) = events.next().await {
        let received: Received<Entry> = received?;
        next = received.event.seq.saturating_add(1);
        if options.wants(&received.event) && u128::from(received.event.time_ms) >= begin.as_millis() {
            shown.push_back(received);
        }
        if shown.len() > most {
            shown.pop_front();
        }
    }
    if events.is_cut {
        return Err(Failure::new(
            Exit::NoDaemon,
            "the daemon went away before it had told all; ask again when it is back",
        ));
    }
    for received in &shown {
        if let Err(error) = options.print(received) {
            return out::said(Err(error));
        }
    }
    if options.follow { follow(client, options, next).await } else { Ok(Exit::Done) }
}

/// Until nobody reads any more.
async fn follow(client: &Client, options: &Options, next: u64) -> Result<Exit, Failure> {
    let (sender, mut heard) = mpsc::channel(1);
    let mut pump = JoinSet::new();
    pump.spawn(pump::run(client.clone(), "/v1/events?follow=true&".to_owned(), next, sender));
    let mut is_gone = false;
    while let Some(heard) = heard.recv().await {
        match heard {
            Heard::Event(received) => {
                if std::mem::take(&mut is_gone) {
                    out::error(BACK);
                }
                if options.wants(&received.event)
                    && let Err(error) = options.print(&received)
                {
                    return out::said(Err(error));
                }
            }
            Heard::Gone(_) if is_gone => {}
            Heard::Gone(_) => {
                is_gone = true;
                out::error(GONE);
            }
            Heard::Refused(failure) => return Err(failure),
        }
    }
    Ok(Exit::Done)
}

impl Options {
    /// What is about all services is about each.
    fn wants(&self, event: &Entry) -> bool {
        self.service.is_none() || event.service.is_none() || self.service == event.service
    }

    fn print(&self, received: &Received<Entry>) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        if self.json {
            return out::print(&mut stdout, &received.line);
        }
        out::print(&mut stdout, &happened::line(&received.event))
    }
}
