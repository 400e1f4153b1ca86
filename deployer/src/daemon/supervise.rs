//! Background tasks of the daemon: one that panics, or returns, is told and started again.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time::sleep};
use tracing::{error, info};

use super::{Daemon, lock};
use crate::{failpoint, panics::panicked, service::alive::Beat};

/// Before a task is started again; twice as long each time.
const FIRST: Duration = Duration::from_secs(1);
/// At the longest.
const MOST: Duration = Duration::from_secs(60);
/// A task that has run for so long since is well.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// How the daemon itself is.
#[derive(Default)]
pub(super) struct Health {
    /// Tasks that have ended lately, by name, and how.
    ended: Mutex<BTreeMap<&'static str, String>>,
    /// How often a task was started again.
    restarts: AtomicU64,
    /// When the watch over workers last came round.
    pub(super) watch: Arc<Beat>,
    /// What stands still.
    pub(super) stuck: Mutex<Option<String>>,
}

/// What it means when a task returns.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Returns {
    /// It is done.
    Done,
    /// It must not: it is to go on for ever.
    Never,
}

impl Health {
    /// What must not be overlooked. Each text stays the same while it holds.
    pub(super) fn trouble(&self) -> Vec<String> {
        let ended: Vec<_> = lock(&self.ended).clone().into_iter().collect();
        let ended = ended.into_iter().map(|(name, why)| {
            format!(
                "background task \"{name}\" of the daemon {why}; the daemon starts it again. Next: if this comes back, \
                 restart the daemon (steering goes on meanwhile) and report it with the log"
            )
        });
        ended.chain(lock(&self.stuck).clone()).collect()
    }

    /// How often a task was started again.
    pub(super) fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    fn ended(&self, name: &'static str, why: &str) {
        error!(task = name, "background task \"{name}\" {why}; it is started again");
        self.restarts.fetch_add(1, Ordering::Relaxed);
        lock(&self.ended).insert(name, why.to_owned());
    }

    fn is_well(&self, name: &'static str) {
        if lock(&self.ended).remove(name).is_some() {
            info!(task = name, "background task \"{name}\" runs again");
        }
    }
}

impl Daemon {
    /// Runs a task, among `tasks`, for as long as the daemon does. It is made anew when it panics, and when it returns though
    /// it must not.
    pub(super) fn supervise<T: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        tasks: &mut JoinSet<()>,
        name: &'static str,
        returns: Returns,
        make: impl Fn(Arc<Self>) -> T + Send + 'static,
    ) {
        let daemon = Arc::clone(self);
        tasks.spawn(async move {
            let mut pause = FIRST;
            loop {
                let begun = Instant::now();
                let task = make(Arc::clone(&daemon));
                let Some(why) = daemon.task_ends(name, returns, task).await else { return };
                daemon.health.ended(name, &why);
                daemon.tell_trouble();
                if begun.elapsed() > WELL_AFTER {
                    pause = FIRST;
                }
                sleep(pause).await;
                pause = (2 * pause).min(MOST);
            }
        });
    }

    /// Waits for the end of a task; why it is to be started again.
    async fn task_ends(
        &self,
        name: &'static str,
        returns: Returns,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Option<String> {
        // Dropped with this, the task ends.
        let mut one = JoinSet::new();
        one.spawn(async move {
            failpoint::task(name).await;
            task.await;
        });
        let ended = tokio::select! {
            ended = one.join_next() => ended,
            () = sleep(WELL_AFTER) => {
                self.health.is_well(name);
                one.join_next().await
            }
        };
        match ended? {
            Ok(()) if returns == Returns::Done => {
                self.health.is_well(name);
                None
            }
            Ok(()) => Some("has returned".to_owned()),
            Err(error) => panicked(error).map(|why| format!("has panicked: {why}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_ended_is_trouble_until_it_runs_again() {
        let health = Health::default();
        assert!(health.trouble().is_empty());
        health.ended("watch", "has panicked: on purpose");
        assert!(
            health.trouble()[0]
                .contains("\"watch\" of the daemon has panicked: on purpose; the daemon starts it again")
        );
        assert_eq!(health.restarts(), 1);
        health.is_well("watch");
        assert!(health.trouble().is_empty() && health.restarts() == 1);
    }
}
