//! What building, testing and demonstrating need of a machine, and whether it is there.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::iter;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::toolchain;
use crate::workspace::{Workspace, output_of};

/// Programs that the suites and the demo run, and Debian's packages with them.
const PROGRAMS: &[(&str, &str)] = &[
    ("nginx", "nginx-light"),
    ("haproxy", "haproxy"),
    ("varnishd", "varnish"),
    ("supervisord", "supervisor"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("ip", "iproute2"),
    ("openssl", "openssl"),
    ("unshare", "util-linux"),
    ("ps", "procps"),
    ("busctl", "systemd"),
    ("dbus-daemon", "dbus"),
    ("java", "default-jre-headless"),
];

/// Files that the suites need, and Debian's packages with them.
const FILES: &[(&str, &str, &str)] = &[
    ("zookeeper", "/usr/share/java/zookeeper.jar", "libzookeeper-java"),
    ("slf4j", "/usr/share/java/slf4j-simple.jar", "libslf4j-java"),
];

/// What the suites need of Debian's Python, and the packages with it.
const MODULES: &[(&str, &str)] = &[("tornado", "python3-tornado"), ("kazoo", "python3-kazoo")];

/// Where daemons are, which is not on everyone's PATH.
const SYSTEM_FOLDERS: &[&str] = &["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Debian's Python, the one that has Debian's modules.
const DEBIAN_PYTHON: &str = "/usr/bin/python3";

/// How much of the machine is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// What `cargo build` needs.
    Build,
    /// That, and the servers of the suites and the demo.
    All,
}

/// What gets a requirement that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// Debian's package of this name.
    Package(&'static str),
    /// A Rust that can build for BPF.
    BpfRust,
    /// Building bpf-linker.
    BpfLinker,
}

/// One thing that has to be there.
#[derive(Debug)]
pub(crate) struct Requirement {
    name: &'static str,
    found: Result<String, String>,
    remedy: Remedy,
}

impl Requirement {
    /// What would get it, if it is missing.
    pub(crate) fn missing(&self) -> Option<Remedy> {
        self.found.is_err().then_some(self.remedy)
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (state, detail) = match &self.found {
            Ok(found) => ("present", found),
            Err(why_not) => ("missing", why_not),
        };
        write!(f, "{state}  {:<15}  {detail}", self.name)
    }
}

/// Looks at the machine.
pub(crate) fn inspect(workspace: &Workspace, scope: Scope) -> Vec<Requirement> {
    let rust = Requirement { name: "rust for BPF", found: toolchain::find_rust(), remedy: Remedy::BpfRust };
    let found = toolchain::find_linker(workspace);
    // What the linker is built with is of no interest once it is built and runs.
    let headers = if found.is_err() { linker_headers() } else { Vec::new() };
    let linker = Requirement { name: "bpf-linker", found, remedy: Remedy::BpfLinker };
    let mut all = vec![rust, linker];
    all.extend(headers);
    if scope == Scope::All {
        all.extend(PROGRAMS.iter().map(|(program, package)| installed_program(program, package)));
        all.extend(FILES.iter().map(|(name, file, package)| {
            by_file(name, package, Some(PathBuf::from(file)).filter(|file| file.exists()))
        }));
        all.extend(MODULES.iter().map(|(module, package)| python(module, package)));
    }
    all
}

fn linker_headers() -> Vec<Requirement> {
    let headers = toolchain::linker_headers().into_iter();
    headers.map(|(header, package)| by_file(package, package, Some(header).filter(|header| header.exists()))).collect()
}

fn installed_program(program: &'static str, package: &'static str) -> Requirement {
    by_file(program, package, on_path(program))
}

fn by_file(name: &'static str, package: &'static str, file: Option<PathBuf>) -> Requirement {
    let found = file.map(|path| path.display().to_string());
    Requirement { name, found: found.ok_or_else(|| in_package(package)), remedy: Remedy::Package(package) }
}

fn python(module: &'static str, package: &'static str) -> Requirement {
    let code = format!("import importlib.util; print(importlib.util.find_spec('{module}').origin)");
    let found = output_of(Command::new(DEBIAN_PYTHON).args(["-I", "-c", &code]));
    Requirement { name: module, found: found.ok_or_else(|| in_package(package)), remedy: Remedy::Package(package) }
}

fn in_package(package: &str) -> String {
    format!("in Debian's package {package}")
}

/// The program of this name on PATH or in the folders of daemons.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    search(program, &env::var_os("PATH").unwrap_or_default(), SYSTEM_FOLDERS)
}

fn search(program: &str, path: &OsString, more: &[&str]) -> Option<PathBuf> {
    let folders = env::split_paths(path).filter(|folder| folder.is_absolute());
    let more = more.iter().map(PathBuf::from);
    folders.chain(more).map(|folder| folder.join(program)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// The packages among the remedies, once each.
pub(crate) fn packages(missing: &[Remedy], rust_from_debian: bool) -> Vec<&'static str> {
    let of_one = |remedy: &Remedy| match remedy {
        Remedy::Package(package) => iter::once(*package).collect(),
        Remedy::BpfRust if rust_from_debian => toolchain::RUST_PACKAGES.to_vec(),
        Remedy::BpfRust | Remedy::BpfLinker => Vec::new(),
    };
    let mut all: Vec<_> = missing.iter().flat_map(of_one).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up_packages() {
        let missing = [
            Remedy::BpfRust,
            Remedy::Package("supervisor"),
            Remedy::BpfLinker,
            Remedy::Package("nginx-light"),
            Remedy::Package("supervisor"),
        ];
        assert_eq!(packages(&missing, false), ["nginx-light", "supervisor"]);
        assert_eq!(packages(&missing, true), ["libstd-rust-web-dev-bpf", "nginx-light", "rustc-web", "supervisor"]);
        assert!(packages(&[Remedy::BpfLinker], true).is_empty());
    }

    #[test]
    fn says_present_or_missing_in_a_line() {
        let there = by_file("nft", "nftables", Some("/sbin/nft".into()));
        assert_eq!((there.to_string().as_str(), there.missing()), ("present  nft              /sbin/nft", None));
        let absent = by_file("nft", "nftables", None);
        assert_eq!(absent.missing(), Some(Remedy::Package("nftables")));
        assert_eq!(absent.to_string(), "missing  nft              in Debian's package nftables");
    }

    #[test]
    fn searches_path_then_the_other_folders() {
        let own = env::current_exe().expect("this test has a path");
        let folder = own.parent().and_then(Path::to_str).expect("in a folder with a readable name");
        let name = own.file_name().and_then(|name| name.to_str()).expect("a readable name");
        assert_eq!(search(name, &"relative:/nonexistent".into(), &[folder]), Some(own.clone()));
        assert_eq!(search(name, &folder.into(), &[]), Some(own.clone()));
        assert_eq!(search(name, &"/nonexistent".into(), &[]), None);
        assert_eq!(search("", &folder.into(), &[]), None, "a folder is no program");
    }
}
