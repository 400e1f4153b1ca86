//! A roll, run: asks the machine what to do, does it, and tells it what came of it.

use std::{
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{process::Command, task::JoinSet};

use super::{
    machine::{End, Machine, Outcome, Plan, Step},
    record::Record,
    worker::Restart,
};
use crate::{
    api::{Phase, What},
    config,
    kernel::Tables,
    service::Service,
};

/// Output of a command that is kept for its error message, in characters.
const SAID: usize = 400;

/// A roll with all it needs.
pub struct Roll {
    /// The tables.
    pub tables: Arc<Tables>,
    /// The service, as configured when the roll began.
    pub service: Arc<Service>,
    /// Where its events go.
    pub record: Arc<Record>,
    /// How long a drain outlives the daemon.
    pub lease: Duration,
    /// The version aimed at.
    pub to: Option<String>,
    /// What is planned.
    pub plan: Plan,
}

impl Roll {
    /// Runs it to its end.
    pub async fn run(self) {
        let begun = Instant::now();
        self.record.add(What::Begun {
            service: self.service.config.name.clone(),
            to: self.to.clone(),
            by: self.record.by.clone(),
            batches: self.plan.batches.iter().map(|batch| self.addresses(batch)).collect(),
        });
        let before = self.version_before();
        let mut machine = Machine::new(self.plan.clone());
        let end = loop {
            if self.record.stop_asked() {
                machine.stop();
            }
            match machine.step() {
                Step::Switch => {
                    let result = self.command("switch", self.service.config.roll.switch.as_ref(), self.to.as_deref());
                    machine.commanded(result.await);
                }
                Step::Unswitch => {
                    let unswitch = self.service.config.roll.unswitch.as_ref();
                    machine.commanded(self.command("unswitch", unswitch, before.as_deref()).await);
                }
                Step::Batch { nth, of, workers, back } => {
                    self.record.add(What::Batch { nth: nth + 1, of, workers: self.addresses(&workers), back });
                    let to = if back { before.clone() } else { self.to.clone() };
                    machine.batch_done(self.batch(&workers, to.as_deref()).await);
                }
                Step::Finish(end) => break end,
            }
        };
        self.finish(&machine, end, begun);
    }

    fn addresses(&self, workers: &[usize]) -> Vec<std::net::SocketAddr> {
        workers.iter().filter_map(|nth| self.service.workers.get(*nth)).map(|worker| worker.at).collect()
    }

    /// What the workers that are up last said they run: what a roll back must restore.
    fn version_before(&self) -> Option<String> {
        self.service.workers.iter().find_map(|worker| {
            let control = worker.control();
            if control.phase == Phase::Up { control.version.clone() } else { None }
        })
    }

    async fn batch(&self, workers: &[usize], to: Option<&str>) -> Vec<(usize, Outcome)> {
        let mut restarts = JoinSet::new();
        for nth in workers {
            let Some(worker) = self.service.workers.get(*nth) else { continue };
            let restart = Restart {
                tables: Arc::clone(&self.tables),
                service: Arc::clone(&self.service),
                worker: Arc::clone(worker),
                record: Arc::clone(&self.record),
                lease: self.lease,
                to: to.map(ToOwned::to_owned),
            };
            let nth = *nth;
            restarts.spawn(async move { (nth, restart.run().await) });
        }
        let mut outcomes = Vec::with_capacity(workers.len());
        while let Some(result) = restarts.join_next().await {
            match result {
                Ok(outcome) => outcomes.push(outcome),
                // A bug of ours: which worker it was is told by its absence.
                Err(error) => tracing::error!(%error, "a restart has panicked"),
            }
        }
        let missing: Vec<_> = workers.iter().filter(|nth| !outcomes.iter().any(|(done, _)| done == *nth)).collect();
        let lost = missing.into_iter().map(|nth| (*nth, Outcome::Kept("its restart was lost by a bug".to_owned())));
        let lost: Vec<_> = lost.collect();
        outcomes.extend(lost);
        outcomes
    }

    async fn command(
        &self,
        which: &str,
        command: Option<&config::Command>,
        version: Option<&str>,
    ) -> Result<(), String> {
        let Some(command) = command else { return Ok(()) };
        let replace = |word: &String| {
            word.replace("{version}", version.unwrap_or_default()).replace("{service}", &self.service.config.name)
        };
        let argv: Vec<_> = command.argv.iter().map(replace).collect();
        let result = execute(&argv, self.service.config.roll.switch_within).await;
        self.record.add(What::Command { which: which.to_owned(), argv, error: result.clone().err() });
        result
    }

    fn finish(&self, machine: &Machine, end: End, begun: Instant) {
        self.record.add(What::Finished {
            result: end.result,
            text: end.text,
            changed: machine.changed(),
            failed: self.addresses(&machine.failed().collect::<Vec<_>>()),
            seconds: begun.elapsed().as_secs_f64(),
        });
    }
}

/// Runs a command to its end; what it says is kept for the error message.
async fn execute(argv: &[String], within: Duration) -> Result<(), String> {
    let Some((program, arguments)) = argv.split_first() else { return Err("the command has no words".to_owned()) };
    let shown = argv.join(" ");
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(within, command.output()).await {
        Err(_) => Err(format!("`{shown}` was still running after {} s, and was ended", within.as_secs_f32())),
        Ok(Err(error)) => Err(format!("`{shown}` cannot be run: {error}")),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(SAID).collect();
            Err(format!("`{shown}` failed ({}): {said}", output.status))
        }
    }
}
