//! What becomes a worker, or a command of the operator: this program, run again as `deployer launch`, which puts itself
//! into a cgroup, takes a user, and executes a program.
//!
//! All this happens in a process of its own, and not between fork and exec, where only few calls are safe: so it
//! needs no unsafe code. Standard input is a socket to the daemon. The plan comes by it rather than as arguments, which
//! every process may read in `/proc`. A [`Report`] that goes back says what failed; the socket's end without one says
//! that the program runs, since the exec closes it.

pub(crate) mod account;
mod ask;
pub(crate) mod folder;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{
    fs::Mode,
    process::{setsid, umask},
    thread::{Gid, Uid, clear_ambient_capability_set, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};
use serde::{Deserialize, Serialize};

pub(crate) use self::ask::{AskError, Streams, ask};
use self::{account::Identity, folder::Folder};

/// This program, also when its file has been replaced since.
pub const THIS_PROGRAM: &str = "/proc/self/exe";

/// What to start, and how.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The cgroup to enter; `None`: it stays in the daemon's.
    pub(crate) cgroup: Option<PathBuf>,
    /// Whose process it is; `None`: the daemon's user.
    pub(crate) identity: Option<Identity>,
    pub(crate) directory: PathBuf,
    pub(crate) argv: Vec<String>,
    /// All of it.
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) output: Output,
}

/// Where standard output and standard error go.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Output {
    /// To the end of this file.
    Log(PathBuf),
    /// Where those of the launcher go.
    Inherited,
}

/// What failed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// "run /usr/bin/python3"
    pub(crate) tried: String,
    /// The system's error number, if it is one of the system's.
    pub(crate) errno: Option<i32>,
    /// What the error says.
    pub(crate) said: String,
}

impl Report {
    fn of(tried: impl Into<String>, error: &io::Error) -> Self {
        Self { tried: tried.into(), errno: error.raw_os_error(), said: error.to_string() }
    }

    /// The error.
    pub(crate) fn error(&self) -> io::Error {
        self.errno.map_or_else(|| io::Error::other(self.said.clone()), io::Error::from_raw_os_error)
    }
}

/// The verb: reads a plan and becomes the program. Returns only when that failed, and has said why. To be called before
/// there is any other thread: what becomes another user does so for one thread only.
pub fn main() {
    let report = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let Err(failed) = io::read_to_string(io::stdin().lock())
        .map_err(|error| Report::of("read what to launch from standard input", &error))
        .and_then(|text| {
            serde_json::from_str(&text)
                .map_err(|error| Report::of("read what to launch from standard input", &io::Error::other(error)))
        })
        .and_then(|plan: Plan| become_it(&plan));
    // Where no daemon listens any more, none needs to know.
    let _ = serde_json::to_vec(&failed).map_err(io::Error::other).and_then(|text| report?.write_all(&text));
}

fn become_it(plan: &Plan) -> Result<Infallible, Report> {
    let failed = |tried: String| move |error: io::Error| Report::of(tried, &error);
    if let Some(cgroup) = &plan.cgroup {
        let procs = cgroup.join("cgroup.procs");
        enter(&procs).map_err(failed(format!("enter the cgroup by {}", procs.display())))?;
    }
    // A session of its own: it gets no signal meant for the daemon's terminal, and is told from its children by it.
    setsid().map_err(|error| Report::of("begin a session", &error.into()))?;
    umask(Mode::WGRP | Mode::WOTH);
    let out = identify(plan)?;
    // A daemon that is not root may hold its privileges in a way that an exec passes on.
    clear_ambient_capability_set().map_err(|error| Report::of("drop privileges", &error.into()))?;
    let directory = plan.directory.display();
    std::env::set_current_dir(&plan.directory).map_err(failed(format!("go to the directory {directory}")))?;
    let Some((program, arguments)) = plan.argv.split_first() else {
        return Err(Report::of("run a command without words", &io::ErrorKind::InvalidInput.into()));
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(&plan.environment).stdin(Stdio::null());
    if let Some(out) = out {
        let errors = out.try_clone().map_err(failed("share the log".to_owned()))?;
        command.stdout(out).stderr(errors);
    }
    Err(Report::of(format!("run {program}"), &command.exec()))
}

/// Takes the user, and opens the log: as that user, but in a folder that only this process's user may change. There the
/// user could not make a file.
fn identify(plan: &Plan) -> Result<Option<File>, Report> {
    let take = || match &plan.identity {
        Some(identity) => take(identity).map_err(|error| Report::of(format!("become {identity}"), &error)),
        None => Ok(()),
    };
    let Output::Log(path) = &plan.output else { return take().map(|()| None) };
    let failed = |error: io::Error| Report::of(format!("open the log {}", path.display()), &error);
    let (folder, name) = Folder::of(path).map_err(failed)?;
    if folder.is_own() {
        let log = folder.append(&name, plan.identity.as_ref()).map_err(failed)?;
        return take().map(|()| Some(log));
    }
    take()?;
    folder.append(&name, None).map(Some).map_err(failed)
}

/// 0 stands for the process that writes it (cgroups(7)). Never makes a file, where there is no cgroup.
fn enter(procs: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(procs)?.write_all(b"0")
}

/// The groups first, as only root may change them. These calls are for one thread.
fn take(identity: &Identity) -> io::Result<()> {
    let groups: Vec<_> = identity.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    let (gid, uid) = (Gid::from_raw(identity.gid), Uid::from_raw(identity.uid));
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    Ok(set_thread_res_uid(uid, uid, uid)?)
}
