//! Another user's eyes and hands for files, for one thread.
#![expect(unsafe_code, reason = "setfsuid and setfsgid have no safe wrapper")]

use std::{io, thread};

use rustix::thread::{Gid, set_thread_groups};

/// Does work on files as another user, on a thread of its own that then ends. Only what decides about files is changed:
/// such a thread cannot be sent signals, or be traced, by that user (setfsuid(2)).
///
/// # Errors
/// When this process may not do that, or what the work says.
pub fn on_files_as<T: Send>(
    (uid, gid, groups): (u32, u32, &[u32]),
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let as_user = || {
        let groups: Vec<_> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
        set_thread_groups(&groups)?;
        become_on_files(uid, gid)?;
        work()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, as_user)?;
        let panicked = |_| io::Error::other("the work on files as another user has panicked");
        thread.join().map_err(panicked).flatten()
    })
}

/// Never fails by itself, and says what was before: asked once more, it says what is (setfsuid(2), "BUGS").
fn become_on_files(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: both calls take a number and change the calling thread alone; neither touches memory.
    let is = unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX))
    };
    if is == (uid.cast_signed(), gid.cast_signed()) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user {uid}, group {gid} cannot be taken for files")))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;

    /// Needs root.
    #[test]
    fn files_are_made_by_that_user_and_only_on_that_thread() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let (theirs, ours) = (dir.path().join("theirs"), dir.path().join("ours"));
        on_files_as((65534, 65534, &[65534]), || fs::write(&theirs, "")).unwrap();
        fs::write(&ours, "").unwrap();
        let owner = |path| fs::metadata(path).map(|meta| (meta.uid(), meta.gid())).unwrap();
        assert_eq!((owner(&theirs), owner(&ours).0), ((65534, 65534), 0));
        fs::set_permissions(&ours, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let refused = on_files_as((65534, 65534, &[65534]), || fs::read(&ours)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }
}
