//! The ways back of a worker that was not restarted.

use std::time::{Duration, Instant};

use deployer_common::word::State;

use super::{Restart, Taken};
use crate::{api::Phase, failpoint::Point, roll::machine::Outcome};

/// How long a worker whose stop failed is watched before it is called unharmed.
const AFTERMATH: Duration = Duration::from_secs(1);

impl Restart {
    /// Back to what it was: serving, if it is still the same process; failed, as it was; or left to the watch.
    pub(super) async fn put_back(&self, taken: &Taken, why: &str) -> Outcome {
        let (at, worker) = (self.worker.at, &self.worker);
        self.reach(Point::KeepingBefore).await;
        let now = self.world.listeners(worker).await.unwrap_or_else(|_| taken.serving.clone());
        match taken.before {
            Phase::Failed => return self.fail(format!("{}; and now: {why}", taken.was)).await,
            _ if now.is_disjoint(&taken.serving) => {
                self.world.publish(worker, State::Down);
                self.enter(Phase::Down, "its process has ended while it was drained");
            }
            Phase::Up | Phase::Draining => {
                worker.control().listeners.clone_from(&taken.serving);
                self.world.publish(worker, State::Up);
                let from = worker.enter(Phase::Up, why);
                self.tell(Phase::Up, from, why);
            }
            _ => {
                self.world.publish(worker, State::Cold);
                self.enter(Phase::Listening, why);
            }
        }
        self.reach(Point::Kept).await;
        Outcome::Kept(format!("{at}: {why}"))
    }

    /// The manager did not stop it. If it is still there after a while, it is put back; nothing is lost.
    pub(super) async fn not_stopped(&self, taken: &Taken, why: &str) -> Outcome {
        let begun = Instant::now();
        while begun.elapsed() < AFTERMATH {
            let now = self.world.listeners(&self.worker).await.unwrap_or_default();
            if now.is_disjoint(&taken.serving) {
                return self.fail(format!("{}: {why}; and its process is gone", self.worker.at)).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.put_back(taken, why).await
    }
}
