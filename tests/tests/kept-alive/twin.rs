//! The way that this replaces, on the same load.

use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deployer_tests::app::App;
use deployer_tests::journal::Journal;
use deployer_tests::load::Load;
use deployer_tests::nginx::Nginx;
use deployer_tests::process::{run, send};
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::supervisor::{Options, Supervisor};
use rustix::process::Signal;

const PORTS: std::ops::RangeInclusive<u16> = 8000..=8003;
const UPSTREAM: &str = "  upstream web {
    server 127.0.0.1:8000 max_fails=0;
    server 127.0.0.1:8001 max_fails=0;
    server 127.0.0.1:8002 max_fails=0;
    server 127.0.0.1:8003 max_fails=0;
    keepalive 32;
  }
";
const KEPT: &str = "proxy_http_version 1.1;
      proxy_set_header Connection \"\";";

/// New connections to a worker are sent to a closed port; in the sandbox's own network namespace.
fn redirect(sandbox: &Sandbox, action: &str, port: u16) -> Result<()> {
    let mut command = sandbox.command(Place::Outside, "iptables");
    command.args(["-w", "-t", "nat", action, "OUTPUT", "-p", "tcp", "-d", "127.0.0.1", "--dport", &port.to_string()]);
    run(command.args(["-j", "REDIRECT", "--to-ports", "9"])).map(drop)
}

/// Two workers: out of sight, 5 s, kill, restart, back.
fn restart(sandbox: &Sandbox, supervisor: &Supervisor<'_>, ports: &[u16]) -> Result<()> {
    ports.iter().try_for_each(|port| redirect(sandbox, "-I", *port))?;
    sleep(Duration::from_secs(5));
    for port in ports {
        let pid = supervisor.pid_of(*port)?.with_context(|| format!("no worker on port {port}"))?;
        send(pid, Signal::TERM)?;
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    for port in ports {
        // The rule does not match this address, which the workers listen on, too.
        while !sandbox.in_netns(|| TcpStream::connect(("127.0.0.2", *port)).is_ok())? {
            ensure!(Instant::now() < deadline, "{port} is not up again after 30 s");
            sleep(Duration::from_millis(50));
        }
    }
    ports.iter().try_for_each(|port| redirect(sandbox, "-D", *port))
}

/// What came of it.
struct Lost {
    requests: usize,
    posts: usize,
    cut: usize,
}

/// Restarts all workers, two at a time, under this load.
fn play(label: &'static str, options: Options, load: Load) -> Result<Lost> {
    let sandbox = Sandbox::new(label)?;
    let app = App::new(&sandbox, &["v1", "v2"])?;
    let supervisor = Supervisor::start(&sandbox, &app, Options { host: "0.0.0.0", ..options })?;
    supervisor.wait_up()?;
    supervisor.warm()?;
    let nginx = Nginx::start_text(&sandbox, UPSTREAM, KEPT)?;
    let load = load.start(&sandbox)?;
    sleep(Duration::from_secs(2));
    app.switch("v2")?;
    let ports: Vec<_> = PORTS.collect();
    ports.chunks(2).try_for_each(|pair| restart(&sandbox, &supervisor, pair))?;
    sleep(Duration::from_secs(1));
    let report = load.stop()?;
    let journal = Journal::read(&app.journal_dir())?;
    let posts = report.failures().filter(|outcome| outcome.method == "POST").count();
    let (doubled, cut) = (journal.doubled().len(), journal.cut().len());
    eprintln!(
        "{report}\ntwin: {posts} POSTs failed, {doubled} requests doubled, {cut} cut; nginx: {}",
        nginx.error_lines()?.len()
    );
    Ok(Lost { requests: report.requests, posts, cut })
}

/// Fast requests and such of 8 s, by clients and an nginx that keep their connections: the sleep is over before some of
/// them are, and a kept-alive connection goes on bringing requests until the very kill.
#[test]
fn with_iptables_the_same_load_loses_posts() -> Result<()> {
    let options = Options { import_seconds: 0.3, cold_seconds: 0.05, ..Options::ports(PORTS) };
    let load = Load { rate: 150.0, slow_one_in: 60, keep_alive: true, ..Load::new("load") };
    let lost = play("kept_twin", options, load)?;
    ensure!(lost.posts > 0 && lost.cut > 0, "nothing was lost of {}", lost.requests);
    Ok(())
}

/// Requests that are over within 40 ms, long before the kill: nothing but kept connections brings more until then.
#[test]
fn with_iptables_kept_connections_alone_lose_posts() -> Result<()> {
    let options = Options { fast: true, start_seconds: 0, ..Options::ports(PORTS) };
    let load = Load { clients: 32, wait_ms: 40, post_share: 0.8, slow_one_in: 0, ..Load::new("load") };
    let lost = play("kept_twin_fast", options, load)?;
    ensure!(lost.posts > 0 && lost.cut > 0, "nothing was lost of {}", lost.requests);
    Ok(())
}
