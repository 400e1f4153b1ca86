//! The harness against itself, without the deployer: it must see no loss where there is none, see it where there is,
//! and leave nothing behind.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};

use deployer_tests::app::{App, Fault};
use deployer_tests::daemon::{Daemon, DeployerBin, ServiceConfig};
use deployer_tests::http::Request;
use deployer_tests::journal::Journal;
use deployer_tests::load::Load;
use deployer_tests::nginx::{self, Nginx, Upstream};
use deployer_tests::pace::SOON;
use deployer_tests::process::{Process, run, send};
use deployer_tests::prometheus::{self, PAGE, Prometheus};
use deployer_tests::report::Report;
use deployer_tests::rig::wait;
use deployer_tests::sandbox::{Place, Sandbox, cgroup2_mount};
use deployer_tests::supervisor::{Options, Supervisor};

const PORTS: std::ops::RangeInclusive<u16> = 8000..=8007;

/// A number from the environment, so that the same tests can measure more (HARNESS_RATE, HARNESS_SECONDS).
fn setting(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

fn load(run: &str) -> Load {
    Load { rate: setting("HARNESS_RATE", 300) as f64, slow_seconds: 2, ..Load::new(run) }
}

fn traces(sandbox: &Sandbox) -> Vec<PathBuf> {
    vec![sandbox.dir().to_owned(), sandbox.root_cgroup().to_owned(), sandbox.netns_path().to_owned()]
}

#[test]
fn loses_nothing_when_nothing_happens() -> Result<()> {
    let sandbox = Sandbox::new("calm")?;
    let app = App::new(&sandbox, &["v1", "v2"])?;
    let last = 8000 + u16::try_from(setting("HARNESS_WORKERS", 8))? - 1;
    let supervisor = Supervisor::start(&sandbox, &app, Options::ports(8000..=last))?;
    supervisor.wait_up()?;
    supervisor.warm()?;
    let nginx = Nginx::start(&sandbox, &Upstream::workers(8000..=last, ""))?;
    let before = cpu(&sandbox)?;
    let load = load("calm").start(&sandbox)?;
    pause(5000);
    load.mark("during");
    pause(setting("HARNESS_SECONDS", 5) * 1000);
    load.mark("after");
    let report = load.stop()?;
    let used = |now: &[Duration; 3]| [0, 1, 2].map(|part| now[part] - before[part]);
    eprintln!("{report}  CPU of nginx, workers, load {:.2?}", used(&cpu(&sandbox)?));
    let journal = Journal::read(&app.journal_dir())?;
    ensure!(report.requests > 2500, "{report}");
    ensure!(report.failed == 0 && report.cold == 0, "{report}");
    ensure!(report.by_version.keys().eq(["v1"]), "{report}");
    ensure!(journal.entries.len() == report.requests, "journal");
    ensure!(journal.doubled().is_empty() && journal.cut().is_empty());
    ensure!(journal.cold().is_empty());
    ensure!(journal.contradictions(&report).is_empty(), "{:?}", journal.contradictions(&report));
    ensure!(nginx.error_lines()?.is_empty(), "{:?}", nginx.error_lines());
    Ok(())
}

/// CPU time of nginx, of the workers and of this process, which is the load.
fn cpu(sandbox: &Sandbox) -> Result<[Duration; 3]> {
    let own = clock_gettime(ClockId::ProcessCPUTime);
    let own = Duration::new(own.tv_sec.try_into()?, own.tv_nsec.try_into()?);
    let place = |place| sandbox.cpu_time(place);
    Ok([place(Place::Callers)?, place(Place::Workers)?, own])
}

#[test]
fn sees_the_loss_when_workers_are_killed() -> Result<()> {
    let sandbox = Sandbox::new("killed")?;
    let app = App::new(&sandbox, &["v1", "v2"])?;
    let supervisor = Supervisor::start(&sandbox, &app, Options::ports(PORTS))?;
    supervisor.wait_up()?;
    supervisor.warm()?;
    let nginx = Nginx::start(&sandbox, &Upstream::workers(PORTS, ""))?;
    // Many slow ones, so that every worker has some in hand when it is killed.
    let slow = Load { slow_one_in: 20, ..load("killed") };
    let load = slow.start(&sandbox)?;
    pause(4000);
    load.mark("during");
    app.switch("v2")?;
    for port in PORTS.step_by(2) {
        send(supervisor.pid_of(port)?.context("no worker")?, Signal::KILL)?;
        // nginx benches the dead for 10 s; without a pause they would all be benched together, and then all tried.
        pause(50);
    }
    pause(12_000);
    let report: Report = load.stop()?;
    let journal = Journal::read(&app.journal_dir())?;
    let (doubled, cut) = (journal.doubled().len(), journal.cut().len());
    eprintln!("{report}  {doubled} doubled, {cut} cut");
    let during = report.phase("during").context("phase")?;
    ensure!(report.failed > 0 || report.cold > 0, "{report}");
    ensure!(during.failed == report.failed || report.phases[0].failed > 0);
    ensure!(cut > 0 && !nginx.error_lines()?.is_empty(), "{cut} cut");
    ensure!(doubled > 0, "nginx replays a GET whose worker has died");
    ensure!(report.by_version.contains_key("v2"), "{report}");
    ensure!(journal.contradictions(&report).is_empty(), "{:?}", journal.contradictions(&report));
    Ok(())
}

#[test]
fn workers_are_cold_at_first_and_faulty_when_told() -> Result<()> {
    let sandbox = Sandbox::new("faults")?;
    let app = App::new(&sandbox, &["v1", "v2"])?;
    app.switch("v2")?;
    let faults = [Fault::Crash, Fault::Hang, Fault::Status500, Fault::WrongPort, Fault::OldVersion];
    for (port, fault) in (8001..).zip(faults) {
        app.set_fault("v2", port, Some(fault))?;
    }
    let options = Options { host: "::", import_seconds: 0.5, ..Options::ports(PORTS) };
    let mut supervisor = Supervisor::start(&sandbox, &app, options)?;
    supervisor.wait_up_ports([8000, 8005, 8006])?;
    let get = |port, path| supervisor.direct(port, &Request::get(path));
    let cold = |path| anyhow::Ok(get(8000, path)?.header("X-Cold") == Some("1"));
    ensure!(!cold("/health")? && cold("/")? && !cold("/")?);
    ensure!(cold("/pin/7")? && !cold("/pin/1")? && !cold("/post")?);
    ensure!(get(8000, "/version")?.body == "v2");
    ensure!(get(8005, "/version")?.body == "v1");
    ensure!(get(8003, "/")?.status == 500);
    ensure!(get(9004, "/health")?.header("X-Port") == Some("8004"));
    ensure!(get(8001, "/").is_err() && get(8002, "/").is_err() && get(8004, "/").is_err());
    ensure!(supervisor.pid_of(8002)?.is_some());
    wait_given_up(&supervisor, 8001)?;
    ensure!(supervisor.pid_of(8001)?.is_none());
    ensure!(serves_v6(&sandbox, 8006)?);
    supervisor.kill_supervisord()?;
    ensure!(supervisor.direct(8000, &Request::get("/"))?.status == 200, "workers live on");
    Ok(())
}

fn serves_v6(sandbox: &Sandbox, port: u16) -> Result<bool> {
    let address = std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
    let request = Request::get("/");
    let answer = sandbox.in_netns(|| request.send(address, Duration::from_secs(2)))??;
    Ok(answer.status == 200)
}

/// supervisord gives up after three more tries and 1 + 2 + 3 s.
fn wait_given_up(supervisor: &Supervisor<'_>, port: u16) -> Result<()> {
    let name = format!("web:web_{port}");
    for _ in 0..60 {
        if supervisor.ctl(&["status", &name])?.contains("FATAL") {
            return Ok(());
        }
        pause(200);
    }
    anyhow::bail!("supervisord goes on trying")
}

#[test]
fn leaves_nothing_behind() -> Result<()> {
    let sandbox = Sandbox::new("clean")?;
    let traces = traces(&sandbox);
    ensure!(traces.iter().all(|path| path.exists()));
    std::fs::create_dir(sandbox.cgroup(Place::Workers).join("deeper"))?;
    let mut sleeper = sandbox.command(Place::Outside, "sleep").arg("1000").spawn()?;
    let stubborn = r#"trap "" TERM INT HUP; sleep 1000"#;
    let mut stubborn = sandbox.command(Place::Callers, "sh").args(["-c", stubborn]).spawn()?;
    while sandbox.pids(Place::Callers)?.len() < 2 || sandbox.pids(Place::Outside)?.is_empty() {
        pause(5);
    }
    ensure!(sandbox.pids(Place::Outside)? == [sleeper.id()], "the program's own id");
    let panicked = std::panic::catch_unwind(move || {
        let _dropped_while_unwinding = sandbox;
        panic!("on purpose");
    });
    ensure!(panicked.is_err());
    ensure!(!sleeper.wait()?.success() && !stubborn.wait()?.success());
    let left: Vec<_> = traces.iter().filter(|path| path.exists()).collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn sweeps_up_after_the_dead() -> Result<()> {
    // As a killed test leaves them: the owner's id is that of a process that has ended.
    let mut ended = std::process::Command::new("true").spawn()?;
    ended.wait()?;
    let name = |number| format!("deployer-dead-{}-{number}", ended.id());
    for number in 0..8 {
        std::fs::create_dir_all(cgroup2_mount()?.join(name(number)).join("workers"))?;
        std::fs::create_dir_all(std::env::temp_dir().join(name(number)).join("app"))?;
        run(std::process::Command::new("ip").args(["netns", "add", &name(number)]))?;
    }
    // By many at once, as when tests begin after one was killed.
    let sweeps: Vec<_> = (0..4).map(|_| std::thread::spawn(Sandbox::sweep)).collect();
    for sweep in sweeps {
        sweep.join().map_err(|panic| anyhow::anyhow!("{panic:?}"))??;
    }
    for number in 0..8 {
        let name = name(number);
        let left = [cgroup2_mount()?, "/run/netns".into(), std::env::temp_dir()].map(|parent| parent.join(&name));
        ensure!(left.iter().all(|path| !path.exists()), "{left:?}");
    }
    Ok(())
}

#[test]
fn nobody_outside_the_namespace_is_reached() -> Result<()> {
    let sandbox = Sandbox::new("apart")?;
    let listen = sandbox.in_netns(|| std::net::TcpListener::bind(nginx::ADDRESS))?;
    let _listener = listen?;
    let there = sandbox.in_netns(|| std::net::TcpStream::connect(nginx::ADDRESS).is_ok())?;
    ensure!(there && std::net::TcpStream::connect(nginx::ADDRESS).is_err());
    Ok(())
}

/// Stands in for `deployer`: reads the configuration, opens its socket, echoes its verbs.
const FAKE: &str = r#"#!/usr/bin/python3
import signal, socket, sys, tomllib
if sys.argv[1] != "daemon":
    sys.exit(print(*sys.argv[3:]) or 3)
config = tomllib.load(open(sys.argv[3], "rb"))
if config["service"]["web"]["drain"]["policy"] == "bad":
    sys.exit("bad policy")
print(config["service"]["web"]["roll"], config["service"]["web"]["workers"], flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
server = socket.socket(socket.AF_UNIX)
server.bind(config["daemon"]["socket"])
server.listen()
signal.pause()
"#;

#[test]
fn runs_a_daemon_and_its_command_line() -> Result<()> {
    let sandbox = Sandbox::new("daemon")?;
    let app = App::new(&sandbox, &["v1", "v2"])?;
    let supervisor = Supervisor::start(&sandbox, &app, Options::ports(8000..=8000))?;
    let fake = sandbox.dir().join("fake");
    std::fs::write(&fake, FAKE)?;
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755))?;
    let start = |service: &ServiceConfig| {
        let text = service.text(&sandbox, &app, &supervisor);
        Daemon::start_bin(&sandbox, DeployerBin::at(&fake), &text)
    };
    let mut service = ServiceConfig {
        unswitch_to: Some("v1".to_owned()),
        address: Some("127.0.0.1:9000".to_owned()),
        ..ServiceConfig::default()
    };
    let mut daemon = start(&service)?;
    ensure!(sandbox.pids(Place::Daemon)? == [daemon.pid()]);
    ensure!(daemon.log().contains("'releases/v1'") && daemon.log().contains("8000-8000"));
    let output = daemon.cli(&["roll", "web"])?;
    ensure!(output.stdout == b"roll web\n" && output.status.code() == Some(3));
    ensure!(daemon.stop()?.success());
    service.policy = "bad";
    let error = start(&service).err().context("a bad configuration")?;
    ensure!(error.to_string().contains("bad policy"), "{error}");
    Ok(())
}

/// Not a test by itself: the child of `cleans_up_when_interrupted`.
#[test]
#[ignore = "started by cleans_up_when_interrupted"]
fn waits_to_be_interrupted() -> Result<()> {
    let sandbox = Sandbox::new("signal")?;
    deployer_tests::sandbox::clean_on_signal()?;
    let _sleeper = sandbox.command(Place::Workers, "sleep").arg("100").spawn()?;
    while sandbox.pids(Place::Workers)?.is_empty() {
        pause(5);
    }
    println!("\nname {}", sandbox.name());
    pause(60_000);
    Ok(())
}

#[test]
fn cleans_up_when_interrupted() -> Result<()> {
    let mut child = std::process::Command::new(std::env::current_exe()?)
        .args(["--ignored", "--exact", "waits_to_be_interrupted", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(child.stdout.take().context("its output")?);
    let mut lines = output.lines().map_while(Result::ok);
    let name = lines.find_map(|line| line.strip_prefix("name ").map(str::to_owned));
    let name = name.context("no sandbox")?;
    let cgroup = cgroup2_mount()?.join(&name);
    ensure!(cgroup.exists());
    send(child.id(), Signal::INT)?;
    ensure!(child.wait()?.code() == Some(130));
    let netns = PathBuf::from("/run/netns").join(&name);
    ensure!(!cgroup.exists() && !netns.exists() && !std::env::temp_dir().join(&name).exists());
    Ok(())
}

/// A page that never changes, instead of the daemon's; and then none.
#[test]
fn prometheus_scrapes_and_raises_alerts() -> Result<()> {
    let sandbox = Sandbox::new("scrape")?;
    let folder = sandbox.dir().join("page");
    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join("metrics"), "deployer_build_info{version=\"7\"} 1\n")?;
    let mut command = sandbox.command(Place::Daemon, "/usr/bin/python3");
    command.args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"]).arg(&folder).arg(PAGE.port().to_string());
    let mut server = Process::start("a page", command, &sandbox.dir().join("page.out"))?;
    server.wait_ready(SOON, || prometheus::page(&sandbox).is_ok())?;
    let prometheus = Prometheus::start(&sandbox, &prometheus::rules_sooner(&[("DeployerDown", "1m", "1s")])?)?;
    let seen = prometheus.query("deployer_build_info + 1")?;
    ensure!(seen.len() == 1 && seen[0].value == 2.0 && seen[0].label("version") == "7", "{seen:?}");
    ensure!(prometheus.alerts()?.is_empty(), "{:?}", prometheus.alerts()?);
    server.kill()?;
    wait("an alert", || Ok(prometheus.firing()? == ["DeployerDown"]))?;
    let pid = prometheus.pid();
    drop(prometheus);
    // Its page in /proc is gone with it, since it was reaped.
    ensure!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    Ok(())
}
