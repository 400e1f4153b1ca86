//! What is taken away from a roll.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer_tests::process::{run, send, suspend};
use deployer_tests::sandbox::{Place, unmount_below};
use rustix::process::Signal;

use crate::cell::Scene;

/// How long the disk hangs.
const HANGS: Duration = Duration::from_secs(5);
/// An answer that takes longer has waited for the disk.
const PROMPT: Duration = Duration::from_secs(2);

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    DaemonKilled,
    DaemonStandsStill,
    NoSpace,
    PinsUnmounted,
    CgroupDeleted,
    ManagerHangs,
    ManagerDies,
    StubbornWorker,
    NoDescriptors,
    DiskHangs,
}

impl Fault {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DaemonKilled => "kill -9 of the daemon",
            Self::DaemonStandsStill => "SIGSTOP of the daemon for 10 s",
            Self::NoSpace => "ENOSPC on the state",
            Self::PinsUnmounted => "bpffs unmounted",
            Self::CgroupDeleted => "the callers' cgroup deleted, and made anew",
            Self::ManagerHangs => "supervisord hangs",
            Self::ManagerDies => "kill -9 of supervisord",
            Self::StubbornWorker => "a worker ignores SIGTERM",
            Self::NoDescriptors => "no file descriptors left for 3 s",
            Self::DiskHangs => "the state's disk hangs for 5 s",
        }
    }

    /// Whether nothing else can be tried on the same scene afterwards.
    pub(crate) fn spoils(self) -> bool {
        matches!(self, Self::ManagerDies | Self::StubbornWorker)
    }

    /// Whether connections go unsteered for a moment, so that nginx may meet a closed port, and try the next.
    pub(crate) fn unsteers(self) -> bool {
        self == Self::CgroupDeleted
    }

    /// Does it; the roll waits at its failpoint.
    pub(crate) fn inflict(self, scene: &mut Scene<'_>) -> Result<()> {
        match self {
            Self::DaemonKilled => scene.succeed(),
            Self::DaemonStandsStill => {
                suspend(scene.daemon()?.pid())?;
                sleep(Duration::from_secs(10));
                send(scene.daemon()?.pid(), Signal::CONT)
            }
            Self::NoSpace => fill(scene),
            Self::PinsUnmounted => unmount_below(&scene.stage.sandbox.dir().join("bpf")),
            Self::CgroupDeleted => make_anew(scene),
            Self::ManagerHangs => suspend(scene.stage.supervisor.pid()),
            Self::ManagerDies => send(scene.stage.supervisor.pid(), Signal::KILL),
            Self::DiskHangs => scene.freeze(),
            // It has done so all the time.
            Self::StubbornWorker => Ok(()),
            Self::NoDescriptors => {
                let pid = scene.daemon()?.pid();
                let open = fs::read_dir(format!("/proc/{pid}/fd")).context("its descriptors")?.flatten();
                let open: BTreeSet<u32> = open.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
                // The lowest free number is the next to be given out: holes are not to be filled either.
                limit(pid, (0..).find(|number| !open.contains(number)).context("no number is free")?)
            }
        }
    }

    /// Whether the state is on a disk that can be made to hang.
    pub(crate) fn freezes(self) -> bool {
        self == Self::DiskHangs
    }

    /// Lets the roll have it back, after it has gone on.
    pub(crate) fn lift(self, scene: &mut Scene<'_>) -> Result<()> {
        match self {
            Self::NoDescriptors => {
                sleep(Duration::from_secs(3));
                limit(scene.daemon()?.pid(), 1024)
            }
            Self::DiskHangs => {
                let begun = Instant::now();
                while begun.elapsed() < HANGS {
                    let asked = Instant::now();
                    scene.stage.api().status().context("status, with a disk that hangs")?;
                    ensure!(asked.elapsed() < PROMPT, "status took {:?} with a disk that hangs", asked.elapsed());
                    sleep(Duration::from_millis(100));
                }
                scene.thaw();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Puts things right after the roll.
    pub(crate) fn mend(self, scene: &mut Scene<'_>) -> Result<()> {
        match self {
            Self::NoSpace => fs::remove_file(scene.state().join("filler")).context("make room"),
            Self::ManagerHangs => send(scene.stage.supervisor.pid(), Signal::CONT),
            _ => Ok(()),
        }
    }
}

/// Fills the state's file system to the last byte.
fn fill(scene: &Scene<'_>) -> Result<()> {
    let mut filler = fs::File::create(scene.state().join("filler")).context("the filler")?;
    let block = vec![0_u8; 4096];
    while filler.write_all(&block).is_ok() {}
    Ok(())
}

fn limit(pid: u32, descriptors: u32) -> Result<()> {
    let mut command = std::process::Command::new("prlimit");
    run(command.args(["--pid", &pid.to_string(), &format!("--nofile={descriptors}:1024")])).map(drop)
}

/// The load balancer is in another cgroup of the same name, as after a restart of its unit.
fn make_anew(scene: &Scene<'_>) -> Result<()> {
    let sandbox = scene.stage.sandbox;
    let (callers, outside) = (sandbox.cgroup(Place::Callers), sandbox.cgroup(Place::Outside));
    let procs = |dir: &std::path::Path| dir.join("cgroup.procs");
    let pids = sandbox.pids(Place::Callers)?;
    ensure!(!pids.is_empty(), "no load balancer");
    pids.iter().try_for_each(|pid| fs::write(procs(&outside), pid.to_string())).context("move nginx out")?;
    sandbox.remove_cgroup(Place::Callers)?;
    fs::create_dir(&callers).context("make the cgroup")?;
    pids.iter().try_for_each(|pid| fs::write(procs(&callers), pid.to_string())).context("move nginx back")
}
