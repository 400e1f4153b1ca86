//! ZooKeeper as a fleet's [`Coordinator`].
//!
//! The client of crate `zookeeper-client` is used for one connection only, and thrown away when that ends: left to itself, it
//! tries again after pauses that double without a limit, and what was asked meanwhile runs when it is connected again, even if
//! nobody waits for it any more. So nothing is asked without a connection here, and what was asked on one that ended never
//! runs on another. [`keeper`] makes the connections and takes sessions over; [`watching`] makes watches anew on each.

mod connection;
mod keeper;
mod trouble;
mod watching;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use zookeeper_client::{Acls, CreateMode, Error, MultiWriteResult, Permission};

use self::connection::Connection;
use self::keeper::{Keeper, Standing};
use super::coordinator::{Coordinator, Kind, Link, Node, Op, Trouble, Watch};
use crate::workers::Pending;

/// What a server takes in one request at most (`jute.maxbuffer`) is 1 MiB; it drops the connection of who sends more.
const LARGEST: usize = 1_000_000;
/// The shortest time that a request gets.
const SHORTEST: Duration = Duration::from_secs(1);
/// A connection that is silent for so long has ended, however long sessions last.
const SILENCE: Duration = Duration::from_secs(5);

static CREATOR_AND_READERS: [zookeeper_client::Acl; 2] = [
    zookeeper_client::Acl::new_const(Permission::ALL, "auth", ""),
    zookeeper_client::Acl::new_const(Permission::READ, "world", "anyone"),
];

/// Where ZooKeeper is, and who is asking.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// `host:port`, with commas between; no path.
    pub servers: String,
    /// How long a session outlives its connection: 500 ms to 2 minutes, within what the servers allow.
    pub session_timeout: Duration,
    /// `user:password`.
    pub digest: Option<String>,
    /// Who may do what with the nodes that are made; all but [`Acl::Anyone`] need a digest.
    pub acl: Acl,
}

/// Who may do what with nodes that are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acl {
    /// Everybody may do everything.
    Anyone,
    /// Only who has the same digest may do anything.
    Creator,
    /// Who has the same digest may do everything; everybody may read.
    CreatorAndReaders,
}

impl Settings {
    /// How long a server may be silent.
    fn silence(&self) -> Duration {
        // Time is left for two more servers before the session ends.
        (self.session_timeout * 2 / 5).min(SILENCE)
    }

    /// How long an answer may take.
    fn limit(&self) -> Duration {
        self.silence().max(SHORTEST)
    }

    fn acls(&self) -> Acls<'static> {
        match self.acl {
            Acl::Anyone => Acls::anyone_all(),
            Acl::Creator => Acls::creator_all(),
            Acl::CreatorAndReaders => Acls::new(&CREATOR_AND_READERS),
        }
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The password stays out of logs.
        let user = self.digest.as_deref().map(|digest| digest.split(':').next().unwrap_or_default());
        f.debug_struct("Settings")
            .field("servers", &self.servers)
            .field("session_timeout", &self.session_timeout)
            .field("user", &user)
            .field("acl", &self.acl)
            .finish()
    }
}

/// Before what keeps the connection is started again.
const PAUSE: Duration = Duration::from_secs(1);

/// A ZooKeeper, connected to as long as this lives. Its session is left to expire by itself, so that a daemon which is
/// restarted at once does not leave its fleet meanwhile.
#[derive(Debug)]
pub struct ZooKeeper {
    settings: Settings,
    standing: watch::Receiver<Standing>,
    link: watch::Receiver<Link>,
    _keeper: JoinSet<()>,
}

/// Stays connected for ever, also over a panic of what does it.
async fn keep(settings: Settings, standing: watch::Sender<Standing>, link: watch::Sender<Link>) {
    loop {
        // Dropped with this, it ends.
        let mut one = JoinSet::new();
        one.spawn(Keeper::new(settings.clone(), standing.clone(), link.clone()).run());
        let Some(Err(error)) = one.join_next().await else { return };
        tracing::error!(%error, "what keeps the connection to ZooKeeper has panicked; it is started again");
        tokio::time::sleep(PAUSE).await;
    }
}

impl ZooKeeper {
    /// Begins to connect, and goes on until this is dropped. To be called within a runtime.
    #[must_use]
    pub fn start(settings: Settings) -> Self {
        let (standing, standing_seen) = watch::channel(Standing::Away("not connected yet".to_owned()));
        let (link, link_seen) = watch::channel(Link::default());
        let mut keeper = JoinSet::new();
        keeper.spawn(keep(settings.clone(), standing, link));
        Self { settings, standing: standing_seen, link: link_seen, _keeper: keeper }
    }

    fn connection(&self) -> Result<Arc<Connection>, Trouble> {
        let why = match &*self.standing.borrow() {
            Standing::Connected(connection) if connection.is_up() => return Ok(Arc::clone(connection)),
            Standing::Connected(_) => "the connection has just been lost".to_owned(),
            Standing::Away(why) => why.clone(),
        };
        Err(Trouble::Away(format!("no connection to ZooKeeper ({}): {why}", self.settings.servers)))
    }

    /// Waits for what was asked, but not beyond the time limit, nor beyond the end of the connection. `Err`: in words.
    async fn answer<T>(&self, connection: &Arc<Connection>, work: impl Future<Output = T>) -> Result<T, String> {
        let mut standing = self.standing.clone();
        let is_over = standing.wait_for(|standing| !standing.is_by(connection));
        let limit = self.settings.limit();
        tokio::select! {
            biased;
            answer = work => Ok(answer),
            _ = is_over => Err(format!("the connection to ZooKeeper ({}) was lost meanwhile", self.settings.servers)),
            () = tokio::time::sleep(limit) => {
                // It may be stuck in a way that its own pings do not show.
                connection.doubt();
                Err(format!("ZooKeeper ({}) has not answered within {limit:?}", self.settings.servers))
            }
        }
    }

    /// Reads: what fails has done nothing.
    async fn read<T>(
        &self,
        path: &str,
        connection: &Arc<Connection>,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<Option<T>, Trouble> {
        match self.answer(connection, work).await.map_err(Trouble::Away)? {
            Ok(found) => Ok(Some(found)),
            Err(Error::NoNode) => Ok(None),
            Err(error) => {
                connection.judge(&error);
                Err(trouble::reading(&self.settings, path, &error))
            }
        }
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Vec<String>, Trouble> {
        let size: usize = ops.iter().map(|op| op.path().len() + op.data().len() + 64).sum();
        if size > LARGEST {
            return Err(Trouble::Failed(format!("{size} bytes are more than ZooKeeper takes at once ({LARGEST})")));
        }
        let connection = self.connection()?;
        let mut writer = connection.client().new_multi_writer();
        for op in &ops {
            add(&mut writer, op, self.settings.acls())
                .map_err(|error| trouble::asking(&self.settings, op.path(), &error))?;
        }
        match self.answer(&connection, writer.commit()).await.map_err(Trouble::Unknown)? {
            Ok(results) => Ok(results.into_iter().filter_map(made).collect()),
            Err(error) => {
                if let zookeeper_client::MultiWriteError::RequestFailed { source } = &error {
                    connection.judge(source);
                }
                Err(trouble::writing(&self.settings, &ops, &error))
            }
        }
    }

    async fn make(&self, path: &str) -> Result<(), Trouble> {
        let connection = self.connection()?;
        let client = connection.client();
        // What is there needs no right to make it.
        if self.read(path, &connection, client.check_stat(path)).await?.flatten().is_some() {
            return Ok(());
        }
        let options = CreateMode::Persistent.with_acls(self.settings.acls());
        match self.answer(&connection, client.mkdir(path, &options)).await.map_err(Trouble::Unknown)? {
            Ok(()) => Ok(()),
            Err(error) => {
                connection.judge(&error);
                Err(trouble::asking(&self.settings, path, &error))
            }
        }
    }
}

impl Coordinator for ZooKeeper {
    fn get<'a>(&'a self, path: &'a str) -> Pending<'a, Result<Option<Node>, Trouble>> {
        Box::pin(async move {
            let connection = self.connection()?;
            let found = self.read(path, &connection, connection.client().get_data(path)).await?;
            Ok(found.map(|(data, stat)| {
                let owner = Some(stat.ephemeral_owner).filter(|owner| *owner != 0);
                Node { data, version: stat.version, owner }
            }))
        })
    }

    fn children<'a>(&'a self, path: &'a str) -> Pending<'a, Result<Vec<String>, Trouble>> {
        Box::pin(async move {
            let connection = self.connection()?;
            let found = self.read(path, &connection, connection.client().list_children(path)).await?;
            let mut names = found.unwrap_or_default();
            names.sort_unstable();
            Ok(names)
        })
    }

    fn transact(&self, ops: Vec<Op>) -> Pending<'_, Result<Vec<String>, Trouble>> {
        Box::pin(self.commit(ops))
    }

    fn ensure<'a>(&'a self, path: &'a str) -> Pending<'a, Result<(), Trouble>> {
        Box::pin(self.make(path))
    }

    fn watch(&self, path: &str, below: bool) -> Watch {
        watching::watch(self.standing.clone(), path.to_owned(), below)
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }
}

fn add(writer: &mut zookeeper_client::MultiWriter<'_>, op: &Op, acls: Acls<'static>) -> Result<(), Error> {
    match op {
        Op::Create { path, data, kind } => writer.add_create(path, data, &mode(*kind).with_acls(acls)),
        Op::Set { path, data, version } => writer.add_set_data(path, data, Some(*version)),
        Op::Delete { path, version } => writer.add_delete(path, *version),
        Op::Check { path, version } => writer.add_check_version(path, *version),
    }
}

fn mode(kind: Kind) -> CreateMode {
    match kind {
        Kind::Persistent => CreateMode::Persistent,
        Kind::Ephemeral => CreateMode::Ephemeral,
        Kind::Sequential => CreateMode::PersistentSequential,
        Kind::EphemeralSequential => CreateMode::EphemeralSequential,
    }
}

fn made(result: MultiWriteResult) -> Option<String> {
    match result {
        MultiWriteResult::Create { path, .. } => Some(path),
        _ => None,
    }
}
