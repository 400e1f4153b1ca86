//! Processes that a test started, ended by their own id when their owner is dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::pace::patient;

/// A started process with a log file; told to end, and reaped, when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with no input; standard output and errors are appended to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let open = || File::options().create(true).append(true).open(log);
        let out = open().with_context(|| format!("open {}", log.display()))?;
        let errors = out.try_clone().context("share the log file")?;
        let child =
            command.stdin(Stdio::null()).stdout(out).stderr(errors).spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { child, name: name.to_owned(), log: log.to_owned() })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if the process has ended.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("wait for a process")
    }

    /// Sends a signal, unless the process has already been reaped.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.exited()?.is_none() {
            send(self.pid(), signal)?;
        }
        Ok(())
    }

    /// Waits for the end; `None` when it did not come in time.
    pub fn wait_for(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.exited()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM, then waits; SIGKILL after `limit`, or longer on a slow machine, which is an error.
    pub fn stop(&mut self, limit: Duration) -> Result<ExitStatus> {
        let limit = patient(limit);
        self.signal(Signal::TERM)?;
        if let Some(status) = self.wait_for(limit)? {
            return Ok(status);
        }
        self.kill()?;
        bail!("{} did not end {limit:?} after SIGTERM", self.name)
    }

    /// SIGKILL, and reaps.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.child.wait().context("wait for a killed process")
    }

    /// Tries `ready` every few milliseconds until `limit`, or longer on a slow machine. An early exit and a timeout are
    /// errors that carry the end of the log.
    pub fn wait_ready(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let limit = patient(limit);
        let deadline = Instant::now() + limit;
        while !ready() {
            if let Some(status) = self.exited()? {
                bail!("{} ended ({status}):\n{}", self.name, self.log_tail());
            }
            if Instant::now() >= deadline {
                bail!("{} not ready after {limit:?}:\n{}", self.name, self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Everything written to the log so far.
    pub fn log(&self) -> String {
        fs::read(&self.log).map_or_else(
            |error| format!("({}: {error})", self.log.display()),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing useful can be done about an error here; the sandbox kills by cgroup what is left.
        if self.stop(Duration::from_secs(3)).is_err() {
            self.kill().ok();
        }
    }
}

/// Sends `signal` to the process `pid`.
pub fn send(pid: u32, signal: Signal) -> Result<()> {
    let raw = i32::try_from(pid).context("process id out of range")?;
    let pid = Pid::from_raw(raw).context("process id 0")?;
    kill_process(pid, signal).with_context(|| format!("send {signal:?} to {raw}"))
}

/// Stops a process (SIGSTOP), and waits until it stands still: until then, a signal sent later may be acted on first.
pub fn suspend(pid: u32) -> Result<()> {
    send(pid, Signal::STOP)?;
    let deadline = Instant::now() + patient(Duration::from_secs(10));
    while !stands_still(pid)? {
        if Instant::now() >= deadline {
            bail!("process {pid} does not stand still");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Whether every thread of a process is stopped.
fn stands_still(pid: u32) -> Result<bool> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("threads of {pid}"))?;
    for thread in threads {
        let stat = fs::read_to_string(thread?.path().join("stat")).context("state of a thread")?;
        // The name, in parentheses, may hold anything; the state follows it.
        if !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Runs a command to its end; anything but success is an error with what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {printed}{errors}", output.status);
    }
    Ok(printed)
}
