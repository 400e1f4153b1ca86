//! The coordinator of a host that has none: a tree in memory, whose persistent nodes are in a file.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use super::coordinator::{Coordinator, Kind, Link, News, Node, Op, Trouble, Watch, Why};
use crate::{
    journal::{PATIENCE, disk::Disk},
    roll::record::unix_ms,
    workers::Pending,
};

/// What an ephemeral node's owner is: this process.
const SESSION: i64 = 1;

/// One host, by itself.
#[derive(Debug)]
pub struct Alone {
    shared: Arc<Shared>,
    disk: Disk,
    link: watch::Sender<Link>,
}

#[derive(Debug)]
struct Shared {
    file: PathBuf,
    tree: Mutex<Tree>,
    watched: Mutex<Vec<Watched>>,
    /// Held from the look at the tree to the change of it, which the file may have to hold before.
    changing: Mutex<()>,
}

#[derive(Debug)]
struct Watched {
    path: String,
    below: bool,
    news: watch::Sender<News>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Tree {
    nodes: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    data: String,
    version: i32,
    /// Children that were numbered so far.
    #[serde(default)]
    numbered: u32,
    #[serde(skip)]
    is_ephemeral: bool,
}

impl Alone {
    /// Goes on with what the file holds; one that cannot be read is put aside, and said so.
    #[must_use]
    pub fn open(file: PathBuf) -> Self {
        let tree = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                let aside = file.with_extension("json.corrupt");
                tracing::error!(%error, file = %file.display(), aside = %aside.display(), "is not understood; it is put aside");
                let _ = fs::rename(&file, &aside);
                Tree::default()
            }),
            Err(_) => Tree::default(),
        };
        let link = Link { session: 1, is_connected: true, since_ms: unix_ms(), lost: 0 };
        let disk = Disk::new(file.parent().unwrap_or(Path::new("/")));
        let shared = Shared { file, tree: Mutex::new(tree), watched: Mutex::default(), changing: Mutex::default() };
        Self { shared: Arc::new(shared), disk, link: watch::Sender::new(link) }
    }

    /// Makes a change in the disk's thread. One that hangs is not waited for; whether it was made is not known then, as with
    /// any coordinator whose connection is lost.
    async fn change(&self, ops: Vec<Op>) -> Result<Vec<String>, Trouble> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let (sender, made) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        // Each is work of its own: none takes the place of another.
        let key = NUMBER.fetch_add(1, Ordering::Relaxed).to_string();
        self.disk.hand_over(&key, move || drop(sender.send(shared.change(ops))));
        match tokio::time::timeout(PATIENCE, made).await {
            Ok(Ok(made)) => made,
            Ok(Err(_)) => Err(Trouble::Failed("a change of the fleet's tree has panicked".to_owned())),
            Err(_) => {
                let (file, waited) = (self.shared.file.display(), PATIENCE.as_secs());
                Err(Trouble::Failed(format!("{file} has not been written for {waited} s: the disk hangs")))
            }
        }
    }
}

impl Shared {
    fn tree(&self) -> MutexGuard<'_, Tree> {
        // A change is made aside, and put in its place whole.
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, ops: Vec<Op>) -> Result<Vec<String>, Trouble> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut changed, mut made) = (Vec::new(), Vec::new());
        // Not locked while it is written: readers do not wait for the disk.
        let mut next = self.tree().clone();
        let before = next.lasting();
        for (nth, op) in ops.into_iter().enumerate() {
            changed.push(next.apply(op, &mut made).map_err(|why| Trouble::Refused { nth, why })?);
        }
        if next.lasting() != before {
            write(&self.file, &next.lasting())
                .map_err(|error| Trouble::Failed(format!("writing {}: {error}", self.file.display())))?;
        }
        *self.tree() = next;
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for one in watched.iter().filter(|one| changed.iter().any(|path| one.hears(path))) {
            let is_made = made.contains(&one.path);
            one.news.send_modify(|news| {
                news.told += 1;
                news.made += u64::from(is_made);
            });
        }
        Ok(made)
    }
}

impl Watched {
    fn hears(&self, path: &str) -> bool {
        path == self.path || (self.below && path.strip_prefix(&self.path).is_some_and(|rest| rest.starts_with('/')))
    }
}

impl Tree {
    /// Does a step; returns the path that it changes.
    fn apply(&mut self, op: Op, made: &mut Vec<String>) -> Result<String, Why> {
        match op {
            Op::Create { path, data, kind } => {
                let path = self.create(path, data, kind)?;
                made.push(path.clone());
                Ok(path)
            }
            Op::Set { path, data, version } => {
                let node = self.with(&path, version)?;
                node.data = String::from_utf8_lossy(&data).into_owned();
                node.version += 1;
                Ok(path)
            }
            Op::Check { path, version } => self.with(&path, version).map(|_| path.clone()),
            Op::Delete { path, version } => {
                if let Some(version) = version {
                    self.with(&path, version)?;
                }
                if !self.below(&path).is_empty() {
                    return Err(Why::NotEmpty);
                }
                self.nodes.remove(&path).map(|_| path).ok_or(Why::Missing)
            }
        }
    }

    fn create(&mut self, path: String, data: Vec<u8>, kind: Kind) -> Result<String, Why> {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
        let is_numbered = matches!(kind, Kind::Sequential | Kind::EphemeralSequential);
        let number = match self.nodes.get_mut(&parent) {
            Some(above) => {
                let number = above.numbered;
                above.numbered += u32::from(is_numbered);
                number
            }
            None if parent.is_empty() => 0,
            None => return Err(Why::Missing),
        };
        let path = if is_numbered { format!("{path}{number:010}") } else { path };
        if self.nodes.contains_key(&path) {
            return Err(Why::Exists);
        }
        let is_ephemeral = matches!(kind, Kind::Ephemeral | Kind::EphemeralSequential);
        let data = String::from_utf8_lossy(&data).into_owned();
        self.nodes.insert(path.clone(), Entry { data, version: 0, numbered: 0, is_ephemeral });
        Ok(path)
    }

    fn with(&mut self, path: &str, version: i32) -> Result<&mut Entry, Why> {
        let node = self.nodes.get_mut(path).ok_or(Why::Missing)?;
        if node.version == version { Ok(node) } else { Err(Why::Version) }
    }

    /// The names of a node's children.
    fn below(&self, path: &str) -> Vec<String> {
        let prefix = format!("{}/", path.trim_end_matches('/'));
        let after = self.nodes.range(prefix.clone()..).take_while(|(path, _)| path.starts_with(&prefix));
        let names = after.filter_map(|(path, _)| path.strip_prefix(&prefix));
        names.filter(|name| !name.contains('/')).map(str::to_owned).collect()
    }

    /// What outlives the process.
    fn lasting(&self) -> String {
        let nodes = self.nodes.iter().filter(|(_, node)| !node.is_ephemeral);
        let lasting = Self { nodes: nodes.map(|(path, node)| (path.clone(), node.clone())).collect() };
        serde_json::to_string(&lasting).unwrap_or_default()
    }
}

fn write(file: &Path, text: &str) -> std::io::Result<()> {
    let dir = file.parent().unwrap_or(Path::new("/"));
    let aside = file.with_extension("new");
    let mut new = fs::File::create(&aside)?;
    new.write_all(text.as_bytes())?;
    new.sync_all()?;
    fs::rename(&aside, file)?;
    fs::File::open(dir)?.sync_all()
}

impl Coordinator for Alone {
    fn get<'a>(&'a self, path: &'a str) -> Pending<'a, Result<Option<Node>, Trouble>> {
        let node = self.shared.tree().nodes.get(path).map(|node| Node {
            data: node.data.clone().into_bytes(),
            version: node.version,
            owner: node.is_ephemeral.then_some(SESSION),
        });
        Box::pin(async move { Ok(node) })
    }

    fn children<'a>(&'a self, path: &'a str) -> Pending<'a, Result<Vec<String>, Trouble>> {
        let names = self.shared.tree().below(path);
        Box::pin(async move { Ok(names) })
    }

    fn transact(&self, ops: Vec<Op>) -> Pending<'_, Result<Vec<String>, Trouble>> {
        Box::pin(self.change(ops))
    }

    fn ensure<'a>(&'a self, path: &'a str) -> Pending<'a, Result<(), Trouble>> {
        Box::pin(async move {
            let ends = path.match_indices('/').map(|(at, _)| at).skip(1).chain([path.len()]);
            for end in ends {
                let (path, kind) = (path[..end].to_owned(), Kind::Persistent);
                match self.change(vec![Op::Create { path, data: Vec::new(), kind }]).await {
                    Ok(_) | Err(Trouble::Refused { why: Why::Exists, .. }) => {}
                    Err(trouble) => return Err(trouble),
                }
            }
            Ok(())
        })
    }

    fn watch(&self, path: &str, below: bool) -> Watch {
        let (news, heard) = watch::channel(News { is_in_place: true, ..News::default() });
        let mut watched = self.shared.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|one| one.news.receiver_count() > 0);
        watched.push(Watched { path: path.to_owned(), below, news });
        Watch::new(heard, None)
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(path: &str, kind: Kind) -> Op {
        Op::Create { path: path.to_owned(), data: b"x".to_vec(), kind }
    }

    #[tokio::test]
    async fn all_of_it_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let alone = Alone::open(dir.path().join("fleet.json"));
        alone.ensure("/a/b").await.unwrap();
        let wrong = vec![create("/a/b/c", Kind::Persistent), Op::Check { path: "/a".to_owned(), version: 7 }];
        assert_eq!(alone.transact(wrong).await, Err(Trouble::Refused { nth: 1, why: Why::Version }));
        assert_eq!(alone.children("/a/b").await, Ok(vec![]));
        let numbered = vec![create("/a/b/m_", Kind::EphemeralSequential), create("/a/b/m_", Kind::Sequential)];
        let made = alone.transact(numbered).await.unwrap();
        assert_eq!(made, ["/a/b/m_0000000000", "/a/b/m_0000000001"]);
        let set = |version| vec![Op::Set { path: "/a/b".to_owned(), data: b"new".to_vec(), version }];
        alone.transact(set(0)).await.unwrap();
        assert_eq!(alone.transact(set(0)).await, Err(Trouble::Refused { nth: 0, why: Why::Version }));
        let gone = vec![Op::Delete { path: "/a/b".to_owned(), version: None }];
        assert_eq!(alone.transact(gone).await, Err(Trouble::Refused { nth: 0, why: Why::NotEmpty }));
    }

    #[tokio::test]
    async fn what_is_persistent_outlives_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("fleet.json");
        let alone = Alone::open(file.clone());
        alone.ensure("/a").await.unwrap();
        alone.transact(vec![create("/a/s", Kind::Persistent), create("/a/e", Kind::Ephemeral)]).await.unwrap();
        assert_eq!(alone.get("/a/e").await.unwrap().unwrap().owner, Some(SESSION));
        let next = Alone::open(file.clone());
        assert_eq!(next.children("/a").await, Ok(vec!["s".to_owned()]));
        assert_eq!(next.get("/a/s").await.unwrap().unwrap().data, b"x");
        fs::write(&file, "{").unwrap();
        assert_eq!(Alone::open(file).children("/a").await, Ok(vec![]));
    }

    #[tokio::test]
    async fn changes_are_heard() {
        let dir = tempfile::tempdir().unwrap();
        let alone = Alone::open(dir.path().join("fleet.json"));
        alone.ensure("/a").await.unwrap();
        let (mut all, mut one) = (alone.watch("/a", true), alone.watch("/a", false));
        alone.transact(vec![create("/a/b", Kind::Persistent)]).await.unwrap();
        all.changed().await;
        let quiet = tokio::time::timeout(std::time::Duration::from_millis(20), one.changed()).await;
        assert!(quiet.is_err());
    }
}
