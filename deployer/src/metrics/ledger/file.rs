//! The accounts as they are kept beside the journal. Read with distrust: what is of no use begins anew, and is said.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use deployer_common::layout::MAX_WORKERS;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::Account;
use crate::{
    journal::file,
    metrics::{
        UNKNOWN,
        figures::{Count, Figures, LEN},
    },
    version::Version,
};

/// Version of the format, and of what the numbers stand for.
const FORMAT: u32 = 1;
const NAME: &str = "metrics.json";
/// Longest name of a version: what a worker may say, and more.
const LONGEST: usize = 256;

/// The file, of which one writes at a time.
pub(super) struct File {
    dir: PathBuf,
    boot: String,
    writing: Mutex<()>,
    /// It could not be written, which has been said.
    torn: AtomicBool,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    format: u32,
    /// Counters of another boot are others.
    boot: String,
    workers: Vec<Worker>,
}

/// The part that every format has.
#[derive(Deserialize)]
struct Head {
    format: u64,
}

#[derive(Serialize, Deserialize)]
struct Worker {
    service: String,
    at: SocketAddr,
    place: u32,
    version: String,
    out: bool,
    last: Vec<u64>,
    now: Vec<u64>,
    before: Option<(String, Vec<u64>)>,
}

impl File {
    /// In a directory, and what was kept there, by place in the tables.
    pub(super) fn open(dir: &Path, boot: &str) -> (Self, BTreeMap<u32, Account>) {
        let (path, boot) = (dir.join(NAME), boot.to_owned());
        let kept = match file::bytes(&path) {
            Ok(bytes) => parse(&bytes, &boot).unwrap_or_else(|why| {
                warn!(path = %path.display(), why, "figures by version begin anew: what was kept of them is of no use");
                BTreeMap::new()
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                warn!(path = %path.display(), %error, "figures by version begin anew: what was kept cannot be read");
                BTreeMap::new()
            }
        };
        (Self { dir: dir.to_owned(), boot, writing: Mutex::new(()), torn: AtomicBool::new(false) }, kept)
    }

    /// Writes what `latest` has, if it has anything new. Of what it holds a loss of power costs nothing: the next boot
    /// counts from zero.
    pub(super) fn write(&self, latest: impl FnOnce() -> Option<BTreeMap<u32, Account>>) {
        // Asked for under the lock, so that nothing older is written over it.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(accounts) = latest() else { return };
        let workers = accounts.into_iter().map(|(place, account)| Worker::from(place, account)).collect();
        let kept = Kept { format: FORMAT, boot: self.boot.clone(), workers };
        let bytes = serde_json::to_vec(&kept).map_err(std::io::Error::from);
        let written = bytes.and_then(|bytes| file::replace_soon(&self.dir, NAME, &bytes));
        let was_torn = self.torn.swap(written.is_err(), Ordering::SeqCst);
        let path = self.dir.join(NAME);
        match written {
            Err(error) if !was_torn => {
                warn!(path = %path.display(), %error, "figures by version cannot be written down; it is tried again");
            }
            Ok(()) if was_torn => info!("figures by version can be written down again"),
            _ => {}
        }
    }

    /// Whether the last try to write has failed.
    pub(super) fn is_torn(&self) -> bool {
        self.torn.load(Ordering::SeqCst)
    }
}

impl Worker {
    fn from(place: u32, account: Account) -> Self {
        let Account { service, at, version, out, mut last, now, before } = account;
        // What the daemon itself has counted it forgets with its end.
        Count::OWN.iter().for_each(|own| last.set(*own, 0));
        let numbers = |figures: Figures| figures.0.to_vec();
        let before = before.map(|(version, figures)| (version, numbers(figures)));
        Self { service, at, place, version, out, last: numbers(last), now: numbers(now), before }
    }

    /// The account, if it can be one.
    fn account(self) -> Option<Account> {
        let figures = |numbers: Vec<u64>| <[u64; LEN]>::try_from(numbers).map(Figures).ok();
        // An earlier deployer took more for versions than one may be now.
        let before = match self.before.filter(|(version, _)| is_known(version)) {
            Some((version, numbers)) => Some((version, figures(numbers)?)),
            None => None,
        };
        let (last, now) = (figures(self.last)?, figures(self.now)?);
        let Self { service, at, version, out, .. } = self;
        let version = if is_known(&version) { version } else { UNKNOWN.to_owned() };
        let account = Account { service, at, version, out, last, now, before };
        ((self.place as usize) < MAX_WORKERS && can_be(&account)).then_some(account)
    }
}

/// Whether it is a version, or stands for those that are unknown.
fn is_known(version: &str) -> bool {
    version == UNKNOWN || Version::new(version).is_ok()
}

/// Whether its names are names, and no version has got what was not counted.
fn can_be(Account { service, version, last, now, before, .. }: &Account) -> bool {
    let mut sum = *now;
    let mut names = vec![service, version];
    if let Some((former, figures)) = before {
        sum.add(figures);
        names.push(former);
        if former == version {
            return false;
        }
    }
    Count::OWN.iter().for_each(|own| sum.set(*own, 0));
    last.since(&sum).is_some() && names.iter().all(|name| name.len() <= LONGEST)
}

/// What bytes stand for; nothing, if they are of another boot.
fn parse(bytes: &[u8], boot: &str) -> Result<BTreeMap<u32, Account>, String> {
    let head: Head = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if head.format != u64::from(FORMAT) {
        return Err(format!("it is of format {}, and this deployer knows format {FORMAT}", head.format));
    }
    let kept: Kept = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if kept.boot != boot {
        return Ok(BTreeMap::new());
    }
    let all = kept.workers.len();
    let accounts: BTreeMap<_, _> =
        kept.workers.into_iter().filter_map(|worker| Some((worker.place, worker.account()?))).collect();
    if accounts.len() < all {
        return Err(format!("{} of its {all} workers have figures that cannot be", all - accounts.len()));
    }
    Ok(accounts)
}
