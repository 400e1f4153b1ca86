//! What sandboxes leave behind, and how that is removed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

use super::{NETNS_DIR, PREFIX, cgroup2_mount, children, pids_in};
use crate::pace::patient;
use crate::process;

/// The things that one sandbox owns, all found again by its name, so that another process can sweep them up.
#[derive(Clone, Debug)]
pub(super) struct Leftovers {
    pub(super) name: String,
    pub(super) cgroup: PathBuf,
    pub(super) netns: PathBuf,
    pub(super) dir: PathBuf,
}

impl Leftovers {
    pub(super) fn named(name: &str) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            cgroup: cgroup2_mount()?.join(name),
            netns: Path::new(NETNS_DIR).join(name),
            dir: std::env::temp_dir().join(name),
        })
    }

    /// Ends the processes, then removes cgroups, namespace and directory. Goes on after an error; reports the first.
    pub(super) fn remove(&self) -> Result<()> {
        // First of all: a process that writes to a frozen file system cannot be killed.
        crate::disk::thaw_below(&self.dir);
        let cgroup = self.remove_cgroup();
        let netns = if self.netns.exists() {
            process::run(Command::new("ip").args(["netns", "delete", &self.name])).map(drop)
        } else {
            Ok(())
        };
        unmount_below(&self.dir)?;
        let dir = match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.dir.display()))
            }
            _ => Ok(()),
        };
        cgroup.and(netns).and(dir)
    }

    fn remove_cgroup(&self) -> Result<()> {
        if !self.cgroup.exists() {
            return Ok(());
        }
        kill_cgroup(&self.cgroup)?;
        wait_empty(&self.cgroup)?;
        remove_cgroups(&self.cgroup)
    }
}

/// Removes what those left behind whose owners (processes) are no longer alive.
pub(super) fn sweep() -> Result<()> {
    if of_the_dead()?.is_empty() {
        return Ok(());
    }
    // One at a time, whatever process it is in: two would take the same things from under each other's hands.
    let held = std::env::temp_dir();
    let lock = File::open(&held).with_context(|| held.display().to_string())?;
    lock.lock().with_context(|| format!("lock {}", held.display()))?;
    of_the_dead()?.iter().try_for_each(|name| Leftovers::named(name)?.remove())
}

/// The names of sandboxes whose owners are no longer alive.
fn of_the_dead() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for parent in [cgroup2_mount()?, PathBuf::from(NETNS_DIR), std::env::temp_dir()] {
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        names.extend(entries.filter_map(|entry| entry.file_name().into_string().ok()));
    }
    names.retain(|name| owner(name).is_some_and(|pid| !alive(pid)));
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// The owner's process id, if `name` is a sandbox's: `deployer-LABEL-PID-NUMBER`.
fn owner(name: &str) -> Option<u32> {
    let (rest, number) = name.strip_prefix(PREFIX)?.rsplit_once('-')?;
    number.parse::<u32>().ok()?;
    rest.rsplit_once('-')?.1.parse().ok()
}

fn alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Unmounts what is mounted below a directory, however often.
pub fn unmount_below(dir: &Path) -> Result<()> {
    // Tests of the daemon mount file systems over each other: each round takes the topmost away.
    for _ in 0..16 {
        let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
        let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
        let Some(last) = points.rfind(|point| point.starts_with(dir)) else { return Ok(()) };
        unmount(&last, UnmountFlags::DETACH).with_context(|| format!("unmount {}", last.display()))?;
    }
    bail!("{} is mounted over and over", dir.display())
}

pub(super) fn kill_cgroup(cgroup: &Path) -> Result<()> {
    if fs::write(cgroup.join("cgroup.kill"), "1").is_ok() {
        return Ok(());
    }
    // Before Linux 5.14: one by one. Who forks meanwhile is caught by wait_empty's next look.
    for pid in pids_in(cgroup)? {
        process::send(pid, Signal::KILL).ok();
    }
    children(cgroup).iter().try_for_each(|child| kill_cgroup(child))
}

pub(super) fn wait_empty(cgroup: &Path) -> Result<()> {
    let deadline = Instant::now() + patient(Duration::from_secs(10));
    loop {
        let events = fs::read_to_string(cgroup.join("cgroup.events"))
            .with_context(|| format!("state of {}", cgroup.display()))?;
        if events.lines().any(|line| line == "populated 0") {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("processes in {} do not die", cgroup.display());
        }
        thread::sleep(Duration::from_millis(5));
        kill_cgroup(cgroup)?;
    }
}

fn remove_cgroups(cgroup: &Path) -> Result<()> {
    for child in children(cgroup) {
        remove_cgroups(&child)?;
    }
    fs::remove_dir(cgroup).with_context(|| format!("remove cgroup {}", cgroup.display()))
}
