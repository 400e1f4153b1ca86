//! A roll whose task panics: it ends, with a reason, and its workers go back to the watch.

use std::{net::SocketAddr, sync::Arc};

use deployer_common::lanes::FlipWord;
use tracing::{Instrument as _, error, warn};

use super::Daemon;
use crate::{
    api::{Exit, What},
    kernel::host,
    log,
    panics::panicked,
    roll::{Record, machine::End, record::unix_ms, run::Roll, world::Moment},
    service::Service,
};

/// What is known of a roll when its task is gone.
struct Lost {
    record: Arc<Record>,
    service: Arc<Service>,
    /// Of a fleet's.
    epoch: Option<u64>,
    is_deploy: bool,
}

impl Daemon {
    /// Runs a roll to its end, also where that is a bug of ours.
    pub(super) fn run_roll(self: &Arc<Self>, roll: Roll) {
        let plan = roll.machine.plan();
        let (record, service) = (Arc::clone(&roll.record), Arc::clone(&roll.service));
        let lost = Lost { record, service, epoch: plan.epoch(), is_deploy: plan.deploy.is_some() };
        let (daemon, span) = (Arc::clone(self), log::of_roll(&roll.record.id));
        let run = async move {
            let Err(error) = tokio::spawn(roll.run()).await else { return };
            // Otherwise the runtime ends, and the next daemon goes on with it.
            if let Some(why) = panicked(error) {
                daemon.end_lost(&lost, &why).await;
            }
        };
        tokio::spawn(run.instrument(span));
    }

    /// Its claims on workers are gone with its task: the watch warms those that listen, and shows the others as down.
    async fn end_lost(&self, lost: &Lost, why: &str) {
        let Lost { record, service, epoch, is_deploy } = lost;
        let name = &service.config.name;
        let (changed, hand) = self.journal.read(|state| {
            let Some(roll) = state.rolls.iter().find(|roll| roll.id == record.id) else { return (0, Vec::new()) };
            let hand = roll.hand.iter().filter(|(_, hand)| hand.outcome.is_none());
            let hand: Vec<SocketAddr> = hand.filter_map(|(nth, _)| roll.members().nth(*nth)).collect();
            (roll.machine.changed(), hand)
        });
        let in_hand = if hand.is_empty() {
            "no worker was in hand".to_owned()
        } else {
            let all: Vec<_> = hand.iter().map(SocketAddr::to_string).collect();
            format!(
                "in hand was {}: the watch warms it if it runs; if not: deployer enable {name} PORT",
                all.join(", ")
            )
        };
        let text = format!(
            "stopped by a bug of the daemon: the roll's task has panicked: {why}; {in_hand}. Next: report this with the log, \
             then roll again: deployer roll {name}"
        );
        error!("{text}");
        self.take_back_flip(service);
        let result = Exit::Failed;
        self.world.mark(Moment::Ended { service, result, is_deploy: *is_deploy });
        let seconds = record.begun_ms().map_or(0.0, |begun| unix_ms().saturating_sub(begun) as f64 / 1000.0);
        record.add(What::Finished { result, text: text.clone(), changed, failed: Vec::new(), seconds });
        record.settled().await;
        self.journal.update(|state| state.roll_over(&record.id, name, *epoch, &End { result, text }));
        // What cannot be written is told by the journal.
        let _ = self.journal.flush().await;
    }

    /// A flip that is still to come would be looked after by no task.
    fn take_back_flip(&self, service: &Service) {
        if service.config.deploy.is_none() {
            return;
        }
        let (word, now) = (self.world.flip(service), host::now_ms());
        let current = word.current(now);
        if word.is_armed(now) {
            warn!("the flip that the roll has armed is taken back");
            let open = [current == 0, current == 1];
            self.world.publish_flip(service, FlipWord::new([word.lane(0), word.lane(1)], open, current));
            self.journal.update(|state| {
                let known = state.services.get_mut(&service.config.name);
                if let Some(lanes) = known.and_then(|known| known.lanes.as_mut()) {
                    (lanes.from, lanes.to, lanes.at_ms, lanes.open) = (current, current, 0, open);
                }
            });
        }
        service.set_current(current);
    }
}
