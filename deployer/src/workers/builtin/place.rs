//! A worker's cgroup: `CGROUP/SERVICE/PORT`, and beside it the mark `PORT.stopped`.
//!
//! The cgroups are all that is remembered of the workers, and they last exactly as long as it must be: they outlive the
//! daemon, and a reboot takes them away together with the processes. A worker is in its cgroup with all its children. A
//! cgroup without processes belongs to a worker that ended unasked. The mark, a cgroup without any use as such, says
//! that the worker was stopped on request. With neither, nobody has ever started it since the machine has.

use std::{
    fs,
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::process::Process;

/// Longest wait for killed processes to be gone; those in an uninterruptible sleep need longer.
const GONE: Duration = Duration::from_secs(10);
/// Longest wait for an empty cgroup to let itself be removed.
const REMOVED: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(5);

/// Where a worker lives.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) cgroup: PathBuf,
    mark: PathBuf,
}

impl Place {
    /// Of a worker of a service, whose cgroups are in `above`. `localhost` has only one of each port.
    pub(super) fn new(above: &Path, at: SocketAddr) -> Self {
        let name = name(at);
        Self { cgroup: above.join(&name), mark: above.join(format!("{name}.stopped")) }
    }

    pub(super) fn make(&self) -> io::Result<()> {
        fs::create_dir_all(&self.cgroup)
    }

    pub(super) fn exists(&self) -> bool {
        self.cgroup.is_dir()
    }

    /// Whether the worker was stopped on request.
    pub(super) fn is_marked(&self) -> bool {
        self.mark.is_dir()
    }

    pub(super) fn mark(&self) -> io::Result<()> {
        fs::create_dir_all(&self.mark)
    }

    pub(super) fn unmark(&self) -> io::Result<()> {
        remove(&self.mark)
    }

    /// The processes in it; not those in cgroups below it.
    pub(super) fn pids(&self) -> io::Result<Vec<u32>> {
        match fs::read_to_string(self.cgroup.join("cgroup.procs")) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            Err(error) if is_gone(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Whether a process is in it or below it.
    pub(super) fn is_populated(&self) -> io::Result<bool> {
        match fs::read_to_string(self.cgroup.join("cgroup.events")) {
            Ok(text) => Ok(text.lines().any(|line| line == "populated 1")),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The worker's main process, if it runs: the oldest that leads a session, as the launcher makes it do. What it
    /// leaves behind when it ends is in its session, whose leader is gone.
    pub(super) fn main(&self) -> io::Result<Option<Process>> {
        let facts = |pid| Some((pid, facts(&crate::kernel::host::text(format!("/proc/{pid}/stat")).ok()?)?));
        let mut leaders: Vec<_> = self.pids()?.into_iter().filter_map(facts).collect();
        leaders.retain(|(pid, facts)| facts.session == *pid && facts.is_alive);
        leaders.sort_by_key(|(pid, facts)| (facts.started, *pid));
        for (pid, _) in leaders {
            let Ok(process) = Process::open(pid) else { continue };
            // Looked at again while it is held, and before it has ended: so the number is its own, and it is in here.
            if self.pids()?.contains(&pid) && !process.fd.has_ended() {
                return Ok(Some(process));
            }
        }
        Ok(None)
    }

    /// Kills everything in it and below it, and waits until all is gone.
    pub(super) async fn kill(&self) -> io::Result<()> {
        let begun = Instant::now();
        while self.is_populated()? {
            // Again and again: a process that came in since is killed as well.
            let file = fs::OpenOptions::new().write(true).open(self.cgroup.join("cgroup.kill"));
            match file.and_then(|mut file| file.write_all(b"1")) {
                Err(error) if !is_gone(&error) => return Err(error),
                _ => {}
            }
            if begun.elapsed() >= GONE {
                let left = format!("processes {:?} do not end on SIGKILL", self.pids()?);
                return Err(io::Error::new(io::ErrorKind::TimedOut, left));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Removes it, empty as it is. The kernel may call it busy for a moment after its last process has gone.
    pub(super) async fn remove(&self) -> io::Result<()> {
        let begun = Instant::now();
        loop {
            match remove(&self.cgroup) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && begun.elapsed() < REMOVED => {}
                result => return result,
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A worker's name in its service.
pub(super) fn name(at: SocketAddr) -> String {
    if at.ip().is_loopback() && matches!(at.ip().to_string().as_str(), "127.0.0.1" | "::1") {
        at.port().to_string()
    } else {
        at.to_string()
    }
}

/// The names of the cgroups in a directory that have processes.
pub(super) fn populated(above: &Path) -> Vec<String> {
    let entries = fs::read_dir(above).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_populated = |name: &String| {
        let place = Place { cgroup: above.join(name), mark: PathBuf::new() };
        place.exists() && place.is_populated().unwrap_or(false)
    };
    names.filter(is_populated).collect()
}

/// Removes a cgroup with those below it, which a worker may have made.
fn remove(cgroup: &Path) -> io::Result<()> {
    let below = match fs::read_dir(cgroup) {
        Ok(below) => below,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in below {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    match fs::remove_dir(cgroup) {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// An open file of a removed cgroup says ENODEV.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

#[derive(Debug, PartialEq, Eq)]
struct Facts {
    session: u32,
    /// In clock ticks since the machine has started.
    started: u64,
    /// Not a zombie.
    is_alive: bool,
}

/// From `/proc/PID/stat` (proc_pid_stat(5)); the second field, a name in parentheses, may hold anything.
fn facts(stat: &str) -> Option<Facts> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<_> = rest.split_ascii_whitespace().collect();
    let is_alive = !matches!(*fields.first()?, "Z" | "X" | "x");
    Some(Facts { session: fields.get(3)?.parse().ok()?, started: fields.get(19)?.parse().ok()?, is_alive })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_proc_stat_whatever_the_name() {
        let stat = "4711 (a) S 1 (b) R 1 4711 4712 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 123456 9 9";
        assert_eq!(facts(stat), Some(Facts { session: 4712, started: 123_456, is_alive: true }));
        assert_eq!(facts(&stat.replace(") R", ") Z")).map(|facts| facts.is_alive), Some(false));
        let mine = facts(&fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
        assert!(mine.is_alive && mine.started > 0);
        for garbled in ["", "1 (x", "1 (x) ", "1 (x) S 1 2", "1 (x) S a b c d e f g h i j k l m n o p q r s t"] {
            assert_eq!(facts(garbled), None, "{garbled}");
        }
    }

    #[test]
    fn names() {
        let name = |at: &str| name(at.parse().unwrap());
        assert_eq!([name("127.0.0.1:8003"), name("[::1]:8003")], ["8003", "8003"]);
        assert_eq!([name("127.0.0.2:80"), name("[fd00::1]:80")], ["127.0.0.2:80", "[fd00::1]:80"]);
    }
}
