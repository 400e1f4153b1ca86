//! Reads the configuration again. What is not in use is applied at once; a service in a roll or deploy, or with a worker in
//! an operator's hand, is changed when that has ended. What is refused changes nothing.

mod sort;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use anyhow::{Context, Result};
use sd_notify::NotifyState;
use tracing::{error, info, warn};

use self::sort::{Sorted, sort};
use super::{Daemon, error::Refusal, lock, start::observing};
use crate::{
    api::{Deferred, Reloaded},
    config::{Config, ConfigError},
    journal::history::By,
    kernel,
    service::{self, watch},
};

/// Between two looks whether services that wait are still in use.
const LOOK: Duration = Duration::from_millis(200);
/// A process manager that takes longer to take charge of its workers is not waited for.
const ADOPT_WITHIN: Duration = Duration::from_secs(10);

/// What the daemon knows of reloads.
#[derive(Default)]
pub(super) struct Reloads {
    /// The configuration file.
    pub(super) file: OnceLock<PathBuf>,
    /// One reload at a time.
    turn: tokio::sync::Mutex<()>,
    waiting: Mutex<Option<Waiting>>,
    /// Services for which a roll or deploy is about to begin, and how many.
    beginning: Mutex<BTreeMap<String, usize>>,
}

/// A configuration that is not in force for all of its services yet.
#[derive(Clone)]
struct Waiting {
    /// As it was read.
    config: Config,
    /// The services that wait, and why.
    deferred: BTreeMap<String, String>,
    /// The services that have waited, and whose configuration was refused then, and why.
    refused: BTreeMap<String, String>,
}

/// A roll or deploy of a service is about to begin: no reload comes in between.
pub(super) struct Beginning<'a>(&'a Reloads, String);

impl Drop for Beginning<'_> {
    fn drop(&mut self) {
        let mut beginning = lock(&self.0.beginning);
        if let Some(count) = beginning.get_mut(&self.1) {
            *count -= 1;
        }
        beginning.retain(|_, count| *count > 0);
    }
}

impl Reloads {
    /// Has reloads defer a service until the result is dropped.
    pub(super) fn begins(&self, service: &str) -> Beginning<'_> {
        *lock(&self.beginning).entry(service.to_owned()).or_default() += 1;
        Beginning(self, service.to_owned())
    }

    /// The services whose configuration waits.
    pub(super) fn deferred(&self) -> Vec<Deferred> {
        lock(&self.waiting).as_ref().map(|waiting| listed(&waiting.deferred)).unwrap_or_default()
    }

    /// What an operator must know: configurations that were refused when their services were free.
    pub(super) fn trouble(&self) -> Vec<String> {
        let waiting = lock(&self.waiting);
        let refused = waiting.iter().flat_map(|waiting| &waiting.refused);
        let told = refused.map(|(name, why)| {
            format!(
                "{name}: its new configuration has waited until the service was free, and was then refused: {why}. The former \
                 one stays. Next: correct the file, and run: deployer reload"
            )
        });
        told.collect()
    }
}

fn listed(deferred: &BTreeMap<String, String>) -> Vec<Deferred> {
    deferred.iter().map(|(service, why)| Deferred { service: service.clone(), why: why.clone() }).collect()
}

impl Daemon {
    /// Reads the configuration again, and says what became of each service that is configured otherwise.
    ///
    /// # Errors
    /// What is wrong with the file, or why it cannot be applied. Then everything is as it was.
    pub(super) async fn reload(self: &Arc<Self>, by: By<'_>) -> Result<Reloaded, Refusal> {
        let _turn = self.reloads.turn.lock().await;
        let _ = sd_notify::notify(&[NotifyState::Reloading]);
        let known = self.registry.services().into_keys().collect();
        let daemon = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || daemon.reload_now()).await;
        self.tell_reloaded(by, &read);
        let result = match read {
            Ok(Ok(reloaded)) => {
                let waiting: Vec<_> = reloaded.deferred.iter().map(ToString::to_string).collect();
                let (applied, deferred) = (reloaded.applied.join(", "), waiting.join("; "));
                info!(applied, deferred, "configuration read again");
                self.adopt(&reloaded.applied).await;
                tokio::spawn(Arc::clone(self).look_at_found(known));
                Ok(reloaded)
            }
            Ok(Err(error)) => {
                error!(error = format!("{error:#}"), "configuration not read again; the former stays");
                let told = format!("{error:#}; the configuration was not applied, and the former one stays");
                Err(if error.is::<ConfigError>() { Refusal::usage(told) } else { Refusal::failed(told) })
            }
            Err(error) => {
                error!(%error, "reload has panicked");
                Err(Refusal::failed(format!("the reload ended by a bug: {error}; see the daemon's log")))
            }
        };
        let status = match &result {
            Ok(_) => "configuration read again".to_owned(),
            Err(refusal) => format!("reload refused: {refusal}").replace('\n', " "),
        };
        let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
        result
    }

    fn reload_now(&self) -> Result<Reloaded> {
        let file = self.reloads.file.get().context("the daemon does not know its configuration file")?;
        let config = Config::load_safe(file)?;
        let _gate = lock(&self.gate);
        let notes = self.at_the_next_start(&config)?;
        let sorted = self.sorted(&config, &BTreeMap::new());
        self.apply(&sorted)?;
        for note in &notes {
            warn!("{note}");
        }
        let deferred = listed(&sorted.deferred);
        *lock(&self.reloads.waiting) =
            (!deferred.is_empty()).then_some(Waiting { config, deferred: sorted.deferred, refused: BTreeMap::new() });
        Ok(Reloaded { file: file.display().to_string(), applied: sorted.applied, deferred, notes })
    }

    fn sorted(&self, config: &Config, refused: &BTreeMap<String, String>) -> Sorted {
        let mut busy = self.in_use();
        busy.extend(refused.clone());
        sort(&lock(&self.config), config, &busy)
    }

    /// Services that no reload may change now, and why.
    fn in_use(&self) -> BTreeMap<String, String> {
        let services = self.registry.services();
        let beginning = lock(&self.reloads.beginning).clone();
        let why = |name: &String, service: &service::Service| {
            if let Some(roll) = self.running(name) {
                return Some(format!(
                    "{} is under way; it is changed by itself when that has ended",
                    self.shown(&roll)
                ));
            }
            if beginning.contains_key(name) {
                return Some("a roll or deploy begins; it is changed by itself when that has ended".to_owned());
            }
            let held = service.members().find(|worker| !worker.control().is_watched())?;
            Some(match held.control().by_hand() {
                Some(_) => format!(
                    "{0} is drained by hand; it is changed by itself after: deployer enable {name} {0}",
                    held.at
                ),
                None => format!("{} is being enabled; it is changed by itself after that", held.at),
            })
        };
        services.iter().filter_map(|(name, service)| Some((name.clone(), why(name, service)?))).collect()
    }

    /// What of a configuration is in force only after the next start; refused is what would keep a daemon from starting.
    fn at_the_next_start(&self, config: &Config) -> Result<Vec<String>> {
        let current = lock(&self.config).clone();
        let (kernel, daemon) = (&config.kernel, &config.daemon);
        let is_moved = kernel.callers != current.kernel.callers || kernel.workers != current.kernel.workers;
        if is_moved {
            kernel::attachment(kernel.callers.as_deref(), kernel.workers.as_deref())
                .context("[kernel] callers and workers")?;
        }
        let changes = [
            (is_moved, "[kernel] callers and workers take effect at the next start of the daemon"),
            (kernel.pins != current.kernel.pins, "[kernel] pins takes effect at the next start of the daemon"),
            (
                daemon.socket != current.daemon.socket
                    || daemon.group != current.daemon.group
                    || daemon.state != current.daemon.state,
                "[daemon] socket, group and state take effect at the next start of the daemon",
            ),
            (config.metrics != current.metrics, "[metrics] listen takes effect at the next start of the daemon"),
            (config.fleet != current.fleet, "[fleet] takes effect at the next start of the daemon"),
        ];
        Ok(changes.into_iter().filter(|(is, _)| *is).map(|(_, note)| note.to_owned()).collect())
    }

    /// Makes the tables, and the configuration in force, what was sorted.
    fn apply(&self, sorted: &Sorted) -> Result<()> {
        let former = lock(&self.config).clone();
        if let Err(error) = self.enter(&sorted.config) {
            // Where nothing was written, nothing is to be undone, and this writes nothing either.
            if let Err(why) = self.enter(&former).or_else(|_| self.registry.apply(&former)) {
                return Err(error.context(format!("the former configuration could not be entered again ({why:#})")));
            }
            return Err(error);
        }
        *lock(&self.config) = sorted.config.clone();
        Ok(())
    }

    /// Enters a configuration. Services that are new decide nothing until their sockets have been looked at.
    fn enter(&self, config: &Config) -> Result<()> {
        let known = self.registry.services().into_keys().collect();
        self.registry.apply(&observing(config, &known))?;
        let adopted = watch::adopt(&self.registry, &self.tables, &known);
        tokio::runtime::Handle::current().block_on(adopted).context("looking for listening workers (sock_diag)")?;
        self.registry.apply(config)
    }

    /// Has the managers of services that were changed take charge of their workers. A manager may take its time.
    async fn adopt(&self, applied: &[String]) {
        let mut services = self.registry.services();
        services.retain(|name, _| applied.contains(name));
        let adopted = tokio::spawn(async move { service::adopt(&services).await });
        if tokio::time::timeout(ADOPT_WITHIN, adopted).await.is_err() {
            warn!("a process manager has not taken charge of its workers within {} s", ADOPT_WITHIN.as_secs());
        }
    }

    /// Changes services that have waited, as soon as they are free.
    pub(super) async fn apply_deferred(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.catch_up().await;
        }
    }

    /// Changes the services that have waited and are free now.
    pub(super) async fn catch_up(self: &Arc<Self>) {
        if lock(&self.reloads.waiting).is_none() {
            return;
        }
        let _turn = self.reloads.turn.lock().await;
        let known = self.registry.services().into_keys().collect();
        let daemon = Arc::clone(self);
        match tokio::task::spawn_blocking(move || daemon.catch_up_now()).await {
            Ok(applied) if !applied.is_empty() => {
                info!(services = applied.join(", "), "the configuration that has waited is applied");
                self.tell_found(By::Daemon);
                self.adopt(&applied).await;
                tokio::spawn(Arc::clone(self).look_at_found(known));
            }
            Ok(_) => {}
            Err(error) => error!(%error, "applying the configuration that has waited has panicked"),
        }
    }

    fn catch_up_now(&self) -> Vec<String> {
        let _gate = lock(&self.gate);
        let Some(mut waiting) = lock(&self.reloads.waiting).clone() else { return Vec::new() };
        let sorted = self.sorted(&waiting.config, &waiting.refused);
        let mut applied = Vec::new();
        if !sorted.applied.is_empty() {
            match self.apply(&sorted) {
                Ok(()) => applied.clone_from(&sorted.applied),
                Err(error) => {
                    let (services, why) = (sorted.applied.join(", "), format!("{error:#}"));
                    error!(services, why, "the configuration that has waited was refused; the former stays");
                    waiting.refused.extend(sorted.applied.into_iter().map(|name| (name, why.clone())));
                }
            }
        }
        waiting.deferred = sorted.deferred;
        waiting.deferred.retain(|name, _| !waiting.refused.contains_key(name));
        let is_over = waiting.deferred.is_empty() && waiting.refused.is_empty();
        *lock(&self.reloads.waiting) = (!is_over).then_some(waiting);
        applied
    }
}
