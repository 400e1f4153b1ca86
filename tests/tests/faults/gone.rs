//! Connections whose caller is gone while the worker still has them: they hold no drain, and nothing is cut.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::dial::PYTHON;
use deployer_tests::pace::SOON;
use deployer_tests::process::{run, send, suspend};
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::stage::Stage;

/// The worker at which this is tried.
const PORT: u16 = 8000;
/// Says what it has seen, and keeps its end open until its input ends.
const UNCLOSED: &str = "\
import socket, sys
sock = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
sock.sendall(b'GET /health HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n')
while sock.recv(4096):
    pass
print('answered', flush=True)
sys.stdin.read()
";
/// Sends more than the kernel takes for a process that does not read, and ends.
const UPLOAD: &str = "\
import socket, sys
sock = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
sock.settimeout(0.3)
sock.send(b'POST / HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 99999999\\r\\n\\r\\n')
try:
    sock.sendall(b'x' * 99999999)
except TimeoutError:
    pass
";

/// A deadline beyond which no test of these waits.
fn config() -> ServiceConfig {
    ServiceConfig { deadline: "8s", batch: "4".to_owned(), ..ServiceConfig::default() }
}

/// One finished request, on a connection that the worker never closes.
fn leak(stage: &Stage<'_>, place: Place) -> Result<()> {
    let url = format!("http://127.0.0.1:{PORT}/leak");
    ensure!(run(stage.sandbox.command(place, "curl").args(["-sS", &url]))? == "leaked\n", "no answer from /leak");
    Ok(())
}

/// A process that has its end open although the worker has closed the other.
struct Unclosed(Child);

impl Unclosed {
    fn start(stage: &Stage<'_>) -> Result<Self> {
        let mut command = stage.sandbox.command(Place::Callers, PYTHON);
        command.args(["-c", UNCLOSED, &PORT.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Self(command.spawn().context("start a caller")?);
        let mut said = [0; 9];
        child.0.stdout.as_mut().context("its output")?.read_exact(&mut said).context("what the caller says")?;
        Ok(child)
    }
}

impl Drop for Unclosed {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().ok();
    }
}

/// Rolls; the worker on [`PORT`] must be empty soon. `then` is done when it is.
fn is_soon_empty(stage: &Stage<'_>, daemon: &Daemon<'_>, then: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut roll = stage.roll(daemon, &["--to", "v2"])?;
    roll.until_phase(PORT, "draining")?;
    let begun = Instant::now();
    roll.until_phase(PORT, "drained")?;
    let took = begun.elapsed();
    then()?;
    let end = roll.end()?;
    end.must("done", &["4 workers"])?;
    ensure!(took < Duration::from_secs(5), "the drain took {took:.1?}: {end:?}");
    Ok(())
}

/// No connection was cut or reset by the end of a worker.
fn nothing_is_cut(stage: &Stage<'_>) -> Result<()> {
    for (port, worker) in stage.api().workers()? {
        ensure!(worker["cut"] == 0 && worker["reset"] == 0 && worker["outsiders_cut"] == 0, "{port}: {worker}");
    }
    Ok(())
}

#[test]
fn what_no_caller_waits_for_holds_no_drain() -> Result<()> {
    let sandbox = Sandbox::new("leaks")?;
    let stage = Stage::new(&sandbox)?;
    // One before the programs, the others after.
    leak(&stage, Place::Callers)?;
    let daemon = stage.daemon(&config())?;
    for place in [Place::Callers, Place::Callers, Place::Outside] {
        leak(&stage, place)?;
    }
    let unclosed = Unclosed::start(&stage)?;
    let gone = || Ok(stage.api().workers()?[&PORT]["gone"] == 4);
    ensure!(daemon.cli(&["drain", "web", "8000", "--force"])?.status.success());
    let seen = stage.wait(Duration::from_secs(5), gone);
    let status = String::from_utf8_lossy(&daemon.cli(&["status"])?.stdout).into_owned();
    ensure!(daemon.cli(&["enable", "web", "8000"])?.status.success());
    is_soon_empty(&stage, &daemon, || Ok(()))?;
    nothing_is_cut(&stage)?;
    seen.with_context(|| status.clone())?;
    ensure!(status.contains("4 connections hold nothing: their callers are gone"), "{status}");
    ensure!(!status.contains("held by"), "{status}");
    drop(unclosed);
    stage.unharmed("what no caller waits for")?;
    Ok(())
}

/// The worker stands still, with abandoned requests in its accept queue and one that it has read half of.
#[test]
fn abandoned_requests_of_a_stopped_worker_hold_no_drain() -> Result<()> {
    let sandbox = Sandbox::new("abandoned")?;
    let mut stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&config())?;
    stage.load.end()?;
    let pid = pid_of(PORT, &stage)?;
    suspend(pid)?;
    let url = format!("http://127.0.0.1:{PORT}/");
    for place in [Place::Callers, Place::Callers, Place::Callers, Place::Outside] {
        let output = sandbox.command(place, "curl").args(["-s", "--max-time", "0.2", &url]).output()?;
        ensure!(output.status.code() == Some(28), "{output:?}");
    }
    run(sandbox.command(Place::Callers, PYTHON).args(["-c", UPLOAD, &PORT.to_string()]))?;
    let tried = is_soon_empty(&stage, &daemon, || send(pid, Signal::CONT));
    send(pid, Signal::CONT).ok();
    tried?;
    nothing_is_cut(&stage)
}

fn pid_of(port: u16, stage: &Stage<'_>) -> Result<u32> {
    let mut command = stage.sandbox.command(Place::Callers, "curl");
    let head = run(command.args(["-s", "-D", "-", "-o", "/dev/null", &format!("http://127.0.0.1:{port}/health")]))?;
    let pid = head.lines().find_map(|line| line.strip_prefix("X-Pid: ")).context("no X-Pid")?;
    pid.trim().parse().context("X-Pid")
}

/// The twin: a caller that has closed its half, and reads on, is waited for and gets its answer.
#[test]
fn a_caller_that_has_closed_its_half_is_waited_for() -> Result<()> {
    let sandbox = Sandbox::new("halfclosed")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&config())?;
    let mut caller = sandbox.in_netns(|| TcpStream::connect(("127.0.0.1", PORT)))??;
    caller.write_all(b"GET /leak?slow=2 HTTP/1.1\r\nHost: x\r\nX-Request-Id: half\r\n\r\n")?;
    // tornado does not answer a caller whose end it reads together with the request.
    stage.wait(SOON, || Ok(stage.journal()?.entries.iter().any(|entry| entry.id == "half")))?;
    caller.shutdown(Shutdown::Write)?;
    let mut roll = stage.roll(&daemon, &["--to", "v2"])?;
    roll.until_phase(PORT, "draining")?;
    let mut answer = [0; 12];
    caller.read_exact(&mut answer).context("the answer")?;
    ensure!(answer == *b"HTTP/1.1 200", "{:?}", String::from_utf8_lossy(&answer));
    ensure!(!roll.seen.iter().any(|event| event["phase"] == "drained"), "{:?}", roll.seen);
    drop(caller);
    roll.end()?.must("done", &["4 workers"])?;
    nothing_is_cut(&stage)?;
    stage.unharmed("a caller that has closed its half")?;
    Ok(())
}
