//! Connections of TLS: status names them, and `quiet_after` closes those that are quiet.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer_tests::api::Api;
use deployer_tests::daemon::Daemon;
use deployer_tests::process::Process;
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::tls::{self, Caller, Certificate};

use crate::scene::all_up;

const SOON: Duration = Duration::from_secs(20);

struct Stage<'a> {
    sandbox: &'a Sandbox,
    daemon: Daemon<'a>,
    _workers: Vec<Process>,
}

impl<'a> Stage<'a> {
    /// Two workers of TLS that no manager of the daemon's restarts, and a daemon with this `drain`.
    fn new(sandbox: &'a Sandbox, drain: &str) -> Result<Self> {
        let own = Certificate::new(sandbox.dir(), "own", "IP:127.0.0.1", 2)?;
        let words: Vec<String> = serde_json::from_str(&tls::worker(sandbox, Some(&own))?)?;
        let mut workers = Vec::new();
        for port in ["8000", "8001"] {
            let mut command = sandbox.command(Place::Workers, &words[0]);
            command.args(words[1..].iter().map(|word| word.replace("{address}", "127.0.0.1").replace("{port}", port)));
            let log = sandbox.dir().join(format!("worker-{port}.log"));
            let mut worker = Process::start("a worker of TLS", command, &log)?;
            worker.wait_ready(SOON, || std::fs::read_to_string(&log).is_ok_and(|said| said.contains("listening")))?;
            workers.push(worker);
        }
        let root = sandbox.root_cgroup().display();
        let text = format!(
            "[daemon]\nsocket = {:?}\nstate = {:?}\n[kernel]\ncallers = \"{root}\"\nworkers = \"{root}\"\npins = {:?}\n\
             [service.web]\nworkers = \"127.0.0.1:8000-8001\"\ncallers = [{:?}]\nmanager = {}\n{drain}\n",
            Daemon::socket_of(sandbox),
            sandbox.state(),
            sandbox.pins(),
            sandbox.cgroup(Place::Callers),
            deployer_tests::rig::ANY_OF_ROOT_S,
        );
        let daemon = Daemon::start(sandbox, &text)?;
        all_up(sandbox)?;
        Ok(Self { sandbox, daemon, _workers: workers })
    }

    fn drain(&self) -> Result<()> {
        let output = self.daemon.cli(&["drain", "web", "8000"])?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    }

    /// Why the only connection holds the drain of 8000; `None`: none does.
    fn why(&self) -> Result<Option<String>> {
        let workers = Api::of(self.sandbox).workers()?;
        let worker = workers.get(&8000).context("no worker 8000")?;
        Ok(worker["holds"][0]["why"].as_str().map(str::to_owned))
    }

    fn until_why(&self, what: &str) -> Result<()> {
        let begun = Instant::now();
        loop {
            let why = self.why()?;
            if why.as_ref().is_some_and(|why| why.contains(what)) {
                return Ok(());
            }
            ensure!(begun.elapsed() < SOON, "the connection holds the drain as {why:?}, and not as {what:?}");
            sleep(Duration::from_millis(50));
        }
    }
}

/// Also one that is older than the watch, which has seen nothing of it but records of TLS.
#[test]
fn status_names_tls() -> Result<()> {
    let sandbox = Sandbox::new("k_tlsname")?;
    let stage = Stage::new(&sandbox, "")?;
    let mut caller = Caller::start(&sandbox, "127.0.0.1", 8000)?;
    caller.ask("/")?;
    caller.says("answered", SOON)?;
    stage.drain()?;
    // The watch begins with the drain.
    let begun = Instant::now();
    while !stage.why()?.is_some_and(|why| why.contains("TLS")) {
        ensure!(begun.elapsed() < SOON, "TLS is not named: {:?}", stage.why()?);
        caller.ask("/")?;
        caller.says("answered", SOON)?;
        sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// One that is quiet is closed; one that is being served is not.
#[test]
fn quiet_connections_of_tls_are_closed() -> Result<()> {
    let sandbox = Sandbox::new("k_tlsquiet")?;
    let stage = Stage::new(&sandbox, "drain = { quiet_after = \"2s\" }")?;
    let mut quiet = Caller::start(&sandbox, "127.0.0.1", 8000)?;
    let mut served = Caller::start(&sandbox, "127.0.0.1", 8000)?;
    for caller in [&mut quiet, &mut served] {
        caller.ask("/")?;
        caller.says("answered", SOON)?;
    }
    stage.drain()?;
    served.ask("/slow/5")?;
    let begun = Instant::now();
    quiet.says("closed", SOON)?;
    eprintln!("closed after {:.1?}", begun.elapsed());
    stage.until_why("TLS")?;
    served.says("answered", SOON)?;
    served.says("closed", SOON)?;
    Ok(())
}
