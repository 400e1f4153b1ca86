//! Whether another user of this machine could change what the daemon reads, runs or writes.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
};

use super::Finding;
use crate::{
    config::{Command, Config, Gate, Manager, Service},
    trust::{self, Unsafe},
    workers::{log_of, uid_of},
};

/// A file or folder that is trusted.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Trusted {
    /// "service.web.roll.switch"
    what: String,
    path: PathBuf,
    /// Another user that may own it, or a folder above it.
    also: Option<u32>,
    /// A word of a command that names a file: it need not be run.
    is_word: bool,
}

/// The configuration's own file: the daemon refuses to start with one that another user could change.
pub(super) fn configuration(path: &Path) -> Finding {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let found = fs::metadata(&path).map(|about| trust::file(&path, &about, false));
    match found.unwrap_or(Ok(())).and_then(|()| trust::path(&path, &[])) {
        Ok(()) => {
            Finding::ok("configuration", format!("only root and the daemon's user can change {}", path.display()))
        }
        Err(found) => of("configuration", &path, &found, false),
    }
}

pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let mut all = BTreeSet::from([trusted("daemon.state", &config.daemon.state)]);
    all.extend(config.daemon.socket.parent().map(|folder| trusted("daemon.socket", folder)));
    all.extend(config.fleet.digest.as_ref().map(|file| trusted("fleet.digest", file)));
    config.services.values().for_each(|service| all.extend(of_service(service)));
    let mut found: Vec<_> = all.iter().filter_map(look).collect();
    found.extend(config.services.values().flat_map(unknown_users));
    if found.is_empty() {
        let detail = "no other user can change the files and folders that the daemon reads, runs or writes";
        return vec![Finding::ok("paths", detail)];
    }
    found
}

/// Users of commands that this machine does not have. Those of the built-in manager are looked at with it.
fn unknown_users(service: &Service) -> Vec<Finding> {
    let exec = if let Manager::Exec(exec) = &service.manager { exec.user.as_deref() } else { None };
    let deploy = service.deploy.as_ref().and_then(|deploy| deploy.user.as_deref());
    let named = [("manager.user", exec), ("roll.user", service.roll.user.as_deref()), ("deploy.user", deploy)];
    let unknown = named.into_iter().filter_map(|(key, user)| Some((key, user.filter(|user| uid_of(user).is_none())?)));
    let told = unknown.map(|(key, user)| {
        let detail = format!("there is no user `{user}` in /etc/passwd; its commands cannot be run");
        Finding::fail(format!("service.{}.{key}", service.name), detail).fix("run", format!("useradd --system {user}"))
    });
    told.collect()
}

fn look(trusted: &Trusted) -> Option<Finding> {
    let also: Vec<_> = trusted.also.into_iter().collect();
    let found = trust::path(&trusted.path, &also).err()?;
    Some(of(&trusted.what, &trusted.path, &found, trusted.is_word))
}

fn of(what: &str, path: &Path, found: &Unsafe, is_word: bool) -> Finding {
    let shown = path.display();
    let above = if found.at == path { String::new() } else { format!("{shown}: ") };
    let detail = format!("{above}{} {}", found.at.display(), found.why);
    let finding = if found.is_minor || is_word { Finding::warn(what, detail) } else { Finding::fail(what, detail) };
    finding.fix("run", &found.fix)
}

fn trusted(what: impl Into<String>, path: &Path) -> Trusted {
    Trusted { what: what.into(), path: path.to_owned(), also: None, is_word: false }
}

fn of_service(service: &Service) -> Vec<Trusted> {
    let mut all = Vec::new();
    let mut command = |key: &str, command: Option<&Command>, user: Option<&str>| {
        let what = format!("service.{}.{key}", service.name);
        all.extend(command.into_iter().flat_map(|command| of_command(&what, command, user.and_then(uid_of))));
    };
    let roll = &service.roll;
    command("roll.switch", roll.switch.as_ref(), roll.user.as_deref());
    command("roll.unswitch", roll.unswitch.as_ref(), roll.user.as_deref());
    if let Some(deploy) = &service.deploy {
        command("deploy.prepare", deploy.prepare.as_ref(), deploy.user.as_deref());
        if let Some(Gate::Command(gate)) = &deploy.gate {
            command("deploy.gate", Some(gate), deploy.user.as_deref());
        }
    }
    match &service.manager {
        Manager::Exec(exec) => {
            for (key, verb) in [("start", &exec.start), ("stop", &exec.stop), ("status", &exec.status)] {
                command(&format!("manager.{key}"), Some(verb), exec.user.as_deref());
            }
        }
        Manager::Builtin(builtin) => {
            command("manager.command", Some(&builtin.command), builtin.user.as_deref());
            let also = builtin.user.as_deref().and_then(uid_of);
            let what = format!("service.{}.manager.log", service.name);
            let logs = service.members().map(|at| log_of(builtin, &service.name, at));
            let folders: BTreeSet<_> = logs.filter_map(|log| Some(log.parent()?.to_owned())).collect();
            all.extend(folders.into_iter().map(|path| Trusted { also, ..trusted(what.clone(), &path) }));
        }
        Manager::Supervisord { .. } | Manager::Systemd { .. } => {}
    }
    all
}

/// Its program, and what else of its words is a file: a script that an interpreter runs.
fn of_command(what: &str, command: &Command, also: Option<u32>) -> Vec<Trusted> {
    let files = command.argv.iter().enumerate().filter_map(|(nth, word)| {
        let path = if nth == 0 && !word.contains('/') { in_path(word)? } else { PathBuf::from(word) };
        let is_file = path.is_absolute() && fs::metadata(&path).is_ok_and(|about| about.is_file());
        is_file.then_some(Trusted { what: what.to_owned(), path, also, is_word: nth > 0 })
    });
    files.collect()
}

fn in_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::{super::Level, *};

    #[test]
    fn what_another_user_could_change() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        ["state", "log"].iter().for_each(|name| fs::create_dir(at(name)).unwrap());
        ["run", "script"].iter().for_each(|name| fs::write(at(name), "").unwrap());
        let text = format!(
            "[daemon]\nstate = {:?}\nsocket = {:?}\n[service.web]\nworkers = \"127.0.0.1:8000\"\nmanager = {{ command = [\"sh\"], \
             log = {:?} }}\nroll.switch = [{:?}, {:?}, \"{{version}}\"]\n",
            at("state"),
            at("state/sock"),
            at("log/web.log"),
            at("run"),
            at("script"),
        );
        let config = Config::parse(Path::new("f"), &text).unwrap();
        let wrong = || -> Vec<_> { findings(&config).into_iter().map(|found| (found.what, found.level)).collect() };
        assert_eq!(wrong(), [("paths".to_owned(), Level::Ok)]);
        let service = |key: &str| format!("service.web.{key}");
        for (name, found) in [
            ("state", vec![("daemon.socket".to_owned(), Level::Fail), ("daemon.state".to_owned(), Level::Fail)]),
            ("log", vec![(service("manager.log"), Level::Fail)]),
            ("run", vec![(service("roll.switch"), Level::Fail)]),
            ("script", vec![(service("roll.switch"), Level::Warn)]),
        ] {
            let was = fs::metadata(at(name)).unwrap().permissions();
            fs::set_permissions(at(name), fs::Permissions::from_mode(0o777)).unwrap();
            assert_eq!(wrong(), found, "{name}");
            fs::set_permissions(at(name), was).unwrap();
        }
    }
}
