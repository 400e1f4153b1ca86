//! `cargo xtask setup`: gets whatever is missing, having said what.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::fitness::is_root;
use crate::requirements::{Remedy, Requirement, Scope, inspect, on_path, packages};
use crate::toolchain;
use crate::workspace::{Workspace, output_of, run_quietly};

/// Packages whose installation starts a service that nobody asked for.
const SERVICES: &[(&str, &str)] = &[
    ("nginx-light", "nginx"),
    ("haproxy", "haproxy"),
    ("varnish", "varnish"),
    ("varnish", "varnishncsa"),
    ("supervisor", "supervisor"),
    ("prometheus", "prometheus"),
];

/// What apt-get is told with every installation; it never removes a package to make room.
const APT_INSTALL: &[&str] = &["install", "-y", "--no-install-recommends", "--no-remove"];

/// What apt-get finds in its environment: no questions, and no service started (runlevel 1).
const APT_ENVIRONMENT: &[(&str, &str)] = &[("DEBIAN_FRONTEND", "noninteractive"), ("RUNLEVEL", "1")];

/// Options of `cargo xtask setup`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only say what is present and what is missing; exit 1 if anything is
    #[arg(long)]
    check: bool,
}

/// The verb itself.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    if args.check {
        return Ok(check(workspace));
    }
    ensure(workspace, Scope::All)?;
    eprintln!("setup: all present");
    Ok(ExitCode::SUCCESS)
}

fn check(workspace: &Workspace) -> ExitCode {
    let all = inspect(workspace, Scope::All);
    all.iter().for_each(|requirement| println!("{requirement}"));
    if missing(&all).is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn missing(all: &[Requirement]) -> Vec<Remedy> {
    all.iter().filter_map(Requirement::missing).collect()
}

/// Gets whatever is missing in this scope; says and does nothing if nothing is. Writes to stderr only.
pub(crate) fn ensure(workspace: &Workspace, scope: Scope) -> Result<()> {
    let absent = missing(&inspect(workspace, scope));
    if absent.is_empty() {
        return Ok(());
    }
    install(workspace, &absent)?;
    let all = inspect(workspace, scope);
    let left: Vec<_> = all.iter().filter(|requirement| requirement.missing().is_some()).collect();
    if left.is_empty() {
        return Ok(());
    }
    let lines: Vec<_> = left.iter().map(|requirement| format!("\n  {requirement}")).collect();
    bail!("still missing after installation:{}", lines.concat())
}

fn install(workspace: &Workspace, missing: &[Remedy]) -> Result<()> {
    let may_apt = is_root() && on_path("apt-get").is_some();
    let rust_from_debian = rust_from_debian(workspace, missing, may_apt)?;
    let packages = packages(missing, rust_from_debian);
    if !packages.is_empty() && !may_apt {
        bail!("{}", by_hand(&packages, on_path("apt-get").is_some()));
    }
    let nightly = missing.contains(&Remedy::BpfRust) && !rust_from_debian;
    let linker = missing.contains(&Remedy::BpfLinker);
    announce(workspace, &packages, nightly, linker);
    if !packages.is_empty() {
        install_packages(workspace, &packages)?;
    }
    if nightly {
        toolchain::install_nightly(workspace)?;
    }
    if linker {
        toolchain::install_linker(workspace)?;
    }
    Ok(())
}

/// Brings apt's lists up to date if they are needed, and decides where the Rust for BPF comes from.
fn rust_from_debian(workspace: &Workspace, missing: &[Remedy], may_apt: bool) -> Result<bool> {
    let needs_rust = missing.contains(&Remedy::BpfRust);
    if may_apt && !packages(missing, true).is_empty() {
        eprintln!("setup: apt-get update");
        if let Err(error) = run_quietly(workspace.command("apt-get").arg("update")) {
            eprintln!("setup: {error}; going on with the lists as they are");
        }
    }
    if !needs_rust {
        return Ok(false);
    }
    let has_rustup = on_path("rustup").is_some();
    let known = may_apt && output_of(Command::new("apt-cache").arg("show").args(toolchain::RUST_PACKAGES)).is_some();
    if may_apt && !known && !has_rustup {
        bail!(
            "neither rustup nor Debian's packages {} are to be had: install rustup, then call this again",
            toolchain::RUST_PACKAGES.join(" ")
        );
    }
    Ok(known || !has_rustup)
}

fn announce(workspace: &Workspace, packages: &[&str], nightly: bool, linker: bool) {
    eprintln!("setup: this will be installed:");
    if !packages.is_empty() {
        eprintln!("  Debian packages: {}", packages.join(" "));
    }
    if nightly {
        eprintln!("  rustup's nightly tool chain with rust-src");
    }
    if linker {
        eprintln!("  {}", toolchain::linker_to_install(workspace));
    }
}

fn by_hand(packages: &[&str], has_apt: bool) -> String {
    let names = packages.join(" ");
    if !has_apt {
        return format!("no apt-get here: install what Debian calls {names}, then call this again");
    }
    let environment: Vec<_> = APT_ENVIRONMENT.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let install = format!("env {} apt-get {} {names}", environment.join(" "), APT_INSTALL.join(" "));
    format!(
        "Debian packages are missing, and only root can install them. Run these, then call this again:\n  sudo apt-get update\n  sudo {install}"
    )
}

fn install_packages(workspace: &Workspace, packages: &[&str]) -> Result<()> {
    let mut command = workspace.command("apt-get");
    run_quietly(command.args(APT_INSTALL).args(packages).envs(APT_ENVIRONMENT.iter().copied()))?;
    let services = services_of(packages);
    if services.is_empty() || !Path::new("/run/systemd/system").is_dir() {
        return Ok(());
    }
    // The suites and the demo start servers of their own; the machine's must not take its ports.
    run_quietly(workspace.command("systemctl").args(["disable", "--now"]).args(services))
}

/// The services that come with these packages.
fn services_of(packages: &[&str]) -> Vec<&'static str> {
    SERVICES.iter().filter(|(package, _)| packages.contains(package)).map(|(_, service)| *service).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_only_services_that_it_brought() {
        assert_eq!(services_of(&["iproute2", "nginx-light", "supervisor"]), ["nginx", "supervisor"]);
        assert_eq!(services_of(&["supervisor"]), ["supervisor"]);
        assert!(services_of(&["iproute2", "python3-tornado"]).is_empty());
    }

    #[test]
    fn names_the_commands_for_those_without_root() {
        let text = by_hand(&["nftables", "procps"], true);
        assert!(text.contains("\n  sudo apt-get update\n"), "{text}");
        assert!(text.ends_with("apt-get install -y --no-install-recommends --no-remove nftables procps"), "{text}");
        assert!(by_hand(&["nftables"], false).contains("what Debian calls nftables"));
    }
}
