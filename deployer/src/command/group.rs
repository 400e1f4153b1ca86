//! All the processes of a command, so that none is left of one that is late.
//!
//! They are in a cgroup of their own, which no process leaves without being put elsewhere by root. Where the daemon may
//! not make one, they are known by a mark in their environment, and by their process group.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, getpid, kill_process, kill_process_group};
use tokio::process::Child;
use tracing::{debug, warn};

/// Begins the names of the cgroups; the daemon's process id and a number come after it.
const PREFIX: &str = "deployer-command-";
/// Marks the processes of a command.
const MARK: &str = "DEPLOYER_COMMAND";
/// Longest wait for processes that were killed; those in an uninterruptible sleep need longer.
const GONE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(5);
/// Tries to move processes that go on forking.
const MOVES: usize = 100;

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// The processes of a command. Dropped before they are released, they are killed.
pub(super) struct Group {
    cgroup: Option<PathBuf>,
    /// The value of [`MARK`], where there is no cgroup.
    mark: String,
    /// The process group; 0: none yet.
    leader: AtomicI32,
    over: bool,
}

impl Group {
    /// In a cgroup of its own below this one, if one can be made.
    pub(super) fn make(above: Option<&Path>) -> Self {
        let mark = format!("{}-{}", getpid(), NUMBER.fetch_add(1, Relaxed));
        let cgroup = above.map(|above| above.join(format!("{PREFIX}{mark}"))).filter(|cgroup| {
            let made = fs::create_dir(cgroup);
            made.inspect_err(|error| debug!(%error, "no cgroup {} for a command", cgroup.display())).is_ok()
        });
        Self { cgroup, mark, leader: AtomicI32::new(0), over: false }
    }

    pub(super) fn cgroup(&self) -> Option<&Path> {
        self.cgroup.as_deref()
    }

    /// What the command needs in its environment.
    pub(super) fn mark(&self) -> Option<(&'static str, String)> {
        self.cgroup.is_none().then(|| (MARK, self.mark.clone()))
    }

    /// The command's own process leads its process group.
    pub(super) fn leads(&self, child: &Child) {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        self.leader.store(pid.unwrap_or_default(), Relaxed);
    }

    /// Kills all of them, and waits until they are gone.
    pub(super) async fn kill(mut self) {
        self.over = true;
        let begun = Instant::now();
        while self.strike() {
            if begun.elapsed() >= GONE {
                warn!("processes of a command that was late do not end on SIGKILL");
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        self.remove().await;
    }

    /// The command has ended by itself. What it has left behind goes on, in the daemon's cgroup.
    pub(super) async fn release(mut self) {
        self.over = true;
        if let Some(cgroup) = &self.cgroup
            && let Err(error) = empty(cgroup)
        {
            warn!(%error, "what a command has left behind stays in the cgroup {}", cgroup.display());
        }
        self.remove().await;
    }

    /// Kills all that there is now; whether there was anything.
    fn strike(&self) -> bool {
        if let Some(cgroup) = &self.cgroup {
            let killed = fs::OpenOptions::new().write(true).open(cgroup.join("cgroup.kill"));
            let killed = killed.and_then(|mut file| file.write_all(b"1"));
            return is_populated(cgroup) && killed.is_ok();
        }
        let leader = Pid::from_raw(self.leader.load(Relaxed));
        let in_group = leader.is_some_and(|leader| kill_process_group(leader, Signal::KILL).is_ok());
        let marked = marked(&self.mark);
        for pid in &marked {
            // One that has ended meanwhile is what is wanted.
            let _ = kill_process(*pid, Signal::KILL);
        }
        in_group || !marked.is_empty()
    }

    /// The kernel may call a cgroup busy for a moment after its last process has gone.
    async fn remove(&self) {
        let Some(cgroup) = &self.cgroup else { return };
        let begun = Instant::now();
        while let Err(error) = fs::remove_dir(cgroup) {
            if error.kind() == io::ErrorKind::NotFound || begun.elapsed() >= GONE / 5 {
                return debug!(%error, "the cgroup {} of a command stays", cgroup.display());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let left = Self {
            cgroup: self.cgroup.take(),
            mark: std::mem::take(&mut self.mark),
            leader: AtomicI32::new(self.leader.load(Relaxed)),
            over: true,
        };
        if !left.strike() && left.cgroup.as_deref().is_none_or(|cgroup| fs::remove_dir(cgroup).is_ok()) {
            return;
        }
        // It takes a moment, for which there may be no runtime any more.
        let tend = move || {
            let begun = Instant::now();
            while begun.elapsed() < GONE
                && (left.strike() || left.cgroup.as_deref().is_some_and(|it| fs::remove_dir(it).is_err()))
            {
                std::thread::sleep(LOOK);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("killed command".to_owned()).spawn(tend) {
            warn!(%error, "processes of a command that was given up may be left");
        }
    }
}

/// Removes the cgroups of commands that a daemon before has left, and sees whether some can be made.
pub(super) fn sweep(above: &Path) -> io::Result<()> {
    for entry in fs::read_dir(above)?.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let daemon = rest.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(daemon).exists() {
            // A worker may be among what is left: it goes on.
            let emptied = empty(&entry.path()).and_then(|()| fs::remove_dir(entry.path()));
            emptied.unwrap_or_else(|error| debug!(%error, "{} stays", entry.path().display()));
        }
    }
    let trial = above.join(format!("{PREFIX}{}-trial", getpid()));
    fs::create_dir(&trial).and_then(|()| fs::remove_dir(&trial))
}

/// Moves the processes of a cgroup to the one above it.
fn empty(cgroup: &Path) -> io::Result<()> {
    let above = cgroup.parent().unwrap_or(cgroup).join("cgroup.procs");
    for _ in 0..MOVES {
        let pids = fs::read_to_string(cgroup.join("cgroup.procs"))?;
        if pids.is_empty() {
            return Ok(());
        }
        for pid in pids.lines() {
            match fs::OpenOptions::new().write(true).open(&above)?.write_all(pid.as_bytes()) {
                // It has ended.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                result => result?,
            }
        }
    }
    Err(io::Error::other("its processes go on starting others"))
}

fn is_populated(cgroup: &Path) -> bool {
    let events = fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}

/// The processes with this mark that have not ended.
fn marked(mark: &str) -> Vec<Pid> {
    let wanted = format!("{MARK}={mark}");
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has_mark = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
    };
    pids.filter(has_mark).filter_map(Pid::from_raw).collect()
}
