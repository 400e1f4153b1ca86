//! Builds the eBPF programs from source with whichever BPF tool chain this machine has, so that one binary holds all.
//!
//! 1. Debian's rustc (package `rustc-web`) with its ready-made `core` (`libstd-rust-web-dev-bpf`), or
//! 2. a rustup nightly with `rust-src`, which builds `core` itself (`-Z build-std`).
//!
//! Both need `bpf-linker`. `cargo xtask setup` gets what is missing.

use std::{
    env,
    error::Error,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "bpfel-unknown-none";
/// Binaries of deployer-ebpf, and the variables that name them to the crate.
const OBJECTS: [(&str, &str); 2] = [("deployer-ebpf", "DEPLOYER_EBPF_OBJECT"), ("reaper", "DEPLOYER_REAPER_OBJECT")];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

fn main() {
    if let Err(error) = build() {
        println!("cargo::error={error}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = manifest.parent().ok_or("the package has no parent directory")?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for input in ["deployer-ebpf/src", "deployer-ebpf/Cargo.toml", "deployer-ebpf/Cargo.lock", "deployer-common/src"] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo::rerun-if-env-changed=BPF_LINKER");

    let linker = linker(&out)?;
    println!("cargo::rerun-if-changed={}", linker.display());
    let mut cargo = tool_chain()?;
    // Shared by all profiles of this target directory: the programs are built in one way only.
    let built = out.ancestors().nth(4).unwrap_or(&out).join("ebpf");
    if env::var_os("CARGO_FEATURE_NEXT_LAYOUT").is_some() {
        cargo.args(["--features", "next-layout"]);
    }
    let status = cargo
        .current_dir(root.join("deployer-ebpf"))
        .args(["--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(&built)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&linker))
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTFLAGS")
        // A check could end in a panic, which a program cannot.
        .env_remove("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS")
        .status()
        .map_err(|error| format!("cannot run {cargo:?}: {error}"))?;
    if !status.success() {
        return Err(format!("building deployer-ebpf failed ({status}); its errors stand above").into());
    }
    for (name, variable) in OBJECTS {
        let (made, object) = (built.join(TARGET).join("release").join(name), out.join(name));
        std::fs::copy(&made, &object)
            .map_err(|error| format!("cannot copy {} to {}: {error}", made.display(), object.display()))?;
        println!("cargo::rustc-env={variable}={}", object.display());
    }
    Ok(())
}

/// `-C` flags in cargo's encoding, which keeps a path with a blank in it whole.
fn rustflags(linker: &Path) -> String {
    let linker = format!("linker={}", linker.display());
    ["-C", &linker, "-C", "link-arg=--btf", "-C", "debuginfo=2"].join("\u{1f}")
}

/// `cargo build` with the environment of the tool chain that is there.
fn tool_chain() -> Result<Command, Box<dyn Error>> {
    let cargo = env::var_os("CARGO").ok_or("CARGO is not set: run this through cargo")?;
    if has_core(Command::new(DEBIAN_RUSTC).args(["--print", "target-libdir", "--target", TARGET])) {
        let mut command = Command::new(cargo);
        // aya-ebpf uses `asm!` for BPF, which a stable compiler lets through with this only.
        command.arg("build").env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
        return Ok(command);
    }
    if has_source(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"])) {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"]);
        command.env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
        return Ok(command);
    }
    Err("no tool chain for BPF: neither Debian's rustc with libstd-rust-web-dev-bpf nor a rustup nightly with rust-src \
         is here. Get one with: cargo xtask setup"
        .into())
}

fn stdout(command: &mut Command) -> Option<PathBuf> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
}

fn has_core(print_libdir: &mut Command) -> bool {
    let Some(entries) = stdout(print_libdir).and_then(|libdir| std::fs::read_dir(libdir).ok()) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

fn has_source(print_sysroot: &mut Command) -> bool {
    stdout(print_sysroot).is_some_and(|root| root.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists())
}

/// `$BPF_LINKER`, the one that `cargo xtask setup` has built into `target/toolchain`, or one on the path.
fn linker(out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let from_env = env::var_os("BPF_LINKER").map(PathBuf::from);
    let built = out.ancestors().map(|dir| dir.join("toolchain/bin/bpf-linker"));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|dir| dir.join("bpf-linker")).collect::<Vec<_>>();
    from_env
        .into_iter()
        .chain(built)
        .chain(on_path)
        .find(|linker| linker.is_file())
        .ok_or_else(|| "bpf-linker is missing. Get it with: cargo xtask setup".into())
}
