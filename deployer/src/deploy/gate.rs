//! The gate: what the new pool must pass, warm, before callers are led to it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tracing::Instrument as _;

use super::door::Door;
use crate::{
    command::{Call, CommandError, run},
    config::{Command, Gate, Request},
    version::Version,
    warm,
};

/// Workers that are asked at the same time.
const AT_A_TIME: usize = 8;
/// Workers that are named in a message.
const NAMED: usize = 3;

/// Stands for the version in a word of a command.
pub const VERSION: &str = "{version}";

/// What is deployed, for commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About<'a> {
    /// Name of the service.
    pub service: &'a str,
    /// What the new pool runs; `None`: it is not known, and `{version}` must not be used.
    pub version: Option<&'a Version>,
    /// Name of the new pool.
    pub pool: &'a str,
    /// Its lane.
    pub lane: u8,
    /// Whether the workers speak TLS.
    pub is_tls: bool,
}

impl About<'_> {
    /// Puts the facts in place of their names in a word of a command: `{version}`, `{service}`, `{pool}`, `{lane}`.
    #[must_use]
    pub fn fill(&self, word: &str) -> String {
        word.replace("{service}", self.service)
            .replace("{pool}", self.pool)
            .replace("{lane}", &self.lane.to_string())
            .replace(VERSION, self.version.map_or("", Version::as_str))
    }

    /// The same facts for the environment of a command.
    #[must_use]
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let version = self.version.map(|version| ("DEPLOYER_VERSION", version.to_string()));
        let always = [
            ("DEPLOYER_SERVICE", self.service.to_owned()),
            ("DEPLOYER_LANE", self.lane.to_string()),
            ("DEPLOYER_POOL", self.pool.to_owned()),
        ];
        always.into_iter().chain(version).collect()
    }

    /// The facts, and the workers' addresses with blanks between them.
    #[must_use]
    pub fn environment(&self, workers: &[SocketAddr]) -> Vec<(&'static str, String)> {
        let workers: Vec<_> = workers.iter().map(SocketAddr::to_string).collect();
        let mut all = self.facts();
        all.push(("DEPLOYER_WORKERS", workers.join(" ")));
        all
    }
}

/// Has the workers of the new pool tried, once, before any caller reaches them. A request goes to each of them, straight.
/// A command is given a [`Door`] to them, as `DEPLOYER_URL`, and runs as `user`; `None`: as the daemon's.
///
/// # Errors
/// What was not as it must be, in words; also when it took longer than `within`, and a command is ended then.
pub async fn pass(
    gate: &Gate,
    about: &About<'_>,
    workers: &[SocketAddr],
    user: Option<&str>,
    within: Duration,
) -> Result<(), String> {
    if workers.is_empty() {
        return Err("the gate cannot be tried: the pool has no workers".to_owned());
    }
    match gate {
        Gate::Command(command) => pass_command(command, about, workers, user, within).await,
        Gate::Request(request) => pass_request(request, workers, within).await,
    }
}

async fn pass_command(
    command: &Command,
    about: &About<'_>,
    workers: &[SocketAddr],
    user: Option<&str>,
    within: Duration,
) -> Result<(), String> {
    let argv: Vec<_> = command.argv.iter().map(|word| about.fill(word)).collect();
    let shown = argv.join(" ");
    let door = Door::open(workers).await.map_err(|error| {
        format!("the gate `{shown}` was not run: no port on 127.0.0.1 could be opened for it (DEPLOYER_URL): {error}")
    })?;
    let mut environment = about.environment(workers);
    environment.push(("DEPLOYER_URL", door.url(about.is_tls)));
    let ended = run(&Call { argv: &argv, environment: &environment, user, within }).await;
    drop(door);
    match ended {
        Err(CommandError::Late) => {
            let within = within.as_secs_f32();
            Err(format!(
                "the gate `{shown}` was still running after {within} s, and was killed with all that it had started"
            ))
        }
        Err(CommandError::NotRun(error)) => {
            Err(format!("the gate `{shown}` cannot be run: {error}. See to the command in `deploy.gate`"))
        }
        Ok(ended) if ended.status.success() => Ok(()),
        Ok(ended) => {
            let said = Some(ended.said_last()).filter(|said| !said.is_empty());
            let said = said.unwrap_or_else(|| "it said nothing".to_owned());
            Err(format!("the gate `{shown}` failed ({}): {said}", ended.status))
        }
    }
}

async fn pass_request(request: &Request, workers: &[SocketAddr], within: Duration) -> Result<(), String> {
    let until = Instant::now() + within;
    let turns = Arc::new(Semaphore::new(AT_A_TIME));
    let mut asked = JoinSet::new();
    for (nth, worker) in workers.iter().copied().enumerate() {
        let (turns, request) = (Arc::clone(&turns), request.clone());
        let ask = async move { (nth, ask(worker, &request, &turns, until, within).await) };
        asked.spawn(ask.in_current_span());
    }
    let mut failed = Vec::new();
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok((_, Ok(()))) => {}
            Ok((nth, Err(why))) => failed.push((nth, why)),
            Err(error) => failed.push((workers.len(), format!("the daemon has failed at one: {error}"))),
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    failed.sort();
    let mut told: Vec<_> = failed.iter().take(NAMED).map(|(_, why)| why.clone()).collect();
    if failed.len() > NAMED {
        told.push(format!("and {} more", failed.len() - NAMED));
    }
    let (label, all) = (warm::label(request), workers.len());
    Err(format!("the gate `{label}`: {} of {all} workers of the new pool failed: {}", failed.len(), told.join("; ")))
}

/// Asks one worker when its turn has come.
async fn ask(
    worker: SocketAddr,
    request: &Request,
    turns: &Semaphore,
    until: Instant,
    within: Duration,
) -> Result<(), String> {
    let Ok(Ok(_turn)) = timeout_at(until, turns.acquire()).await else {
        return Err(format!("{worker}: not asked, the others took all of the {} s", within.as_secs_f32()));
    };
    let left = until.saturating_duration_since(Instant::now());
    warm::ask(worker, request, left).await.map_err(|why| format!("{worker}: {why}"))
}

#[cfg(test)]
mod tests;
