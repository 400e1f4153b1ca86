//! Watches that outlive connections.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use zookeeper_client::{AddWatchMode, Client, Error, EventType};

use super::connection::Connection;
use super::keeper::Standing;
use crate::fleet::coordinator::{News, Watch};

/// Before a watch that was refused on a connection is made again on the same one.
const PAUSE: Duration = Duration::from_secs(1);

/// Ends a task with its owner.
struct Ending(AbortHandle);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Without a connection, changes are missed.
struct Missing<'a>(&'a watch::Sender<News>);

impl Drop for Missing<'_> {
    fn drop(&mut self) {
        self.0.send_if_modified(|news| {
            news.is_in_place = false;
            // Nothing is told by that.
            false
        });
    }
}

/// Hears of changes of a node, and with `below` of all below it.
pub(super) fn watch(standing: watch::Receiver<Standing>, path: String, below: bool) -> Watch {
    let (news, seen) = watch::channel(News::default());
    let mut feeder = JoinSet::new();
    feeder.spawn(feed(standing, path, below, news));
    Watch::new(seen, Some(feeder))
}

async fn feed(mut standing: watch::Receiver<Standing>, path: String, below: bool, news: watch::Sender<News>) {
    loop {
        let Some(connection) = next(&mut standing).await else { return };
        // On the connection's runtime: when that ends, the client's watchers would panic rather than say so.
        let following = follow(connection.client().clone(), path.clone(), below, news.clone());
        let mut following = connection.runtime().spawn(following);
        let is_over = |standing: &Standing| !standing.is_by(&connection);
        {
            let _missing = Missing(&news);
            let _ending = Ending(following.abort_handle());
            tokio::select! {
                over = standing.wait_for(is_over) => match over {
                    Ok(_) => continue,
                    Err(_) => return,
                },
                ended = &mut following => if ended.is_err() {
                    // The client has failed without saying so.
                    connection.doubt();
                },
            }
        }
        // The connection is about to end, or the watch was refused.
        tokio::time::timeout(PAUSE, standing.wait_for(is_over)).await.ok();
    }
}

/// The connection, as soon as there is one; `None`: never.
async fn next(standing: &mut watch::Receiver<Standing>) -> Option<Arc<Connection>> {
    let found = standing.wait_for(|standing| matches!(standing, Standing::Connected(_))).await.ok()?;
    match &*found {
        Standing::Connected(connection) => Some(Arc::clone(connection)),
        Standing::Away(_) => None,
    }
}

/// Tells of what changes, until the connection ends.
async fn follow(client: Client, path: String, below: bool, news: watch::Sender<News>) -> Result<(), Error> {
    // Always with all below it: a server has one mode for a path and a session, and the last one asked for counts.
    let mut watcher = client.watch(&path, AddWatchMode::PersistentRecursive).await?;
    let tell = |made: bool| {
        news.send_modify(|news| {
            *news = News { told: news.told + 1, made: news.made + u64::from(made), is_in_place: true };
        });
    };
    // What happened before there was a watch is not known.
    tell(false);
    loop {
        let event = watcher.changed().await;
        if event.event_type == EventType::Session {
            return Ok(());
        }
        let is_itself = event.path == path;
        if below || is_itself {
            tell(is_itself && event.event_type == EventType::NodeCreated);
        }
    }
}
