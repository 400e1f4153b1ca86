//! What the services' managers need: supervisord's socket, a cgroup to make others in, accounts, programs.

use std::{collections::BTreeSet, fs, os::unix::fs::FileTypeExt, path::Path};

use rustix::fs::{Access, access};

use super::{Finding, Level, blocked, names, programs};
use crate::{
    config::{Builtin, Config, Manager, Service, filled},
    kernel::cgroup,
    workers::check_accounts,
};

pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let root = cgroup::root().unwrap_or_default();
    let attached = config.kernel.workers.as_deref().unwrap_or(&root);
    let mut found = Vec::new();
    for service in config.services.values() {
        let what = format!("service.{}.manager", service.name);
        match &service.manager {
            Manager::Supervisord { socket, .. } => found.push(socket_of(what, "supervisord", socket, SUPERVISORD)),
            Manager::Systemd { bus, .. } => found.push(systemd(what, bus.as_deref().unwrap_or(SYSTEM_BUS))),
            Manager::Builtin(builtin) => {
                found.extend(self::builtin(&what, service, builtin, &root, attached));
                found.push(programs::of_worker(format!("{what}.command"), service, builtin));
                found.extend(blocked::findings(&what, service, &root.join(&builtin.cgroup)));
            }
            Manager::Exec(exec) => {
                let commands = [("start", &exec.start), ("stop", &exec.stop), ("status", &exec.status)];
                found.extend(
                    commands.map(|(key, command)| programs::of_manager(format!("{what}.{key}"), service, command)),
                );
            }
        }
        // Asked only where it can be reached.
        let is_there = found.last().is_some_and(|last| last.level == Level::Ok);
        found.extend(Some(service).filter(|_| is_there).and_then(names::finding));
    }
    found
}

/// Where the system bus is (`dbus-daemon(1)`).
const SYSTEM_BUS: &str = "unix:path=/run/dbus/system_bus_socket";
const BUS: &str = "install and start dbus, or compare `manager.bus`";
const SUPERVISORD: &str = "start supervisord, and compare with `file` in its [unix_http_server]";

fn systemd(what: String, bus: &str) -> Finding {
    match bus.strip_prefix("unix:path=") {
        // What may follow the path in an address.
        Some(path) => {
            let path = path.split([',', ';']).next().unwrap_or(path);
            socket_of(what, "the bus to systemd", Path::new(path), BUS)
        }
        None => Finding::ok(what, "the bus to systemd has no path to look at"),
    }
}

fn socket_of(what: String, whose: &str, socket: &Path, fix: &str) -> Finding {
    let shown = socket.display();
    match fs::metadata(socket) {
        Ok(meta) if meta.file_type().is_socket() => {
            Finding::ok(what, format!("the socket of {whose}, {shown}, is there"))
        }
        Ok(_) => Finding::warn(what, format!("{shown} is not a socket, so {whose} is not reached by it")),
        Err(error) => {
            Finding::warn(what, format!("the socket of {whose}, {shown}: {error}; no roll can start")).fix("do", fix)
        }
    }
}

fn builtin(what: &str, service: &Service, builtin: &Builtin, root: &Path, attached: &Path) -> [Finding; 3] {
    let accounts = format!("{what}.user");
    let accounts = match check_accounts(builtin) {
        Ok(()) => Finding::ok(accounts, builtin.user.as_deref().unwrap_or("the daemon's")),
        Err(why) => Finding::fail(accounts, why),
    };
    let directory = directory(format!("{what}.directory"), service, builtin);
    [cgroup_above(format!("{what}.cgroup"), &root.join(&builtin.cgroup), attached), accounts, directory]
}

/// The directories that the workers are started in: the first that is none.
fn directory(what: String, service: &Service, builtin: &Builtin) -> Finding {
    let text = builtin.directory.to_string_lossy();
    let each = service.members().map(|at| filled(&text, &service.name, at));
    // What a pool is told is known when it is started.
    let known: BTreeSet<_> = each.filter(|path| !path.contains('{')).collect();
    let wrong = known.iter().find_map(|path| match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => None,
        Ok(_) => Some(format!("{path} is no directory; no worker can be started in it")),
        Err(error) => Some(format!("{path}: {error}; no worker can be started in it until it is there")),
    });
    match (wrong, known.len()) {
        (Some(wrong), _) => Finding::warn(what, wrong),
        (None, 0) => Finding::ok(what, format!("{text} depends on what the pool is told")),
        (None, 1) => Finding::ok(what, format!("{} is there", known.into_iter().next().unwrap_or_default())),
        (None, count) => Finding::ok(what, format!("{count} directories {text} are there")),
    }
}

/// The directory in which the workers' cgroups are made, itself made when it is needed.
fn cgroup_above(what: String, path: &Path, attached: &Path) -> Finding {
    let shown = path.display();
    let there = path.ancestors().find(|above| above.exists()).unwrap_or(Path::new("/"));
    if !there.join("cgroup.procs").exists() {
        return Finding::fail(what, format!("{shown} is not below a directory of cgroup v2"))
            .fix("write", "a path below the cgroup v2 root, cgroup = \"deployer\"");
    }
    if let Err(error) = access(there, Access::WRITE_OK) {
        let detail = format!("{}: {error}; no worker can be started", there.display());
        return Finding::fail(what, detail).fix("do", "run the daemon as root, or give it a cgroup of its own there");
    }
    if !path.starts_with(attached) {
        let attached = attached.display();
        return Finding::warn(
            what,
            format!(
                "{shown} is not below kernel.workers ({attached}), so open connections of the workers are not counted"
            ),
        );
    }
    Finding::ok(what, format!("the workers' cgroups are made in {shown}"))
}

#[cfg(test)]
mod tests {
    use std::{error::Error, os::unix::net::UnixListener};

    use super::*;

    #[test]
    fn a_supervisord_s_socket_must_be_one() -> Result<(), Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("supervisor.sock");
        let level = || socket_of(String::new(), "supervisord", &socket, SUPERVISORD).level;
        assert_eq!(level(), Level::Warn);
        let listener = UnixListener::bind(&socket)?;
        assert_eq!(level(), Level::Ok);
        drop(listener);
        fs::remove_file(&socket)?;
        fs::write(&socket, "")?;
        assert_eq!(level(), Level::Warn);
        Ok(())
    }

    fn levels(manager: &str, root: &Path) -> Result<Vec<Level>, Box<dyn Error>> {
        let text = format!("[service.web]\nworkers = \"127.0.0.1:8000\"\nmanager = {{ {manager} }}\n");
        let config = Config::parse(Path::new("test.toml"), &text)?;
        let service = config.services.values().next().ok_or("no service")?;
        let Manager::Builtin(config) = &service.manager else { return Err("another manager".into()) };
        Ok(builtin("manager", service, config, root, root).map(|finding| finding.level).into())
    }

    #[test]
    fn what_the_built_in_manager_needs() -> Result<(), Box<dyn Error>> {
        let root = tempfile::tempdir()?;
        let root = root.path();
        let fine = "command = [\"/bin/sh\"]";
        assert_eq!(levels(fine, root)?, [Level::Fail, Level::Ok, Level::Ok], "no cgroup2");
        fs::write(root.join("cgroup.procs"), "")?;
        assert_eq!(levels(fine, root)?, [Level::Ok; 3]);
        let outside = format!("{fine}, cgroup = {:?}", Path::new("/nonexistent/x"));
        assert_eq!(levels(&outside, root)?[0], Level::Fail);
        let each = format!("{fine}, directory = {:?}", root.join("{port}"));
        assert_eq!(levels(&each, root)?[2], Level::Warn);
        fs::create_dir(root.join("8000"))?;
        assert_eq!(levels(&each, root)?[2], Level::Ok);
        let wrong = "command = [\"nonexistent-program\"], user = \"nobody-has-it\", directory = \"/nonexistent\"";
        assert_eq!(levels(wrong, root)?[1..], [Level::Fail, Level::Warn]);
        Ok(())
    }
}
