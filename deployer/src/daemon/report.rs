//! Reports: the figures are taken once a second, and told with how the roll went.

use std::{sync::Arc, time::Duration};

use tracing::error;

use super::{Daemon, error::Refusal, former::Resumed};
use crate::{
    api::{Report, What},
    report::{Kept, Left},
    roll::Record,
};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// How a roll went, as its record has it.
#[derive(Default)]
struct Told {
    to: Option<String>,
    text: String,
    changed: usize,
    failed: Vec<std::net::SocketAddr>,
}

impl Daemon {
    /// Counts for ever.
    pub(super) async fn count(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let daemon = Arc::clone(&self);
            let counted = tokio::task::spawn_blocking(move || {
                let services = daemon.registry.services();
                daemon.meters.tick(&services);
                daemon.ledger.look(&services);
            });
            if let Err(error) = counted.await {
                error!(%error, "counting for reports has panicked");
            }
        }
    }

    /// Begins to count, and goes on with what a former daemon has counted. The rolls have not gone on yet.
    pub(super) fn count_on(&self, resumed: &Resumed) {
        let left = |record: &Arc<Record>| {
            let runs = resumed.rolls.iter().any(|roll| roll.record.id == record.id);
            // One that has told nothing yet is about to begin.
            (!record.is_empty()).then(|| Left { roll: record.id.clone(), service: record.service.clone(), runs })
        };
        let left: Vec<_> = resumed.records.iter().filter_map(left).collect();
        self.meters.start(&self.registry.services(), &left);
        self.ledger.look(&self.registry.services());
    }

    /// The roll that began last.
    pub(super) fn last_roll(&self) -> Result<Arc<Record>, Refusal> {
        let last = self.rolls().iter().max_by_key(|roll| roll.begun_ms()).cloned();
        last.ok_or_else(|| Refusal::usage("there has been no roll yet; begin one: deployer roll SERVICE"))
    }

    /// What became of the connections around a roll.
    pub(super) async fn report(self: &Arc<Self>, roll: &Record) -> Result<Report, Refusal> {
        if roll.is_empty() {
            return Err(Refusal::busy(format!("roll {} has only just begun; ask again", roll.id)));
        }
        let service = self.registry.service(&roll.service);
        let (daemon, of, id) = (Arc::clone(self), service.clone(), roll.id.clone());
        let read = self.shelf.disk().read(move || daemon.meters.report(of.as_deref(), &id)).await;
        let unread = |error| Refusal::failed(format!("the report of roll {} cannot be read: {error}", roll.id));
        let kept = read.map_err(unread)?.map_err(|error| Refusal::failed(error.to_string()))?;
        let (result, told, seconds) = (roll.result(), told(roll), seconds(roll));
        let notes = notes(&kept, result.is_some());
        let from = kept.from.as_deref();
        Ok(Report {
            roll: roll.id.clone(),
            service: roll.service.clone(),
            by: roll.by.clone(),
            before: kept.before.shown(from),
            during: kept.during.shown(from),
            after: kept.after.shown(from),
            complete: kept.complete,
            from: kept.from,
            to: told.to,
            result,
            text: told.text,
            seconds,
            changed: told.changed,
            failed: told.failed,
            notes,
            total: service.map(|service| self.meters.total(&service)),
        })
    }
}

fn told(roll: &Record) -> Told {
    let mut told = Told::default();
    if let Some(What::Begun { to, .. }) = roll.first() {
        told.to = to;
    }
    if let Some(What::Finished { text, changed, failed, .. }) = roll.last() {
        (told.text, told.changed, told.failed) = (text, changed, failed);
    }
    told
}

/// How long it took, or has taken so far.
fn seconds(roll: &Record) -> f64 {
    match roll.last() {
        Some(What::Finished { seconds, .. }) => seconds,
        _ => roll.lasted().as_secs_f64(),
    }
}

/// What must be known to read it.
fn notes(kept: &Kept, is_over: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if kept.restarts > 0 {
        notes.push(format!(
            "The daemon was restarted while this was counted, {} in all. The kernel has gone on counting: what came \
             meanwhile is in it, under the version that a worker ran when the former daemon last looked.",
            if kept.restarts == 1 { "once".to_owned() } else { format!("{} times", kept.restarts) }
        ));
    }
    if let Some(why) = &kept.missing {
        notes.push(format!("What was counted before the restart of the daemon is missing: {why}."));
    }
    if is_over && kept.ended_ms.is_none() {
        notes.push(
            "The roll could not go on after a restart of the daemon: what came after that is missing.".to_owned(),
        );
    }
    notes
}
