//! What of the fleet the daemon holds: the coordinator, and what is known of each service.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::sync::{Notify, watch};

use crate::{
    config::{self, Config},
    fleet::{
        alone::Alone,
        board::Board,
        coordinator::{Link, Node, Trouble},
        paths::{Mark, Paths},
        state::FleetState,
        zookeeper::{self, ZooKeeper},
    },
};

/// The fleet's part of the daemon.
pub(in crate::daemon) struct Fleet {
    /// Its name.
    pub(in crate::daemon) name: String,
    /// This host's name in it.
    pub(in crate::daemon) host: String,
    /// This host is by itself.
    pub(in crate::daemon) is_alone: bool,
    /// Where it is agreed upon, in words.
    pub(in crate::daemon) at: String,
    /// It puts itself into the roster.
    pub(in crate::daemon) enrols: bool,
    /// Below which it makes nodes for double barriers of clients; `None`: it is by itself.
    pub(in crate::daemon) barrier_root: Option<String>,
    /// How long a session outlives its connection.
    pub(in crate::daemon) session_timeout: std::time::Duration,
    /// What is read and written.
    pub(in crate::daemon) board: Board,
    link: watch::Receiver<Link>,
    followed: Mutex<BTreeMap<String, Arc<Followed>>>,
    /// What is wrong, by what it is about.
    troubles: Mutex<BTreeMap<String, String>>,
    /// Places in lines of drivers that this process has taken.
    places: Mutex<BTreeSet<String>>,
    /// The roster has this host enabled, as last read.
    is_enabled: AtomicBool,
    /// Hosts in the roster, and hosts that are there, as last read.
    pub(in crate::daemon) counted: Mutex<(usize, usize)>,
}

/// A service's state as it was read, and its node's version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::daemon) struct View {
    pub(in crate::daemon) state: FleetState,
    pub(in crate::daemon) version: i32,
}

/// What is known of a service that is followed.
pub(in crate::daemon) struct Followed {
    /// The state that was read last; `None`: none yet, or nothing was ever ordered.
    pub(in crate::daemon) view: watch::Sender<Option<View>>,
    /// An operator of this host wants it driven from here.
    pub(in crate::daemon) drive: Notify,
    /// Orders that are being given here: their places in the line are theirs.
    pub(in crate::daemon) ordering: AtomicUsize,
    /// What is waited for, and whom, as this host drives it.
    pub(in crate::daemon) waits: Mutex<Option<(String, Vec<String>)>>,
    /// How many hosts have said what of the epoch, as this host drives it.
    pub(in crate::daemon) marks: Mutex<[usize; Mark::ALL.len()]>,
    /// In which server sets this host is.
    pub(in crate::daemon) published: Mutex<Vec<String>>,
    /// How late the last flip was here, milliseconds; negative: early.
    pub(in crate::daemon) late_ms: Mutex<Option<i64>>,
}

impl Fleet {
    /// As configured; it connects in the background.
    ///
    /// # Errors
    /// When the file with the digest cannot be used.
    pub(in crate::daemon) fn open(config: &Config) -> anyhow::Result<Self> {
        let fleet = &config.fleet;
        let (root, at, coordinator): (_, _, Arc<dyn crate::fleet::coordinator::Coordinator>) = match &fleet.connect {
            None => {
                let file = config.daemon.state.join("fleet.json");
                ("/deployer/local".to_owned(), "local".to_owned(), Arc::new(Alone::open(file)))
            }
            Some(connect) => {
                let at = format!("zookeeper {}{}", connect.servers, connect.path);
                let settings = settings(fleet, connect)?;
                (format!("{}/{}", connect.path, fleet.name), at, Arc::new(ZooKeeper::start(settings)))
            }
        };
        let link = coordinator.link();
        Ok(Self {
            name: fleet.name.clone(),
            host: fleet.host.clone(),
            is_alone: fleet.connect.is_none(),
            at,
            enrols: fleet.enrol,
            barrier_root: fleet.barrier_root(),
            session_timeout: fleet.session_timeout,
            board: Board { coordinator, paths: Paths::new(&root) },
            link,
            followed: Mutex::default(),
            troubles: Mutex::default(),
            places: Mutex::default(),
            is_enabled: AtomicBool::new(false),
            counted: Mutex::default(),
        })
    }

    /// How things stand with the connection.
    pub(in crate::daemon) fn link(&self) -> Link {
        *self.link.borrow()
    }

    /// Leaves all lines, so that others need not wait for the end of the session.
    pub(in crate::daemon) async fn leave_lines(&self) {
        let places = std::mem::take(&mut *lock(&self.places));
        for place in places {
            // It goes with the session at the latest.
            let _ = self.board.take_away(&place).await;
        }
    }

    /// Hears of the connection.
    pub(in crate::daemon) fn links(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// What is known of a service.
    pub(in crate::daemon) fn followed(&self, service: &str) -> Arc<Followed> {
        Arc::clone(lock(&self.followed).entry(service.to_owned()).or_default())
    }

    /// Notes that something is wrong, or not any more; it is said once.
    pub(in crate::daemon) fn trouble(&self, about: &str, why: Option<String>) {
        let mut troubles = lock(&self.troubles);
        match why {
            Some(why) if troubles.get(about) != Some(&why) => {
                tracing::warn!(fleet = self.name, about, why, "trouble with the fleet");
                troubles.insert(about.to_owned(), why);
            }
            Some(_) => {}
            None => {
                if troubles.remove(about).is_some() {
                    tracing::info!(fleet = self.name, about, "is well again");
                }
            }
        }
    }

    /// What is wrong.
    pub(in crate::daemon) fn troubles(&self) -> Vec<String> {
        lock(&self.troubles).iter().map(|(about, why)| format!("{about}: {why}")).collect()
    }

    /// Whether the roster has this host enabled, as last read.
    pub(in crate::daemon) fn is_enabled(&self) -> bool {
        self.is_enabled.load(SeqCst)
    }

    pub(in crate::daemon) fn set_enabled(&self, is_enabled: bool) {
        self.is_enabled.store(is_enabled, SeqCst);
    }

    /// Gets in line to drive a service; the path of its place.
    pub(in crate::daemon) async fn get_in_line(&self, service: &str) -> Result<String, Trouble> {
        let place = self.board.get_in_line(service, &self.host).await?;
        lock(&self.places).insert(place.clone());
        Ok(place)
    }

    /// Whether a place in the line is this host's: one that it knows of, or one that bears its name, of a daemon before this one or
    /// so that no answer came.
    pub(in crate::daemon) async fn is_mine(&self, place: &str) -> Result<bool, Trouble> {
        if lock(&self.places).contains(place) {
            return Ok(true);
        }
        let is_mine = self.read(place).await?.is_some_and(|node| node.data == self.host.as_bytes());
        if is_mine {
            lock(&self.places).insert(place.to_owned());
        }
        Ok(is_mine)
    }

    /// This host's places in the line of a service.
    pub(in crate::daemon) fn places(&self, service: &str) -> Vec<String> {
        let above = self.board.paths.driver(service);
        lock(&self.places).iter().filter(|place| place.starts_with(&above)).cloned().collect()
    }

    /// Leaves the line of a service.
    pub(in crate::daemon) async fn leave_line(&self, service: &str) -> Result<(), Trouble> {
        for place in self.places(service) {
            self.board.take_away(&place).await?;
            lock(&self.places).remove(&place);
        }
        Ok(())
    }

    /// The node's text, for who shows it.
    pub(in crate::daemon) async fn read(&self, path: &str) -> Result<Option<Node>, Trouble> {
        self.board.coordinator.get(path).await
    }
}

fn settings(fleet: &config::Fleet, connect: &config::Connect) -> anyhow::Result<zookeeper::Settings> {
    let digest = match &fleet.digest {
        Some(file) => {
            let secret = config::secret(file).map_err(|why| anyhow::anyhow!("[fleet] digest: {why}"))?;
            Some(format!("{}:{}", secret.user, secret.password))
        }
        None => None,
    };
    let acl = match fleet.acl {
        config::Acl::Anyone => zookeeper::Acl::Anyone,
        config::Acl::Creator => zookeeper::Acl::Creator,
        config::Acl::CreatorAndReaders => zookeeper::Acl::CreatorAndReaders,
    };
    let (servers, session_timeout) = (connect.servers.clone(), fleet.session_timeout);
    Ok(zookeeper::Settings { servers, session_timeout, digest, acl })
}

impl Default for Followed {
    fn default() -> Self {
        Self {
            view: watch::Sender::new(None),
            drive: Notify::new(),
            ordering: AtomicUsize::new(0),
            waits: Mutex::default(),
            marks: Mutex::default(),
            published: Mutex::default(),
            late_ms: Mutex::default(),
        }
    }
}

impl Followed {
    /// The state that was read last.
    pub(in crate::daemon) fn view(&self) -> Option<View> {
        self.view.borrow().clone()
    }
}

/// None of these is left half changed by a panic.
pub(in crate::daemon) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
