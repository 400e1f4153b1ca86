//! One cell of the matrix, and the scene on which it is played.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer_tests::api::{Ending, Roll};
use deployer_tests::app::Fault as AppFault;
use deployer_tests::daemon::{Daemon, DeployerBin, ServiceConfig};
use deployer_tests::disk::{Disk, Frozen};
use deployer_tests::journal::Journal;
use deployer_tests::process::run;
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::stage::{PORTS, Slow, Stage};

use crate::fault::Fault;

/// The worker at which the roll is stopped.
const PORT: u16 = 8001;
/// The longest that a roll may take, whatever is done to it.
const LIMIT: &str = "120";

/// Workers, nginx, load, and a daemon.
pub(crate) struct Scene<'a> {
    /// First of all: it is thawed before the daemon is waited for.
    frozen: Option<Frozen>,
    pub(crate) stage: Stage<'a>,
    fault: Fault,
    daemon: Option<Daemon<'a>>,
    text: String,
    environment: Vec<(&'static str, String)>,
    cells: usize,
    disk: Option<Disk>,
}

impl<'a> Scene<'a> {
    pub(crate) fn set(sandbox: &'a Sandbox, fault: Fault) -> Result<Self> {
        let state = sandbox.dir().join("state");
        fs::create_dir_all(&state).context("make the state's directory")?;
        let disk = if fault.freezes() {
            Some(Disk::mount(sandbox, &state)?)
        } else {
            // Small, so that it is soon full.
            run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"]).arg(&state))?;
            None
        };
        let faults = if fault == Fault::StubbornWorker { &[(PORT, AppFault::Stubborn)][..] } else { &[] };
        let stage = Stage::faulty(sandbox, faults)?;
        Ok(Self {
            frozen: None,
            stage,
            fault,
            daemon: None,
            text: String::new(),
            environment: Vec::new(),
            cells: 0,
            disk,
        })
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.stage.sandbox.dir().join("state")
    }

    pub(crate) fn daemon(&mut self) -> Result<&mut Daemon<'a>> {
        self.daemon.as_mut().context("no daemon")
    }

    /// The state's disk hangs, until it is thawed or the scene ends.
    pub(crate) fn freeze(&mut self) -> Result<()> {
        let disk = self.disk.as_ref().context("the state is on no disk that can hang")?;
        self.frozen = Some(disk.freeze()?);
        Ok(())
    }

    pub(crate) fn thaw(&mut self) {
        self.frozen = None;
    }

    /// What the daemons have printed last.
    pub(crate) fn log(&self) -> String {
        let log = self.daemon.as_ref().map(Daemon::log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    fn start(&mut self) -> Result<()> {
        let bin = DeployerBin::find()?;
        self.daemon = Some(Daemon::start_with(self.stage.sandbox, bin, &self.text, &self.environment)?);
        Ok(())
    }

    /// Kills the daemon, and starts another.
    pub(crate) fn succeed(&mut self) -> Result<()> {
        self.daemon()?.process().kill()?;
        self.start()
    }

    /// Plays one cell: a roll that is stopped at `point`, and what the fault makes of it.
    pub(crate) fn cell(&mut self, point: &str) -> Result<Ending> {
        let current = self.stage.app.current_version()?;
        let target = if current == "v1" { "v2" } else { "v1" };
        let plot = Plot::of(point);
        self.configure(point, plot, &current)?;
        self.start()?;
        self.stage.all_up()?;
        let slow = plot.prepare(&self.stage, target, self.fault)?;
        let mut roll = self.roll(target)?;
        let dir = self.dir();
        let reached = self.stage.wait(Duration::from_secs(40), || Ok(dir.join("reached").exists()));
        if reached.is_err() {
            let end = roll.left()?;
            anyhow::bail!("{point} was never reached: {end:?} {:?}", roll.seen.last());
        }
        let fault = self.fault;
        fault.inflict(self)?;
        fs::write(dir.join("go"), "").context("let it go on")?;
        fault.lift(self)?;
        let end = roll.end()?;
        drop(slow.map(Slow::status));
        fault.mend(self)?;
        self.judge(&end, target)?;
        Ok(end)
    }

    fn dir(&self) -> PathBuf {
        self.stage.sandbox.dir().join(format!("cell-{}", self.cells))
    }

    fn configure(&mut self, point: &str, plot: Plot, current: &str) -> Result<()> {
        if let Some(daemon) = &mut self.daemon {
            daemon.stop()?;
        }
        self.cells += 1;
        let dir = self.dir();
        fs::create_dir(&dir).context("make the cell's directory")?;
        let at = if plot.is_of_a_worker(point) { format!("{point}@{PORT}") } else { point.to_owned() };
        self.environment = vec![("DEPLOYER_FAILPOINT", at), ("DEPLOYER_FAILPOINT_DIR", dir.display().to_string())];
        let config = ServiceConfig {
            on_failure: "rollback",
            unswitch_to: Some(current.to_owned()),
            deadline: if plot == Plot::Kept { "1s" } else { "60s" },
            warm_within: Duration::from_secs(8),
            ..ServiceConfig::default()
        };
        let (socket, callers) = (self.stage.supervisor.socket(), self.stage.sandbox.cgroup(Place::Callers));
        let root = self.stage.sandbox.root_cgroup();
        let text = self.stage.config(&config);
        let text = text.replace(&format!("{socket:?}"), &format!("{socket:?}, stop_within = \"3s\""));
        self.text = text.replace(
            &format!("[kernel]\ncallers = {root:?}"),
            &format!("[kernel]\nlease = \"5s\"\ncallers = {callers:?}"),
        );
        Ok(())
    }

    /// Followed by `deployer roll` itself, over whatever becomes of the daemon.
    fn roll(&mut self, to: &str) -> Result<Roll> {
        let command = self.daemon()?.cli_command(&["roll", "web", "--json", "--to", to]);
        let mut limited = Command::new("timeout");
        limited.arg(LIMIT).arg(command.get_program()).args(command.get_args());
        limited.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Roll::by(limited.spawn().context("start deployer roll")?)
    }

    /// Nothing failed, the end has a reason, and nobody is left out: another roll completes.
    fn judge(&mut self, end: &Ending, target: &str) -> Result<()> {
        self.stage.no_loss()?;
        ensure!(!end.text.is_empty(), "an end without a reason: {end:?}");
        ensure!(end.result != "done" || end.changed == PORTS.count() as u64, "done, but not all: {end:?}");
        ["v1", "v2"].iter().try_for_each(|version| self.stage.app.set_fault(version, PORT, None))?;
        if self.fault == Fault::ManagerDies {
            return self.settled();
        }
        // Who was told to end and has not ended yet is killed by supervisord after 10 s.
        if self.fault == Fault::StubbornWorker {
            std::thread::sleep(Duration::from_secs(11));
        }
        let again = self.roll(target)?.end()?;
        ensure!(again.result == "done", "{end:?}; and rolled again: {again:?}");
        self.stage.all_up()?;
        self.stage.all_serve()?;
        self.stage.no_loss()
    }

    /// Every worker serves, or has failed and says why.
    fn settled(&self) -> Result<()> {
        self.stage.wait(Duration::from_secs(40), || {
            let workers = self.stage.api().workers()?;
            let is_settled = |worker: &serde_json::Value| {
                worker["phase"] == "up" || worker["phase"] == "failed" && worker["reason"] != ""
            };
            Ok(workers.values().all(is_settled))
        })?;
        for (port, phase) in self.stage.api().phases()? {
            if phase == "up" {
                self.stage.serves(port)?;
            }
        }
        self.stage.no_loss()
    }

    /// Ends the load: nothing was sent twice, and nobody met a cold worker.
    pub(crate) fn end(self) -> Result<()> {
        let Self { stage, fault, daemon, .. } = self;
        let journal = stage.app.journal_dir();
        let report = stage.load.stop()?;
        let journal = Journal::read(&journal)?;
        let (doubled, cold) = (journal.doubled(), journal.cold().len());
        eprintln!("{} requests, {} failed, {} doubled, {cold} cold", report.requests, report.failed, doubled.len());
        ensure!(report.failed == 0, "{report}");
        // Unsteered, a request can reach a process that is being stopped at that moment; nginx sends it again.
        ensure!(fault.unsteers() || doubled.is_empty(), "{doubled:?} doubled; {report}");
        ensure!(fault.unsteers() || (cold == 0 && report.cold == 0), "{report}");
        drop(daemon);
        Ok(())
    }
}

/// What else has to happen so that a roll comes to a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plot {
    /// Nothing.
    Smooth,
    /// The new version of the worker does not come up; what was changed is rolled back.
    Fails,
    /// The worker is not empty in time, and is put back.
    Kept,
}

impl Plot {
    fn of(point: &str) -> Self {
        match point.split('.').next().unwrap_or_default() {
            "failing" | "failed" | "unswitch" => Self::Fails,
            "keeping" | "kept" => Self::Kept,
            _ => Self::Smooth,
        }
    }

    /// Whether each worker comes to it, so that one has to be chosen.
    fn is_of_a_worker(self, point: &str) -> bool {
        let of_the_roll = ["begun", "switch", "batch", "unswitch", "finish", "finished", "forgotten"];
        !of_the_roll.contains(&point.split('.').next().unwrap_or_default())
    }

    /// A request that must outlive the roll, if there has to be one.
    fn prepare(self, stage: &Stage<'_>, target: &str, fault: Fault) -> Result<Option<Slow>> {
        // Who is not steered for a moment meets what he dials: a closed port, then, and not one that answers 500.
        let broken = if fault.unsteers() { AppFault::Crash } else { AppFault::Status500 };
        match self {
            Self::Smooth => Ok(None),
            Self::Fails => stage.app.set_fault(target, PORT, Some(broken)).map(|()| None),
            Self::Kept => stage.slow(PORT, 10).map(Some),
        }
    }
}
