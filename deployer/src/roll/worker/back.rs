//! The ways back of a worker that was not restarted.

use std::time::{Duration, Instant};

use deployer_common::word::State;

use super::{Restart, Taken};
use crate::{api::Phase, failpoint::Point, roll::machine::Outcome, service::answers};

/// How long a worker whose stop failed is watched before it is called unharmed.
const AFTERMATH: Duration = Duration::from_secs(1);
/// Between two renewals of a drain's lease, at most.
const RENEW: Duration = Duration::from_millis(500);

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
                if let Err(silent) = self.answers().await {
                    return self.keep_out(taken, why, &silent);
                }
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

    /// Whether it answers, so that it may be given connections again. Its drain goes on while it is asked. A worker that was
    /// not taken out of rotation is not asked.
    async fn answers(&self) -> Result<(), String> {
        if self.world.state(&self.worker) == State::Up {
            return Ok(());
        }
        let mut asked = self.world.answers(&self.service, &self.worker);
        loop {
            tokio::select! {
                biased;
                answered = &mut asked => return answered,
                () = tokio::time::sleep(RENEW.min(self.lease / 4)) => {
                    if self.world.state(&self.worker) == State::Draining {
                        self.world.stay(&self.worker, self.lease);
                    }
                }
            }
        }
    }

    /// It hangs: it stays out, cold, and the watch warms it again.
    fn keep_out(&self, taken: &Taken, why: &str, silent: &str) -> Outcome {
        let silent = answers::stays_out(silent);
        answers::keep_out(&self.worker, taken.serving.clone(), &silent);
        self.world.publish(&self.worker, State::Cold);
        self.enter(Phase::Listening, &format!("{why}; and {silent}"));
        Outcome::Kept(format!("{}: {why}; and {silent}", self.worker.at))
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
