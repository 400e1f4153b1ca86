//! What is written down and told of a restart.

use super::{Restart, Taken};
use crate::{
    api::{Phase, What},
    failpoint::{Point, reach},
    journal::{Hand, WorkerState},
    roll::{journaled::commit, machine::Outcome},
    service::{holds::Held, outsiders::Cut, phase},
};

impl Restart {
    /// Writes down what is about to be done.
    pub(super) async fn intend(&self, intent: Phase, taken: Option<&Taken>) -> Result<(), String> {
        let committed = commit(&self.journal, &self.record, |state| {
            let Some(roll) = state.roll(&self.record.id) else { return };
            if let Some(Taken { before, was, serving }) = taken {
                let (was, serving) = (was.clone(), serving.clone());
                roll.hand.insert(self.nth, Hand { intent, before: *before, was, serving, outcome: None });
            } else if let Some(hand) = roll.hand.get_mut(&self.nth) {
                hand.intent = intent;
            }
        });
        committed.await
    }

    /// Writes down what came of it.
    pub(super) async fn settle(&self, outcome: &Outcome, known: WorkerState) {
        let committed = commit(&self.journal, &self.record, |state| {
            if let Some(hand) = state.roll(&self.record.id).and_then(|roll| roll.hand.get_mut(&self.nth)) {
                hand.outcome = Some(outcome.clone());
            }
            let service = state.services.entry(self.worker.service.clone()).or_default();
            service.workers.insert(self.worker.at, known);
        });
        // What cannot be written has been told by the writer, and the worker is where it should be.
        let _ = committed.await;
        self.reach(Point::Settled).await;
    }

    pub(super) fn known(&self) -> WorkerState {
        self.worker.control().known()
    }

    pub(super) fn enter(&self, phase: Phase, reason: &str) {
        let was = self.worker.enter(phase, reason);
        if was != phase {
            self.tell(phase, was, reason);
        }
    }

    pub(super) fn tell(&self, phase: Phase, was: Phase, reason: &str) {
        if was != phase && !phase::is_move(was, phase) {
            tracing::error!(worker = %self.worker.at, ?was, ?phase, "a move that the table of phases does not have");
        }
        let spare = self.service.is_spare(&self.worker);
        self.record.add(What::Phase { worker: self.worker.at, spare, phase, was, reason: reason.to_owned() });
    }

    pub(super) fn held(&self, held: &Held) {
        let Held { open, tickets, by, short } = held.clone();
        let floor = short.map(|short| short.to_string());
        if let Some(why) = &floor {
            let phase = self.worker.control().phase;
            tracing::warn!(service = self.worker.service, worker = %self.worker.at, ?phase, why, "held by the floor");
        }
        let spare = self.service.is_spare(&self.worker);
        self.record.add(What::Held { worker: self.worker.at, spare, open, tickets, by, floor });
    }

    /// Connections of callers that are not steered were cut at the deadline.
    pub(super) fn cut(&self, cut: &Cut) {
        let Cut { connections, tickets, by } = cut.clone();
        let (service, worker) = (&self.worker.service, self.worker.at);
        tracing::warn!(service, %worker, connections, tickets, by = by.join("; "), "cut callers that are not steered");
        let spare = self.service.is_spare(&self.worker);
        self.record.add(What::OutsidersCut { worker, spare, connections, tickets, by });
    }

    pub(super) async fn reach(&self, point: Point) {
        reach(point, Some(self.worker.at)).await;
    }
}
