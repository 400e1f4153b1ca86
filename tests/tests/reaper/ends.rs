//! Workers and callers of kept-alive connections (tests/app/kept.py), and the reaper between them.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use deployer::kernel::Pair;
use deployer::kernel::reaper::{Answer, Ground, Reaper};
use deployer_tests::dial::PYTHON;
use deployer_tests::process::Process;
use deployer_tests::sandbox::{Place, Sandbox};

/// Where the worker of a test listens.
pub(crate) const PORT: u16 = 8000;
const LIMIT: Duration = Duration::from_secs(20);

/// A worker that answers by line.
pub(crate) struct Worker(Process);

impl Worker {
    pub(crate) fn start(sandbox: &Sandbox, address: &str) -> Result<Self> {
        let mut process = start(sandbox, Place::Workers, &["worker", address])?;
        wait(&mut process, "ready")?;
        Ok(Self(process))
    }

    /// The sequence numbers after what it has received and sent on a connection, when it has been asked so often.
    pub(crate) fn told(&mut self, caller: &Caller, times: usize) -> Result<(u32, u32)> {
        let head = format!("told {} ", caller.pair.caller.port());
        let mut told = Vec::new();
        let log = &self.0;
        until(|| {
            told = log.log().lines().filter_map(|line| line.strip_prefix(&head)).map(str::to_owned).collect();
            told.len() >= times
        })?;
        let (asked, answered) = told[times - 1].split_once(' ').context("two numbers")?;
        Ok((asked.parse()?, answered.parse()?))
    }

    /// Waits until a connection has been reset, as the worker sees it.
    pub(crate) fn wait_reset(&mut self, caller: &Caller) -> Result<()> {
        wait(&mut self.0, &format!("reset {}", caller.pair.caller.port()))
    }

    /// Whether it has seen a connection end, one way or the other.
    pub(crate) fn has_lost(&self, caller: &Caller) -> bool {
        let port = caller.pair.caller.port();
        self.0.log().lines().any(|line| line == format!("reset {port}") || line == format!("ended {port}"))
    }
}

/// A caller that has asked and been answered, and now waits in one way or another.
pub(crate) struct Caller {
    process: Process,
    pub(crate) pair: Pair,
}

impl Caller {
    pub(crate) fn start(sandbox: &Sandbox, address: &str, how: &str) -> Result<Self> {
        let mut process = start(sandbox, Place::Callers, &["caller", address, how])?;
        wait(&mut process, "ready")?;
        let log = process.log();
        let port = log.lines().find_map(|line| line.strip_prefix("port ")).context("no port")?.parse()?;
        let ip: IpAddr = address.parse()?;
        let pair = Pair { caller: SocketAddr::new(ip, port), worker: SocketAddr::new(ip, PORT) };
        Ok(Self { process, pair })
    }

    /// The error that it was told of by `epoll_wait`.
    pub(crate) fn error(&mut self) -> Result<i32> {
        until(|| self.process.log().contains("error "))?;
        let log = self.process.log();
        Ok(log.lines().find_map(|line| line.strip_prefix("error ")).context("no error")?.parse()?)
    }
}

/// The reaper in a sandbox.
pub(crate) struct Scythe<'a> {
    sandbox: &'a Sandbox,
    pub(crate) reaper: Reaper,
}

impl<'a> Scythe<'a> {
    pub(crate) fn new(sandbox: &'a Sandbox) -> Result<Self> {
        Ok(Self { sandbox, reaper: sandbox.in_netns(Reaper::load)?? })
    }

    pub(crate) fn aim(&self, caller: &Caller, ground: Ground) -> Result<()> {
        Ok(self.reaper.aim(caller.pair, ground)?)
    }

    /// Strikes once; says what came of one caller's connection.
    pub(crate) fn strike(&self, caller: &Caller) -> Result<Answer> {
        let answers = self.sandbox.in_netns(|| self.reaper.strike())??;
        let found = answers.iter().find(|(pair, _)| pair.caller.port() == caller.pair.caller.port());
        Ok(found.with_context(|| format!("{} is not in {answers:?}", caller.pair))?.1)
    }

    /// Strikes until the answer is the one that is expected; before that, the connection may not be closed.
    pub(crate) fn strike_until(&self, caller: &Caller, expected: Answer) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let answer = self.strike(caller)?;
            if answer == expected {
                return Ok(());
            }
            if answer == Answer::Closed || Instant::now() > deadline {
                bail!("{}: {answer} instead of {expected}", caller.pair);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn start(sandbox: &Sandbox, place: Place, args: &[&str]) -> Result<Process> {
    let script = sandbox.dir().join("kept.py");
    fs::write(&script, include_str!("../../app/kept.py")).context("write kept.py")?;
    let mut command = sandbox.command(place, PYTHON);
    command.arg("-s").arg("-S").arg(&script).args(&args[..2]).arg(PORT.to_string()).args(&args[2..]);
    let name = args.join("-").replace([':', '.'], "_");
    Process::start(&name, command, &sandbox.dir().join(format!("{name}-{}.log", number())))
}

fn number() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    NUMBER.fetch_add(1, Relaxed)
}

fn wait(process: &mut Process, line: &str) -> Result<()> {
    let mut seen = String::new();
    let log = process.log();
    if log.lines().any(|found| found == line) {
        return Ok(());
    }
    let deadline = Instant::now() + LIMIT;
    while !seen.lines().any(|found| found == line) {
        if let Some(status) = process.exited()? {
            bail!("ended ({status}) before it said {line:?}: {}", process.log_tail());
        }
        if Instant::now() > deadline {
            bail!("has not said {line:?}: {}", process.log_tail());
        }
        std::thread::sleep(Duration::from_millis(5));
        seen = process.log();
    }
    Ok(())
}

fn until(mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        if Instant::now() > deadline {
            bail!("not within {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
