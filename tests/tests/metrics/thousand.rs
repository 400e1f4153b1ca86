//! What a page of a thousand workers costs.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer_tests::api::Api;
use deployer_tests::daemon::Daemon;
use deployer_tests::dial::PYTHON;
use deployer_tests::process::Process;
use deployer_tests::prometheus::{self, PAGE};
use deployer_tests::rig::wait;
use deployer_tests::sandbox::{Place, Sandbox};

use crate::page;

/// The median, of a release build (`cargo xtask bench`) and of a debug build on a busy machine.
const MOST: Duration = Duration::from_millis(if cfg!(debug_assertions) { 2_000 } else { 50 });
const SERVICES: u16 = 4;
/// A service has at most 256.
const WORKERS: u16 = 250;
const SCRAPES: usize = if cfg!(debug_assertions) { 15 } else { 101 };

/// Ports of a service's workers; below those that the kernel gives to callers.
fn ports(service: u16) -> std::ops::Range<u16> {
    let first = 20_000 + service * 1_000;
    first..first + WORKERS
}

fn config(sandbox: &Sandbox) -> Result<String> {
    let (socket, root) = (Daemon::socket_of(sandbox), sandbox.root_cgroup().display());
    let (state, pins) = (sandbox.state(), sandbox.pins());
    let mut text = format!(
        "[daemon]\nsocket = {socket:?}\nstate = {state:?}\n[kernel]\ncallers = \"{root}\"\nworkers = \"{root}\"\n\
         pins = {pins:?}\n[metrics]\nlisten = \"{PAGE}\"\n"
    );
    for service in 0..SERVICES {
        let (first, end) = (ports(service).start, ports(service).end - 1);
        write!(
            text,
            "[service.web{service}]\nworkers = \"127.0.0.1:{first}-{end}\"\n\
             manager = {{ supervisord = \"/nonexistent.sock\", program = \"web:web_{{port}}\" }}\n"
        )?;
    }
    Ok(text)
}

/// The middle of several scrapes as Prometheus makes them, connection and all, and the page's size.
fn median(sandbox: &Sandbox) -> Result<(Duration, usize)> {
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..SCRAPES {
        let begun = Instant::now();
        bytes = prometheus::page(sandbox)?.len();
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok((times[SCRAPES / 2], bytes))
}

fn measure(sandbox: &Sandbox, what: &str) -> Result<()> {
    let families = page::read(sandbox)?;
    let (median, bytes) = median(sandbox)?;
    eprintln!("1,000 workers, {what}: {bytes} bytes in {} families, {median:.1?} in the middle", families.len());
    ensure!(median < MOST, "{what}: {median:?}");
    Ok(())
}

/// Listens on all ports of a service, and accepts nothing.
fn listen(sandbox: &Sandbox, service: u16) -> Result<Process> {
    let ports = ports(service);
    let code = format!(
        "import socket, time\nall = [socket.create_server(('127.0.0.1', port)) for port in range({}, {})]\n\
         time.sleep(3600)",
        ports.start, ports.end
    );
    let mut command = sandbox.command(Place::Workers, PYTHON);
    command.args(["-s", "-S", "-c", &code]);
    Process::start("listeners", command, &sandbox.dir().join("listeners.out"))
}

#[test]
fn a_thousand_workers() -> Result<()> {
    let sandbox = Sandbox::new("thousand")?;
    let _daemon = Daemon::start(&sandbox, &config(&sandbox)?)?;
    wait("the page", || Ok(prometheus::page(&sandbox).is_ok()))?;
    measure(&sandbox, "all down")?;
    let _listeners = (0..SERVICES).map(|service| listen(&sandbox, service)).collect::<Result<Vec<_>>>()?;
    let up = || {
        let status = Api::of(&sandbox).status()?;
        let services = status["services"].as_array().context("services")?;
        let workers = services.iter().filter_map(|service| service["workers"].as_array()).flatten();
        Ok(workers.filter(|worker| worker["phase"] == "up").count() == usize::from(SERVICES * WORKERS))
    };
    wait("a thousand workers to be up", up)?;
    measure(&sandbox, "all up")
}
