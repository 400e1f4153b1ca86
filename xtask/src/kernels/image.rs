//! The image that the kernel starts from: busybox, the modules by which it reaches this machine's files, and a script.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::packages::Parts;
use crate::workspace::run_quietly;

/// Mounts this machine's files and goes on in them.
const INIT: &str = include_str!("init.sh");
/// What that takes.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Writes the image; returns its path.
pub(crate) fn make(parts: &Parts, work: &Path) -> Result<PathBuf> {
    let modules = Path::new("lib/modules").join(&parts.release);
    // Debian's packages leave this to their installation.
    run_quietly(Command::new(&parts.busybox).arg("depmod").arg("-b").arg(&parts.kernel).arg(&parts.release))?;
    let list = parts.kernel.join(&modules).join("modules.dep");
    let known = fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?;
    let folder = work.join("image");
    let _ = fs::remove_dir_all(&folder);
    for inside in ["proc", "dev", "low", "up", "new"] {
        let path = folder.join(inside);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
    }
    copy(&parts.busybox, &folder.join("bin/busybox"))?;
    copy(&list, &folder.join(&modules).join("modules.dep"))?;
    for file in needed(&known, &MODULES) {
        copy(&parts.kernel.join(&modules).join(file), &folder.join(&modules).join(file))?;
    }
    let init = folder.join("init");
    fs::write(&init, INIT)
        .and_then(|()| fs::set_permissions(&init, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("writing {}", init.display()))?;
    pack(parts, &folder, &work.join("image.cpio"))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let what = || format!("copying {} to {}", from.display(), to.display());
    fs::create_dir_all(to.parent().with_context(what)?).with_context(what)?;
    fs::copy(from, to).map(drop).with_context(what)
}

/// The files of modules and of all that they need, from `modules.dep` (`FILE: NEEDED …`). A module that is not in it is
/// built in.
fn needed<'a>(known: &'a str, modules: &[&str]) -> BTreeSet<&'a str> {
    let is_it = |file: &str, module: &str| {
        Path::new(file).file_name().and_then(|name| name.to_str()?.split_once('.')).is_some_and(|(n, _)| n == module)
    };
    let lines = known.lines().filter_map(|line| line.split_once(':'));
    let wanted = lines.filter(|(file, _)| modules.iter().any(|module| is_it(file, module)));
    wanted.flat_map(|(file, others)| std::iter::once(file).chain(others.split_whitespace())).collect()
}

/// Packs a folder as the kernel reads it.
fn pack(parts: &Parts, folder: &Path, image: &Path) -> Result<PathBuf> {
    let file = fs::File::create(image).with_context(|| format!("writing {}", image.display()))?;
    let script = r#"find . | "$0" cpio -o -H newc"#;
    let mut command = Command::new(&parts.busybox);
    command.args(["sh", "-c", script]).arg(&parts.busybox).current_dir(folder).stdout(file).stderr(Stdio::null());
    let status = command.status().context("running busybox cpio")?;
    if !status.success() {
        bail!("busybox cpio cannot pack {} ({status})", folder.display());
    }
    Ok(image.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_bring_what_they_need() {
        let known = "kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/netfs/netfs.ko\n\
                     kernel/net/9p/9pnet.ko:\nkernel/fs/overlayfs/overlay.ko.xz:\nkernel/x/x9p.ko:\n";
        let found: Vec<_> = needed(known, &["9p", "overlay", "built_in"]).into_iter().collect();
        let all = [
            "kernel/fs/9p/9p.ko",
            "kernel/fs/netfs/netfs.ko",
            "kernel/fs/overlayfs/overlay.ko.xz",
            "kernel/net/9p/9pnet.ko",
        ];
        assert_eq!(found, all);
    }
}
