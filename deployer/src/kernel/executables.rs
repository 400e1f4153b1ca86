//! How an executable is named in the kernel: device and inode.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use deployer_common::layout::{CALLER_EXECUTABLE, CallerRule};

/// The rule for processes that run this file. A package upgrade puts another file under the name: ask again then.
///
/// # Errors
/// When the file is missing.
pub fn rule(path: &Path) -> io::Result<CallerRule> {
    let file = fs::metadata(path)?;
    let (major, minor) = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
    // The kernel's own dev_t: 12 bits of major, 20 of minor (include/linux/kdev_t.h).
    Ok(CallerRule { kind: CALLER_EXECUTABLE, place: major << 20 | minor, id: file.ino() })
}
