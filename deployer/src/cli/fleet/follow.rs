//! An order of the fleet, watched to its end. The daemons do the work, and any of them can be asked: a client may go at any
//! time.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;
use tokio::{sync::mpsc, task::JoinSet, time::interval};

use super::{
    lines, path,
    view::{self, Seen, View},
};
use crate::{
    api::{Exit, FleetState, FleetStatus, HostStatus, ServiceFleet},
    cli::{
        client::{Client, Failure},
        out,
        roll::{is_unread, lost_in},
        signals::{Asked, Signals},
    },
    fleet::{
        paths::Mark,
        state::{Ended, Outcome, Phase},
    },
};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);
/// Looks at the service from one look at all hosts to the next.
const LOOKS: u32 = 4;
/// How often times on the screen move.
const TICK: Duration = Duration::from_millis(200);
const GONE: &str = "the daemon has gone; waiting for it to come back";
const BACK: &str = "the daemon is back";
const TOO_LATE: &str =
    "it was over before it could be turned back; once more, `deployer rollback --fleet` deploys the former version";

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// The end of the order.
    End,
    /// That the former version serves again.
    Return,
}

/// An order that is followed.
pub(super) struct Follow {
    pub(super) client: Client,
    pub(super) service: String,
    /// The order's.
    pub(super) epoch: u64,
    pub(super) goal: Goal,
    pub(super) view: Box<dyn View>,
    /// Somebody was seen to want its end.
    pub(super) is_wanted: bool,
    /// Since when no daemon answers.
    pub(super) gone: Option<Instant>,
    /// How long one that has gone is waited for.
    pub(super) patience: Duration,
}

/// What the client meets.
pub(super) enum Step {
    Seen(Box<Seen>),
    /// No daemon answers, or none that knows; said again with every look.
    Gone(Failure),
    /// There is no use in waiting.
    Refused(Failure),
    Signal(Asked),
    Tick,
}

pub(super) type End = ControlFlow<Result<Exit, Failure>>;

/// `deployer fleet watch`
pub(super) async fn watch(client: &Client, service: &str, json: bool, patience: Duration) -> Result<Exit, Failure> {
    let mut signals = caught()?;
    let now: ServiceFleet = client.get(&path(service)).await?;
    if now.state.phase == Phase::Idle {
        let line = if json { serde_json::to_string(&now).ok() } else { None };
        return out::say(&line.unwrap_or_else(|| lines::idle(&now)));
    }
    Follow::new(client, (service, now.state.epoch), Goal::End, (json, patience)).follow(&mut signals).await
}

pub(super) fn caught() -> Result<Signals, Failure> {
    Signals::catch()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot catch signals, nothing was done: {error}")))
}

pub(super) fn unanswered(service: &str, what: &str) -> Failure {
    let message = format!(
        "the daemon has not answered yet; `deployer fleet status {service}` shows whether the {what} has begun"
    );
    Failure::new(Exit::Incomplete, message)
}

impl Follow {
    pub(super) fn new(
        client: &Client,
        (service, epoch): (&str, u64),
        goal: Goal,
        (json, patience): (bool, Duration),
    ) -> Self {
        let (client, service, view) = (client.clone(), service.to_owned(), view::fitting(json));
        Self { client, service, epoch, goal, view, is_wanted: false, gone: None, patience }
    }

    /// To the order's end, over restarts of the daemon.
    pub(super) async fn follow(mut self, signals: &mut Signals) -> Result<Exit, Failure> {
        let mut ticks = interval(TICK);
        let (sender, mut heard) = mpsc::channel(1);
        let mut looking = JoinSet::new();
        looking.spawn(look(self.client.clone(), self.service.clone(), sender));
        loop {
            let step = tokio::select! {
                Some(step) = heard.recv() => step,
                asked = signals.next() => Step::Signal(asked),
                _ = ticks.tick() => Step::Tick,
            };
            if let ControlFlow::Break(end) = self.apply(step) {
                return end;
            }
        }
    }

    pub(super) fn apply(&mut self, step: Step) -> End {
        match step {
            Step::Seen(seen) => {
                if self.gone.take().is_some() {
                    self.view.note(BACK);
                }
                self.seen(&seen)
            }
            Step::Gone(failure) => self.gone(&failure),
            Step::Refused(failure) => End::Break(Err(failure)),
            Step::Signal(Asked::Leave) => End::Break(Ok(Exit::Incomplete)),
            Step::Signal(Asked::Interrupt) => {
                let service = &self.service;
                self.view.note(&format!(
                    "it goes on; `deployer fleet watch {service}` follows it again, `deployer fleet abort {service}` ends it"
                ));
                End::Break(Ok(Exit::Incomplete))
            }
            Step::Tick => {
                self.view.tick();
                End::Continue(())
            }
        }
    }

    fn seen(&mut self, seen: &Seen) -> End {
        // By a daemon that has only just begun, and has not read how things stand.
        if seen.service.state.epoch < self.epoch {
            return End::Continue(());
        }
        self.is_wanted |= seen.service.state.wanted.is_some();
        let shown = self.view.seen(seen);
        if let Some(end) = self.end(&seen.service) {
            return End::Break(end);
        }
        match shown {
            Ok(()) => End::Continue(()),
            Err(error) if is_unread(&error) => End::Break(Ok(Exit::Incomplete)),
            Err(error) => {
                let message = format!("cannot write to standard output: {error}; the fleet goes on");
                End::Break(Err(Failure::new(Exit::Incomplete, message)))
            }
        }
    }

    /// How it has ended, if it has.
    fn end(&mut self, now: &ServiceFleet) -> Option<Result<Exit, Failure>> {
        if self.goal == Goal::Return && has_returned(now) {
            return Some(Ok(Exit::Done));
        }
        let outcome = now.state.outcome.as_ref().filter(|outcome| outcome.epoch >= self.epoch)?;
        if !is_of(outcome, self.epoch) {
            let message = format!(
                "epoch {} has ended unseen, and another order since; `deployer fleet status {}` shows what it says",
                self.epoch, self.service
            );
            return Some(Err(Failure::new(Exit::Incomplete, message)));
        }
        Some(Ok(match (self.goal, outcome.result) {
            (Goal::Return, Ended::Done) => {
                self.view.note(TOO_LATE);
                Exit::Failed
            }
            (Goal::Return, _) => Exit::Done,
            (Goal::End, result) => exit(result, self.is_wanted || is_asked(&outcome.text)),
        }))
    }

    fn gone(&mut self, failure: &Failure) -> End {
        if self.gone.is_none() {
            let note = if failure.exit == Exit::NoDaemon { GONE.to_owned() } else { out::clean(&failure.message) };
            self.view.note(&note);
        }
        let since = *self.gone.get_or_insert_with(Instant::now);
        if since.elapsed() < self.patience {
            return End::Continue(());
        }
        End::Break(Err(lost_in(failure, "the fleet's order", &format!("deployer fleet status {}", self.service))))
    }
}

/// Whether an outcome is that of an order. An order that is turned back has the next epoch from then on.
fn is_of(outcome: &Outcome, epoch: u64) -> bool {
    outcome.epoch == epoch || (outcome.result == Ended::TurnedBack && outcome.epoch == epoch.saturating_add(1))
}

/// Whoever had flipped has returned.
fn has_returned(now: &ServiceFleet) -> bool {
    let FleetState { phase, members, .. } = &now.state;
    let back = now.marks.get(Mark::Back.name());
    let is_back = |host| back.is_some_and(|back| back.contains(host));
    *phase == Phase::Back && !members.is_empty() && members.iter().all(is_back)
}

/// `is_asked`: somebody wanted it to end.
pub(super) fn exit(result: Ended, is_asked: bool) -> Exit {
    match result {
        Ended::Done => Exit::Done,
        Ended::Aborted | Ended::Stopped if is_asked => Exit::Stopped,
        Ended::Aborted | Ended::Stopped => Exit::Failed,
        Ended::TurnedBack => Exit::RolledBack,
    }
}

/// Whether an outcome's text names somebody who wanted it.
fn is_asked(text: &str) -> bool {
    ["aborted by ", "to be aborted, by ", "stopped by "].iter().any(|begin| text.starts_with(begin))
}

/// Looks until nobody wants to know any more.
async fn look(client: Client, service: String, to: mpsc::Sender<Step>) {
    let (mut has_seen, mut hosts, mut nth) = (false, Vec::new(), 0_u32);
    loop {
        if nth.is_multiple_of(LOOKS) {
            // Details, which may be missing.
            hosts = client.get::<FleetStatus>("/v1/fleet").await.map(|fleet| fleet.hosts).unwrap_or(hosts);
        }
        nth = nth.wrapping_add(1);
        let step = match once(&client, &service, &hosts).await {
            Ok(seen) => {
                has_seen = true;
                Step::Seen(Box::new(seen))
            }
            // Also what a daemon says that does not know yet.
            Err(failure) if failure.exit == Exit::NoDaemon || (has_seen && failure.exit != Exit::Usage) => {
                Step::Gone(failure)
            }
            Err(failure) => Step::Refused(failure),
        };
        if to.send(step).await.is_err() {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn once(client: &Client, service: &str, hosts: &[HostStatus]) -> Result<Seen, Failure> {
    let value: Value = client.get(&path(service)).await?;
    let line = value.to_string();
    let service = serde_json::from_value(value).map_err(|error| {
        Failure::new(Exit::Failed, format!("the daemon's answer is not understood, it is of another version: {error}"))
    })?;
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    Ok(Seen { line, service, hosts: hosts.to_vec(), now_ms })
}
