//! A supervisord that does what it was asked to do long after it was asked: one that hangs in the middle of a stop does
//! it when it goes on, and one that waits for a worker to end kills it in the end.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{sleep, spawn};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use deployer_tests::api::Ending;
use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::process::suspend;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::stage::Stage;

/// What happens before a stop of 8001 is passed on.
type Before = Arc<dyn Fn() + Send + Sync>;

/// supervisord has ended, as far as its clients can tell.
type Deaf = Arc<AtomicBool>;

/// Between the daemon and supervisord: passes every call on.
fn proxy(stage: &Stage<'_>, before: Before, deaf: &Deaf) -> Result<PathBuf> {
    let (here, there) = (stage.sandbox.dir().join("proxy.sock"), stage.supervisor.socket());
    let listener = UnixListener::bind(&here).context("bind the proxy")?;
    let deaf = Arc::clone(deaf);
    spawn(move || {
        for stream in listener.incoming().flatten() {
            let (there, before, deaf) = (there.clone(), Arc::clone(&before), Arc::clone(&deaf));
            // A call that breaks off is the callers' to notice.
            spawn(move || pass(stream, &there, &before, &deaf).ok());
        }
    });
    Ok(here)
}

fn pass(mut from: UnixStream, there: &Path, before: &Before, deaf: &Deaf) -> Result<()> {
    let (mut call, mut part) = (Vec::new(), [0; 4096]);
    while !call.trim_ascii_end().ends_with(b"</methodCall>") {
        let size = from.read(&mut part)?;
        ensure!(size > 0, "the call was cut");
        call.extend_from_slice(&part[..size]);
    }
    ensure!(!deaf.load(Ordering::SeqCst), "deaf");
    let text = String::from_utf8_lossy(&call);
    if text.contains("supervisor.stopProcess") && text.contains("web_8001") {
        before();
    }
    let mut to = UnixStream::connect(there)?;
    to.write_all(&call)?;
    let mut answer = Vec::new();
    to.read_to_end(&mut answer)?;
    from.write_all(&answer)?;
    Ok(())
}

/// Rolls one by one, then waits as long as 8001 still lives, at most `rest`, and a moment longer. The daemon is still there
/// afterwards: without it, nginx would meet the closed port.
fn roll<'a>(stage: &Stage<'a>, before: Before, deaf: &Deaf, rest: Duration) -> Result<(Daemon<'a>, Ending)> {
    let config = ServiceConfig { batch: "1".to_owned(), ..ServiceConfig::default() };
    let (socket, proxy) = (stage.supervisor.socket(), proxy(stage, before, deaf)?);
    let text = stage.config(&config).replace(&format!("{socket:?}"), &format!("{proxy:?}, stop_within = \"3s\""));
    let daemon = Daemon::start(stage.sandbox, &text)?;
    stage.all_up()?;
    let pid = stage.supervisor.pid_of(8001)?;
    let end = stage.roll(&daemon, &["--to", "v2"])?.end()?;
    eprintln!("{end:?}; 8001 is {}", stage.api().workers()?[&8001]);
    let lives = || anyhow::Ok(stage.supervisor.pid_of(8001)? == pid);
    stage.wait(rest, || Ok(!lives()?)).context("waiting for 8001 to be stopped")?;
    sleep(Duration::from_millis(500));
    eprintln!("after the late stop: {:?}, {} failed", stage.api().phases()?, stage.load.failed());
    Ok((daemon, end))
}

#[test]
fn a_stop_that_takes_its_time() -> Result<()> {
    let sandbox = Sandbox::new("slowstop")?;
    let stage = Stage::new(&sandbox)?;
    let before = Arc::new(|| sleep(Duration::from_secs(1)));
    let (_daemon, end) = roll(&stage, before, &Deaf::default(), Duration::ZERO)?;
    end.must("done", &["4 workers"])?;
    stage.unharmed("a stop that takes its time")?;
    Ok(())
}

/// It may still be stopped, so it must not be given any requests.
#[test]
fn a_stop_that_comes_when_nobody_waits_any_more() -> Result<()> {
    let sandbox = Sandbox::new("latestop")?;
    let stage = Stage::new(&sandbox)?;
    let before = Arc::new(|| sleep(Duration::from_secs(8)));
    let (_daemon, end) = roll(&stage, before, &Deaf::default(), Duration::from_secs(30))?;
    stage.no_loss()?;
    end.must("failed", &["127.0.0.1:8001", "answer"])?;
    ensure!(end.failed == [8001], "{end:?}");
    stage.unharmed("a stop that comes when nobody waits any more")?;
    Ok(())
}

/// It has been told to end, and will be killed: it must not be given any requests either.
#[test]
fn a_worker_that_does_not_end() -> Result<()> {
    let sandbox = Sandbox::new("stubborn")?;
    let stage = Stage::new(&sandbox)?;
    let pid = stage.supervisor.pid_of(8001)?.context("no worker")?;
    // SIGTERM waits until it goes on, which it does not; supervisord kills it after 10 s.
    let before = Arc::new(move || drop(suspend(pid)));
    let (_daemon, end) = roll(&stage, before, &Deaf::default(), Duration::from_secs(30))?;
    stage.no_loss()?;
    end.must("failed", &["127.0.0.1:8001", "did not stop web:web_8001 within 3 s"])?;
    ensure!(end.failed == [8001], "{end:?}");
    stage.unharmed("a worker that does not end")?;
    Ok(())
}

/// supervisord passes the stop on, and then nobody can ask it any more. The worker takes its time to end: it must not be
/// given any requests either.
#[test]
fn a_supervisord_that_ends_in_the_middle_of_a_stop() -> Result<()> {
    let sandbox = Sandbox::new("deaf")?;
    let stage = Stage::new(&sandbox)?;
    let pid = stage.supervisor.pid_of(8001)?.context("no worker")?;
    let deaf = Deaf::default();
    let soon = Arc::clone(&deaf);
    let before = Arc::new(move || {
        drop(suspend(pid));
        let soon = Arc::clone(&soon);
        spawn(move || {
            sleep(Duration::from_millis(20));
            soon.store(true, Ordering::SeqCst);
        });
    });
    let (_daemon, end) = roll(&stage, before, &deaf, Duration::from_secs(30))?;
    stage.no_loss()?;
    end.must("failed", &["127.0.0.1:8001", "may yet be stopped"])?;
    ensure!(end.failed == [8001], "{end:?}");
    stage.unharmed("a supervisord that ends in the middle of a stop")?;
    Ok(())
}
