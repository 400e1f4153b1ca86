//! supervisord as a process manager: a few calls of its XML-RPC interface.
//!
//! What supervisord's loop does between two calls decides how its words are to be read. A process that has ended by
//! itself is EXITED only until the next turn of the loop if it is to be restarted, and a process never started is
//! STOPPED only until then if it is to be started with supervisord. Each call takes at least one turn, so either
//! state counts when it is met twice.

mod info;
mod link;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use tokio::time::{Instant, sleep};

use self::{
    info::{Info, State},
    link::{Link, LinkError},
};
use super::{
    ManagerError, Pending, ProcessManager, ProcessStatus, filled,
    xmlrpc::{self, Answer, Argument, Value},
};

const MANAGER: &str = "supervisord";
/// Between two looks at a process.
const LOOK: Duration = Duration::from_millis(25);
/// Most names given in a message.
const NAMED: usize = 20;

/// Faults that are told apart.
mod fault {
    pub(super) const UNKNOWN_METHOD: i64 = 1;
    pub(super) const SHUTDOWN_STATE: i64 = 6;
    pub(super) const BAD_NAME: i64 = 10;
    pub(super) const NO_FILE: i64 = 20;
    pub(super) const NOT_EXECUTABLE: i64 = 21;
    pub(super) const ABNORMAL_TERMINATION: i64 = 40;
    pub(super) const SPAWN_ERROR: i64 = 50;
    pub(super) const ALREADY_STARTED: i64 = 60;
    pub(super) const NOT_RUNNING: i64 = 70;
}

/// A supervisord, reached over its unix socket.
pub struct Supervisord {
    link: Link,
    program: String,
    stop_within: Duration,
}

impl Supervisord {
    /// From the fields of [`crate::config::Manager::Supervisord`]. Nothing is opened yet.
    #[must_use]
    pub fn new(socket: PathBuf, program: String, login: Option<(String, String)>, stop_within: Duration) -> Self {
        Self { link: Link::new(socket, login), program, stop_within }
    }

    async fn call(&self, tried: &str, method: &str, arguments: &[Argument<'_>]) -> Result<Answer, ManagerError> {
        let tried = tried.to_owned();
        let xml = match self.link.post(xmlrpc::call(method, arguments)).await {
            Ok(xml) => xml,
            Err(LinkError::Unreachable { source, hint }) => {
                return Err(ManagerError::Unreachable { manager: MANAGER, at: self.link.at(), tried, hint, source });
            }
            Err(LinkError::Unanswered { source, hint }) => {
                return Err(ManagerError::Unanswered { manager: MANAGER, at: self.link.at(), tried, hint, source });
            }
            Err(LinkError::Refused { said, hint }) => {
                return Err(ManagerError::Refused { manager: MANAGER, tried, said, hint });
            }
            Err(LinkError::Garbled(why)) => return Err(self.garbled(&tried, why)),
        };
        xmlrpc::answer(&xml).map_err(|why| self.garbled(&tried, why))
    }

    /// One look at a process.
    async fn info(&self, name: &str, tried: &str) -> Result<Info, ManagerError> {
        let answer = self.call(tried, "supervisor.getProcessInfo", &[Argument::Text(name)]).await;
        match answer.map_err(ManagerError::harmless)? {
            Answer::Value(value) => Info::read(&value).map_err(|why| self.garbled(tried, why)),
            Answer::Fault { code, text } => Err(self.refusal(name, tried, code, text).await),
        }
    }

    async fn all(&self, tried: &str) -> Result<Vec<Info>, ManagerError> {
        match self.call(tried, "supervisor.getAllProcessInfo", &[]).await.map_err(ManagerError::harmless)? {
            Answer::Value(Value::List(all)) => {
                all.iter().map(Info::read).collect::<Result<_, _>>().map_err(|why| self.garbled(tried, why))
            }
            Answer::Value(other) => Err(self.garbled(tried, format!("{} where an array belongs", other.kind()))),
            Answer::Fault { code, text } => Err(refused(tried, code, text)),
        }
    }

    async fn check_all(&self, workers: &[SocketAddr]) -> Result<(), ManagerError> {
        let tried = "find the workers' processes";
        let known: Vec<String> = self.all(tried).await?.into_iter().map(|info| info.name).collect();
        let missing: Vec<String> =
            workers.iter().map(|&worker| self.name(worker)).filter(|name| !known.contains(&full(name))).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let said = format!("it has no process named {}; it has {}", listed(&missing), listed(&known));
        Err(refused(tried, fault::BAD_NAME, said))
    }

    async fn stop_named(&self, name: &str) -> Result<(), ManagerError> {
        let tried = format!("stop {name}");
        let begun = Instant::now();
        let (mut rested, mut asked) = (false, false);
        loop {
            let info = self.info(name, &tried).await;
            let info = if asked { info.map_err(ManagerError::begun)? } else { info? };
            if info.gone() && (info.settled() || rested) {
                return Ok(());
            }
            rested = info.gone();
            // Asked again whenever it is back: it may have ended by itself just before, and been restarted.
            if matches!(info.state, State::Running | State::Starting | State::Backoff) {
                let answer = self.ask(name, &tried, "supervisor.stopProcess", fault::NOT_RUNNING).await;
                let unsure = asked || matches!(answer, Err(ManagerError::Garbled { .. }));
                if unsure {
                    answer.map_err(ManagerError::begun)?
                } else {
                    answer?
                }
                asked = true;
            }
            asked |= info.state == State::Stopping;
            self.wait(begun, &tried, &info).await?;
        }
    }

    async fn start_named(&self, name: &str) -> Result<(), ManagerError> {
        let tried = format!("start {name}");
        let begun = Instant::now();
        loop {
            let info = self.info(name, &tried).await?;
            match info.state {
                State::Running | State::Starting | State::Backoff => return Ok(()),
                // supervisord would say yes to a start now, and not do it.
                State::Stopping => self.wait(begun, &tried, &info).await?,
                State::Stopped | State::Exited | State::Fatal | State::Unknown => {
                    return self.ask(name, &tried, "supervisor.startProcess", fault::ALREADY_STARTED).await;
                }
            }
        }
    }

    async fn status_named(&self, name: &str) -> Result<ProcessStatus, ManagerError> {
        let tried = format!("look at {name}");
        let mut info = self.info(name, &tried).await?;
        if info.gone() && !info.settled() {
            sleep(LOOK).await;
            info = self.info(name, &tried).await?;
        }
        Ok(ProcessStatus { phase: info.phase(), pid: info.pid, detail: info.detail })
    }

    /// Asks for a start or a stop, and does not wait for it. `fine` is the fault that says it is so already.
    async fn ask(&self, name: &str, tried: &str, method: &str, fine: i64) -> Result<(), ManagerError> {
        match self.call(tried, method, &[Argument::Text(name), Argument::Bool(false)]).await? {
            Answer::Fault { code, text } if code != fine => Err(self.refusal(name, tried, code, text).await),
            _ => Ok(()),
        }
    }

    /// Until the next look, or the end of patience.
    async fn wait(&self, begun: Instant, tried: &str, info: &Info) -> Result<(), ManagerError> {
        if begun.elapsed() < self.stop_within {
            sleep(LOOK).await;
            return Ok(());
        }
        let detail =
            if info.detail.is_empty() { format!("{:?}", info.state).to_uppercase() } else { info.detail.clone() };
        let (tried, within) = (tried.to_owned(), self.stop_within);
        Err(ManagerError::Late { manager: MANAGER, tried, within, phase: info.phase(), detail })
    }

    /// A fault with what else is worth knowing; what cannot be found out is left out.
    async fn refusal(&self, name: &str, tried: &str, code: i64, mut said: String) -> ManagerError {
        match code {
            fault::BAD_NAME => {
                if let Ok(all) = self.all(tried).await {
                    let known: Vec<String> = all.into_iter().map(|info| info.name).collect();
                    said = format!("{said}; it has {}", listed(&known));
                }
            }
            // Boxed, as a look may itself end in a refusal.
            fault::SPAWN_ERROR => {
                if let Ok(info) = Box::pin(self.info(name, tried)).await {
                    said = format!("{said} ({})", info.detail);
                }
            }
            _ => {}
        }
        refused(tried, code, said)
    }

    fn garbled(&self, tried: &str, why: String) -> ManagerError {
        ManagerError::Garbled { manager: MANAGER, at: self.link.at(), tried: tried.to_owned(), why }
    }
}

impl ProcessManager for Supervisord {
    fn name(&self, worker: SocketAddr) -> String {
        filled(&self.program, "", worker)
    }

    fn check<'a>(&'a self, workers: &'a [SocketAddr]) -> Pending<'a, Result<(), ManagerError>> {
        Box::pin(self.check_all(workers))
    }

    fn stop(&self, worker: SocketAddr) -> Pending<'_, Result<(), ManagerError>> {
        Box::pin(async move { self.stop_named(&self.name(worker)).await })
    }

    fn start(&self, worker: SocketAddr) -> Pending<'_, Result<(), ManagerError>> {
        Box::pin(async move { self.start_named(&self.name(worker)).await })
    }

    fn status(&self, worker: SocketAddr) -> Pending<'_, Result<ProcessStatus, ManagerError>> {
        Box::pin(async move { self.status_named(&self.name(worker)).await })
    }
}

/// supervisord's full name for a process that may be named without its group.
fn full(name: &str) -> String {
    if name.contains(':') { name.to_owned() } else { format!("{name}:{name}") }
}

/// Names for a message, not too many.
fn listed(names: &[String]) -> String {
    match names.len() {
        0 => "no processes at all".to_owned(),
        count if count > NAMED => {
            format!("{} and {} more", names[..NAMED].join(", "), count - NAMED)
        }
        _ => names.join(", "),
    }
}

fn refused(tried: &str, code: i64, said: String) -> ManagerError {
    let hint = match code {
        fault::UNKNOWN_METHOD => "Its configuration needs the section [rpcinterface:supervisor]",
        fault::SHUTDOWN_STATE => "It is shutting down or restarting: try again when it is up",
        fault::BAD_NAME => {
            "Make `manager.program` name its processes, or load their configuration: `supervisorctl update`"
        }
        fault::NO_FILE | fault::NOT_EXECUTABLE => "See to the `command` of the program in its configuration",
        fault::SPAWN_ERROR => {
            "The process could not be started or ended at once: read its log (`supervisorctl tail NAME stderr`)"
        }
        fault::ABNORMAL_TERMINATION => {
            "The process ended before it was up: read its log (`supervisorctl tail NAME stderr`)"
        }
        _ => "Read supervisord's own log",
    };
    ManagerError::Refused { manager: MANAGER, tried: tried.to_owned(), said, hint }
}
