//! With commands of the shell's.

use std::path::Path;

use super::*;

const AT: &str = "127.0.0.1:8003";

/// Each command is a script, which has the worker's facts in `$1`.
fn exec(folder: &Path, start: &str, stop: &str, status: &str) -> Exec {
    let command = |script: &str| config::Command {
        argv: ["/bin/sh", "-c", script, "sh", &format!("{}/{{service}}-{{address}}-{{port}}", folder.display())]
            .map(str::to_owned)
            .into(),
    };
    let config = config::Exec {
        user: None,
        start: command(start),
        stop: command(stop),
        status: command(status),
        within: Duration::from_secs(2),
    };
    Exec::new("web", config)
}

fn at() -> SocketAddr {
    AT.parse().unwrap()
}

const UP: &str = "test -e $1 && echo pid 4711 || exit 3";

#[tokio::test]
async fn starts_and_stops_by_command() {
    let folder = tempfile::tempdir().unwrap();
    let exec = exec(folder.path(), "echo started >> $1", "rm $1", UP);
    exec.check(&[at()]).await.unwrap();
    assert_eq!(exec.status(at()).await.unwrap().phase, ProcessPhase::Stopped);
    exec.start(at()).await.unwrap();
    exec.start(at()).await.unwrap();
    let file = folder.path().join("web-127.0.0.1-8003");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "started\n", "started twice");
    let status = exec.status(at()).await.unwrap();
    assert_eq!((status.phase, status.pid), (ProcessPhase::Running, Some(4711)));
    exec.stop(at()).await.unwrap();
    exec.stop(at()).await.unwrap();
    assert!(!file.exists());
}

#[tokio::test]
async fn a_status_that_cannot_tell_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let exec = exec(folder.path(), "touch $1.touched", "touch $1.touched", "echo what now >&2; exit 4");
    for result in [exec.start(at()).await, exec.stop(at()).await, exec.check(&[at()]).await] {
        let error = result.unwrap_err();
        assert!(!error.may_come_yet(), "{error}");
        assert!(error.to_string().contains("exit status: 4: what now. Its status must be 0"), "{error}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_stop_that_was_tried_may_come_yet() {
    let folder = tempfile::tempdir().unwrap();
    let exec = |stop| exec(folder.path(), "exit 1", stop, "echo pid 1");
    for (stop, said) in [
        ("echo no way >&2; exit 1", "`/bin/sh` ended with exit status: 1: no way"),
        ("sleep 60", "still running after 2 s"),
        ("exit 0", "did not stop web 127.0.0.1:8003 within 2 s: the process is running (pid 1"),
    ] {
        let error = exec(stop).stop(at()).await.unwrap_err();
        assert!(error.may_come_yet() && error.to_string().contains(said), "{error}");
    }
}

#[tokio::test]
async fn a_start_says_what_was_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let error = exec(folder.path(), "echo no such app >&2; exit 7", "", UP).start(at()).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("refused to start web 127.0.0.1:8003: `/bin/sh` ended with exit status: 7: no such app"),
        "{error}"
    );
}

#[tokio::test]
async fn a_missing_command() {
    let folder = tempfile::tempdir().unwrap();
    let mut exec = exec(folder.path(), "", "", UP);
    exec.config.status.argv[0] = "/nonexistent/status".to_owned();
    let error = exec.check(&[at()]).await.unwrap_err();
    assert!(!error.may_come_yet() && error.to_string().contains("/nonexistent/status"), "{error}");
    assert!(error.to_string().contains("No such file"), "{error}");
}

/// A worker in the background inherits what the command had, and must neither hold the command nor be killed by it.
#[tokio::test]
async fn a_worker_in_the_background_holds_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let work = "(while test -e $1; do head -c 9999 /dev/zero; echo line; sleep 0.05; done; touch $1.end) & touch $1";
    let exec = exec(folder.path(), work, "rm $1", UP);
    let begun = Instant::now();
    exec.start(at()).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2));
    sleep(Duration::from_millis(400)).await;
    exec.stop(at()).await.unwrap();
    let end = folder.path().join("web-127.0.0.1-8003.end");
    for _ in 0..100 {
        if end.exists() {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("the worker was killed by its output");
}

#[test]
fn pids() {
    assert_eq!(pid("pid 12\nmore"), Some(12));
    assert_eq!(pid(" pid  12 "), Some(12));
    for text in ["", "12", "pid", "pid x", "\npid 12", "pid -1", "pid 99999999999"] {
        assert_eq!(pid(text), None, "{text}");
    }
}
