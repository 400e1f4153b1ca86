//! A network namespace, a cgroup and a directory of a test's own, all gone when the test ends, however it ends.

mod leftovers;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
pub use leftovers::unmount_below;
use leftovers::{Leftovers, kill_cgroup, wait_empty};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::pace;
use crate::process;

const PREFIX: &str = "deployer-";
const NETNS_DIR: &str = "/run/netns";
/// The sandbox's bpf file system, below its directory.
const BPF: &str = "bpf";
/// A Unix socket's path holds at most 107 bytes; leave room for the longest file name used below the directory.
const LONGEST_DIR: usize = 80;

/// The child cgroup in which a process of the sandbox runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The load balancers, whose connections are steered.
    Callers,
    /// supervisord and its workers.
    Workers,
    /// Health checks and other bystanders.
    Outside,
    /// The daemon and its command line.
    Daemon,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Callers, Self::Workers, Self::Outside, Self::Daemon];

    fn name(self) -> &'static str {
        match self {
            Self::Callers => "callers",
            Self::Workers => "workers",
            Self::Outside => "outside",
            Self::Daemon => "daemon",
        }
    }
}

/// A test's own network namespace, cgroup v2 and directory. Declare it before the parts that run in it.
#[derive(Debug)]
pub struct Sandbox {
    owned: Leftovers,
    _dir: tempfile::TempDir,
}

static LIVE: Mutex<Vec<Leftovers>> = Mutex::new(Vec::new());
static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Sandbox {
    /// Makes a sandbox; `label` is a short word of letters, digits and `_`. Needs root.
    pub fn new(label: &str) -> Result<Self> {
        pace::factor()?;
        Self::sweep()?;
        if label.is_empty() || !label.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            bail!("sandbox label {label:?}: use letters, digits and _ only");
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{label}-{}-{number}", std::process::id());
        let owned = Leftovers::named(&name)?;
        if owned.dir.as_os_str().len() > LONGEST_DIR {
            bail!("{} is too long for Unix sockets", owned.dir.display());
        }
        let dir =
            tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir().context("make the sandbox's directory")?;
        lock_live().push(owned.clone());
        // From here on a failure drops the sandbox, which removes what has been made.
        let sandbox = Self { owned, _dir: dir };
        sandbox.make_cgroups()?;
        process::run(Command::new("ip").args(["netns", "add", &name]))?;
        process::run(Command::new("ip").args(["-n", &name, "link", "set", "lo", "up"]))?;
        Ok(sandbox)
    }

    fn make_cgroups(&self) -> Result<()> {
        let make = |path: &Path| fs::create_dir(path).with_context(|| format!("make cgroup {}", path.display()));
        make(&self.owned.cgroup)?;
        Place::ALL.iter().try_for_each(|place| make(&self.cgroup(*place)))
    }

    /// Removes what sandboxes left behind whose owners (processes) are no longer alive.
    pub fn sweep() -> Result<()> {
        leftovers::sweep()
    }

    /// The sandbox's name, which is also its network namespace's.
    pub fn name(&self) -> &str {
        &self.owned.name
    }

    /// A directory for the sandbox's files.
    pub fn dir(&self) -> &Path {
        &self.owned.dir
    }

    /// The cgroup above all others of the sandbox: where programs are attached.
    pub fn root_cgroup(&self) -> &Path {
        &self.owned.cgroup
    }

    /// The cgroup of a place.
    pub fn cgroup(&self, place: Place) -> PathBuf {
        self.owned.cgroup.join(place.name())
    }

    /// Removes the cgroup of a place, as soon as nobody is in it: a daemon's self-test is, for milliseconds. Returns where it
    /// was.
    ///
    /// # Errors
    /// When somebody stays in it.
    pub fn remove_cgroup(&self, place: Place) -> Result<PathBuf> {
        let cgroup = self.cgroup(place);
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match fs::remove_dir(&cgroup) {
                Ok(()) => return Ok(cgroup),
                Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(2));
                }
                Err(error) => return Err(error).with_context(|| format!("remove cgroup {}", cgroup.display())),
            }
        }
    }

    /// Where a daemon's programs and tables are pinned: in a bpf file system of the sandbox's own, which the daemon mounts.
    pub fn pins(&self) -> PathBuf {
        self.owned.dir.join(BPF).join("deployer")
    }

    /// The directory of a daemon's journal.
    pub fn state(&self) -> PathBuf {
        self.owned.dir.join("state")
    }

    /// The file that names the network namespace.
    pub fn netns_path(&self) -> &Path {
        &self.owned.netns
    }

    /// The processes in a place.
    pub fn pids(&self, place: Place) -> Result<Vec<u32>> {
        pids_in(&self.cgroup(place))
    }

    /// Kills every process in a place.
    pub fn kill_place(&self, place: Place) -> Result<()> {
        let cgroup = self.cgroup(place);
        kill_cgroup(&cgroup)?;
        wait_empty(&cgroup)
    }

    /// CPU time that a place has used so far.
    pub fn cpu_time(&self, place: Place) -> Result<Duration> {
        let text = fs::read_to_string(self.cgroup(place).join("cpu.stat")).context("cpu.stat")?;
        let line = text.lines().find_map(|l| l.strip_prefix("usage_usec "));
        let micros = line.context("no usage_usec in cpu.stat")?.trim().parse()?;
        Ok(Duration::from_micros(micros))
    }

    /// A command that runs `program` in the namespace and in the cgroup of `place`. The started process's id is
    /// `program`'s own (everything before it only execs).
    pub fn command(&self, place: Place, program: impl AsRef<std::ffi::OsStr>) -> Command {
        // Not `ip netns exec`: that mounts a /sys of its own, which hides the cgroups.
        let mut command = Command::new("nsenter");
        let mut net = std::ffi::OsString::from("--net=");
        net.push(self.netns_path());
        // A daemon begins with the limit of open files that hosts give by default.
        let enter = match place {
            Place::Daemon => r#"ulimit -Sn 1024 && echo 0 > "$0/cgroup.procs" && exec "$@""#,
            Place::Callers | Place::Workers | Place::Outside => r#"echo 0 > "$0/cgroup.procs" && exec "$@""#,
        };
        command.arg(net).args(["sh", "-c", enter]).arg(self.cgroup(place)).arg(program);
        command
    }

    /// Like [`Self::command`], as the user `nobody` (65534) without groups or capabilities.
    pub fn command_as_nobody(&self, place: Place, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.command(place, "setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--"]).arg(program);
        command
    }

    /// Runs `work` on a new thread in the namespace (and in the test's own cgroup, so it is never steered) and returns
    /// its result. A panic in it goes on in the caller.
    pub fn in_netns<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        in_netns(self.netns_path(), work)
    }

    /// Like [`Self::in_netns`], but does not wait.
    pub fn spawn_in_netns<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let path = self.netns_path().to_owned();
        thread::spawn(move || enter(&path).map(|()| work()))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        lock_live().retain(|other| other.name != self.owned.name);
        if let Err(error) = self.owned.remove() {
            eprintln!("sandbox {}: {error:#}", self.owned.name);
        }
    }
}

/// Removes all sandboxes of this process when it is told to end (SIGINT, SIGTERM, SIGHUP), then exits with 130.
///
/// For programs such as the demo; a killed test is swept up by the next [`Sandbox::new`].
pub fn clean_on_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime for signals")?;
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP")?;
    drop(guard);
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => (),
                _ = terminate.recv() => (),
                _ = hangup.recv() => (),
            }
        });
        for owned in lock_live().drain(..) {
            if let Err(error) = owned.remove() {
                eprintln!("sandbox {}: {error:#}", owned.name);
            }
        }
        std::process::exit(130);
    });
    Ok(())
}

/// Runs `work` on a new thread in the network namespace that a file names, and returns its result. A panic in it goes on
/// in the caller.
pub fn in_netns<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| enter(netns).map(|()| work()));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn lock_live() -> std::sync::MutexGuard<'static, Vec<Leftovers>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where cgroup v2 is mounted: `/sys/fs/cgroup` or, beside version 1, somewhere below it.
pub fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(point))
    });
    mount.context("no cgroup v2 is mounted")
}

fn enter(netns: &Path) -> Result<()> {
    let file = File::open(netns).with_context(|| format!("open {}", netns.display()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("enter {}", netns.display()))
}

fn pids_in(cgroup: &Path) -> Result<Vec<u32>> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs"))
        .with_context(|| format!("processes of {}", cgroup.display()))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}
