//! What becomes a worker: this program, run again as `deployer launch`, which puts itself into the worker's cgroup,
//! takes its user, and executes its command.
//!
//! All this happens in a process of its own, and not between fork and exec, where only few calls are safe: so it
//! needs no unsafe code. The plan comes by standard input rather than as arguments, which everybody may read in
//! `/proc`. Standard output is a pipe to the daemon: a [`Report`] in it is what failed, and its end without one says
//! that the command runs, since the pipe is closed by the exec.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{
    fs::Mode,
    process::{setsid, umask},
    thread::{Gid, Uid, clear_ambient_capability_set, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};
use serde::{Deserialize, Serialize};

use super::account::Identity;

/// What to start, and how.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    /// The worker's cgroup.
    pub(super) cgroup: PathBuf,
    /// Whose it is; `None`: the daemon's user.
    pub(super) identity: Option<Identity>,
    pub(super) directory: PathBuf,
    pub(super) argv: Vec<String>,
    /// All of it.
    pub(super) environment: BTreeMap<String, String>,
    pub(super) log: PathBuf,
}

/// What failed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Report {
    /// "run /usr/bin/python3"
    pub(super) tried: String,
    /// The system's error number, if it is one of the system's.
    pub(super) errno: Option<i32>,
    /// What the error says.
    pub(super) said: String,
}

impl Report {
    fn of(tried: impl Into<String>, error: &io::Error) -> Self {
        Self { tried: tried.into(), errno: error.raw_os_error(), said: error.to_string() }
    }
}

/// The verb: reads a plan and becomes the worker. Returns only when that failed, and has said why. To be called before
/// there is any other thread: who becomes another user does so for one thread only.
pub fn main() {
    let report = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    let Err(failed) = io::read_to_string(io::stdin().lock())
        .map_err(|error| Report::of("read what to launch from standard input", &error))
        .and_then(|text| {
            serde_json::from_str(&text)
                .map_err(|error| Report::of("read what to launch from standard input", &io::Error::other(error)))
        })
        .and_then(|plan: Plan| become_it(&plan));
    // Where nobody listens, nobody needs to know.
    let _ = serde_json::to_vec(&failed).map_err(io::Error::other).and_then(|text| report?.write_all(&text));
}

fn become_it(plan: &Plan) -> Result<Infallible, Report> {
    let failed = |tried: String| move |error: io::Error| Report::of(tried, &error);
    let procs = plan.cgroup.join("cgroup.procs");
    enter(&procs).map_err(failed(format!("enter the cgroup by {}", procs.display())))?;
    // A session of its own: it gets no signal meant for the daemon's terminal, and is told from its children by it.
    setsid().map_err(|error| Report::of("begin a session", &error.into()))?;
    umask(Mode::WGRP | Mode::WOTH);
    let out = open_log(&plan.log).map_err(failed(format!("open the log {}", plan.log.display())))?;
    let errors = out.try_clone().map_err(failed("share the log".to_owned()))?;
    if let Some(identity) = &plan.identity {
        take(identity).map_err(failed(format!("become {identity}")))?;
    }
    // A daemon that is not root may hold its privileges in a way that an exec passes on.
    clear_ambient_capability_set().map_err(|error| Report::of("drop privileges", &error.into()))?;
    let directory = plan.directory.display();
    std::env::set_current_dir(&plan.directory).map_err(failed(format!("go to the directory {directory}")))?;
    let Some((program, arguments)) = plan.argv.split_first() else {
        return Err(Report::of("run a command without words", &io::ErrorKind::InvalidInput.into()));
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(&plan.environment);
    let error = command.stdin(Stdio::null()).stdout(out).stderr(errors).exec();
    Err(Report::of(format!("run {program}"), &error))
}

/// 0 stands for who writes it (cgroups(7)). Never makes a file, where there is no cgroup.
fn enter(procs: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(procs)?.write_all(b"0")
}

/// Appends, so that the file can be cut short under it. Never by a link: its directory may be the worker's own.
fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// The groups first, as only root may change them. These calls are for one thread.
fn take(identity: &Identity) -> io::Result<()> {
    let groups: Vec<_> = identity.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    let (gid, uid) = (Gid::from_raw(identity.gid), Uid::from_raw(identity.uid));
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    Ok(set_thread_res_uid(uid, uid, uid)?)
}
