//! The test app on disk: releases, the `current` link, faults of single workers, the journals' directory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::sandbox::Sandbox;

/// What is wrong with one worker of one release, from its next start on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Ends at once, so that supervisord gives up on it (FATAL).
    Crash,
    /// Ends after its import, again and again: supervisord has counted it as started by then.
    CrashLate,
    /// Lives, and never listens.
    Hang,
    /// Answers every request with status 500.
    Status500,
    /// Listens on its port + 1000.
    WrongPort,
    /// Says that it is v1.
    OldVersion,
    /// Listens 8 s late.
    SlowStart,
    /// Ignores SIGTERM.
    Stubborn,
}

impl Fault {
    fn word(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::CrashLate => "crash-late",
            Self::Hang => "hang",
            Self::Status500 => "500",
            Self::WrongPort => "wrong-port",
            Self::OldVersion => "old-version",
            Self::SlowStart => "slow-start",
            Self::Stubborn => "stubborn",
        }
    }
}

/// The app's directory.
#[derive(Clone, Debug)]
pub struct App {
    dir: PathBuf,
}

impl App {
    /// Writes the worker and its releases; the first version is current.
    pub fn new(sandbox: &Sandbox, versions: &[&str]) -> Result<Self> {
        let app = Self { dir: sandbox.dir().join("app") };
        fs::create_dir_all(app.journal_dir()).context("make the app's directory")?;
        fs::write(app.worker(), include_str!("../app/worker.py")).context("write worker.py")?;
        fs::write(app.prefork(), include_str!("../app/prefork.py")).context("write prefork.py")?;
        fs::write(app.fast(), include_str!("../app/fast.py")).context("write fast.py")?;
        fs::write(app.pages(), include_str!("../app/pages.py")).context("write pages.py")?;
        fs::write(app.dir.join("streams.py"), include_str!("../app/streams.py")).context("write streams.py")?;
        for version in versions {
            let release = app.release(version);
            fs::create_dir_all(&release).context("make a release")?;
            fs::write(release.join("VERSION"), version).context("write VERSION")?;
        }
        let first = versions.first().context("an app needs a version")?;
        app.switch(first)?;
        Ok(app)
    }

    /// The app's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The worker's script.
    pub fn worker(&self) -> PathBuf {
        self.dir.join("worker.py")
    }

    /// The script of a worker that has children.
    pub fn prefork(&self) -> PathBuf {
        self.dir.join("prefork.py")
    }

    /// The script of a worker that answers at once.
    pub fn fast(&self) -> PathBuf {
        self.dir.join("fast.py")
    }

    /// The script of a worker whose pages ask for more ([`crate::pages`]).
    pub fn pages(&self) -> PathBuf {
        self.dir.join("pages.py")
    }

    /// Where the workers write their journals.
    pub fn journal_dir(&self) -> PathBuf {
        self.dir.join("journal")
    }

    fn release(&self, version: &str) -> PathBuf {
        self.dir.join("releases").join(version)
    }

    /// Gives the worker on `port` a fault whenever it runs `version`; `None` takes it away.
    pub fn set_fault(&self, version: &str, port: u16, fault: Option<Fault>) -> Result<()> {
        let path = self.release(version).join("faults.json");
        let mut faults: BTreeMap<String, String> = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).context("read faults.json")?,
            Err(_) => BTreeMap::new(),
        };
        match fault {
            Some(fault) => faults.insert(port.to_string(), fault.word().to_owned()),
            None => faults.remove(&port.to_string()),
        };
        fs::write(&path, serde_json::to_vec(&faults)?).context("write faults.json")
    }

    /// The version that `current` names: what a worker that starts now will run.
    pub fn current_version(&self) -> Result<String> {
        let text = fs::read_to_string(self.dir.join("current/VERSION")).context("current")?;
        Ok(text.trim().to_owned())
    }

    /// Points `current` at a version.
    pub fn switch(&self, version: &str) -> Result<()> {
        let (new, current) = (self.dir.join("current.new"), self.dir.join("current"));
        symlink(Path::new("releases").join(version), &new).context("make a link")?;
        fs::rename(new, current).context("switch current")
    }

    /// The roll's `switch` command; `{version}` is the daemon's to fill in.
    pub fn switch_command(&self) -> [String; 4] {
        let current = self.dir.join("current").display().to_string();
        ["ln", "-sfn", "releases/{version}", &current].map(str::to_owned)
    }
}
