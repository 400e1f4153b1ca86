//! Whether the programs are there, and can be run, that a process manager's commands name.

use std::{
    env, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access};

use super::Finding;
use crate::{
    config::{Builtin, Command, Service, filled},
    launch::account::PATH,
};

/// Longest first line of a script that the kernel reads (`BINPRM_BUF_SIZE`, include/uapi/linux/binfmts.h).
const FIRST_LINE: u64 = 256;

/// The built-in manager's command. A release that is not there yet may bring it.
pub(super) fn of_worker(what: String, service: &Service, builtin: &Builtin) -> Finding {
    let path = builtin.environment.get("PATH").map_or(PATH, String::as_str);
    finding(what, service, &builtin.command, path)
}

/// A command of `manager = { start, stop, status }`.
pub(super) fn of_manager(what: String, service: &Service, command: &Command) -> Finding {
    finding(what, service, command, PATH)
}

fn finding(what: String, service: &Service, command: &Command, path: &str) -> Finding {
    let written = command.argv.first().map(String::as_str).unwrap_or_default();
    let program = service.workers.first().map_or_else(|| written.to_owned(), |at| filled(written, &service.name, *at));
    if program.contains('{') {
        return Finding::ok(what, format!("{program} depends on the worker"));
    }
    let found = if program.contains('/') { Some(PathBuf::from(&program)) } else { in_path(&program, path) };
    let Some(found) = found else {
        return Finding::warn(what, format!("there is no {program} in PATH ({path}); it cannot be run"))
            .fix("write", "its whole path");
    };
    let shown = found.display();
    match runs(&found) {
        Ok(()) => Finding::ok(what, format!("{shown} is there")),
        Err(why) => Finding::warn(what, format!("{shown}: {why}; it cannot be run"))
            .fix("do", "put a program there that can be run, or correct the command"),
    }
}

fn in_path(program: &str, path: &str) -> Option<PathBuf> {
    env::split_paths(path).map(|directory| directory.join(program)).find(|path| path.is_file())
}

/// Whether the kernel would run it.
fn runs(program: &Path) -> Result<(), String> {
    let told = |error: io::Error| error.to_string();
    if fs::metadata(program).map_err(told)?.is_dir() {
        return Err("it is a directory".to_owned());
    }
    access(program, Access::EXEC_OK).map_err(|error| told(error.into()))?;
    match interpreter(program) {
        Some(interpreter) if !interpreter.exists() => {
            Err(format!("its first line names {}, which is not there", interpreter.display()))
        }
        _ => Ok(()),
    }
}

/// What the first line of a script names; `None`: it is no script, or may not be read.
fn interpreter(program: &Path) -> Option<PathBuf> {
    let mut start = Vec::new();
    fs::File::open(program).ok()?.take(FIRST_LINE).read_to_end(&mut start).ok()?;
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let word = String::from_utf8_lossy(line).split_whitespace().next()?.to_owned();
    Some(PathBuf::from(word)).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use std::{error::Error, os::unix::fs::PermissionsExt};

    use super::{super::Level, *};
    use crate::config::{Config, Manager};

    fn of(command: &str) -> Result<Finding, Box<dyn Error>> {
        let text = format!(
            "[service.web]\nworkers = \"127.0.0.1:8000\"\nmanager = {{ command = [{command:?}, \"{{port}}\"] }}\n"
        );
        let config = Config::parse(Path::new("test.toml"), &text)?;
        let service = &config.services["web"];
        let Manager::Builtin(builtin) = &service.manager else { return Err("another manager".into()) };
        Ok(of_worker("x".to_owned(), service, builtin))
    }

    #[test]
    fn a_program_must_be_there_and_run() -> Result<(), Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        let folder = folder.path();
        let script = |name: &str, text: &str, mode| {
            let path = folder.join(name);
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
        };
        script("fine", "#!/bin/sh\n", 0o755)?;
        script("app-8000", "#! /bin/sh -e\n", 0o755)?;
        script("plain", "#!/bin/sh\n", 0o644)?;
        script("lost", "#!/nonexistent/python -s\n", 0o755)?;
        let at = |name: &str| folder.join(name).display().to_string();
        for command in ["/bin/sh", "sh", &at("fine"), &at("app-{port}")] {
            let found = of(command)?;
            assert_eq!(found.level, Level::Ok, "{command}: {found}");
        }
        for (command, why) in [
            (at("gone"), "No such file"),
            (at("app-{address}"), "No such file"),
            (at("plain"), "ermission denied"),
            (folder.display().to_string(), "is a directory"),
            (at("lost"), "/nonexistent/python, which is not there"),
            ("nonexistent-program".to_owned(), "no nonexistent-program in PATH"),
        ] {
            let found = of(&command)?;
            assert!(found.level == Level::Warn && found.detail.contains(why), "{command}: {found}");
        }
        Ok(())
    }
}
