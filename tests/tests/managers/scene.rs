//! A manager with small workers, in a sandbox.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use deployer::workers::{ProcessManager, ProcessPhase, ProcessStatus};
use deployer_tests::{process::send, sandbox::Sandbox};
use rustix::process::Signal;
use tokio::{io::AsyncReadExt, net::TcpStream, time::sleep};

/// The workers' ports.
pub(crate) const PORTS: std::ops::RangeInclusive<u16> = 8000..=8003;
/// Given to everything that should happen soon: a slow machine, with others at work.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// Within which a worker that does not end is to be given up; each command of a manager must end within it, too.
pub(crate) const STOP_WITHIN: Duration = Duration::from_secs(5);

/// What a manager needs around it: its daemon, its scripts.
pub(crate) trait Fixture: Sized + Send + Sync {
    /// Whether it starts a worker again that has ended unasked.
    const RESTARTS: bool;
    /// Whether it kills a worker that does not end.
    const KILLS: bool;

    /// Has workers on [`PORTS`], none of them running, that run `worker PORT DIRECTORY`; [`STOP_WITHIN`] is their time
    /// to end.
    fn new(sandbox: &Sandbox, worker: &[String], directory: &Path) -> Result<Self>;

    /// A manager object. Called in the sandbox's network namespace and a tokio runtime, any number of times.
    fn manager(&self) -> Result<Box<dyn ProcessManager>>;
}

/// A manager, and workers that do not run yet.
pub(crate) struct Scene<'a, F> {
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) fixture: F,
    pub(crate) manager: Box<dyn ProcessManager>,
    directory: PathBuf,
}

/// Plays a case.
pub(crate) fn play<F: Fixture>(case: impl AsyncFnOnce(&mut Scene<'_, F>) -> Result<()> + Send) -> Result<()> {
    let sandbox = Sandbox::new("mgr")?;
    let directory = sandbox.dir().join("workers");
    fs::create_dir(&directory)?;
    let program = directory.join("managed.py");
    fs::write(&program, include_str!("../../app/managed.py"))?;
    let words = ["/usr/bin/python3".to_owned(), "-sE".to_owned(), program.display().to_string()];
    let fixture = F::new(&sandbox, &words, &directory)?;
    // One thread: what is started by it is in its network namespace.
    sandbox.in_netns(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let manager = fixture.manager()?;
            case(&mut Scene { sandbox: &sandbox, fixture, manager, directory }).await
        })
    })?
}

/// A worker's address.
pub(crate) fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

impl<F: Fixture> Scene<'_, F> {
    /// Gives a worker a fault from its next start on; an empty one takes it away.
    pub(crate) fn fault(&self, port: u16, fault: &str) -> Result<()> {
        Ok(fs::write(self.directory.join(format!("{port}.fault")), fault)?)
    }

    /// Another manager object in place of the one there is, which is gone then.
    pub(crate) fn replace_manager(&mut self) -> Result<()> {
        self.manager = self.fixture.manager()?;
        Ok(())
    }

    pub(crate) async fn status(&self, port: u16) -> Result<ProcessStatus> {
        Ok(self.manager.status(at(port)).await?)
    }

    /// The process id with which a worker answers, if it does.
    pub(crate) async fn answer(&self, port: u16) -> Option<u32> {
        let mut text = String::new();
        TcpStream::connect(at(port)).await.ok()?.read_to_string(&mut text).await.ok()?;
        text.trim().parse().ok()
    }

    /// Waits until a worker answers, as another process than `not`; its process id.
    pub(crate) async fn answers(&self, port: u16, not: Option<u32>) -> Result<u32> {
        let begun = Instant::now();
        loop {
            if let Some(pid) = self.answer(port).await
                && Some(pid) != not
            {
                return Ok(pid);
            }
            ensure!(begun.elapsed() < SOON, "{port} does not answer: {:?}", self.status(port).await);
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts a worker and waits until it answers; its process id, which the manager knows, too.
    pub(crate) async fn up(&self, port: u16) -> Result<u32> {
        self.manager.start(at(port)).await?;
        let pid = self.answers(port, None).await?;
        let status = self.status(port).await?;
        ensure!(status.pid == Some(pid), "{port} answers as {pid}: {status:?}");
        Ok(pid)
    }

    /// Waits until the manager says this of a worker.
    pub(crate) async fn until(&self, port: u16, phase: ProcessPhase) -> Result<ProcessStatus> {
        let begun = Instant::now();
        loop {
            let status = self.status(port).await?;
            if status.phase == phase {
                return Ok(status);
            }
            if begun.elapsed() >= SOON {
                bail!("{port} is not {phase} but {status:?}");
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// A worker that nobody starts again: it stays stopped for a while.
    pub(crate) async fn stays_stopped(&self, port: u16) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            let status = self.status(port).await?;
            ensure!(status.phase == ProcessPhase::Stopped && status.pid.is_none(), "{port}: {status:?}");
            ensure!(self.answer(port).await.is_none(), "{port} answers");
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

/// SIGKILL, and waits for the end.
pub(crate) async fn kill(pid: u32) -> Result<()> {
    send(pid, Signal::KILL)?;
    let begun = Instant::now();
    while is_alive(pid) {
        ensure!(begun.elapsed() < SOON, "{pid} does not end");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Whether a process runs; a zombie does not.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// What `/proc/PID/FILE` says.
pub(crate) fn proc(pid: u32, file: &str) -> Result<String> {
    let bytes = fs::read(format!("/proc/{pid}/{file}")).with_context(|| format!("{file} of {pid}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
