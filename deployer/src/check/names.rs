//! Whether supervisord or systemd knows the processes that the configuration names. Both are asked, and nothing is changed.

use std::{net::SocketAddr, time::Duration};

use super::Finding;
use crate::{
    config::{Manager, Service},
    service,
    workers::{ManagerError, ProcessManager},
};

/// How long a manager may take to answer.
const WITHIN: Duration = Duration::from_secs(5);

/// `None`: the service's manager is another.
pub(super) fn finding(service: &Service) -> Option<Finding> {
    let key = match service.manager {
        Manager::Supervisord { .. } => "program",
        Manager::Systemd { .. } => "unit",
        Manager::Builtin(_) | Manager::Exec(_) => return None,
    };
    let workers: Vec<_> = service.members().collect();
    let manager = service::manager(service, &[]);
    Some(judge(format!("service.{}.manager.{key}", service.name), &*manager, &workers))
}

fn judge(what: String, manager: &dyn ProcessManager, workers: &[SocketAddr]) -> Finding {
    match asked(manager, workers) {
        Ok(()) => {
            let first = workers.first().map(|at| manager.name(*at)).unwrap_or_default();
            Finding::ok(what, format!("the manager knows all {} workers, {first} and so on", workers.len()))
        }
        Err(error) if matches!(error, Asked::Refused(_)) => {
            Finding::fail(what, format!("{}. No roll can start, and no worker can be started", error.words()))
        }
        Err(error) => {
            Finding::warn(what, format!("no telling whether the manager knows the workers: {}", error.words()))
        }
    }
}

/// Why there is no yes.
enum Asked {
    /// The manager has said no.
    Refused(String),
    /// It could not be asked.
    Failed(String),
}

impl Asked {
    fn words(&self) -> &str {
        let (Self::Refused(words) | Self::Failed(words)) = self;
        words.trim_end_matches('.')
    }
}

fn asked(manager: &dyn ProcessManager, workers: &[SocketAddr]) -> Result<(), Asked> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Asked::Failed(error.to_string()))?;
    let answer = runtime.block_on(async { tokio::time::timeout(WITHIN, manager.check(workers)).await });
    match answer {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error @ ManagerError::Refused { .. })) => Err(Asked::Refused(error.to_string())),
        Ok(Err(error)) => Err(Asked::Failed(error.to_string())),
        Err(_) => Err(Asked::Failed(format!("it has not answered within {} s", WITHIN.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};
    use crate::workers::{Pending, ProcessStatus};

    /// Says this to every question.
    struct Says(fn() -> Result<(), ManagerError>);

    impl ProcessManager for Says {
        fn name(&self, worker: SocketAddr) -> String {
            format!("web_{}", worker.port())
        }

        fn check<'a>(&'a self, _: &'a [SocketAddr]) -> Pending<'a, Result<(), ManagerError>> {
            Box::pin(async { (self.0)() })
        }

        fn stop(&self, _: SocketAddr) -> Pending<'_, Result<(), ManagerError>> {
            self.check(&[])
        }

        fn start(&self, _: SocketAddr) -> Pending<'_, Result<(), ManagerError>> {
            self.check(&[])
        }

        fn status(&self, _: SocketAddr) -> Pending<'_, Result<ProcessStatus, ManagerError>> {
            Box::pin(std::future::pending())
        }
    }

    fn level(says: fn() -> Result<(), ManagerError>) -> Level {
        judge("x".to_owned(), &Says(says), &["127.0.0.1:8000".parse().unwrap()]).level
    }

    #[test]
    fn a_no_is_a_failure_and_silence_is_not() {
        assert_eq!(level(|| Ok(())), Level::Ok);
        assert_eq!(
            level(|| Err(ManagerError::Refused {
                manager: "supervisord",
                tried: "find".to_owned(),
                said: "it has no process named web_8000".to_owned(),
                hint: "Do",
            })),
            Level::Fail
        );
        assert_eq!(
            level(|| Err(ManagerError::Unreachable {
                manager: "supervisord",
                at: "/run/s".to_owned(),
                tried: "find".to_owned(),
                hint: "Do",
                source: std::io::Error::other("no"),
            })),
            Level::Warn
        );
    }
}
