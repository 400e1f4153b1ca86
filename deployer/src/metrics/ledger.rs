//! Whose connections they were: the kernel counts by worker, and the ledger puts that down to the version which the worker
//! ran when it was counted.
//!
//! Each worker has an account for the version that it runs and one for the version before it; older ones are dropped. At
//! every look what was counted since the last goes to the account of the version that is on. A look comes once a second, with
//! every page, and at the moments that matter: when a worker's process is gone and no other has been started, and when it
//! is warm and no caller has been let in yet. The kernel does not count the daemon's own warm-up; a connection of any other peer
//! in between goes to the version that is warmed.
//!
//! Accounts and last looks are kept in a file, which is written before anybody is shown what is not in it: no series goes
//! backwards over a restart of the daemon, and what came while no daemon ran is put down to what ran then.

mod file;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use self::file::File;
use super::{
    UNKNOWN,
    figures::{Count, Figures},
};
use crate::{
    api::Phase,
    service::{Worker, registry::Services},
};

/// Reads all that was ever counted for the worker at a place in the tables.
pub type Read = Box<dyn Fn(u32, SocketAddr) -> Figures + Send + Sync>;

/// The accounts of all workers.
pub struct Ledger {
    read: Read,
    books: Mutex<Books>,
    file: File,
    /// There is something to be written.
    news: Notify,
}

struct Books {
    /// By place in the tables.
    accounts: BTreeMap<u32, Account>,
    /// What the daemon before has left, until the first look at all workers.
    left: BTreeMap<u32, Account>,
    /// What had been counted at each place before a worker came to it.
    ground: Vec<Figures>,
    /// The file does not have all of it.
    is_dirty: bool,
}

/// The accounts of a worker.
#[derive(Debug, Clone, PartialEq)]
struct Account {
    service: String,
    at: SocketAddr,
    /// What it runs.
    version: String,
    /// Its process was stopped, and no other has been let in yet.
    out: bool,
    /// All that had been counted at its place by the last look.
    last: Figures,
    /// What the version that it runs has got.
    now: Figures,
    /// The version before, and what that had got.
    before: Option<(String, Figures)>,
}

/// What a look is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Time has passed.
    Tick,
    /// Its process is gone, or all that comes next is ours.
    Stopped,
    /// It is warm, and nobody has been let in yet.
    Up,
}

impl Ledger {
    /// Goes on with what the daemon before has left in a directory, if that was in this boot of the machine. To be made
    /// before any worker is entered into the tables, which have so many places.
    #[must_use]
    pub fn open(read: Read, places: usize, dir: &Path, boot: &str) -> Self {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let ground = (0..places as u32).map(|place| read(place, nowhere)).collect();
        let (file, left) = File::open(dir, boot);
        let books = Books { accounts: BTreeMap::new(), left, ground, is_dirty: false };
        Self { read, books: Mutex::new(books), file, news: Notify::new() }
    }

    /// Looks at all workers. Those that are no longer there are forgotten.
    pub fn look(&self, services: &Services) {
        let mut books = self.books();
        let workers: Vec<_> = services.values().flat_map(|service| service.members()).collect();
        books.only(&workers, &self.read);
        workers.iter().for_each(|worker| books.look(worker, Look::Tick, &self.read));
        drop(books);
        self.news.notify_one();
    }

    /// A worker's process is gone and no other has been started, or it is cold: what comes next is the daemon's own.
    pub fn stopped(&self, worker: &Worker) {
        self.books().look(worker, Look::Stopped, &self.read);
        self.news.notify_one();
    }

    /// A worker is warm, what it runs is known, and nobody has been let in yet.
    pub fn up(&self, worker: &Worker) {
        self.books().look(worker, Look::Up, &self.read);
        self.news.notify_one();
    }

    /// A worker's accounts as of the last look: what it runs, and what it ran before.
    #[must_use]
    pub fn versions(&self, worker: &Worker) -> Vec<(String, Figures)> {
        let books = self.books();
        let Some(account) = books.accounts.get(&worker.index).filter(|account| account.is_of(worker)) else {
            return Vec::new();
        };
        let now = (account.version.clone(), account.now);
        [now].into_iter().chain(account.before.clone()).collect()
    }

    /// Waits until there may be something to be written.
    pub async fn changed(&self) {
        self.news.notified().await;
    }

    /// Writes it down, if there is anything new. Blocks on the disk.
    pub fn save(&self) {
        self.file.write(|| {
            let mut books = self.books();
            std::mem::take(&mut books.is_dirty).then(|| books.accounts.clone())
        });
        if self.file.is_torn() {
            // It is tried again with the next look.
            self.books().is_dirty = true;
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // What a panic has left half done is a look that is made up for by the next.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// Forgets all but these.
    fn only(&mut self, workers: &[&std::sync::Arc<Worker>], read: &Read) {
        let is_there = |place: u32, at| workers.iter().any(|worker| worker.index == place && worker.at == at);
        let gone = self.accounts.iter().filter(|(place, account)| !is_there(**place, account.at));
        for (place, at) in gone.map(|(place, account)| (*place, account.at)).collect::<Vec<_>>() {
            self.accounts.remove(&place);
            // Who comes to this place begins with nothing.
            if let Some(ground) = self.ground.get_mut(place as usize) {
                *ground = read(place, at);
            }
            self.is_dirty = true;
        }
        for worker in workers {
            self.account(worker, read);
        }
        self.left.clear();
    }

    fn look(&mut self, worker: &Worker, look: Look, read: &Read) {
        let (version, is_up) = {
            let control = worker.control();
            (control.version.clone().map(String::from), control.phase == Phase::Up)
        };
        let now = read(worker.index, worker.at);
        self.is_dirty |= self.account(worker, read).look(version, is_up, look, now);
    }

    /// The worker's account; one that the daemon before has left, or a new one.
    fn account(&mut self, worker: &Worker, read: &Read) -> &mut Account {
        let place = worker.index;
        let is_ours = self.accounts.get(&place).is_some_and(|account| account.is_of(worker));
        if !is_ours {
            let left = self.left.remove(&place).filter(|left| left.is_of(worker));
            // Of tables that were made anew.
            let left = left.filter(|left| read(place, worker.at).since(&left.last).is_some());
            let account = match left {
                Some(mut left) => {
                    // What came since the file was written has been shown, perhaps, and under this version.
                    left.settle(read(place, worker.at));
                    left
                }
                None => {
                    let version = worker.control().version.clone().map(String::from);
                    Account::new(worker, version, self.ground.get(place as usize).copied().unwrap_or_default())
                }
            };
            self.accounts.insert(place, account);
            self.is_dirty = true;
        }
        let new = || Account::new(worker, None, Figures::default());
        self.accounts.entry(place).or_insert_with(new)
    }
}

impl Account {
    fn new(worker: &Worker, version: Option<String>, last: Figures) -> Self {
        Self {
            service: worker.service.clone(),
            at: worker.at,
            version: version.unwrap_or_else(|| UNKNOWN.to_owned()),
            out: false,
            last,
            now: Figures::default(),
            before: None,
        }
    }

    fn is_of(&self, worker: &Worker) -> bool {
        self.at == worker.at && self.service == worker.service
    }

    /// Puts down what was counted. Whether the file would go on wrongly from what it has.
    fn look(&mut self, version: Option<String>, is_up: bool, look: Look, counted: Figures) -> bool {
        let was = (self.out, self.version.clone());
        if self.version == UNKNOWN && !self.out && look != Look::Up {
            // What nobody knew until now has been so since the last look.
            version.iter().for_each(|version| self.runs(version));
        }
        let more = self.settle(counted);
        match (look, version) {
            (Look::Stopped, _) => self.out = true,
            // While it is warmed nobody knows what it will run.
            (Look::Tick, _) if self.out && !is_up => {}
            // It is not known yet, or not any more; what runs is what ran.
            (Look::Tick, None) => self.out = false,
            (_, version) => {
                self.out = false;
                self.runs(version.as_deref().unwrap_or(UNKNOWN));
            }
        }
        was != (self.out, self.version.clone()) || Count::OWN.iter().any(|own| more.get(*own) > 0)
    }

    /// What was counted since the last look goes to the account of what it runs.
    fn settle(&mut self, counted: Figures) -> Figures {
        // Nothing that is counted for a worker that is there is ever taken back.
        let more = counted.since(&self.last).unwrap_or_default();
        self.last = counted;
        self.now.add(&more);
        more
    }

    /// It runs this from here on. A version that comes back goes on where it was; one that got nothing is not kept.
    fn runs(&mut self, version: &str) {
        if version == self.version {
            return;
        }
        let was = (std::mem::replace(&mut self.version, version.to_owned()), std::mem::take(&mut self.now));
        let back = self.before.take_if(|(before, _)| *before == self.version);
        self.now = back.map(|(_, figures)| figures).unwrap_or_default();
        if !was.1.is_empty() {
            self.before = Some(was);
        }
    }
}
