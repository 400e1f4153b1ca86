//! Keeps links and pins what they should be: a cgroup that is made anew (a load balancer's unit that was restarted, say)
//! takes its links along, and a bpf file system can be unmounted.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tracing::{error, info, warn};

use super::{Daemon, lock};

/// Between two looks: so long a load balancer in a new cgroup may be unsteered.
const LOOK: Duration = Duration::from_secs(1);

impl Daemon {
    /// Looks for ever.
    pub(super) async fn keep(self: Arc<Self>) {
        let mut told = BTreeSet::new();
        // What is counted from here on is news.
        self.look_for_losses();
        loop {
            tokio::time::sleep(LOOK).await;
            let daemon = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || daemon.look()).await {
                Ok(Some(lost)) => self.tell(&mut told, lost),
                // Detached: nothing is to be kept.
                Ok(None) => {}
                Err(error) => error!(%error, "the look at links and pins has panicked"),
            }
        }
    }

    /// What was lost, or cannot be looked at.
    fn look(&self) -> Option<Vec<String>> {
        self.look_for_losses();
        // A cgroup that was made anew is another one, also to the rules of who is steered. First, so that nobody relies on
        // links under which callers pass for strangers.
        let refreshed = self.registry.refresh_callers();
        let repaired = lock(&self.programs).as_mut()?.repair();
        let repaired = refreshed.and(repaired).and_then(|lost| {
            if !lost.is_empty() {
                // It may have been made between the two.
                self.registry.refresh_callers()?;
                // Nobody has told of the sockets that began to listen meanwhile.
                self.tables.count_listeners()?;
            }
            Ok(lost)
        });
        Some(repaired.unwrap_or_else(|error| vec![format!("{error:#}")]))
    }

    /// Says each thing once, and once that it is over.
    fn tell(&self, told: &mut BTreeSet<String>, lost: Vec<String>) {
        let lost: BTreeSet<String> = lost.into_iter().collect();
        for what in lost.difference(told) {
            warn!(what, "steering was at stake");
        }
        if lost.is_empty() && !told.is_empty() {
            info!("links and pins are as they should be");
        }
        // What is put right is told once more, as such.
        self.links_lost.fetch_add(lost.len().saturating_sub(told.len()) as u64, Ordering::Relaxed);
        lock(&self.lost).clone_from(&lost);
        *told = lost;
        self.tell_trouble();
    }
}
