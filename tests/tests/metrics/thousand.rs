//! What a page of a thousand workers costs.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer_tests::api::Api;
use deployer_tests::daemon::Daemon;
use deployer_tests::dial::PYTHON;
use deployer_tests::process::Process;
use deployer_tests::prometheus::{self, PAGE};
use deployer_tests::rig::{ANY_OF_ROOT_S, wait};
use deployer_tests::sandbox::{Place, Sandbox};
use serde_json::Value;

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
             manager = {ANY_OF_ROOT_S}\n\
             version = {{ request = \"GET /version\" }}\n"
        )?;
    }
    Ok(text)
}

/// The middle of several scrapes as Prometheus makes them, connection and all, and the page's size.
fn median(sandbox: &Sandbox) -> Result<(Duration, usize)> {
    let mut costs = (0..SCRAPES).map(|_| prometheus::page_cost(sandbox)).collect::<Result<Vec<_>>>()?;
    costs.sort_unstable();
    Ok(costs[SCRAPES / 2])
}

fn measure(sandbox: &Sandbox, what: &str) -> Result<()> {
    let families = page::read(sandbox)?;
    let (median, bytes) = median(sandbox)?;
    eprintln!("1,000 workers, {what}: {bytes} bytes in {} families, {median:.1?} in the middle", families.len());
    ensure!(median < MOST, "{what}: {median:?}");
    Ok(())
}

/// Workers that say what they run, all those of a service in one process.
const CODE: &str = "
import asyncio, sys
first, end, version = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
answer = f'HTTP/1.1 200 OK\\r\\nContent-Length: {len(version)}\\r\\nConnection: close\\r\\n\\r\\n{version}'.encode()
async def serve(reader, writer):
    await reader.readuntil(b'\\r\\n\\r\\n')
    writer.write(answer)
    writer.close()
async def main():
    all = [await asyncio.start_server(serve, '127.0.0.1', port) for port in range(first, end)]
    await asyncio.Event().wait()
asyncio.run(main())
";

fn start(sandbox: &Sandbox, version: &str) -> Result<Vec<Process>> {
    let of = |service: u16| {
        let ports = ports(service);
        let mut command = sandbox.command(Place::Workers, PYTHON);
        command.args(["-s", "-S", "-c", CODE, &ports.start.to_string(), &ports.end.to_string(), version]);
        Process::start("workers", command, &sandbox.dir().join("workers.out"))
    };
    (0..SERVICES).map(of).collect()
}

/// Waits until all are in a phase, and what they run is known to be this.
fn all_are(sandbox: &Sandbox, phase: &str, version: Option<&str>) -> Result<()> {
    let how_many = || {
        let status = Api::of(sandbox).status()?;
        let services = status["services"].as_array().context("services")?;
        let workers = services.iter().filter_map(|service| service["workers"].as_array()).flatten();
        let is =
            |worker: &&Value| worker["phase"] == phase && version.is_none_or(|version| worker["version"] == version);
        anyhow::Ok(workers.filter(is).count())
    };
    let all = usize::from(SERVICES * WORKERS);
    let took = wait(&format!("a thousand workers to be {phase}"), || Ok(how_many()? == all))
        .with_context(|| format!("{:?} are", how_many()))?;
    eprintln!("{phase}, {version:?}: after {took:.1?}");
    Ok(())
}

/// Once each worker has run two versions, the page holds all that it ever holds.
#[test]
fn a_thousand_workers() -> Result<()> {
    let sandbox = Sandbox::new("thousand")?;
    let _daemon = Daemon::start(&sandbox, &config(&sandbox)?)?;
    wait("the page", || Ok(prometheus::page(&sandbox).is_ok()))?;
    measure(&sandbox, "all down")?;
    let workers = start(&sandbox, "v1")?;
    all_are(&sandbox, "up", Some("v1"))?;
    measure(&sandbox, "all up")?;
    drop(workers);
    all_are(&sandbox, "down", None)?;
    let _workers = start(&sandbox, "v2")?;
    all_are(&sandbox, "up", Some("v2"))?;
    measure(&sandbox, "all up, of two versions")
}
