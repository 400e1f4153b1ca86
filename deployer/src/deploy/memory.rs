//! Whether there is memory for a second pool beside the one that runs, asked before any of its workers is started.
//!
//! What the second pool will take is told from what the first one takes now. It is an estimate: workers just started
//! take less, and workers of another version something else.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use rustix::io::Errno;

use crate::{
    kernel::{
        diag::{self, states},
        procs,
    },
    service::serves,
};

const MIB: u64 = 1 << 20;

/// What a pool takes now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Bytes, over all processes.
    pub bytes: u64,
    /// The processes; each counts once, however many of the workers it is.
    pub processes: usize,
    /// Those of them of which only the resident set is known: pages that they share count for each, so that it is too much
    /// rather than too little.
    pub by_resident: usize,
    /// The workers of which a process was found.
    pub workers: usize,
}

/// What is left to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Bytes.
    pub bytes: u64,
    /// What leaves no more.
    pub limit: Limit,
}

/// What limits memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Limit {
    /// What the host has.
    Host,
    /// `memory.max` of a cgroup.
    Cgroup {
        /// Its directory.
        directory: PathBuf,
        /// Bytes.
        max: u64,
    },
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("available on this host (MemAvailable)"),
            Self::Cgroup { directory, max } => {
                write!(f, "left below memory.max ({} MiB) of {}", max / MIB, directory.display())
            }
        }
    }
}

/// Measures the processes that hold a listening socket of these workers: their proportional set size (Pss of
/// `/proc/PID/smaps_rollup`), in which pages that processes share are shared out, or where that may not be read the
/// resident one. Children that hold no listener are not found. Blocks, some milliseconds for each GiB measured.
///
/// # Errors
/// When sock_diag fails, or a process of theirs can be measured in neither way.
pub fn used_by(workers: &[SocketAddr]) -> io::Result<Used> {
    let found = diag::sockets(states::LISTEN, None)?;
    let of = |at: &SocketAddr| -> BTreeSet<u32> {
        found.iter().filter(|socket| serves(socket.local, *at)).map(|socket| socket.inode).collect()
    };
    let inodes: Vec<_> = workers.iter().map(of).collect();
    let mut held = BTreeSet::new();
    let mut used = Used::default();
    for (pid, sockets) in procs::sharing(&inodes.iter().flatten().copied().collect()) {
        let Some((bytes, is_resident)) = of_process(pid)? else { continue };
        used.bytes = used.bytes.saturating_add(bytes);
        used.processes += 1;
        used.by_resident += usize::from(is_resident);
        held.extend(sockets);
    }
    used.workers = inodes.iter().filter(|inodes| !inodes.is_disjoint(&held)).count();
    Ok(used)
}

/// Bytes of a process, and whether they are only its resident set; `None`: it has ended.
fn of_process(pid: u32) -> io::Result<Option<(u64, bool)>> {
    // Another user's is refused without CAP_SYS_PTRACE, and not every kernel has it.
    if let Some(bytes) =
        crate::kernel::host::text(format!("/proc/{pid}/smaps_rollup")).ok().and_then(|text| field(&text, "Pss:"))
    {
        return Ok(Some((bytes, false)));
    }
    // The same number as in statm, but in kB and not in pages. One that is ending has none.
    let status = read(Path::new(&format!("/proc/{pid}/status")))?;
    Ok(status.and_then(|text| field(&text, "VmRSS:")).map(|bytes| (bytes, true)))
}

/// `NAME:     1234 kB` in a file of `/proc`, where 1 kB is 1024 bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What is left for workers in a cgroup (v2 directory), or anywhere: `MemAvailable` of the host, or what is left below
/// `memory.max` of the cgroup or one above it, whichever is least. Pages of files that nobody has used lately
/// (`inactive_file`) count as left, since the kernel takes them back first. Of a cgroup that is not there yet, those that
/// are above it count; where the memory controller is version 1, none does. Swap does not count.
///
/// # Errors
/// What cannot be read, or makes no sense.
pub fn room(cgroup: Option<&Path>) -> io::Result<Room> {
    let path = Path::new("/proc/meminfo");
    let meminfo = fs::read_to_string(path).map_err(|error| not_read(path, &error))?;
    let bytes = field(&meminfo, "MemAvailable:").ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo has no MemAvailable that makes sense")
    })?;
    let mut room = Room { bytes, limit: Limit::Host };
    if let Some(below) = cgroup.map(limits).transpose()?.into_iter().flatten().min_by_key(|room| room.bytes)
        && below.bytes < room.bytes
    {
        room = below;
    }
    Ok(room)
}

/// What each cgroup from this one upwards leaves, of those that have a limit.
fn limits(cgroup: &Path) -> io::Result<Vec<Room>> {
    let Some(lowest) = cgroup.ancestors().find_map(|directory| directory.canonicalize().ok()) else {
        return Ok(Vec::new());
    };
    // Above the root of the hierarchy the files are missing, as in the root itself.
    lowest.ancestors().filter_map(|directory| left_in(directory).transpose()).collect()
}

/// What is left below the limit of one cgroup; `None`: it has none, or is gone.
fn left_in(directory: &Path) -> io::Result<Option<Room>> {
    let file = |name: &str| {
        let path = directory.join(name);
        read(&path).map(|text| text.map(|text| (path, text)))
    };
    let Some((max_path, max_text)) = file("memory.max")? else { return Ok(None) };
    if max_text.trim() == "max" {
        return Ok(None);
    }
    let (Some((current_path, current)), Some((_, stat))) = (file("memory.current")?, file("memory.stat")?) else {
        return Ok(None);
    };
    let max = max_text.trim().parse().map_err(|_| odd(&max_path, &max_text))?;
    let current: u64 = current.trim().parse().map_err(|_| odd(&current_path, &current))?;
    let bytes = left(max, current, &stat);
    Ok(Some(Room { bytes, limit: Limit::Cgroup { directory: directory.to_owned(), max } }))
}

/// `stat`: the text of `memory.stat`; what is not in it cannot be taken back.
fn left(max: u64, current: u64, stat: &str) -> u64 {
    let inactive = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse().ok());
    max.saturating_sub(current.saturating_sub(inactive.unwrap_or(0)))
}

/// The text of a file; `None`: it is not there, or what it is about has ended.
fn read(path: &Path) -> io::Result<Option<String>> {
    match crate::kernel::host::text(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(not_read(path, &error)),
    }
}

/// A process that has ended, or a cgroup that was removed while its file was open.
fn is_gone(error: &io::Error) -> bool {
    [Errno::NOENT, Errno::SRCH, Errno::NODEV].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn not_read(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{} cannot be read: {error}", path.display()))
}

fn odd(path: &Path, text: &str) -> io::Error {
    let text: String = text.trim().chars().take(40).collect();
    io::Error::new(io::ErrorKind::InvalidData, format!("{} says {text:?}, which makes no sense", path.display()))
}

/// Whether there is room for so many more workers, each as large as those that run are on average, and a tenth. Where none
/// runs, nothing is known and nothing in danger.
///
/// # Errors
/// What was measured, what limits it, and what to do about it, in words.
pub fn check(used: &Used, workers_running: usize, workers_wanted: usize, room: &Room) -> Result<(), String> {
    if workers_running == 0 || workers_wanted == 0 {
        return Ok(());
    }
    // Those that were not found were not measured.
    let measured = used.workers.min(workers_running);
    if measured == 0 {
        return Err(format!(
            "what the {workers_running} workers that run take cannot be told: no process was found that holds a listening \
             socket of theirs. Run the daemon as root, in their pid namespace; or go on regardless with --force"
        ));
    }
    let needed = needed(used.bytes, measured, workers_wanted);
    if needed <= room.bytes {
        return Ok(());
    }
    let kind = if used.by_resident > 0 { "resident, in part with shared pages counted twice" } else { "Pss" };
    let (first, then) = match room.limit {
        Limit::Host => ("Free memory on this host", "add some"),
        Limit::Cgroup { .. } => ("Raise memory.max of that cgroup", "free memory in it"),
    };
    Err(format!(
        "not enough memory for two pools: {workers_wanted} more workers need about {} MiB ({measured} that run take {} MiB \
         in {} processes, {kind}; a tenth is added), and {} MiB are {}. {first} or {then}; give the second pool fewer \
         workers (deploy.second); or go on regardless with --force",
        needed.div_ceil(MIB),
        used.bytes.div_ceil(MIB),
        used.processes,
        room.bytes / MIB,
        room.limit
    ))
}

/// So much for each, and a tenth. `running` is not 0.
fn needed(bytes: u64, running: usize, wanted: usize) -> u64 {
    let all = u128::from(bytes).saturating_mul(wanted as u128).div_ceil(running.max(1) as u128);
    u64::try_from(all.saturating_add(all.div_ceil(10))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
