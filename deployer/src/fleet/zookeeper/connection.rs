//! One connection, on a runtime of its own: ending that ends the client, whatever it is about to do.

use std::sync::{Mutex, PoisonError};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Notify;
use zookeeper_client::{Client, Error, SessionInfo, SessionState};

use super::Settings;

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Failure {
    /// The servers do not know the session any more.
    Expired,
    /// Anything else, in words.
    Away(String),
}

/// A client that is connected, or was.
#[derive(Debug)]
pub(super) struct Connection {
    client: Client,
    home: Home,
    doubt: Notify,
}

impl Connection {
    /// Connects to any of the servers: with a session that was there before, or with a new one.
    pub(super) async fn make(settings: &Settings, session: Option<SessionInfo>) -> Result<Self, Failure> {
        let home = Home::new().map_err(|error| Failure::Away(format!("no thread for it: {error}")))?;
        let mut connector = Client::connector()
            .with_session_timeout(settings.session_timeout)
            .with_connection_timeout(settings.silence())
            .with_fail_eagerly()
            .with_detached();
        if let Some(digest) = &settings.digest {
            connector = connector.with_auth("digest", digest.as_bytes());
        }
        if let Some(session) = session {
            connector = connector.with_session(session);
        }
        let servers = settings.servers.clone();
        // The client lives on the runtime on which it is made.
        let connecting = home.handle.spawn(async move { connector.connect(&servers).await });
        let client = match connecting.await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(Failure::of(&error)),
            Err(error) => return Err(Failure::Away(format!("the client failed: {error}"))),
        };
        let connection = Self { client, home, doubt: Notify::new() };
        connection.catch_up(settings).await?;
        Ok(connection)
    }

    /// What was read from another server before is not newer than what this one says.
    async fn catch_up(&self, settings: &Settings) -> Result<(), Failure> {
        match tokio::time::timeout(settings.limit(), self.client.sync("/")).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Failure::of(&error)),
            Err(_) => Err(Failure::Away(format!("connected, but no answer within {:?}", settings.limit()))),
        }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The runtime that ends with the connection.
    pub(super) fn runtime(&self) -> &Handle {
        &self.home.handle
    }

    /// As far as it knows.
    pub(super) fn is_up(&self) -> bool {
        self.client.state() == SessionState::SyncConnected
    }

    /// It is to be replaced, since it does not work.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Doubts it after an error that a connection in order does not have.
    pub(super) fn judge(&self, error: &Error) {
        if matches!(error, Error::UnexpectedError(_) | Error::UnmarshalError { .. } | Error::SessionMoved) {
            self.doubt();
        }
    }

    /// Waits until it has ended, or does not work, and says why; the state is the client's last.
    pub(super) async fn over(&self) -> (SessionState, String) {
        let mut states = self.client.state_watcher();
        if !self.is_up() {
            return (self.client.state(), "the connection was lost".to_owned());
        }
        tokio::select! {
            state = states.changed() => match state {
                SessionState::Expired => (state, "the session has expired".to_owned()),
                SessionState::AuthFailed => (state, "the digest is refused".to_owned()),
                // If it has connected again by itself, what was missed is not known, either.
                _ => (state, "the connection was lost".to_owned()),
            },
            () = self.doubt.notified() => (self.client.state(), "the connection does not answer".to_owned()),
        }
    }

    /// Ends it. What was asked and not yet sent never will be.
    pub(super) fn close(&self) {
        self.home.leave();
    }
}

impl Failure {
    fn of(error: &Error) -> Self {
        match error {
            Error::SessionExpired => Self::Expired,
            Error::NoHosts => Self::Away("no server answers, or none of them has a quorum".to_owned()),
            Error::AuthFailed => Self::Away("the digest is refused".to_owned()),
            error => Self::Away(error.to_string()),
        }
    }
}

/// A runtime of one thread.
#[derive(Debug)]
struct Home {
    handle: Handle,
    runtime: Mutex<Option<Runtime>>,
}

impl Home {
    fn new() -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("zookeeper").build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Mutex::new(Some(runtime)) })
    }

    fn leave(&self) {
        if let Some(runtime) = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.leave();
    }
}
