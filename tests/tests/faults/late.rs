//! A supervisord that does what it was asked to do long after it was asked: one that hangs in the middle of a stop does
//! it when it goes on.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use deployer_tests::daemon::{Daemon, ServiceConfig};
use deployer_tests::sandbox::Sandbox;
use deployer_tests::stage::Stage;

/// Between the daemon and supervisord: passes every call on, a stop of 8001 only after `delay`.
fn proxy(stage: &Stage<'_>, delay: Duration) -> Result<PathBuf> {
    let (here, there) = (stage.sandbox.dir().join("proxy.sock"), stage.supervisor.socket());
    let listener = UnixListener::bind(&here).context("bind the proxy")?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let there = there.clone();
            // A call that breaks off is the callers' to notice.
            std::thread::spawn(move || pass(stream, &there, delay).ok());
        }
    });
    Ok(here)
}

fn pass(mut from: UnixStream, there: &PathBuf, delay: Duration) -> Result<()> {
    let (mut call, mut part) = (Vec::new(), [0; 4096]);
    while !call.ends_with(b"</methodCall>") && !call.ends_with(b"</methodCall>\n") {
        let size = from.read(&mut part)?;
        ensure!(size > 0, "the call was cut");
        call.extend_from_slice(&part[..size]);
    }
    let text = String::from_utf8_lossy(&call);
    if text.contains("supervisor.stopProcess") && text.contains("web_8001") {
        std::thread::sleep(delay);
    }
    let mut to = UnixStream::connect(there)?;
    to.write_all(&call)?;
    let mut answer = Vec::new();
    to.read_to_end(&mut answer)?;
    from.write_all(&answer)?;
    Ok(())
}

fn roll(stage: &Stage<'_>, delay: Duration) -> Result<deployer_tests::api::Ending> {
    let config = ServiceConfig { batch: "1".to_owned(), ..ServiceConfig::default() };
    let (socket, proxy) = (stage.supervisor.socket(), proxy(stage, delay)?);
    let text = stage.config(&config).replace(&format!("{socket:?}"), &format!("{proxy:?}"));
    let daemon = Daemon::start(stage.sandbox, &text)?;
    stage.all_up()?;
    let end = stage.roll(&daemon, &["--to", "v2"])?.end()?;
    eprintln!("{end:?}");
    // Whatever it was that the daemon made of it: the stop comes now.
    let pid = stage.supervisor.pid_of(8001)?;
    let asked = Instant::now();
    while end.result != "done" && stage.supervisor.pid_of(8001)? == pid && asked.elapsed() < delay {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(500));
    let after = stage.api().phases()?;
    eprintln!("after the late stop: {after:?}");
    Ok(end)
}

#[test]
fn a_stop_that_takes_its_time() -> Result<()> {
    let sandbox = Sandbox::new("slowstop")?;
    let stage = Stage::new(&sandbox)?;
    roll(&stage, Duration::from_secs(2))?.must("done", &["4 workers"])?;
    stage.unharmed("a stop that takes its time")?;
    Ok(())
}

#[test]
fn a_stop_that_comes_when_nobody_waits_any_more() -> Result<()> {
    let sandbox = Sandbox::new("latestop")?;
    let stage = Stage::new(&sandbox)?;
    let end = roll(&stage, Duration::from_secs(8))?;
    // It may still be stopped, so it must not be given any requests.
    end.must("failed", &["127.0.0.1:8001", "no answer within 5 s"])?;
    ensure!(end.failed == [8001], "{end:?}");
    stage.unharmed("a stop that comes when nobody waits any more")?;
    Ok(())
}
