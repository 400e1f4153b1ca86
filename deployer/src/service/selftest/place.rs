//! Where the self-test's caller is put: into the callers' cgroup, without which no hook runs for it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::io::Errno;

use crate::kernel::cgroup;

/// A cgroup made for the caller alone, removed when dropped (by when the caller must be gone).
pub(super) struct Place(Option<PathBuf>);

impl Place {
    /// Puts a process into the callers' cgroup. Where that has controllers for its children, which keeps processes out of
    /// itself (cgroup-v2.rst, "no internal process constraint"), into one made below it.
    pub(super) fn put(pid: u32, callers: &Path) -> io::Result<Self> {
        if cgroup::own().is_ok_and(|own| own.starts_with(callers)) {
            return Ok(Self(None));
        }
        match enter(pid, callers) {
            Ok(()) => return Ok(Self(None)),
            Err(error) if [Errno::BUSY, Errno::OPNOTSUPP].map(Errno::raw_os_error).contains(&errno(&error)) => {}
            Err(error) => return Err(error),
        }
        let made = callers.join("deployer-self-test");
        match fs::create_dir(&made) {
            // Left by a daemon that was killed.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let place = Self(Some(made.clone()));
        enter(pid, &made)?;
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(made) = &self.0 {
            // One that stays is used again by the next test.
            let _ = fs::remove_dir(made);
        }
    }
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or_default()
}

fn enter(pid: u32, cgroup: &Path) -> io::Result<()> {
    // Not created: where the directory is gone, so is the file.
    fs::OpenOptions::new().write(true).open(cgroup.join("cgroup.procs")).and_then(|mut file| {
        use io::Write as _;
        file.write_all(pid.to_string().as_bytes())
    })
}
