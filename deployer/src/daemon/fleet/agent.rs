//! Follows the fleet's state for a service, and does this host's part of it.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::watch as channel,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use super::{
    super::Daemon,
    hand::{Followed, View, lock},
    local::FleetOrder,
};
use crate::{
    api::Exit,
    failpoint::{Point, reach},
    fleet::{
        coordinator::{Link, Trouble, Watch},
        driver::Said,
        member::{self, Goal, Local, Me, Stage},
        paths::Mark,
        sound,
        state::Phase,
    },
    kernel::clock,
};

/// Between two looks while something is under way.
const BUSY: Duration = Duration::from_millis(50);
/// Between two looks while nothing is.
const QUIET: Duration = Duration::from_millis(500);
/// What was read is read again after so long, also if nobody has told of a change.
const AGAIN: Duration = Duration::from_secs(3);
/// What has failed here is tried again after so long.
const RETRY: Duration = Duration::from_secs(20);
/// What is refused as others are at it is asked for so long.
const BUSY_FOR: Duration = Duration::from_secs(30);
/// No connection, or no answer.
const PAUSE: Duration = Duration::from_millis(300);

/// Why a host whose turn it is has not rolled, if nothing else is known.
const NOT_BEGUN: &str = "its roll had not begun";

/// A service's part in the fleet, on this host.
pub(super) struct Agent {
    daemon: Arc<Daemon>,
    name: String,
    followed: Arc<Followed>,
    news: Watch,
    links: channel::Receiver<Link>,
    read_at: Option<Instant>,
    said: BTreeSet<Mark>,
    /// Of which epoch and session.
    said_of: Option<(u64, u64)>,
    /// What was refused here, of which epoch, and since when.
    refused: Option<(u64, String, Instant)>,
    /// What was begun, or tried, of which epoch: first, and last.
    begun: Option<(u64, Instant, Instant)>,
    goal: Goal,
    unknown_since: Option<Instant>,
    publisher: super::publish::Publisher,
}

impl Agent {
    pub(super) fn new(daemon: &Arc<Daemon>, name: &str) -> Self {
        let fleet = &daemon.fleet;
        Self {
            daemon: Arc::clone(daemon),
            name: name.to_owned(),
            followed: fleet.followed(name),
            news: fleet.board.coordinator.watch(&fleet.board.paths.state(name), false),
            links: fleet.links(),
            read_at: None,
            said: BTreeSet::new(),
            said_of: None,
            refused: None,
            begun: None,
            goal: Goal::Nothing,
            unknown_since: None,
            publisher: super::publish::Publisher::default(),
        }
    }

    pub(super) async fn run(mut self) {
        while self.daemon.registry.service(&self.name).is_some() {
            self.turn().await;
            self.pause().await;
        }
        self.publisher.withdraw_all(&self.daemon.fleet).await;
    }

    /// Until there is news, or it is time for a look.
    async fn pause(&mut self) {
        let is_quiet = matches!(self.goal, Goal::Nothing)
            && self.followed.view.borrow().as_ref().is_none_or(|view| view.state.phase == Phase::Idle);
        tokio::select! {
            () = self.news.changed() => self.read_at = None,
            _ = self.links.changed() => self.read_at = None,
            () = sleep(if is_quiet { QUIET } else { BUSY }) => {}
        }
    }

    async fn turn(&mut self) {
        self.read().await;
        let Some(local) = self.daemon.fleet_local(&self.name) else { return };
        let view = self.followed.view();
        if let Some(view) = &view {
            self.act(view, &local).await;
        }
        // Nobody knows what the fleet serves.
        if self.read_at.is_none() {
            return;
        }
        let serves =
            view.as_ref().map_or(Some(true), |view| member::serves(&view.state, &self.daemon.fleet.host, &local));
        self.publisher.publish(&self.daemon, &self.name, view.as_ref().map(|view| &view.state), &local, serves).await;
    }

    /// Reads the state, where something may have changed. Without a connection the last counts.
    async fn read(&mut self) {
        let fleet = &self.daemon.fleet;
        let link = fleet.link();
        let is_idle = self.followed.view.borrow().as_ref().is_none_or(|view| view.state.phase == Phase::Idle);
        let again = if is_idle { 4 * AGAIN } else { AGAIN };
        if !link.is_connected || self.read_at.is_some_and(|at| at.elapsed() < again) {
            return;
        }
        match fleet.board.state(&self.name).await {
            Ok(read) => {
                self.read_at = Some(Instant::now());
                fleet.trouble(&format!("the state of {}", self.name), None);
                let view = read.map(|(state, version)| View { state, version });
                self.followed.view.send_if_modified(|known| {
                    let is_news = *known != view;
                    if is_news {
                        known.clone_from(&view);
                    }
                    is_news
                });
                self.tell();
                self.look_back(link.session).await;
            }
            Err(trouble) => self.troubled(&trouble).await,
        }
    }

    /// Has the history of the host know how far the fleet is.
    fn tell(&self) {
        if let Some(View { state, .. }) = self.followed.view().filter(|view| view.state.epoch > 0) {
            self.daemon.history.fleet_phase(&self.name, state.epoch, state.phase.name(), &state.said);
        }
    }

    /// What this host has said of the epoch before: by a daemon before this one, or so that no answer came.
    async fn look_back(&mut self, session: u64) {
        let Some(View { state, .. }) = self.followed.view() else { return };
        if self.said_of == Some((state.epoch, session)) {
            return;
        }
        let fleet = &self.daemon.fleet;
        match fleet.board.said(&self.name, state.epoch, &fleet.host).await {
            Ok(said) => {
                self.said = said;
                self.said_of = Some((state.epoch, session));
            }
            Err(trouble) => self.troubled(&trouble).await,
        }
    }

    async fn troubled(&mut self, trouble: &Trouble) {
        if let Trouble::Failed(why) = trouble {
            self.daemon.fleet.trouble(&format!("the state of {}", self.name), Some(why.clone()));
        }
        self.read_at = None;
        sleep(PAUSE).await;
    }

    async fn act(&mut self, view: &View, local: &Local) {
        let epoch = view.state.epoch;
        if epoch == 0 || self.said_of.is_none_or(|(of, _)| of != epoch) {
            return;
        }
        let host = self.daemon.fleet.host.clone();
        let unknown_ms = self.unknown_ms(local);
        let me = Me { host: &host, said: &self.said, now_ms: clock::wall_ms(), unknown_ms };
        let goal = self.with_refusals(member::goal(&view.state, &me, local), view, local);
        if goal != self.goal {
            info!(service = self.name, epoch, phase = ?view.state.phase, stage = ?local.stage, goal = ?goal, "fleet");
            self.goal = goal.clone();
        }
        if !self.is_sound(epoch, local.epoch)
            || matches!(goal, Goal::Nothing | Goal::Wait)
            || self.is_an_operators(view, &goal)
        {
            return;
        }
        let fence = match &goal {
            Goal::Begin(task) => task.epoch,
            // It brings to an end what was before the order in hand.
            Goal::Stop | Goal::End | Goal::Return if view.state.phase == Phase::Prepare => epoch.saturating_sub(1),
            _ => epoch,
        };
        if fence > local.epoch
            && let Err(error) = self.daemon.fleet_fence(&self.name, fence).await
        {
            self.daemon.fleet.trouble(&format!("the journal of {}", self.name), Some(error));
            return sleep(PAUSE).await;
        }
        self.done(goal, view, local).await;
    }

    /// Whether this host may act upon an epoch. A state that is older than what it has acted upon was taken away, or put back
    /// from somewhere; one that is far ahead was written by another program.
    fn is_sound(&self, epoch: u64, acted: u64) -> bool {
        let fleet = &self.daemon.fleet;
        let why = sound::step(acted, epoch).err().map(|why| format!("{} {why}", fleet.board.paths.state(&self.name)));
        let is_sound = why.is_none();
        fleet.trouble(&format!("the epoch of {}", self.name), why);
        is_sound
    }

    /// A host that is alone is its operator's: what was deployed here without a word of a fleet stays.
    fn is_an_operators(&self, view: &View, goal: &Goal) -> bool {
        let is_new = matches!(goal, Goal::Begin(_) | Goal::Roll { .. });
        self.daemon.fleet.is_alone && view.state.phase == Phase::Idle && is_new
    }

    /// For how long nobody has been able to say what the current pool runs, milliseconds.
    fn unknown_ms(&mut self, local: &Local) -> u64 {
        if local.current.is_some() {
            self.unknown_since = None;
        }
        let is_known = local.current.is_some();
        let since = (!is_known).then(|| *self.unknown_since.get_or_insert_with(Instant::now));
        since.map_or(0, |since| since.elapsed().as_millis() as u64)
    }

    /// What was refused on this host is said to the fleet, which waits for it.
    fn with_refusals(&self, goal: Goal, view: &View, local: &Local) -> Goal {
        let Some((of, _, since)) = &self.refused else { return goal };
        let is_begin = matches!(&goal, Goal::Begin(task) if task.epoch <= *of) || matches!(goal, Goal::Roll { .. });
        let epoch = view.state.epoch;
        if !is_begin || *of != epoch || local.stage != Stage::Idle {
            return goal;
        }
        match view.state.phase {
            Phase::Prepare if !self.said.contains(&Mark::Failed) => Goal::Say(Mark::Failed),
            Phase::Roll if !self.said.contains(&Mark::Rolled) => Goal::Say(Mark::Rolled),
            Phase::Prepare | Phase::Roll => Goal::Nothing,
            _ if since.elapsed() < RETRY => Goal::Wait,
            _ => goal,
        }
    }

    async fn done(&mut self, goal: Goal, view: &View, local: &Local) {
        let (epoch, by) = (view.state.epoch, format!("fleet, {}", view.state.order.by));
        let asked = match goal {
            Goal::Nothing | Goal::Wait => return,
            Goal::Say(mark) => return self.say(mark, epoch, local).await,
            Goal::Confirm(at_ms) => return self.confirm(view, at_ms).await,
            Goal::Begin(task) => {
                let failed = local.ended.as_ref().is_some_and(|(of, how)| *of == task.epoch && how.is_err());
                if failed && self.begun.is_some_and(|(of, _, last)| of == task.epoch && last.elapsed() < RETRY) {
                    return;
                }
                if self.is_too_soon(task.epoch) {
                    return;
                }
                let begun = self.daemon.fleet_deploy(&self.name, &task, &by).await.map(drop);
                return self.begun(epoch, begun);
            }
            Goal::Roll { epoch, to } => {
                if self.is_too_soon(epoch) {
                    return;
                }
                let begun =
                    self.daemon.fleet_roll(&self.name, epoch, (to, view.state.order.force), &by).await.map(drop);
                return self.begun(epoch, begun);
            }
            Goal::Flip(at_ms) => self.order(FleetOrder::Flip { at_ms }),
            Goal::Disarm => self.order(FleetOrder::Disarm),
            Goal::Stop => {
                let why = view.state.wanted.as_ref().map_or(by, |wanted| format!("fleet, {}", wanted.by));
                self.order(FleetOrder::Stop { why })
            }
            Goal::Return => self.order(FleetOrder::Return { why: view.state.why.clone() }),
            Goal::End => self.order(FleetOrder::End),
        };
        if let Err(why) = asked {
            warn!(service = self.name, why, "what the fleet wants cannot be done now; it is tried again");
            sleep(PAUSE).await;
        }
    }

    fn order(&self, order: FleetOrder) -> Result<(), String> {
        self.daemon.fleet_order(&self.name, order).map_err(|refusal| refusal.message().to_owned())
    }

    /// Whether it was tried within the last second; if not, it is now.
    fn is_too_soon(&mut self, epoch: u64) -> bool {
        let now = Instant::now();
        match &mut self.begun {
            Some((of, _, last)) if *of == epoch && last.elapsed() < Duration::from_secs(1) => return true,
            Some((of, first, last)) if *of == epoch => {
                // A failure of long ago is another story.
                *first = if last.elapsed() > BUSY_FOR { now } else { *first };
                *last = now;
            }
            other => *other = Some((epoch, now, now)),
        }
        false
    }

    fn begun(&mut self, epoch: u64, begun: Result<(), super::super::error::Refusal>) {
        let Err(refusal) = begun else {
            self.refused = None;
            return;
        };
        let why = refusal.message().to_owned();
        warn!(service = self.name, epoch, why, "what the fleet wants is refused on this host");
        let is_busy = refusal.exit() == Exit::Busy && self.begun.is_none_or(|(_, first, _)| first.elapsed() < BUSY_FOR);
        if !is_busy {
            self.refused = Some((epoch, why, Instant::now()));
        }
    }

    async fn say(&mut self, mark: Mark, epoch: u64, local: &Local) {
        let said = self.words(mark, epoch, local);
        let fleet = &self.daemon.fleet;
        match fleet.board.say(&self.name, epoch, mark, &fleet.host, &said).await {
            Ok(()) => {
                self.said.insert(mark);
                info!(service = self.name, epoch, mark = mark.name(), "said to the fleet");
                if let (Mark::Flipped, Some(view), Some(at)) = (mark, self.followed.view(), said.at_ms) {
                    let meant = view.state.flip_at_ms.unwrap_or(at);
                    *lock(&self.followed.late_ms) = Some((at as i64).saturating_sub(meant as i64));
                }
            }
            Err(trouble) => self.unsaid(&trouble).await,
        }
    }

    fn words(&self, mark: Mark, epoch: u64, local: &Local) -> Said {
        let refused = || self.refused.as_ref().map(|(_, why, _)| why.clone());
        let ended = || local.ended.as_ref().and_then(|(_, how)| how.clone().err());
        match (mark, &local.stage) {
            (Mark::Ready, _) => Said { synchronised: Some(clock::synchronised().synchronised), ..Said::default() },
            (Mark::Flipped, Stage::Baking(_, at)) => Said { at_ms: Some(*at), ..Said::default() },
            (Mark::Failed, _) => Said { why: local.ill.clone().or_else(refused).or_else(ended), ..Said::default() },
            (Mark::Rolled, _) => {
                let is_through = local.ended.as_ref().is_some_and(|(of, how)| *of == epoch && how.is_ok());
                let not_begun = || (!is_through).then(|| NOT_BEGUN.to_owned());
                Said { why: refused().or_else(ended).or_else(not_begun), ..Said::default() }
            }
            _ => Said::default(),
        }
    }

    /// Nobody knows what of it has come to be: that is looked up first.
    async fn unsaid(&mut self, trouble: &Trouble) {
        self.said_of = None;
        self.troubled(trouble).await;
    }

    /// From here on this host flips at the instant, whatever comes.
    async fn confirm(&mut self, view: &View, at_ms: u64) {
        let (epoch, fleet) = (view.state.epoch, &self.daemon.fleet);
        reach(Point::FleetConfirm, None).await;
        // Later it would not be heard in time.
        let left = at_ms.saturating_sub(clock::wall_ms() + member::CONFIRM_BEFORE_MS);
        if left == 0 {
            return;
        }
        let confirmed = fleet.board.confirm(&self.name, epoch, &fleet.host, view.version);
        match timeout(Duration::from_millis(left), confirmed).await {
            Ok(Ok(())) => {
                self.said.insert(Mark::Confirmed);
                reach(Point::FleetConfirmed, None).await;
                if let Err(why) = self.order(FleetOrder::Flip { at_ms }) {
                    warn!(service = self.name, why, "confirmed, and not armed yet");
                }
            }
            Ok(Err(Trouble::Refused { .. })) => self.read_at = None,
            Ok(Err(trouble)) => self.unsaid(&trouble).await,
            Err(_) => self.unsaid(&Trouble::Unknown("confirming".to_owned())).await,
        }
    }
}
