//! The operator's own commands as a process manager.
//!
//! `start` starts a worker and ends. `stop` asks it to end; it need not wait for that. `status` exits with 0 if the
//! worker runs and with 3 if it does not, as init scripts do; any other status says that it cannot tell. It may say
//! `pid N` in the first line of its output. A worker's sockets are then told from those of strangers by that process and what
//! descends from it; else by the user alone, which must be that of the commands.

use std::{net::SocketAddr, time::Duration};

use tokio::time::{Instant, sleep};

use super::{ManagerError, Mark, Pending, ProcessManager, ProcessPhase, ProcessStatus, Started, filled};
use crate::{
    command::{self, Call, CommandError, Ended},
    config,
    kernel::users,
};

const MANAGER: &str = "the command";
/// Between two looks at a process that is to end; each starts a process.
const LOOK: Duration = Duration::from_millis(100);
/// Of `status`.
const RUNS: i32 = 0;
/// Of `status`, as in init scripts.
const RUNS_NOT: i32 = 3;
/// Workers whose status is asked for at the same time.
const AT_A_TIME: usize = 8;

/// Commands that start and stop the workers of a service.
pub struct Exec {
    service: String,
    config: config::Exec,
}

impl Exec {
    /// For a service. Nothing is run yet.
    #[must_use]
    pub fn new(service: &str, config: config::Exec) -> Self {
        Self { service: service.to_owned(), config }
    }

    /// The user that the commands run as; `None`: the name is not in `/etc/passwd`.
    fn user_of_commands(&self) -> Option<u32> {
        self.config.user.as_deref().map_or_else(|| Some(rustix::process::geteuid().as_raw()), users::number)
    }

    /// Runs one of the commands; `tried` is for messages.
    async fn run(&self, command: &config::Command, at: SocketAddr, tried: &str) -> Result<Ended, ManagerError> {
        let argv: Vec<_> = command.argv.iter().map(|word| filled(word, &self.service, at)).collect();
        let shown = argv.join(" ");
        let tried = tried.to_owned();
        let environment = [
            ("DEPLOYER_SERVICE", self.service.clone()),
            ("DEPLOYER_ADDRESS", at.ip().to_string()),
            ("DEPLOYER_PORT", at.port().to_string()),
        ];
        let (user, within) = (self.config.user.as_deref(), self.config.within);
        match command::run(&Call { argv: &argv, environment: &environment, user, within }).await {
            Ok(ended) => Ok(ended),
            Err(CommandError::NotRun(source)) => Err(ManagerError::Unreachable {
                manager: MANAGER,
                at: shown,
                tried,
                hint: "See to the command in `manager`",
                source,
            }),
            Err(CommandError::Late) => {
                let within = self.config.within.as_secs_f32();
                let source = std::io::Error::new(
                    std::io::ErrorKind::TimedOut,
                    format!("it was still running after {within} s, and was killed with all that it had started"),
                );
                let hint = "It must end by itself, with the worker in the background; or raise `manager.within`";
                Err(ManagerError::Unanswered { manager: MANAGER, at: shown, tried, hint, source })
            }
        }
    }

    /// One look at a worker.
    async fn look(&self, at: SocketAddr, tried: &str) -> Result<ProcessStatus, ManagerError> {
        let ended = self.run(&self.config.status, at, tried).await.map_err(ManagerError::harmless)?;
        let phase = match ended.status.code() {
            Some(RUNS) => ProcessPhase::Running,
            Some(RUNS_NOT) => ProcessPhase::Stopped,
            _ => {
                let hint = "Its status must be 0 if the worker runs, and 3 if not";
                return Err(refused(&self.config.status, tried, &ended, hint));
            }
        };
        let pid = pid(&ended.output);
        // What is told as a number is not told again in words.
        let detail = if pid.is_some() && ended.output.lines().count() == 1 { String::new() } else { ended.said() };
        Ok(ProcessStatus { phase, pid: pid.filter(|_| phase == ProcessPhase::Running), detail })
    }

    async fn check_all(&self, workers: &[SocketAddr]) -> Result<(), ManagerError> {
        for some in workers.chunks(AT_A_TIME) {
            let looks = some
                .iter()
                .map(|at| async move { self.look(*at, &format!("look at {}", self.name(*at))).await.map(drop) });
            join(looks).await?;
        }
        Ok(())
    }

    async fn start_one(&self, at: SocketAddr) -> Result<(), ManagerError> {
        let tried = format!("start {}", self.name(at));
        if self.look(at, &tried).await?.phase == ProcessPhase::Running {
            return Ok(());
        }
        let ended = self.run(&self.config.start, at, &tried).await?;
        if ended.status.success() {
            return Ok(());
        }
        Err(refused(&self.config.start, &tried, &ended, "Run the command by hand"))
    }

    async fn stop_one(&self, at: SocketAddr) -> Result<(), ManagerError> {
        let tried = format!("stop {}", self.name(at));
        let begun = Instant::now();
        if self.look(at, &tried).await?.phase == ProcessPhase::Stopped {
            return Ok(());
        }
        let ended = self.run(&self.config.stop, at, &tried).await?;
        loop {
            // Whatever the command made of it, it has had its try: nothing from here on says that nothing was done.
            let ProcessStatus { phase, pid, detail } = self.look(at, &tried).await.map_err(ManagerError::begun)?;
            if phase == ProcessPhase::Stopped {
                return Ok(());
            }
            if !ended.status.success() {
                return Err(refused(&self.config.stop, &tried, &ended, "Run the command by hand").begun());
            }
            if begun.elapsed() >= self.config.within {
                let within = self.config.within;
                let pid = pid.map(|pid| format!("pid {pid} ")).unwrap_or_default();
                let detail = format!("{pid}{detail}").trim().to_owned();
                return Err(ManagerError::Late { manager: MANAGER, tried, within, phase, detail });
            }
            sleep(LOOK).await;
        }
    }
}

/// The command ran, and its exit status says no.
fn refused(command: &config::Command, tried: &str, ended: &Ended, hint: &'static str) -> ManagerError {
    let program = command.argv.first().map(String::as_str).unwrap_or_default();
    let said = ended.said();
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    let said = format!("`{program}` ended with {}{said}", ended.status);
    ManagerError::Refused { manager: MANAGER, tried: tried.to_owned(), said, hint }
}

/// `pid N` in the first line.
fn pid(output: &str) -> Option<u32> {
    output.lines().next()?.trim().strip_prefix("pid ")?.trim().parse().ok()
}

/// All at the same time; the first error.
async fn join(all: impl Iterator<Item = impl Future<Output = Result<(), ManagerError>>>) -> Result<(), ManagerError> {
    let mut all: Vec<_> = all.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        let mut failed = None;
        all.retain_mut(|one| match one.as_mut().poll(context) {
            std::task::Poll::Pending => true,
            std::task::Poll::Ready(result) => {
                failed = failed.take().or(result.err());
                false
            }
        });
        match failed {
            Some(error) => std::task::Poll::Ready(Err(error)),
            None if all.is_empty() => std::task::Poll::Ready(Ok(())),
            None => std::task::Poll::Pending,
        }
    })
    .await
}

impl ProcessManager for Exec {
    fn name(&self, worker: SocketAddr) -> String {
        format!("{} {worker}", self.service)
    }

    fn check<'a>(&'a self, workers: &'a [SocketAddr]) -> Pending<'a, Result<(), ManagerError>> {
        Box::pin(self.check_all(workers))
    }

    fn stop(&self, worker: SocketAddr) -> Pending<'_, Result<(), ManagerError>> {
        Box::pin(self.stop_one(worker))
    }

    fn start(&self, worker: SocketAddr) -> Pending<'_, Result<(), ManagerError>> {
        Box::pin(self.start_one(worker))
    }

    fn status(&self, worker: SocketAddr) -> Pending<'_, Result<ProcessStatus, ManagerError>> {
        Box::pin(async move { self.look(worker, &format!("look at {}", self.name(worker))).await })
    }

    /// The process that `status` names; where it names none, nothing but the user tells a worker from a stranger: that of
    /// the commands.
    fn started(&self, worker: SocketAddr) -> Pending<'_, Result<Started, ManagerError>> {
        Box::pin(async move {
            let ProcessStatus { phase, pid, .. } = self.status(worker).await?;
            let runs = phase == ProcessPhase::Running;
            Ok(match pid {
                // A command may start the worker as another user.
                Some(pid) => Started { runs, mark: Mark::Process(pid), user: None },
                None => Started { runs, mark: Mark::User, user: self.user_of_commands() },
            })
        })
    }
}

#[cfg(test)]
mod tests;
