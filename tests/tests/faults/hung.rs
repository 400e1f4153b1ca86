//! Workers that listen and do not answer: stopped processes, and workers that answer with errors. They get no connections
//! after a drain that did not end in a stop, nor when a daemon begins; they are back when they answer.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::dial::{Caller, Dial, answers};
use deployer_tests::pace::SOON;
use deployer_tests::process::{Process, send, suspend};
use deployer_tests::rig::{Rig, Setup, wait};
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::stage::{PORTS, Stage};

/// A small HTTP server: says its port; 500 while the file `broken-PORT` is there; never answers `/hold`.
const SCRIPT: &str = r#"
import os, socket, sys, threading, time
port, broken = int(sys.argv[1]), sys.argv[2]
listener = socket.create_server(("127.0.0.1", port), backlog=64)
def serve(caller):
    try:
        head = caller.recv(4096)
        if b"/hold" in head:
            caller.recv(1)
        status = "500 Broken" if os.path.exists(broken) else "200 OK"
        caller.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 4\r\nConnection: close\r\n\r\n{port}".encode())
    except OSError:
        pass
    finally:
        caller.close()
while True:
    threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
"#;
const WARM: &str = "warm = { requests = [\"GET /\"], within = \"2s\" }\ndrain = { deadline = \"1s\" }";

struct Worker {
    process: Process,
    broken: PathBuf,
}

impl Worker {
    fn start(sandbox: &Sandbox, port: u16) -> Result<Self> {
        let broken = sandbox.dir().join(format!("broken-{port}"));
        let mut command = sandbox.command(Place::Workers, "/usr/bin/python3");
        command.args(["-s", "-S", "-c", SCRIPT, &port.to_string()]).arg(&broken);
        let process = Process::start("a worker", command, &sandbox.dir().join(format!("worker-{port}.log")))?;
        wait("the worker to listen", || Ok(ask(sandbox, port)? == Some(port)))?;
        Ok(Self { process, broken })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A process that stands still takes no SIGTERM.
        self.process.kill().ok();
    }
}

fn workers(sandbox: &Sandbox) -> Result<Vec<Worker>> {
    (8000..=8002).map(|port| Worker::start(sandbox, port)).collect()
}

fn setup() -> Setup {
    Setup { ports: 8000..=8002, extra: WARM, ..Setup::default() }
}

/// Which worker answers a steered caller that asks this one; `None`: none within 2 s, or with an error.
fn ask(sandbox: &Sandbox, port: u16) -> Result<Option<u16>> {
    let mut command = sandbox.command(Place::Callers, "curl");
    command.args(["-s", "-f", "-m", "2", &format!("http://127.0.0.1:{port}/")]);
    let output = command.output().context("run curl")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse().ok())
}

/// A request that holds its worker until it is dropped.
struct Holding(Child);

impl Holding {
    fn new(sandbox: &Sandbox, rig: &Rig<'_>, port: u16) -> Result<Self> {
        let mut command = sandbox.command(Place::Callers, "curl");
        let command = command.args(["-s", &format!("http://127.0.0.1:{port}/hold")]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("start curl")?;
        let holding = Self(child);
        rig.wait_worker(port, "a request to hold", |worker| worker.open > 0)?;
        Ok(holding)
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A worker is out because it does not answer; callers that dial it are answered by another.
fn is_out(sandbox: &Sandbox, rig: &Rig<'_>, port: u16) -> Result<()> {
    let worker = rig.worker(port)?;
    ensure!(worker.phase != "up" && worker.reason.contains("does not answer"), "{worker:?}");
    for _ in 0..4 {
        let by = ask(sandbox, port)?;
        ensure!(by.is_some_and(|by| by != port), "{port} was asked, and answered by {by:?}");
    }
    Ok(())
}

/// After the deadline of a drain in a roll: first a process that stands still, then one that answers with errors.
#[test]
fn a_drain_that_failed() -> Result<()> {
    let sandbox = Sandbox::new("hung")?;
    let workers = workers(&sandbox)?;
    let rig = setup().attach(&sandbox, Vec::new())?;
    let pid = workers[0].process.pid();
    for is_hung in [true, false] {
        let holding = Holding::new(&sandbox, &rig, 8000)?;
        if is_hung {
            suspend(pid)?
        } else {
            fs::write(&workers[0].broken, "")?
        }
        let (exit, text) = rig.verb(&["roll", "web"])?;
        eprintln!("{text}");
        ensure!(exit == 3 && text.contains("127.0.0.1:8000: not empty after 1 s"), "exit {exit}: {text}");
        is_out(&sandbox, &rig, 8000)?;
        ensure!(text.contains("does not answer `GET /`") && text.contains("it stays out"), "{text}");
        drop(holding);
        if is_hung {
            send(pid, Signal::CONT)?
        } else {
            fs::remove_file(&workers[0].broken)?
        }
        rig.wait_phase(8000, "up")?;
        ensure!(rig.worker(8000)?.reason.contains("answers again"), "{:?}", rig.worker(8000)?);
        ensure!(ask(&sandbox, 8000)? == Some(8000));
    }
    // The twin: a worker that is only in use goes back at once.
    let _holding = Holding::new(&sandbox, &rig, 8000)?;
    let (exit, text) = rig.verb(&["roll", "web"])?;
    ensure!(exit == 3 && rig.worker(8000)?.phase == "up", "exit {exit}: {text}");
    Ok(())
}

/// A worker that was left goes on draining, and is asked when the roll is over.
#[test]
fn a_worker_that_was_left() -> Result<()> {
    let sandbox = Sandbox::new("hungleave")?;
    let workers = workers(&sandbox)?;
    let extra = "warm = { requests = [\"GET /\"], within = \"2s\" }\n\
                 drain = { deadline = \"1s\", on_deadline = \"leave\", leave_max = \"1s\" }";
    let rig = Setup { extra, ..setup() }.attach(&sandbox, Vec::new())?;
    let holding = Holding::new(&sandbox, &rig, 8000)?;
    suspend(workers[0].process.pid())?;
    // This manager stops nothing, so that the roll ends with the next worker.
    let (exit, text) = rig.verb(&["roll", "web"])?;
    eprintln!("{text}");
    ensure!(exit == 1 && text.contains("127.0.0.1:8001"), "exit {exit}: {text}");
    is_out(&sandbox, &rig, 8000)?;
    drop(holding);
    send(workers[0].process.pid(), Signal::CONT)?;
    rig.wait_phase(8000, "up")
}

/// Nothing is configured that a worker could be asked: that it does not accept connections shows all the same.
#[test]
fn a_worker_that_accepts_nothing() -> Result<()> {
    let sandbox = Sandbox::new("hungtcp")?;
    let extra = "warm = { within = \"2s\" }\ndrain = { deadline = \"1s\" }";
    let mut rig = Setup { ports: 8000..=8002, extra, ..Setup::default() }.start(&sandbox)?;
    let caller = Caller::at(&sandbox, Place::Callers);
    let held = caller.hold(&[Dial { keep: true, ..Dial::to("127.0.0.1", 8000) }])?;
    rig.servers[0].freeze()?;
    let (exit, text) = rig.verb(&["roll", "web"])?;
    eprintln!("{text}");
    ensure!(exit == 3 && text.contains("has not accepted a connection"), "exit {exit}: {text}");
    let seen = caller.once(Dial::to("127.0.0.1", 8000).times(3))?;
    ensure!(!answers(&seen).contains_key(&8000) && !answers(&seen).contains_key(&0), "{:?}", answers(&seen));
    drop(held);
    send(rig.servers[0].pid(), Signal::CONT)?;
    rig.wait_phase(8000, "up")
}

/// An operator's drain ends: the worker is asked first, and the client that waits for it is told why it is not back.
#[test]
fn a_drain_by_hand() -> Result<()> {
    let sandbox = Sandbox::new("hunghand")?;
    let workers = workers(&sandbox)?;
    let rig = setup().attach(&sandbox, Vec::new())?;
    let pid = workers[0].process.pid();
    rig.drain(8000)?;
    suspend(pid)?;
    let (exit, text) = rig.verb(&["enable", "web", "8000", "--within", "3s"])?;
    eprintln!("{text}");
    ensure!(
        exit == 1 && text.contains("not back in rotation after 3 s: waited for its warm-up"),
        "exit {exit}: {text}"
    );
    is_out(&sandbox, &rig, 8000)?;
    send(pid, Signal::CONT)?;
    rig.enable(8000)?;
    // The end of its time is no other end.
    rig.must(&["drain", "web", "8000", "--for", "300ms"])?;
    suspend(pid)?;
    rig.wait_worker(8000, "out", |worker| worker.phase == "listening")?;
    is_out(&sandbox, &rig, 8000)?;
    send(pid, Signal::CONT)?;
    rig.wait_phase(8000, "up")
}

/// A daemon begins while a worker hangs: over tables that it takes over, and over none. Workers that answer serve on, and
/// none of them is ever out.
#[test]
fn a_daemon_that_begins() -> Result<()> {
    let sandbox = Sandbox::new("hungstart")?;
    let workers = workers(&sandbox)?;
    suspend(workers[0].process.pid())?;
    let mut rig = setup().attach(&sandbox, Vec::new())?;
    rig.wait_worker(8000, "out", |worker| worker.phase == "listening")?;
    is_out(&sandbox, &rig, 8000)?;
    send(workers[0].process.pid(), Signal::CONT)?;
    rig.wait_phase(8000, "up")?;
    rig.kill_daemon()?;
    suspend(workers[1].process.pid())?;
    rig.succeed()?;
    rig.wait_worker(8001, "out", |worker| worker.phase == "listening")?;
    is_out(&sandbox, &rig, 8001)?;
    send(workers[1].process.pid(), Signal::CONT)?;
    rig.wait_phase(8001, "up")?;
    let events = rig.must(&["events", "--json"])?;
    let left = events.lines().filter(|line| line.contains("127.0.0.1:8002") && line.contains("listening"));
    ensure!(left.count() == 0, "a worker that answers was out: {events}");
    Ok(())
}

/// The manager says that no worker runs, after a restart of its own say. What answers serves on; what does not is named.
#[test]
fn a_process_that_is_left_over() -> Result<()> {
    let sandbox = Sandbox::new("hungleft")?;
    let workers = workers(&sandbox)?;
    let status = sandbox.dir().join("status");
    fs::write(&status, "0")?;
    let manager = format!(
        "{{ start = [\"/bin/true\", \"{{port}}\"], stop = [\"/bin/true\", \"{{port}}\"], status = [\"/bin/sh\", \"-c\", \
         \"exit $(cat {})\", \"{{port}}\"] }}",
        status.display()
    );
    let mut rig = Setup { manager: manager.leak(), ..setup() }.attach(&sandbox, Vec::new())?;
    ensure!(rig.worker(8000)?.phase == "up", "{:?}", rig.worker(8000)?);
    rig.daemon.stop(std::time::Duration::from_secs(10))?;
    fs::write(&status, "3")?;
    suspend(workers[0].process.pid())?;
    rig.succeed()?;
    rig.wait_worker(8000, "out", |worker| worker.phase != "up")?;
    let reason = rig.worker(8000)?.reason;
    eprintln!("{reason}");
    let who = format!("(pid {}", workers[0].process.pid());
    ensure!(reason.contains("left over") && reason.contains(&who) && reason.contains("Next: end that"), "{reason}");
    is_out(&sandbox, &rig, 8000)?;
    for port in [8001, 8002] {
        rig.wait_worker(port, "told of", |worker| worker.phase == "up" && worker.reason.contains("left over"))?;
    }
    Ok(())
}

/// supervisord itself: it was killed, and its successor cannot start workers whose ports their orphans hold (FATAL). An orphan
/// that answers nothing is not up when a daemon begins, and why supervisord does not replace it is told.
#[test]
fn an_orphan_of_supervisord() -> Result<()> {
    let sandbox = Sandbox::new("orphans")?;
    let mut stage = Stage::new(&sandbox)?;
    let pid = stage.supervisor.pid_of(8000)?.context("no worker")?;
    stage.supervisor.kill_supervisord()?;
    suspend(pid)?;
    stage.supervisor.start_again()?;
    stage.wait(SOON, || Ok(stage.supervisor.ctl(&["status"])?.matches("FATAL").count() == PORTS.count()))?;
    let daemon = Daemon::start(&sandbox, &stage.config(&ServiceConfig::default()))?;
    let out = || Ok(stage.api().phases()?.get(&8000).is_some_and(|phase| phase != "up"));
    stage.wait(SOON, out).with_context(|| daemon.log())?;
    let worker = stage.api().workers()?.remove(&8000).context("no worker in status")?;
    let reason = worker["reason"].as_str().unwrap_or_default().to_owned();
    ensure!(reason.contains("web:web_8000 has failed"), "{reason}");
    for _ in 0..4 {
        let by = ask(&sandbox, 8000)?;
        ensure!(by != Some(8000), "the orphan was asked");
    }
    // A process that stands still takes no SIGTERM.
    send(pid, Signal::KILL)
}
