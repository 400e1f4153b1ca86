//! Finding what compiles and links the eBPF programs: a Rust with `core` for BPF, and bpf-linker.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::requirements::on_path;
use crate::workspace::{Workspace, output_of, run_quietly};

/// The version of bpf-linker that setup builds.
const LINKER_VERSION: &str = "0.13.0";

/// The LLVM that bpf-linker is built with; it reads no bitcode of a later one.
const LLVM_MAJOR: u32 = 22;

/// Debian's rustc, which can have a ready-made `core` for BPF beside rustup's own compilers.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// The Rust target of the programs.
const BPF_TARGET: &str = "bpfel-unknown-none";

/// The Debian packages with a `core` for BPF.
pub(crate) const RUST_PACKAGES: &[&str] = &["rustc-web", "libstd-rust-web-dev-bpf"];

/// Which Rust can build for BPF here, or why none can.
pub(crate) fn find_rust() -> Result<String, String> {
    let nightly = nightly_rust();
    if let Some(found) = nightly.as_ref().ok().cloned().or_else(debian_rust) {
        return Ok(found);
    }
    let why_not = nightly.err().unwrap_or_default();
    Err(format!("{why_not}, and no {DEBIAN_RUSTC} with core for {BPF_TARGET}"))
}

fn nightly_rust() -> Result<String, &'static str> {
    let sysroot = output_of(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]));
    let sysroot = PathBuf::from(sysroot.ok_or("no rustup nightly")?);
    if !sysroot.join("lib/rustlib/src/rust/library/core").is_dir() {
        return Err("rustup's nightly has no rust-src");
    }
    let version = output_of(Command::new(sysroot.join("bin/rustc")).arg("-vV"));
    match version.as_deref().and_then(llvm_major) {
        Some(major) if major > LLVM_MAJOR => Err("rustup's nightly has a later LLVM than bpf-linker"),
        Some(_) => Ok("rustup nightly with rust-src".to_owned()),
        None => Err("rustup's nightly does not tell its LLVM version"),
    }
}

fn debian_rust() -> Option<String> {
    let arguments = ["--print", "target-libdir", "--target", BPF_TARGET];
    let folder = output_of(Command::new(DEBIAN_RUSTC).args(arguments))?;
    let mut names = fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let ready = names.any(|name| is_core_library(&name));
    ready.then(|| format!("{DEBIAN_RUSTC} with core for {BPF_TARGET}"))
}

fn is_core_library(name: &str) -> bool {
    name.starts_with("libcore-") && name.ends_with(".rlib")
}

/// The major version in the line `LLVM version: 22.1.2` of `rustc -vV`.
fn llvm_major(version: &str) -> Option<u32> {
    let number = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    number.split('.').next()?.trim().parse().ok()
}

/// Gets rustup's nightly with the source of `core`.
pub(crate) fn install_nightly(workspace: &Workspace) -> Result<()> {
    let words = ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
    run_quietly(workspace.command("rustup").args(words))
}

/// Where a bpf-linker that runs is: the checkout's own first, then the one on PATH.
pub(crate) fn find_linker(workspace: &Workspace) -> Result<String, String> {
    let own = workspace.toolchain().join("bin/bpf-linker");
    let candidates = [Some(own).filter(|path| path.exists()), on_path("bpf-linker")];
    let mut why_not = format!("none in {} nor on PATH", workspace.toolchain().display());
    for path in candidates.into_iter().flatten() {
        if let Some(version) = output_of(Command::new(&path).arg("--version")) {
            return Ok(format!("{version}, {}", path.display()));
        }
        why_not = format!("{} does not run", path.display());
    }
    Err(why_not)
}

/// How setup speaks of the linker that it is about to build.
pub(crate) fn linker_to_install(workspace: &Workspace) -> String {
    format!("bpf-linker {LINKER_VERSION}, from source, into {}", workspace.toolchain().display())
}

/// Builds bpf-linker into the checkout's own toolchain folder.
pub(crate) fn install_linker(workspace: &Workspace) -> Result<()> {
    let root = workspace.toolchain();
    // A target directory of its own, so that no other cargo in this checkout waits for it.
    let scratch = root.join("build");
    let feature = format!("llvm-{LLVM_MAJOR}");
    let mut install = workspace.cargo(["install", "bpf-linker", "--version", LINKER_VERSION]);
    install.args(["--locked", "--force", "--no-default-features", "--features", &feature, "--root"]).arg(&root);
    install
        .env("CARGO_TARGET_DIR", &scratch)
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .env("LLVM_PREFIX", llvm_prefix());
    run_quietly(&mut install)?;
    fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))
}

/// Where the LLVM to link with is installed.
fn llvm_prefix() -> PathBuf {
    env::var_os("LLVM_PREFIX").map_or_else(|| format!("/usr/lib/llvm-{LLVM_MAJOR}").into(), PathBuf::from)
}

/// A header of what bpf-linker is built with, and the Debian package that has it.
pub(crate) fn linker_headers() -> [(PathBuf, &'static str); 3] {
    let include = Path::new("/usr/include");
    [
        (llvm_prefix().join("include/llvm-c/Core.h"), "llvm-22-dev"),
        (include.join("zstd.h"), "libzstd-dev"),
        (include.join("zlib.h"), "zlib1g-dev"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_llvm_version() {
        let version = "rustc 1.96.0-nightly\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.2";
        assert_eq!(llvm_major(version), Some(22));
        assert_eq!(llvm_major("LLVM version: 7"), Some(7));
        assert_eq!(llvm_major("rustc 1.96.0\nLLVM version: unknown"), None);
        assert_eq!(llvm_major("rustc 1.96.0"), None);
    }

    #[test]
    fn tells_core_from_other_libraries() {
        assert!(is_core_library("libcore-8056e5e5b270ef4d.rlib"));
        assert!(!is_core_library("libcore-8056e5e5b270ef4d.rmeta"));
        assert!(!is_core_library("liballoc-216f9b299ea3c956.rlib"));
    }
}
