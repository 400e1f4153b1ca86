//! Keeps strangers from the addresses of protected services, and names the processes that were refused.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use deployer_common::protect::BindCount;
use tracing::{debug, error, warn};

use super::{Daemon, lock};
use crate::{
    kernel::{cgroup, procs},
    service::{protect::Users, registry::Services},
};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// The same while a cgroup of workers is not there yet.
const LOOK_SOON: Duration = Duration::from_millis(50);
/// A process that tries again and again is told of this often.
const TELL: Duration = Duration::from_secs(60);
/// How long a refusal stays among what must not be overlooked.
const RECENT: Duration = Duration::from_secs(300);

/// What has been told of a service.
struct Told {
    refused: u64,
    /// When it was told last; `None`: never, by this daemon.
    at: Option<Instant>,
}

impl Daemon {
    /// Looks for ever.
    pub(super) async fn protect(self: Arc<Self>) {
        let (mut users, mut told) = (Users::default(), BTreeMap::new());
        let (mut is_empty, mut failed) = (false, None);
        loop {
            let services = self.registry.services();
            match cgroup::root() {
                Ok(root) => {
                    let wanted = users.wanted(&services, &self.tables, &root).await;
                    // A daemon before this one may have protected what this one does not.
                    if !(is_empty && wanted.is_empty()) {
                        is_empty = wanted.is_empty();
                        let entered = self.tables.protect(&wanted).map_err(|error| format!("{error:#}"));
                        if let Err(error) = &entered
                            && failed.as_ref() != Some(error)
                        {
                            error!(%error, "addresses of protected services cannot be entered; trying again");
                        }
                        failed = entered.err();
                    }
                }
                Err(error) => debug!(%error, "protected addresses are as they were"),
            }
            self.tell_refused(&services, &mut told);
            tokio::time::sleep(if users.is_complete() { LOOK } else { LOOK_SOON }).await;
        }
    }

    fn tell_refused(&self, services: &Services, told: &mut BTreeMap<String, Told>) {
        told.retain(|name, _| services.contains_key(name));
        let mut recent = lock(&self.refused_binds);
        recent.retain(|name, _| services.contains_key(name));
        for (name, service) in services {
            let count = self.tables.counts().binds(service.index);
            let told = told.entry(name.clone()).or_insert(Told { refused: count.refused, at: None });
            let is_quiet = told.at.is_none_or(|at| at.elapsed() >= TELL);
            if count.refused != told.refused && is_quiet {
                let text = refused(name, &count, count.refused.saturating_sub(told.refused));
                warn!(service = name, "{text}");
                recent.insert(name.clone(), text);
                *told = Told { refused: count.refused, at: Some(Instant::now()) };
            } else if told.at.is_some_and(|at| at.elapsed() >= RECENT) {
                recent.remove(name);
            }
        }
    }
}

fn refused(service: &str, count: &BindCount, new: u64) -> String {
    let (pid, uid) = ((count.last >> 32) as u32, count.last as u32);
    let process = procs::process(pid);
    let calls = if new == 1 { "1 bind() call".to_owned() } else { format!("{new} bind() calls") };
    format!(
        "service {service}: {calls} to its protected addresses failed with EPERM ({} in all), the last at port {} by {process} \
         of user {uid}. Next: run that process at another port; if it is a worker, its manager must name its user",
        count.refused, count.port
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_process_and_its_user() {
        let count = BindCount { refused: 12, last: u64::from(u32::MAX - 1) << 32 | 65534, port: 8000 };
        let text = refused("web", &count, 3);
        assert!(text.contains("3 bind() calls") && text.contains("(12 in all)"), "{text}");
        assert!(text.contains("port 8000") && text.contains("of user 65534"), "{text}");
        assert!(refused("web", &count, 1).contains("1 bind() call to"));
    }
}
