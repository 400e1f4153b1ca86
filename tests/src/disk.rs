//! A file system of a test's own that can be made to hang, as a backup does it with `fsfreeze`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::run;
use crate::sandbox::Sandbox;

/// Bytes of the file system.
const SIZE: u64 = 16 << 20;

/// An ext4 file system in a file, mounted in a sandbox; it is thawed, and unmounted with the sandbox, however the test ends.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
}

impl Disk {
    /// Makes it and mounts it at a directory of the sandbox, the state's for example.
    pub fn mount(sandbox: &Sandbox, dir: &Path) -> Result<Self> {
        let image = sandbox.dir().join("disk.img");
        File::create(&image).and_then(|file| file.set_len(SIZE)).context("make the disk's image")?;
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(dir))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// From here on each write to it stands still, until the result is thawed or dropped. Declare that after what writes: a
    /// process that stands still cannot be killed.
    pub fn freeze(&self) -> Result<Frozen> {
        run(Command::new("fsfreeze").arg("--freeze").arg(&self.dir))?;
        Ok(Frozen(self.dir.clone()))
    }
}

/// A file system that is frozen.
#[derive(Debug)]
pub struct Frozen(PathBuf);

impl Frozen {
    /// Lets the writes go on.
    pub fn thaw(self) {
        drop(self);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        thaw_below(&self.0);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        thaw_below(&self.dir);
    }
}

/// Thaws what is mounted at or below a directory. What is not frozen stays as it is.
pub fn thaw_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for mount in mounts.lines() {
        let mut fields = mount.split(' ').skip(1);
        let (Some(point), Some("ext4")) = (fields.next(), fields.next()) else { continue };
        if Path::new(point).starts_with(dir) {
            // It fails for what is not frozen.
            let _ = Command::new("fsfreeze").arg("--unfreeze").arg(point).output();
        }
    }
}
