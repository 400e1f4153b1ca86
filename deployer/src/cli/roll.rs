//! `deployer roll`: starts a roll and follows it. The daemon does the work, so that a client may go at any time.

use std::{
    io,
    ops::ControlFlow,
    time::{Duration, Instant},
};

use clap::{Args, builder::NonEmptyStringValueParser};
use tokio::{sync::mpsc, task::JoinSet, time::interval};

use super::{
    client::{Client, Failure, Received, encoded},
    fleet, lines, out,
    pump::{self, Heard},
    signals::{Asked, Signals},
    view::{self, View},
};
use crate::{
    api::{Done, Exit, RollRequest, RollStarted, What},
    config::Batch,
    version::Version,
};

/// How often times on the screen move.
const TICK: Duration = Duration::from_millis(200);
const GONE: &str = "the daemon has gone; waiting for it to come back";
const BACK: &str = "the daemon is back";
const UNHEARD: &str = "the daemon is not there to be asked; it will be when it is back. Press Ctrl-C again to detach";
const STOPPING: &str = "stopping after the batch in hand; press Ctrl-C again to detach";
const TOO_LATE: &str =
    "it was over before it could be turned back; once more, `deployer rollback` deploys the former version";
const GOES_ON: &str = "the roll goes on in the daemon, `deployer status` shows it";

/// What to roll, and how.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The service
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    service: String,
    /// The version that workers must say they run afterwards [default: the one that is in place]
    #[arg(long, value_name = "VERSION", allow_hyphen_values = true)]
    to: Option<Version>,
    /// Workers taken out at a time: 4 or 10% [default: as configured]
    #[arg(long, value_name = "N|N%", value_parser = batch)]
    batch: Option<String>,
    /// Print what would be done and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Also where most connections of workers come from callers that are not steered: requests of theirs will be lost
    #[arg(long)]
    force: bool,
    /// Print every event as one JSON object a line
    #[arg(long)]
    json: bool,
    /// How long to wait for a daemon that goes away in the middle of the roll: 30s, 5m
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = patience)]
    wait: Duration,
    #[command(flatten)]
    fleet: fleet::RollFlags,
    #[command(flatten)]
    barriers: fleet::Barriers,
}

/// Refuses what the daemon would refuse; it is the daemon that counts the workers.
fn batch(text: &str) -> Result<String, String> {
    text.parse::<Batch>().map(|_| text.to_owned())
}

pub(super) fn patience(text: &str) -> Result<Duration, String> {
    crate::config::duration(text).ok_or_else(|| "write a whole number and ms, s, m or h: 60s".to_owned())
}

pub(super) async fn run(client: &Client, options: &Options) -> Result<Exit, Failure> {
    let (to, batch, dry_run) = (options.to.clone(), options.batch.clone(), options.dry_run);
    let (barrier, double_barrier) = (options.barriers.barrier.clone(), options.barriers.double());
    if options.fleet.fleet {
        let following = fleet::Following { detach: false, json: options.json, wait: options.wait };
        return fleet::roll(client, (&options.service, to), (&options.fleet, barrier, options.force), &following).await;
    }
    let path = format!("/v1/services/{}/roll", encoded(&options.service));
    let request = RollRequest { to, batch, dry_run, barrier, double_barrier, force: options.force };
    if dry_run {
        return show_plan(&client.post(&path, &request).await?, options.json);
    }
    // Caught before the roll begins: from then on, to go is to detach.
    let mut signals = Signals::catch()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot catch signals, nothing was done: {error}")))?;
    let started: RollStarted = tokio::select! {
        started = client.post(&path, &request) => started?,
        _ = signals.next() => {
            let message = "the daemon has not answered yet; `deployer status` shows whether the roll has begun";
            return Err(Failure::new(Exit::Incomplete, message));
        }
    };
    Follow::new(client, started.id, options.json, options.wait).follow(&mut signals).await
}

fn show_plan(plan: &RollStarted, json: bool) -> Result<Exit, Failure> {
    if !json {
        return out::say(&lines::dry_run(plan));
    }
    let line = serde_json::to_string(plan)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot write the plan as JSON: {error}")))?;
    out::say(&line)
}

/// A roll that is followed.
pub(super) struct Follow {
    pub(super) client: Client,
    pub(super) roll: String,
    pub(super) view: Box<dyn View>,
    /// The request to stop that is on its way.
    pub(super) stops: JoinSet<Result<Done, Failure>>,
    /// Ctrl-C was pressed.
    pub(super) interrupted: bool,
    /// The daemon went away before it had taken the request to stop.
    pub(super) unheard: bool,
    /// A rollback is followed: it is done when the former version serves.
    pub(super) until_returned: bool,
    /// Since when it has been gone.
    pub(super) gone: Option<Instant>,
    /// How long a daemon that has gone is waited for.
    pub(super) patience: Duration,
}

/// What the client of a roll meets.
pub(super) enum Step {
    Heard(Heard),
    Signal(Asked),
    /// The daemon's answer to the request to stop.
    StopAnswered(Result<Done, Failure>),
    Tick,
}

type End = ControlFlow<Result<Exit, Failure>>;

impl Follow {
    /// Of a roll, or a deploy, that has begun.
    pub(super) fn new(client: &Client, roll: String, json: bool, patience: Duration) -> Self {
        let (client, view, stops) = (client.clone(), view::fitting(json), JoinSet::new());
        Self {
            client,
            roll,
            view,
            stops,
            interrupted: false,
            unheard: false,
            gone: None,
            until_returned: false,
            patience,
        }
    }

    /// To the roll's end, over restarts of the daemon.
    pub(super) async fn follow(mut self, signals: &mut Signals) -> Result<Exit, Failure> {
        let mut ticks = interval(TICK);
        let (sender, mut heard) = mpsc::channel(1);
        let mut pump = JoinSet::new();
        let path = format!("/v1/rolls/{}/events?", encoded(&self.roll));
        pump.spawn(pump::run(self.client.clone(), path, 0, sender));
        loop {
            let step = tokio::select! {
                Some(heard) = heard.recv() => Step::Heard(heard),
                asked = signals.next() => Step::Signal(asked),
                // A task that panicked has been reported by the panic itself.
                Some(Ok(answer)) = self.stops.join_next() => Step::StopAnswered(answer),
                _ = ticks.tick() => Step::Tick,
            };
            if let ControlFlow::Break(end) = self.apply(step) {
                return end;
            }
        }
    }

    pub(super) fn apply(&mut self, step: Step) -> End {
        match step {
            Step::Heard(Heard::Event(received)) => {
                self.back();
                return self.event(&received);
            }
            Step::Heard(Heard::Gone(failure)) => return self.gone(&failure),
            Step::Heard(Heard::Refused(failure)) => return End::Break(Err(failure)),
            Step::Signal(Asked::Leave) => return End::Break(Ok(Exit::Incomplete)),
            Step::Signal(Asked::Interrupt) if self.interrupted => {
                self.view.note(GOES_ON);
                return End::Break(Ok(Exit::Incomplete));
            }
            Step::Signal(Asked::Interrupt) => self.stop(),
            Step::StopAnswered(Ok(_)) => {}
            Step::StopAnswered(Err(failure)) if failure.exit == Exit::NoDaemon => {
                self.unheard = true;
                self.view.note(UNHEARD);
            }
            // Ctrl-C may be pressed again, which detaches: the roll goes on in either case.
            Step::StopAnswered(Err(failure)) => {
                self.view.note(&format!("the stop was not taken: {}", out::clean(&failure.message)));
            }
            Step::Tick => self.view.tick(),
        }
        End::Continue(())
    }

    fn event(&mut self, received: &Received) -> End {
        if self.until_returned && !is_of_a_rollback(&received.event.what) {
            return End::Continue(());
        }
        let shown = self.view.event(received);
        if let What::Finished { result, .. } = received.event.what {
            if self.until_returned && result == Exit::Done {
                self.view.note(TOO_LATE);
                return End::Break(Ok(Exit::Failed));
            }
            return End::Break(Ok(result));
        }
        match shown {
            Ok(()) if self.until_returned && matches!(received.event.what, What::Returned { .. }) => {
                End::Break(Ok(Exit::Done))
            }
            Ok(()) => End::Continue(()),
            Err(error) if is_unread(&error) => End::Break(Ok(Exit::Incomplete)),
            Err(error) => {
                let message = format!("cannot write to standard output: {error}; {GOES_ON}");
                End::Break(Err(Failure::new(Exit::Incomplete, message)))
            }
        }
    }

    fn gone(&mut self, failure: &Failure) -> End {
        if self.gone.is_none() {
            self.view.note(GONE);
        }
        let since = *self.gone.get_or_insert_with(Instant::now);
        if since.elapsed() < self.patience { End::Continue(()) } else { End::Break(Err(lost(failure))) }
    }

    fn back(&mut self) {
        if self.gone.take().is_some() {
            self.view.note(BACK);
        }
        if std::mem::take(&mut self.unheard) {
            self.ask();
        }
    }

    /// Asks for a stop while events go on coming.
    fn stop(&mut self) {
        self.interrupted = true;
        self.view.note(STOPPING);
        self.ask();
    }

    fn ask(&mut self) {
        let client = self.client.clone();
        let path = format!("/v1/rolls/{}/stop", encoded(&self.roll));
        self.stops.spawn(async move { client.post(&path, &serde_json::json!({})).await });
    }
}

/// What is shown of a deploy to whoever turns it back: not all that has led there.
fn is_of_a_rollback(what: &What) -> bool {
    match what {
        What::Asked { what, .. } => what == "rollback",
        What::Returned { .. } | What::Finished { .. } => true,
        _ => false,
    }
}

/// Whoever read the output is gone (`| head`, a closed terminal): there is nobody to tell.
pub(super) fn is_unread(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe || error.raw_os_error() == Some(libc::EIO)
}

fn lost(failure: &Failure) -> Failure {
    lost_in(failure, "the roll", "deployer status")
}

/// The daemon has gone while somebody followed `what`, which `status` shows when it is back.
pub(super) fn lost_in(failure: &Failure, what: &str, status: &str) -> Failure {
    let message = format!(
        "the daemon went away in the middle of {what} and has not come back; when it is back, it goes on with it, \
         and `{status}` shows how that stands (`systemctl status deployer` may tell why it went): {failure}"
    );
    Failure::new(Exit::NoDaemon, message)
}
