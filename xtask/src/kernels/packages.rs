//! What the virtual machine is made of: Debian's packages, unpacked and not installed.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::requirements::on_path;
use crate::workspace::{Workspace, output_of, run_quietly};

/// Depends on the newest kernel of this Debian.
const KERNEL: &str = "linux-image-amd64";
const BUSYBOX: &str = "busybox-static";
const QEMU: &str = "qemu-system-x86";
/// qemu's program for this processor.
const QEMU_PROGRAM: &str = "qemu-system-x86_64";
/// Packages are unpacked by whoever runs this, not by apt's own user, who may not read the target directory.
const AS_ROOT: [&str; 2] = ["-o", "APT::Sandbox::User=root"];

/// Where the parts are.
pub(crate) struct Parts {
    /// The kernel's release: `6.1.0-56-amd64`.
    pub(crate) release: String,
    /// The unpacked kernel: `boot`, `lib/modules`.
    pub(crate) kernel: PathBuf,
    /// A busybox that needs no library.
    pub(crate) busybox: PathBuf,
    /// qemu's program.
    pub(crate) qemu: PathBuf,
    /// Where qemu was unpacked; `None`: it is installed.
    pub(crate) unpacked: Option<PathBuf>,
}

/// Gets what is not there, having said so.
///
/// # Errors
/// When this is not x86-64 with apt, or a package cannot be had.
pub(crate) fn get(workspace: &Workspace, work: &Path) -> Result<Parts> {
    if cfg!(not(target_arch = "x86_64")) || on_path("apt-get").is_none() {
        bail!("the virtual machine is made of Debian's packages for amd64: run this on such a machine, with apt-get");
    }
    let package = dependency(&output_of(workspace.command("apt-cache").args(["depends", KERNEL])).unwrap_or_default())
        .with_context(|| format!("apt knows no package {KERNEL}: try apt-get update"))?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    let kernel = unpacked(workspace, work, &package, &["download", &package])?;
    let busybox = unpacked(workspace, work, BUSYBOX, &["download", BUSYBOX])?.join("bin/busybox");
    let (qemu, unpacked) = match on_path(QEMU_PROGRAM) {
        Some(installed) => (installed, None),
        None => {
            // With all that it needs and this machine lacks; `--download-only` changes nothing here.
            let args = ["install", "-y", "--download-only", "--no-install-recommends", QEMU];
            let folder = unpacked(workspace, work, QEMU, &args)?;
            (folder.join("usr/bin").join(QEMU_PROGRAM), Some(folder))
        }
    };
    Ok(Parts { release, kernel, busybox, qemu, unpacked })
}

/// The first package that `apt-cache depends` names.
fn dependency(said: &str) -> Option<String> {
    said.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).map(|name| name.trim().to_owned())
}

/// The folder in which a package stands unpacked; downloads it by the arguments of apt-get if it does not.
fn unpacked(workspace: &Workspace, work: &Path, package: &str, args: &[&str]) -> Result<PathBuf> {
    let folder = work.join(package);
    if folder.is_dir() {
        return Ok(folder);
    }
    eprintln!("kernels: getting Debian's {package}, to unpack it in {}", folder.display());
    // Whole or not at all, whenever this ends.
    let (archives, part) = (work.join(format!("{package}.deb")), work.join(format!("{package}.part")));
    for stale in [&archives, &part] {
        let _ = fs::remove_dir_all(stale);
    }
    fs::create_dir_all(archives.join("partial")).with_context(|| format!("making {}", archives.display()))?;
    let mut cache = OsString::from("Dir::Cache::archives=");
    cache.push(&archives);
    let mut command = workspace.command("apt-get");
    run_quietly(command.current_dir(&archives).args(AS_ROOT).arg("-o").arg(cache).args(args))?;
    for entry in fs::read_dir(&archives).with_context(|| format!("reading {}", archives.display()))? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            run_quietly(workspace.command("dpkg-deb").arg("-x").arg(&file).arg(&part))?;
        }
    }
    fs::rename(&part, &folder).with_context(|| format!("apt-get brought no package {package}"))?;
    let _ = fs::remove_dir_all(&archives);
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_package_depends_on() {
        let said = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n  Suggests: x\n";
        assert_eq!(dependency(said).as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(dependency("linux-image-amd64\n"), None);
    }
}
