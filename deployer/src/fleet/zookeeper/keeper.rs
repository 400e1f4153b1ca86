//! Keeps a connection, and the session as long as the servers have it.

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use zookeeper_client::{SessionInfo, SessionState};

use super::Settings;
use super::connection::{Connection, Failure};
use crate::fleet::coordinator::Link;
use crate::roll::record::unix_ms;

/// The first pause between two attempts; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A connection that has lasted for so long was in order.
const IN_ORDER: Duration = Duration::from_secs(2);

/// The connection that there is.
#[derive(Debug, Clone)]
pub(super) enum Standing {
    /// None, and why.
    Away(String),
    /// This one.
    Connected(Arc<Connection>),
}

impl Standing {
    /// Whether it is this one.
    pub(super) fn is_by(&self, connection: &Arc<Connection>) -> bool {
        matches!(self, Self::Connected(current) if Arc::ptr_eq(current, connection))
    }
}

/// What is done to stay connected.
pub(super) struct Keeper {
    settings: Settings,
    standing: watch::Sender<Standing>,
    link: watch::Sender<Link>,
    session: Option<SessionInfo>,
    /// How long the servers keep it without a connection.
    lasts: Duration,
    /// When it has to be taken for lost: nobody can know better without a connection.
    given_up_at: Option<Instant>,
    /// It has been counted among those lost.
    is_counted: bool,
}

impl Keeper {
    pub(super) fn new(settings: Settings, standing: watch::Sender<Standing>, link: watch::Sender<Link>) -> Self {
        let lasts = settings.session_timeout;
        Self { settings, standing, link, session: None, lasts, given_up_at: None, is_counted: false }
    }

    /// Never ends.
    pub(super) async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let attempt = attempt(self.settings.clone(), self.session.clone());
            match self.minding(attempt).await {
                Ok((connection, resumed)) => {
                    let since = Instant::now();
                    self.hold(&Arc::new(connection), resumed).await;
                    if since.elapsed() >= IN_ORDER {
                        pause = FIRST_PAUSE;
                    }
                }
                Err(why) => {
                    self.standing.send_replace(Standing::Away(why));
                }
            }
            self.minding(tokio::time::sleep(jittered(pause))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Lets it be used until it ends.
    async fn hold(&mut self, connection: &Arc<Connection>, resumed: bool) {
        self.enter(connection, resumed);
        let (state, why) = connection.over().await;
        if state == SessionState::Expired {
            self.session = None;
            self.count_lost();
        }
        self.given_up_at = self.session.as_ref().map(|_| Instant::now() + self.lasts);
        // In this order: who waits for an answer is told before the client goes.
        self.standing.send_replace(Standing::Away(why));
        self.link.send_modify(|link| {
            link.is_connected = false;
            link.since_ms = unix_ms();
        });
        connection.close();
    }

    fn enter(&mut self, connection: &Arc<Connection>, resumed: bool) {
        let client = connection.client();
        if !resumed && self.session.is_some() {
            self.count_lost();
        }
        self.session = Some(client.session().clone());
        self.lasts = client.session_timeout();
        self.given_up_at = None;
        self.is_counted = false;
        self.standing.send_replace(Standing::Connected(Arc::clone(connection)));
        self.link.send_modify(|link| {
            link.session += u64::from(!resumed);
            link.is_connected = true;
            link.since_ms = unix_ms();
        });
    }

    /// Does this, and meanwhile gives the session up when its time comes.
    async fn minding<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            let Some(at) = self.given_up_at else { return work.await };
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep_until(at) => {
                    // The servers may have it still (if it was them who were away): it is tried first all the same.
                    self.given_up_at = None;
                    self.count_lost();
                }
            }
        }
    }

    fn count_lost(&mut self) {
        if !std::mem::replace(&mut self.is_counted, true) {
            self.link.send_modify(|link| link.lost += 1);
        }
    }
}

/// One attempt: with the former session first. Says whether that is the one.
async fn attempt(settings: Settings, session: Option<SessionInfo>) -> Result<(Connection, bool), String> {
    if session.is_some() {
        match Connection::make(&settings, session).await {
            Ok(connection) => return Ok((connection, true)),
            Err(Failure::Away(why)) => return Err(why),
            Err(Failure::Expired) => {}
        }
    }
    match Connection::make(&settings, None).await {
        Ok(connection) => Ok((connection, false)),
        Err(Failure::Away(why)) => Err(why),
        Err(Failure::Expired) => Err("a new session has expired at once".to_owned()),
    }
}

/// Half of it to all of it: hosts that have lost the same server do not come to the next one together.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() % 1000;
    pause / 2 + pause.mul_f64(random as f64 / 2000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_differ_within_bounds() {
        let pauses: Vec<_> = (0..100).map(|_| jittered(LONGEST_PAUSE)).collect();
        assert!(pauses.iter().all(|pause| (LONGEST_PAUSE / 2..=LONGEST_PAUSE).contains(pause)), "{pauses:?}");
        assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{pauses:?}");
    }
}
