//! A process that uses Kazoo (tests/app/zoo.py).

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use deployer_tests::dial::PYTHON;
use deployer_tests::pace::patient;
use deployer_tests::process::{Process, suspend};
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::zookeeper::ZooKeeper as Servers;
use rustix::process::Signal;

use crate::scene::SOON;

pub(crate) struct Kazoo(Process);

impl Kazoo {
    /// Starts it; its session outlives its connection by so many seconds.
    pub(crate) fn start(sandbox: &Sandbox, servers: &Servers<'_>, seconds: u32, words: &[&str]) -> Result<Self> {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("app/zoo.py");
        let mut command = sandbox.command(Place::Outside, PYTHON);
        command.arg("-I").arg(script).arg(servers.connect()).arg(seconds.to_string()).args(words);
        let nth = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(Self(Process::start("Kazoo", command, &sandbox.dir().join(format!("kazoo{nth}.log")))?))
    }

    /// Whether it has printed this line so far.
    pub(crate) fn has_said(&self, word: &str) -> bool {
        self.0.log().lines().any(|line| line == word)
    }

    /// Waits until it has printed this line.
    pub(crate) async fn says(&mut self, word: &str) -> Result<()> {
        let deadline = Instant::now() + patient(SOON);
        while !self.has_said(word) {
            if Instant::now() >= deadline {
                bail!("it does not say {word}: {}", self.0.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Has it go on to its next step.
    pub(crate) fn go_on(&mut self) -> Result<()> {
        self.0.signal(Signal::USR1)
    }

    /// Everything it has printed.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.log().lines().map(str::to_owned).collect()
    }

    pub(crate) fn suspend(&self) -> Result<()> {
        suspend(self.0.pid())
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.0.kill().map(drop)
    }
}
