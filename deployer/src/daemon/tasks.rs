//! The daemon's background tasks.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::Notify, task::JoinSet};

use super::{Daemon, lock, metrics, supervise::Returns};
use crate::{kernel::Events, service::watch};

/// Between two looks at what is known of the workers, for the journal.
const NOTE: Duration = Duration::from_millis(500);

impl Daemon {
    /// What goes on in the background until the result is dropped.
    pub(super) fn tasks(self: &Arc<Self>, events: Events, page: Option<metrics::Bound>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        self.supervise(&mut tasks, "note", Returns::Never, note_for_ever);
        let ask = |daemon: Arc<Self>| watch::ask_versions(Arc::clone(&daemon.registry));
        self.supervise(&mut tasks, "versions", Returns::Done, ask);
        self.supervise(&mut tasks, "found", Returns::Done, |daemon| daemon.look_at_found(BTreeSet::new()));
        let news = Arc::new(Notify::new());
        let (watches, hears) = (Arc::clone(&news), (Arc::new(tokio::sync::Mutex::new(events)), news));
        self.supervise(&mut tasks, "watch", Returns::Never, move |daemon| {
            let watched = (Arc::clone(&daemon.registry), Arc::clone(&daemon.tables), Arc::clone(&daemon.ledger));
            watch::run(watched, (Arc::clone(&watches), Arc::clone(&daemon.health.watch)))
        });
        self.supervise(&mut tasks, "hear", Returns::Never, move |daemon| {
            daemon.hear(Arc::clone(&hears.0), Arc::clone(&hears.1))
        });
        self.supervise(&mut tasks, "links", Returns::Never, Self::keep);
        self.supervise(&mut tasks, "protect", Returns::Never, Self::protect);
        self.supervise(&mut tasks, "count", Returns::Never, Self::count);
        self.supervise(&mut tasks, "callers", Returns::Never, Self::watch_callers);
        self.supervise(&mut tasks, "self-test", Returns::Never, Self::test_itself);
        self.supervise(&mut tasks, "ledger", Returns::Never, Self::keep_ledger);
        self.supervise(&mut tasks, "register", Returns::Done, Self::register);
        self.supervise(&mut tasks, "fleet", Returns::Never, Self::follow_fleet);
        self.supervise(&mut tasks, "reloads", Returns::Never, Self::apply_deferred);
        self.supervise(&mut tasks, "watchdog", Returns::Never, Self::feed_watchdog);
        let page = Arc::new(Mutex::new(page));
        self.supervise(&mut tasks, "metrics", Returns::Done, move |daemon| {
            let page = Arc::clone(&page);
            async move {
                let bound = lock(&page).take();
                let bound = if bound.is_some() { bound } else { daemon.bind_metrics().await };
                daemon.serve_metrics(bound).await;
            }
        });
        tasks
    }
}

async fn note_for_ever(daemon: Arc<Daemon>) {
    loop {
        tokio::time::sleep(NOTE).await;
        daemon.note();
        daemon.tell_trouble();
    }
}
