//! What a fleet agrees through: a tree of small nodes with versions, as ZooKeeper has it.

use std::fmt;

use tokio::sync::watch;

use crate::workers::Pending;

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What is written in it.
    pub data: Vec<u8>,
    /// Grows by one with each change of the data.
    pub version: i32,
    /// It goes with the session that made it: that session's number.
    pub owner: Option<i64>,
}

/// What becomes of a node when its maker's session ends, and how it is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It stays.
    Persistent,
    /// It goes with the session.
    Ephemeral,
    /// It stays; ten digits that only grow are put behind its name.
    Sequential,
    /// It goes with the session, and is numbered.
    EphemeralSequential,
}

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Makes a node; its parent is there.
    Create {
        /// Absolute.
        path: String,
        /// At most 1 MiB.
        data: Vec<u8>,
        /// How it is named, and how long it lasts.
        kind: Kind,
    },
    /// Writes a node that has this version.
    Set {
        /// Absolute.
        path: String,
        /// At most 1 MiB.
        data: Vec<u8>,
        /// [`Node::version`] as it was read.
        version: i32,
    },
    /// Takes a node away.
    Delete {
        /// Absolute.
        path: String,
        /// `None`: whatever its version is.
        version: Option<i32>,
    },
    /// A node has this version.
    Check {
        /// Absolute.
        path: String,
        /// [`Node::version`] as it was read.
        version: i32,
    },
}

impl Op {
    /// Which node it is about.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Self::Create { path, .. }
            | Self::Set { path, .. }
            | Self::Delete { path, .. }
            | Self::Check { path, .. } => path,
        }
    }

    /// What it writes.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        match self {
            Self::Create { data, .. } | Self::Set { data, .. } => data,
            Self::Delete { .. } | Self::Check { .. } => &[],
        }
    }
}

/// Why one step of a transaction was refused, and with it all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The node is there already.
    Exists,
    /// The node, or its parent, is not there.
    Missing,
    /// The node has been changed meanwhile.
    Version,
    /// The node has children.
    NotEmpty,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Nothing was done: there is no connection.
    #[error("{0}")]
    Away(String),
    /// It may have been done, or not: look before it is tried again.
    #[error("{0}; whether it was done is not known")]
    Unknown(String),
    /// Nothing was done: this step, from 0, does not fit what is there.
    #[error("step {nth} of a transaction was refused: {why}")]
    Refused {
        /// Which.
        nth: usize,
        /// Why.
        why: Why,
    },
    /// Nothing was done, and trying again will not help: no right to it, a path that makes no sense.
    #[error("{0}")]
    Failed(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exists => "the node is there already",
            Self::Missing => "the node, or its parent, is not there",
            Self::Version => "the node has been changed meanwhile",
            Self::NotEmpty => "the node has children",
        })
    }
}

/// How things stand with the connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    /// Grows with each new session: the ephemeral nodes of former ones are gone, or soon will be. 0: there was none yet.
    pub session: u64,
    /// There is a connection.
    pub is_connected: bool,
    /// Since when, milliseconds since 1970; 0: from the beginning.
    pub since_ms: u64,
    /// Sessions that were lost.
    pub lost: u64,
}

/// What feeds a [`Watch`].
#[derive(Debug, Clone, Copy, Default)]
pub struct News {
    /// Grows with each piece of news.
    pub told: u64,
    /// How often the node itself was made.
    pub made: u64,
    /// Nothing is missed at the moment.
    pub is_in_place: bool,
}

/// Hears that something may have changed. What, is to be read; nothing is heard twice that was read in between.
#[derive(Debug)]
pub struct Watch {
    news: watch::Receiver<News>,
    /// Ends what feeds it.
    _feeder: Option<tokio::task::JoinSet<()>>,
}

impl Watch {
    /// One that is fed by a sender, and by a task that ends with it.
    #[must_use]
    pub fn new(news: watch::Receiver<News>, feeder: Option<tokio::task::JoinSet<()>>) -> Self {
        Self { news, _feeder: feeder }
    }

    /// Waits until something may have changed since this was asked last. Never, if nobody will tell.
    pub async fn changed(&mut self) {
        if self.news.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// How often the node itself was made since this began: one that is gone again was there. `None`: it would not be heard
    /// of at the moment.
    #[must_use]
    pub fn made(&self) -> Option<u64> {
        let news = self.news.borrow();
        news.is_in_place.then_some(news.made)
    }
}

/// What a fleet agrees through. Paths are absolute. Nothing here waits for a connection: without one, it is [`Trouble::Away`]
/// within a second or two.
pub trait Coordinator: Send + Sync {
    /// A node; `None`: there is none.
    fn get<'a>(&'a self, path: &'a str) -> Pending<'a, Result<Option<Node>, Trouble>>;

    /// The names of a node's children, in order; none, if it is not there.
    fn children<'a>(&'a self, path: &'a str) -> Pending<'a, Result<Vec<String>, Trouble>>;

    /// All of it, or nothing. Returns the paths of what was made, in order of the steps that make something.
    fn transact(&self, ops: Vec<Op>) -> Pending<'_, Result<Vec<String>, Trouble>>;

    /// Makes a node and all above it, empty and for good, where they are not there.
    fn ensure<'a>(&'a self, path: &'a str) -> Pending<'a, Result<(), Trouble>>;

    /// Hears of changes of a node (made, written, taken away), and with `below` of all below it. Also when a connection has
    /// come back, since nobody knows what was missed.
    fn watch(&self, path: &str, below: bool) -> Watch;

    /// How things stand with the connection.
    fn link(&self) -> watch::Receiver<Link>;
}
