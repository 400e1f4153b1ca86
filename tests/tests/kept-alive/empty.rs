//! How soon a worker is known to be empty, on a host that has very many connections of others.

use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use deployer_tests::api::Roll;
use deployer_tests::app::App;
use deployer_tests::crowd;
use deployer_tests::daemon::{Daemon, DeployerBin, ServiceConfig};
use deployer_tests::dial::PYTHON;
use deployer_tests::pace::SOON;
use deployer_tests::process::Process;
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::supervisor::{Options, Supervisor};

use crate::scene::all_up;

/// Nobody waits for it in epoll_wait, so that it is not closed.
const CALLER: &str = "import socket, time
connection = socket.create_connection(('127.0.0.1', 8000))
print('ready', flush=True)
time.sleep(1000)";

/// What the middle one of the drains may take. The release build (`cargo xtask bench`) takes one look at all sockets, 17 to
/// 38 ms among 300,000.
const MOST: Duration = Duration::from_millis(if cfg!(debug_assertions) { 500 } else { 50 });
const ROLLS: usize = 5;

#[test]
fn known_within_moments() -> Result<()> {
    let sandbox = Sandbox::new("kept_empty")?;
    let app = App::new(&sandbox, &["v1", "v2"])?;
    let options = Options { fast: true, start_seconds: 0, ..Options::ports(8000..=8001) };
    let supervisor = Supervisor::start(&sandbox, &app, options)?;
    supervisor.wait_up()?;
    let config = ServiceConfig { batch: "1".to_owned(), ..ServiceConfig::default() };
    let log = ("DEPLOYER_LOG", "info,deployer::service::drain=debug".to_owned());
    let config = config.text(&sandbox, &app, &supervisor);
    let daemon = Daemon::start_with(&sandbox, DeployerBin::find()?, &config, &[log])?;
    all_up(&sandbox)?;
    let _crowd = crowd::gather(&sandbox)?;
    let mut took = (0..ROLLS).map(|nth| roll(&sandbox, &daemon, nth)).collect::<Result<Vec<_>>>()?;
    took.sort_unstable();
    let (open, waiting) = crowd::count(&sandbox)?;
    ensure!((open, waiting) >= (2 * crowd::size().0, crowd::size().1 / 2), "{open} sockets, {waiting} in TIME_WAIT");
    eprintln!("known to be empty among {open} open sockets and {waiting} in TIME_WAIT after {took:?}");
    ensure!(took[ROLLS / 2] < MOST, "{took:?}\n{}", daemon.log());
    Ok(())
}

/// A roll whose first worker has one connection open; the time from its end to the daemon's knowledge of it. (After that the
/// worker is made to stop, and looked at once more: as long again.)
fn roll(sandbox: &Sandbox, daemon: &Daemon<'_>, nth: usize) -> Result<Duration> {
    let mut command = sandbox.command(Place::Callers, PYTHON);
    command.args(["-c", CALLER]);
    let log = sandbox.dir().join(format!("caller-{nth}.log"));
    let mut caller = Process::start("a caller", command, &log)?;
    caller.wait_ready(SOON, || std::fs::read_to_string(&log).is_ok_and(|log| log.contains("ready")))?;
    let mut command = daemon.cli_command(&["roll", "web", "--to", ["v2", "v1"][nth % 2], "--json"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut roll = Roll::by(command.spawn()?)?;
    roll.until(|event| event["event"] == "held")?;
    let told = || daemon.log().matches("nobody is left").count();
    let before = told();
    caller.kill()?;
    let closed = Instant::now();
    while told() == before {
        ensure!(closed.elapsed() < Duration::from_secs(20), "{}", daemon.log());
        sleep(Duration::from_millis(1));
    }
    let known = closed.elapsed();
    roll.end()?.must("done", &["2 workers"])?;
    Ok(known)
}
