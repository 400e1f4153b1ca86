//! systemd's watchdog, fed by the work that matters: the watch over workers comes round, leases are renewed, and the API
//! answers. A daemon in which one of them stands still is not fed, and systemd starts it anew; steering survives that.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tracing::{error, info};

use super::{Daemon, lock};
use crate::service::alive::Renewal;

/// Without a watchdog the daemon is looked at as with one of so long, and what stands still is told.
const USUAL: Duration = Duration::from_secs(30);
/// Any request will do: the API answers all.
const REQUEST: &[u8] = b"GET /v1/alive HTTP/1.0\r\n\r\n";

impl Daemon {
    /// Looks for ever, and feeds the watchdog while nothing stands still.
    pub(super) async fn feed_watchdog(self: Arc<Self>) {
        // It ends a service that has said nothing for so long.
        let watchdog = sd_notify::watchdog_enabled();
        let period = watchdog.unwrap_or(USUAL);
        let socket = lock(&self.config).daemon.socket.clone();
        loop {
            let stuck = self.stuck(&socket, period / 2).await;
            if stuck.is_none() && watchdog.is_some() {
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
            }
            self.note_stuck(stuck);
            sleep(period / 5).await;
        }
    }

    /// What stands still for longer than `limit`.
    async fn stuck(self: &Arc<Self>, socket: &Path, limit: Duration) -> Option<String> {
        let seconds = limit.as_secs_f32();
        if self.health.watch.age() > limit {
            return Some(format!("the watch over workers stands still for more than {seconds} s"));
        }
        if Renewal::latest() > limit {
            return Some(format!("the lease of a drained worker has not been renewed for more than {seconds} s"));
        }
        let daemon = Arc::clone(self);
        // Takes most of the locks that an answer takes.
        let looked = spawn_blocking(move || drop(daemon.trouble()));
        if timeout(limit / 2, looked).await.is_err() {
            return Some(format!("the daemon's state is locked for more than {} s", seconds / 2.0));
        }
        match timeout(limit / 2, answers(socket.to_owned())).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("the API does not answer on {}: {error}", socket.display())),
            Err(_) => Some(format!("the API has not answered for {} s", seconds / 2.0)),
        }
    }

    /// Tells it when it begins and when it is over.
    fn note_stuck(&self, stuck: Option<String>) {
        let mut known = lock(&self.health.stuck);
        match (&*known, &stuck) {
            (None, Some(why)) => {
                error!("{why}; systemd's watchdog is not fed, and restarts the daemon if this goes on")
            }
            (Some(_), None) => info!("nothing stands still in the daemon any more"),
            _ => {}
        }
        *known = stuck;
    }
}

/// Asks the API, as any client does. A refusal is an answer.
async fn answers(socket: PathBuf) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(REQUEST).await?;
    match stream.read(&mut [0; 64]).await? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
