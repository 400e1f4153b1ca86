//! A roll, run: asks the machine what to do, does it, and tells it what came of it. Where it stands is in the journal
//! before each step, so that another daemon can go on.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::Instrument as _;

use super::{
    barrier::Barriers,
    command::execute,
    journaled::commit,
    left::Left,
    machine::{End, Machine, Step},
    record::Record,
    worker::Task,
    world::{Moment, World},
};
use crate::{
    api::{Exit, Phase, What},
    command::Call,
    config,
    deploy::gate,
    failpoint::{Point, reach},
    journal::{Hand, Journal, RollState},
    log,
    service::{Claim, Service},
    version::Version,
};

/// How long a process manager that does not answer is waited for after a restart of the daemon.
const MANAGER_WITHIN: Duration = Duration::from_secs(60);
/// Begins the text of a roll's end.
pub(super) const ON_REQUEST: &str = "stopped on request";
/// Between two questions to it.
const ASK: Duration = Duration::from_secs(1);

/// A roll with all it needs.
pub struct Roll {
    /// The kernel and the workers.
    pub world: Arc<dyn World>,
    /// Where it outlives the daemon. It holds this roll already.
    pub journal: Arc<Journal>,
    /// The service, as configured when the roll began.
    pub service: Arc<Service>,
    /// Where its events go.
    pub record: Arc<Record>,
    /// How long a drain outlives the daemon.
    pub lease: Duration,
    /// The version aimed at.
    pub to: Option<Version>,
    /// What the workers said they run before it: what a roll back must restore.
    pub before: Option<Version>,
    /// Where it stands.
    pub machine: Machine,
    /// Workers that a former daemon had in hand.
    pub hand: BTreeMap<usize, (Hand, Option<Claim>)>,
    /// Barriers of others.
    pub barriers: Barriers,
}

/// A roll that has not begun, for the journal.
#[must_use]
pub fn entry(record: &Record, service: &Service, to: Option<Version>, machine: &Machine) -> RollState {
    RollState {
        id: record.id.clone(),
        service: record.service.clone(),
        by: record.by.clone(),
        to,
        before: version_before(service),
        workers: service.pool(0).iter().map(|worker| worker.at).collect(),
        spares: service.spares.iter().map(|spare| spare.at).collect(),
        second: service.pool(1).iter().map(|worker| worker.at).collect(),
        machine: machine.clone(),
        hand: BTreeMap::new(),
    }
}

/// What the workers that are up last said they run.
#[must_use]
pub fn version_before(service: &Service) -> Option<Version> {
    service.workers().iter().find_map(|worker| {
        let control = worker.control();
        if control.phase == Phase::Up { control.version.clone() } else { None }
    })
}

impl Roll {
    /// Runs it to its end, or until it is left to the next daemon.
    pub async fn run(self) {
        let span = log::of_roll(&self.record.id);
        self.run_all().instrument(span).await;
    }

    async fn run_all(mut self) {
        let (left, _renewed) = Left::new(&self.world, &self.service, &self.record, self.lease);
        if !self.announce().await {
            return self.record.park();
        }
        for (nth, why) in self.machine.behind() {
            left.take_again(nth, why).await;
        }
        let end = loop {
            if self.record.stop_asked() {
                self.machine.stop(&self.record.stop_text(), !self.hand.is_empty());
            }
            if self.is_to_park().await {
                left.only(&BTreeSet::new(), "left, while the daemon is restarted").await;
                return self.record.park();
            }
            left.only(&self.machine.left().collect(), "left; the roll does not come back to it").await;
            match self.machine.step() {
                Step::Finish(end) => break end,
                _ if self.machine.plan().deploy.is_none() && !self.pass_barriers().await => {}
                step => self.act(&left, step).await,
            }
        };
        self.close_unused_lane().await;
        let is_roll = self.service.config.deploy.is_some() && self.machine.plan().deploy.is_none();
        if is_roll && end.result == Exit::Done && self.to.is_some() && self.to != self.before {
            self.note_former(self.before.clone());
        }
        self.end_barriers(&end).await;
        self.finish(end).await;
    }

    /// Does a step other than the last, and tells the machine.
    async fn act(&mut self, left: &Arc<Left>, step: Step) {
        match step {
            Step::Switch if self.machine.plan().deploy.is_some() => self.prepare().await,
            Step::Switch => {
                let command = self.service.config.roll.switch.clone();
                let points = [Point::SwitchBefore, Point::SwitchJournaled, Point::SwitchDone];
                self.command("switch", command.as_ref(), self.to.clone(), points).await;
            }
            Step::Unswitch => {
                let command = self.service.config.roll.unswitch.clone();
                let points = [Point::UnswitchBefore, Point::UnswitchJournaled, Point::UnswitchDone];
                self.command("unswitch", command.as_ref(), self.before.clone(), points).await;
            }
            Step::Batch { nth, of, workers, back } => {
                self.record.add(What::Batch { nth: nth + 1, of, workers: self.addresses(&workers), back });
                let to = if back { self.before.clone() } else { self.to.clone() };
                if nth == 0 {
                    self.tell_version(to.clone()).await;
                }
                self.together(left, &workers, Task::Restart { to }).await;
            }
            Step::Again { workers, back } => self.again(left, &workers, back).await,
            Step::Surge { spares } if self.machine.plan().deploy.is_some() => self.start_pool(left, &spares).await,
            Step::Surge { spares } => {
                self.record.add(What::Surge { spares: self.addresses(&spares) });
                let to = self.to.clone();
                self.together(left, &spares, Task::Restart { to }).await;
            }
            Step::Retire { spares } if self.machine.plan().deploy.is_some() => self.retire_pool(left, &spares).await,
            Step::Retire { spares } => {
                self.record.add(What::Retire { spares: self.addresses(&spares) });
                self.together(left, &spares, Task::Retire).await;
            }
            Step::Gate => self.gate().await,
            Step::Hold => self.hold().await,
            Step::Flip { .. } if self.machine.flip_at_ms().is_none() && !self.pass_barriers().await => {}
            Step::Flip { at_ms } => self.flip_at(at_ms).await,
            Step::Bake { until_ms } => {
                self.leave_barrier();
                self.bake(until_ms).await;
            }
            Step::Return { why } => self.go_back(why).await,
            Step::Linger { until_ms } => self.linger(until_ms).await,
            Step::Finish(_) => {}
        }
    }

    /// Tells that it begins, or goes on. `false`: it is left to the next daemon before anything was done.
    async fn announce(&mut self) -> bool {
        if self.record.is_empty() {
            self.world.mark(Moment::Begun(&self.service, &self.record.id));
            let batches = self.machine.plan().batches.iter().map(|batch| self.addresses(batch)).collect();
            let (service, by) = (self.record.service.clone(), self.record.by.clone());
            let spares = self.addresses(&self.machine.plan().surge);
            self.record.add(What::Begun { service, to: self.to.clone().map(String::from), by, batches, spares });
            reach(Point::Begun, None).await;
        } else {
            self.world.mark(Moment::Resumed(&self.service));
            let text = match self.hand.values().filter(|(hand, _)| hand.outcome.is_none()).count() {
                0 => "goes on after a restart of the daemon".to_owned(),
                some => format!("goes on after a restart of the daemon, with workers in hand: {some}"),
            };
            self.record.add(What::Resumed { text });
        }
        self.hand.is_empty() || self.wait_for_manager().await
    }

    /// Waits until the manager answers: a host that comes up starts its daemons in any order. `false`: this daemon is to end
    /// before that. The journal still has what the former daemon had in hand.
    async fn wait_for_manager(&mut self) -> bool {
        let until = Instant::now() + MANAGER_WITHIN;
        let in_hand = self.hand.keys().filter_map(|nth| self.service.member(*nth));
        let workers: Vec<_> = self.service.workers().iter().chain(in_hand).map(|worker| worker.at).collect();
        loop {
            let checked = tokio::select! {
                biased;
                () = self.record.suspended() => return false,
                checked = self.service.manager.check(&workers) => checked,
            };
            let Err(error) = checked else { return true };
            if Instant::now() >= until {
                let why = format!("stopped: {} s after a restart of the daemon, {error}", MANAGER_WITHIN.as_secs());
                self.machine.stop(&why, true);
                return true;
            }
            tokio::select! {
                () = self.record.suspended() => return false,
                () = tokio::time::sleep(ASK) => {}
            }
        }
    }

    /// Whether it is left to the next daemon here. What the journal does not hold would be lost.
    async fn is_to_park(&mut self) -> bool {
        let is_over = matches!(self.machine.step(), Step::Finish(_));
        if !self.record.is_suspended() || !self.hand.is_empty() || is_over {
            return false;
        }
        if self.machine.flip_at_ms().is_none() {
            // What was asked of a fleet's deploy is asked of the next daemon once more.
            self.machine.hold_again();
        }
        match self.save().await {
            Ok(()) => true,
            // There is no stop to it, and the journal has it since the flip was armed: the next daemon finds in the kernel
            // what has come of that.
            Err(_) if self.machine.flip_at_ms().is_some() => true,
            Err(why) => {
                self.machine.stop(&format!("stopped with the daemon, since no other can go on with it ({why})"), false);
                // A roll back goes on: there is no half of it.
                false
            }
        }
    }

    pub(super) fn addresses(&self, workers: &[usize]) -> Vec<SocketAddr> {
        workers.iter().filter_map(|nth| self.service.member(*nth)).map(|worker| worker.at).collect()
    }

    /// Runs a command, which is run once more where the daemon ends before it is written down that it was.
    pub(super) async fn command(
        &mut self,
        which: &str,
        command: Option<&config::Command>,
        version: Option<Version>,
        [before, journaled, done]: [Point; 3],
    ) {
        let Some(command) = command else { return self.machine.commanded(Ok(())) };
        if version.is_none() && command.argv.iter().any(|word| word.contains(gate::VERSION)) {
            let why = "no worker has reported a valid version, and the command needs one. Put the former version in place by \
                       hand";
            return self.machine.commanded(Err(format!("`{which}` was not run: {why}")));
        }
        reach(before, None).await;
        if let Err(why) = self.save().await {
            return self.machine.commanded(Err(format!("it was not run: {why}")));
        }
        reach(journaled, None).await;
        let about = self.about(version.as_ref());
        let argv: Vec<_> = command.argv.iter().map(|word| about.fill(word)).collect();
        let environment = about.facts();
        let user = self.deploy().map_or(&self.service.config.roll.user, |deploy| &deploy.user).as_deref();
        let within = self.switch_within();
        let result = execute(&Call { argv: &argv, environment: &environment, user, within }).await;
        self.record.add(What::Command { which: which.to_owned(), argv, error: result.clone().err() });
        reach(done, None).await;
        self.machine.commanded(result);
        let _ = self.save().await;
    }

    /// Writes down where it stands, with nobody in hand.
    pub(super) async fn save(&self) -> Result<(), String> {
        let committed = commit(&self.journal, &self.record, |state| {
            if let Some(roll) = state.roll(&self.record.id) {
                roll.machine = self.machine.clone();
                roll.hand.clear();
            }
        });
        committed.await
    }

    async fn finish(&self, end: End) {
        reach(Point::FinishBefore, None).await;
        let (id, epoch, told) = (&self.record.id, self.machine.plan().epoch(), end.clone());
        let (service, is_deploy) = (&*self.service, self.machine.plan().deploy.is_some());
        self.world.mark(Moment::Ended { service, result: end.result, is_deploy });
        self.record.add(What::Finished {
            result: end.result,
            text: end.text,
            changed: self.machine.changed(),
            failed: self.addresses(&self.machine.failed().collect::<Vec<_>>()),
            seconds: self.record.lasted().as_secs_f64(),
        });
        // The journal must not forget a roll whose end is in no file.
        self.record.settled().await;
        reach(Point::Finished, None).await;
        // A roll that has told its end is not taken up again, whatever the journal says.
        self.journal.update(|state| state.roll_over(id, &self.record.service, epoch, &told));
        reach(Point::Forgotten, None).await;
    }
}
