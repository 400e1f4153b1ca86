//! Whose connections are none of the drain's business.

use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use deployer_tests::api::Roll;
use deployer_tests::app::App;
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::dial::PYTHON;
use deployer_tests::holder::{EACH, Holder};
use deployer_tests::pace::SOON;
use deployer_tests::process::Process;
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::supervisor::{Options, Supervisor};

use crate::scene::all_up;

const HOST: &str = "127.0.0.1";
/// A server that deployer knows nothing of.
const FOREIGN: u16 = 9100;

/// Starts a fast worker that no manager and no daemon knows.
fn server(sandbox: &Sandbox, app: &App, host: &str, port: u16) -> Result<Process> {
    let mut command = sandbox.command(Place::Outside, PYTHON);
    command
        .args(["-s", "-E"])
        .arg(app.fast())
        .arg(format!("--port={port}"))
        .arg(format!("--host={host}"))
        .env("APP_DIR", app.dir());
    let mut server = Process::start("a server", command, &sandbox.dir().join(format!("server-{host}-{port}.out")))?;
    server.wait_ready(SOON, || {
        let connected = sandbox.in_netns(|| std::net::TcpStream::connect((host, port)).is_ok());
        connected.unwrap_or(false)
    })?;
    Ok(server)
}

/// Idle connections of the same kind of caller: to the drained worker, its siblings, another service, a server that nobody
/// configured, and the drained worker's very address in another network namespace. The roll ends the first alone.
#[test]
fn only_the_drained_workers_connections_are_closed() -> Result<()> {
    let (sandbox, elsewhere) = (Sandbox::new("kept_others")?, Sandbox::new("kept_ns")?);
    let (app, their_app) = (App::new(&sandbox, &["v1", "v2"])?, App::new(&elsewhere, &["v1"])?);
    let options = Options { fast: true, start_seconds: 0, ..Options::ports(8000..=8005) };
    let supervisor = Supervisor::start(&sandbox, &app, options)?;
    supervisor.wait_up()?;
    let manager =
        format!("{{ supervisord = {:?}, program = {:?} }}", supervisor.socket(), supervisor.program_pattern());
    let extra = format!("[service.other]\nworkers = \"127.0.0.1:8004-8005\"\nmanager = {manager}\n");
    // The default is 45 s.
    let drain = if crate::full() { "" } else { "quiet_after = \"8s\"" };
    let config = ServiceConfig { batch: "1".to_owned(), extra, drain, ..ServiceConfig::default() };
    let daemon = Daemon::start(&sandbox, &config.text_of(&sandbox, &app, "127.0.0.1:8000-8003", &manager))?;
    all_up(&sandbox)?;
    let _foreign = server(&sandbox, &app, HOST, FOREIGN)?;
    let _theirs = server(&elsewhere, &their_app, HOST, 8000)?;
    let at = |port: u16| format!("127.0.0.1:{port}");
    let (web, others) = ([8000, 8001, 8002, 8003].map(at), [8004, 8005, FOREIGN].map(at));
    let addresses: Vec<_> = web.iter().chain(&others).map(String::as_str).collect();
    let mut holder = Holder::start(&sandbox, &addresses)?;
    let mut there = Holder::start_in(&sandbox, elsewhere.netns_path(), &["127.0.0.1:8000"])?;
    let mut command = daemon.cli_command(&["roll", "web", "--to", "v2", "--json"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut roll = Roll::by(command.spawn()?)?;
    // By the time that this is read the next may be in hand already: the last stands for those that are not.
    let first = roll.until(|event| event["phase"] == "drained")?;
    let seen = holder.look()?;
    eprintln!("{}: {seen:?}", first["worker"]);
    let first = first["worker"].as_str().unwrap_or_default();
    ensure!(first == at(8000) && seen[first] == 0, "{first}: {seen:?}");
    ensure!(seen[&at(8003)] == EACH, "{seen:?}");
    let end = roll.end()?;
    end.must("done", &["4 workers"])?;
    let seen = holder.use_all()?;
    eprintln!("at the end: {seen:?}");
    ensure!(web.iter().all(|worker| seen[worker] == 0), "{seen:?}");
    ensure!(others.iter().all(|other| seen[other] == EACH), "{seen:?}");
    ensure!(there.use_all()?["127.0.0.1:8000"] == EACH);
    Ok(())
}

/// Somebody else's server listens at the worker's port, at another address of the loopback device. It might be the worker's,
/// too, so that its connections hold the drain; but they are not closed.
#[test]
fn the_same_port_at_another_address() -> Result<()> {
    let sandbox = Sandbox::new("kept_same")?;
    let app = App::new(&sandbox, &["v1"])?;
    let options = Options { fast: true, start_seconds: 0, ..Options::ports(8000..=8001) };
    let supervisor = Supervisor::start(&sandbox, &app, options)?;
    supervisor.wait_up()?;
    let daemon = Daemon::start(&sandbox, &ServiceConfig::default().text(&sandbox, &app, &supervisor))?;
    all_up(&sandbox)?;
    let _sibling = server(&sandbox, &app, "127.0.0.2", 8000)?;
    let (worker, sibling) = ("127.0.0.1:8000", "127.0.0.2:8000");
    let mut holder = Holder::start(&sandbox, &[worker, sibling])?;
    let drained = daemon.cli(&["drain", "web", "8000"])?;
    ensure!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
    // It is closed after the second use that the watch has seen from beginning to end; on a busy machine the first of them
    // may come before the watch.
    let begun = Instant::now();
    while holder.use_all()?[worker] > 0 {
        ensure!(begun.elapsed() < Duration::from_secs(20), "{:?}\n{}", holder.look()?, daemon.log());
        sleep(Duration::from_millis(300));
    }
    sleep(Duration::from_secs(1));
    let seen = holder.use_all()?;
    eprintln!("after {:.1?}: {seen:?}", begun.elapsed());
    ensure!(seen == [(worker.to_owned(), 0), (sibling.to_owned(), EACH)].into(), "{seen:?}");
    Ok(())
}
