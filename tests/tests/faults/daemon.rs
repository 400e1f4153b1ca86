//! The daemon told to end, to read its configuration again, or killed, in the middle of things.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use deployer_tests::daemon::{Daemon, DeployerBin, ServiceConfig};
use deployer_tests::pace::SOON;
use deployer_tests::process::{Process, run};
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::stage::Stage;

const TO_V2: &[&str] = &["--to", "v2"];

#[test]
fn sigterm_ends_the_batch_first() -> Result<()> {
    let sandbox = Sandbox::new("term")?;
    let stage = Stage::new(&sandbox)?;
    let mut daemon = stage.daemon(&ServiceConfig::default())?;
    let mut roll = stage.roll(&daemon, TO_V2)?;
    roll.until_phase(8000, "stopping")?;
    daemon.process().signal(Signal::TERM)?;
    let status = daemon.process().wait_for(Duration::from_secs(20))?.context("the daemon goes on")?;
    ensure!(status.code() == Some(0), "{status}: {}", daemon.log());
    stage.load.mark("without");
    let log = daemon.log();
    ensure!(log.contains("the roll is left to the next after the batch in hand"), "{log}");
    // The batch in hand is through, and nobody is left out.
    stage.all_serve()?;
    ensure!(!Daemon::socket_of(&sandbox).exists(), "the socket is left");
    // The next daemon finishes what was begun.
    let _next = Daemon::start(&sandbox, &stage.config(&ServiceConfig::default()))?;
    let end = roll.end()?;
    eprintln!("{end:?}");
    end.must("done", &["4 workers"])?;
    stage.unharmed("SIGTERM in mid-roll")?;
    Ok(())
}

#[test]
fn a_killed_daemon_leaves_nobody_out() -> Result<()> {
    let sandbox = Sandbox::new("killed")?;
    let stage = Stage::new(&sandbox)?;
    let mut daemon = stage.daemon(&ServiceConfig::default())?;
    let slow = stage.slow(8001, 2)?;
    let mut roll = stage.roll(&daemon, &["--to", "v2", "--wait", "0s"])?;
    roll.until_phase(8001, "draining")?;
    daemon.process().kill()?;
    let (code, printed) = roll.left()?;
    eprintln!("its client: {code:?} {printed}");
    ensure!(code == Some(6) && printed.contains("the daemon went away"), "{code:?} {printed}");
    ensure!(slow.status()? == 200);
    // 8000 may be on its way down, and 8001 is drained until its lease runs out.
    (8002..=8003).try_for_each(|port| stage.serves(port))?;
    let id = roll.id()?;
    let _next = Daemon::start(&sandbox, &stage.config(&ServiceConfig::default()))?;
    stage.api().follow(&id)?.end()?.must("done", &["4 workers"])?;
    stage.only_failed(&[])?;
    let (report, journal) = (stage.load.stop()?, deployer_tests::journal::Journal::read(&stage.app.journal_dir())?);
    eprintln!("a killed daemon: {} doubled; {report}", journal.doubled().len());
    ensure!(report.failed == 0 && journal.doubled().is_empty(), "{report}");
    Ok(())
}

/// `systemctl reload` right after a start, say.
#[test]
fn a_reload_asked_for_too_early() -> Result<()> {
    let sandbox = Sandbox::new("early")?;
    let stage = Stage::new(&sandbox)?;
    let file = Daemon::write_config(&sandbox, &stage.config(&ServiceConfig::default()))?;
    let mut command = DeployerBin::find()?.command(&sandbox);
    command.arg("daemon").arg("--config").arg(file);
    let mut daemon = Process::start("deployer daemon", command, &sandbox.dir().join("deployer.log"))?;
    let pid = daemon.pid();
    daemon.wait_ready(SOON, || catches(pid, Signal::HUP))?;
    let attached = daemon.log().contains("attached");
    daemon.signal(Signal::HUP)?;
    let ended = daemon.wait_for(Duration::from_millis(1500))?;
    eprintln!("attached when it was asked: {attached}; ended: {ended:?}");
    ensure!(!attached, "it listens too late");
    ensure!(ended.is_none(), "{ended:?}: {}", daemon.log());
    stage.all_up()?;
    let read = || Ok(daemon.log().contains("configuration read again"));
    stage.wait(Duration::from_secs(20), read).with_context(|| daemon.log())?;
    ensure!(daemon.stop(Duration::from_secs(10))?.success(), "{}", daemon.log());
    stage.unharmed("a reload asked for too early")?;
    Ok(())
}

/// Whether a process has a handler for a signal (`SigCgt` in proc_pid_status(5)).
fn catches(pid: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> (signal.as_raw() - 1) & 1 == 1)
}

#[test]
fn reloads() -> Result<()> {
    let sandbox = Sandbox::new("reload")?;
    let stage = Stage::new(&sandbox)?;
    let config = ServiceConfig { batch: "1".to_owned(), ..ServiceConfig::default() };
    let (four, mut daemon) = (stage.config(&config), Daemon::start(&sandbox, &three(&stage, &config))?);
    ensure!(stage.api().phases()?.len() == 3);
    // One worker more: warmed first, then up.
    let said = stage.reload(&daemon, &four)?;
    ensure!(said.contains("configuration read again"), "{said}");
    stage.all_up()?;
    stage.serves(8003)?;
    changed_deadline(&stage, &daemon, &config)?;
    bad_file(&stage, &daemon, &four)?;
    // One worker fewer: nobody's business any more.
    stage.reload(&daemon, &three(&stage, &config))?;
    ensure!(!stage.api().phases()?.contains_key(&8003));
    stage.serves(8003)?;
    let end = stage.roll(&daemon, TO_V2)?.end()?;
    end.must("done", &["3 workers"])?;
    stage.serves(8003)?;
    ensure!(daemon.stop()?.success());
    let report = stage.unharmed("reloads")?;
    ensure!(report.by_version.len() == 2, "8003 stays on v1: {report}");
    Ok(())
}

/// A reload that renames the service: the same addresses, entered anew. Nobody is refused meanwhile, and the workers are
/// steered and rolled under the new name.
#[test]
fn a_renamed_service() -> Result<()> {
    let sandbox = Sandbox::new("renamed")?;
    let stage = Stage::new(&sandbox)?;
    let config = ServiceConfig::default();
    let daemon = stage.daemon(&config)?;
    let renamed = stage.config(&config).replace("[service.web]", "[service.app]");
    let said = stage.reload(&daemon, &renamed)?;
    ensure!(said.contains("configuration read again"), "{said}");
    let roll = daemon.cli(&["roll", "app", "--to", "v2"])?;
    ensure!(roll.status.success(), "{roll:?}");
    let status = stage.api().status()?;
    let workers = status["services"][0]["workers"].as_array().context("no workers")?;
    let steered: u64 = workers.iter().filter_map(|worker| worker["steered"].as_u64()).sum();
    eprintln!("steered under the new name: {steered}");
    ensure!(steered > 0 && workers.iter().all(|worker| worker["phase"] == "up"), "{status}");
    stage.unharmed("a renamed service")?;
    Ok(())
}

/// A connection from another host to a worker on a wildcard address (here: to an address of this host that is not
/// loopback's, from another one) holds its drain.
#[test]
fn a_caller_from_elsewhere_is_waited_for() -> Result<()> {
    let sandbox = Sandbox::new("elsewhere")?;
    for arguments in [["addr", "add", "10.9.9.1/32", "dev", "lo"], ["addr", "add", "10.9.9.2/32", "dev", "lo"]] {
        ensure!(sandbox.command(Place::Outside, "ip").args(arguments).status()?.success(), "ip {arguments:?}");
    }
    let stage = Stage::on(&sandbox, "0.0.0.0")?;
    let daemon = stage.daemon(&ServiceConfig { batch: "1".to_owned(), ..ServiceConfig::default() })?;
    let mut caller = sandbox.command(Place::Outside, "curl");
    let caller = caller.args(["-s", "--interface", "10.9.9.2", "http://10.9.9.1:8000/?slow=3"]);
    let caller = caller.args(["-H", "X-Request-Id: elsewhere", "-o", "/dev/null", "-w", "%{http_code}"]);
    let caller = caller.stdout(Stdio::piped()).spawn()?;
    let begun = || Ok(stage.journal()?.entries.iter().any(|entry| entry.id == "elsewhere"));
    stage.wait(Duration::from_secs(20), begun).context("waiting for the caller's request to begin")?;
    stage.roll(&daemon, TO_V2)?.end()?.must("done", &["4 workers"])?;
    let answer = String::from_utf8_lossy(&caller.wait_with_output()?.stdout).into_owned();
    eprintln!("the caller from elsewhere: {answer}");
    ensure!(answer == "200", "{answer}");
    stage.unharmed("a caller from elsewhere")?;
    Ok(())
}

fn three(stage: &Stage<'_>, config: &ServiceConfig) -> String {
    stage.config(config).replace("8000-8003", "8000-8002")
}

fn changed_deadline(stage: &Stage<'_>, daemon: &Daemon<'_>, config: &ServiceConfig) -> Result<()> {
    let sooner = stage.config(&ServiceConfig { deadline: "1s", ..config.clone() });
    stage.reload(daemon, &sooner)?;
    // The first of them, so that it is still busy when its turn comes.
    let slow = stage.slow(8000, 6)?;
    let mut roll = stage.roll(daemon, TO_V2)?;
    roll.until_phase(8000, "draining")?;
    let later = stage.config(&ServiceConfig { deadline: "9s", ..config.clone() });
    let said = stage.reload(daemon, &later)?;
    ensure!(said.contains("configuration read again") && said.contains("web: roll web-"), "it waits: {said}");
    let end = roll.end()?;
    eprintln!("{end:?}");
    end.must("stopped", &["not empty after 1 s"])?;
    ensure!(slow.status()? == 200);
    Ok(())
}

fn bad_file(stage: &Stage<'_>, daemon: &Daemon<'_>, text: &str) -> Result<()> {
    let workers = |status: serde_json::Value| status["services"][0]["workers"].as_array().map(Vec::len);
    for bad in [text.replace("policy", "polizy"), text.replace("deadline = \"", "deadline = \"-"), "[".to_owned()] {
        let said = stage.reload(daemon, &bad)?;
        eprintln!("{}", said.trim());
        ensure!(said.contains("not read again; the former stays") && said.contains("deployer.toml:"), "{said}");
    }
    std::fs::remove_file(sandbox_file(stage))?;
    send_hup(stage, daemon)?;
    ensure!(workers(stage.api().status()?) == Some(4));
    stage.only_failed(&[])?;
    stage.all_serve()
}

fn sandbox_file(stage: &Stage<'_>) -> std::path::PathBuf {
    stage.sandbox.dir().join("deployer.toml")
}

/// A reload of a file that is not there.
fn send_hup(stage: &Stage<'_>, daemon: &Daemon<'_>) -> Result<()> {
    let before = daemon.log().len();
    deployer_tests::process::send(daemon.pid(), Signal::HUP)?;
    stage.wait(Duration::from_secs(20), || Ok(daemon.log()[before..].contains("cannot be read")))
}

/// The next daemon finds workers in hand and no manager. It waits for that, and still ends at once when it is told to.
#[test]
fn sigterm_ends_the_wait_for_a_manager() -> Result<()> {
    let sandbox = Sandbox::new("nomanager")?;
    let mut stage = Stage::new(&sandbox)?;
    let mut daemon = stage.daemon(&ServiceConfig::default())?;
    let slow = stage.slow(8001, 2)?;
    let mut roll = stage.roll(&daemon, &["--to", "v2", "--wait", "0s"])?;
    roll.until_phase(8001, "draining")?;
    daemon.process().kill()?;
    stage.supervisor.kill_supervisord()?;
    let text = stage.config(&ServiceConfig::default());
    let mut next = Daemon::start(&sandbox, &text)?;
    stage.wait(SOON, || Ok(next.log().contains("with workers in hand")))?;
    next.process().signal(Signal::TERM)?;
    let ended = next.process().wait_for(Duration::from_secs(5))?;
    ensure!(ended.is_some_and(|status| status.success()), "5 s after SIGTERM: {ended:?}\n{}", next.log());
    ensure!(slow.status()? == 200, "the slow request");
    // What was in hand is so still: the daemon after that waits for the manager once more.
    let last = Daemon::start(&sandbox, &text)?;
    stage.wait(SOON, || Ok(last.log().contains("with workers in hand")))?;
    Ok(())
}

/// A look at sockets that fails again and again is logged when it begins and when it is over.
#[test]
fn trouble_that_lasts_is_logged_once() -> Result<()> {
    const TROUBLE: &str = "cannot look at the listening sockets";
    let sandbox = Sandbox::new("trouble")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&ServiceConfig::default())?;
    let limit = |soft: &str| {
        let mut command = Command::new("prlimit");
        run(command.args(["--pid", &daemon.pid().to_string(), &format!("--nofile={soft}:")]))
    };
    // No descriptor is left for a socket of netlink.
    limit("3")?;
    stage.wait(SOON, || Ok(daemon.log().contains(TROUBLE)))?;
    std::thread::sleep(Duration::from_millis(1500));
    limit("1024")?;
    let log = daemon.log();
    let times = log.matches(TROUBLE).count();
    ensure!(times == 1, "logged {times} times in 1.5 s:\n{log}");
    stage.wait(SOON, || Ok(daemon.log().contains("can look at the listening sockets again")))?;
    Ok(())
}
