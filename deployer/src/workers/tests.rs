//! Against the real supervisord, with processes good and bad.

use std::{
    os::unix::net::UnixListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::time::sleep;

use super::*;

const PROGRAM: &str = "/usr/bin/supervisord";
/// Ends only on SIGKILL.
const STUBBORN: &str =
    "/usr/bin/python3 -c \"import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(1000)\"";

/// A supervisord in a folder of its own, ended with all its processes when it is dropped.
struct Daemon {
    child: Child,
    folder: TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // SIGTERM, on which it ends its processes first; all of them end within two seconds.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        for _ in 0..100 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    /// Starts one, with a group `web` of processes `web_1`.. that run these commands.
    async fn start(commands: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let mut conf = format!(
            "[unix_http_server]\nfile={at}/s\nusername=roll\npassword=se:cret\n\n\
             [supervisord]\nlogfile={at}/log\npidfile={at}/pid\nchildlogdir={at}\nnodaemon=true\n\n\
             [rpcinterface:supervisor]\n\
             supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n\n"
        );
        let names: Vec<String> = (1..=commands.len()).map(|number| format!("web_{number}")).collect();
        conf.push_str(&format!("[group:web]\nprograms={}\n\n", names.join(",")));
        for (name, command) in names.iter().zip(commands) {
            conf.push_str(&format!(
                "[program:{name}]\ncommand={command}\nautostart=true\nautorestart=true\nstartsecs=1\nstartretries=3\nstopwaitsecs=1\n\n"
            ));
        }
        std::fs::write(folder.path().join("conf"), conf).unwrap();
        let child = Command::new(PROGRAM)
            .args(["-n", "-c", "conf"])
            .current_dir(&folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("supervisord is installed (apt install supervisor)");
        let daemon = Self { child, folder };
        for _ in 0..200 {
            if daemon.manager().check(&[]).await.is_ok() {
                return daemon;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("supervisord is not up within 10 s");
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    fn manager(&self) -> Supervisord {
        self.with(Duration::from_secs(10))
    }

    fn with(&self, stop_within: Duration) -> Supervisord {
        let login = Some(("roll".to_owned(), "se:cret".to_owned()));
        Supervisord::new(self.socket(), "web:web_{port}".to_owned(), login, stop_within)
    }
}

fn worker(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

async fn until(manager: &Supervisord, port: u16, phase: ProcessPhase) -> ProcessStatus {
    let begun = Instant::now();
    loop {
        let status = manager.status(worker(port)).await.unwrap();
        if status.phase == phase {
            return status;
        }
        assert!(begun.elapsed() < Duration::from_secs(15), "{status:?}, not {phase:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

fn alive(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// Refused: its words and the hint.
fn refusal(result: Result<(), ManagerError>) -> (String, &'static str) {
    match result {
        Err(ManagerError::Refused { said, hint, .. }) => (said, hint),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn stop_and_start() {
    let daemon = Daemon::start(&["/bin/sleep 1000"]).await;
    let manager = daemon.manager();
    assert_eq!(manager.name(worker(1)), "web:web_1");
    manager.check(&[worker(1)]).await.unwrap();

    // While it is starting, and then again when there is nothing left to do.
    let pid = until(&manager, 1, ProcessPhase::Starting).await.pid.unwrap();
    assert!(alive(pid));
    manager.stop(worker(1)).await.unwrap();
    assert!(!alive(pid));
    manager.stop(worker(1)).await.unwrap();
    assert_eq!(manager.status(worker(1)).await.unwrap().phase, ProcessPhase::Stopped);

    manager.start(worker(1)).await.unwrap();
    manager.start(worker(1)).await.unwrap();
    let running = until(&manager, 1, ProcessPhase::Running).await;
    assert_ne!(running.pid, Some(pid));
    assert!(running.detail.starts_with("pid "), "{running:?}");
    manager.start(worker(1)).await.unwrap();

    manager.stop(worker(1)).await.unwrap();
    assert_eq!(manager.status(worker(1)).await.unwrap().pid, None);
    assert!(!alive(running.pid.unwrap()));
}

#[tokio::test]
async fn a_process_that_will_not_stop() {
    let daemon = Daemon::start(&[STUBBORN]).await;
    let manager = daemon.manager();
    let pid = until(&manager, 1, ProcessPhase::Running).await.pid.unwrap();

    let late = daemon.with(Duration::from_millis(200)).stop(worker(1)).await.unwrap_err();
    assert!(matches!(late, ManagerError::Late { phase: ProcessPhase::Stopping, .. }), "{late:?}");
    assert_eq!(late.to_string(), "supervisord did not stop web:web_1 within 0.2 s: the process is stopping (STOPPING)");
    let late = daemon.with(Duration::from_millis(50)).start(worker(1)).await.unwrap_err();
    assert!(matches!(late, ManagerError::Late { .. }), "{late:?}");

    manager.stop(worker(1)).await.unwrap();
    assert!(!alive(pid));
}

#[tokio::test]
async fn a_stop_that_is_under_way() {
    let daemon = Daemon::start(&[STUBBORN]).await;
    let manager = daemon.manager();
    let pid = until(&manager, 1, ProcessPhase::Running).await.pid.unwrap();
    // Asks, and gives up at once.
    let _ = daemon.with(Duration::ZERO).stop(worker(1)).await;
    manager.start(worker(1)).await.unwrap();
    let again = manager.status(worker(1)).await.unwrap();
    assert!(again.pid.is_some_and(|new| new != pid), "{again:?}");
}

#[tokio::test]
async fn processes_that_crash() {
    // The first at once, the second after it was RUNNING, the third cannot be started at all.
    let daemon = Daemon::start(&["/bin/false", "/bin/sleep 1.3", "/nowhere/to/be/found"]).await;
    let manager = daemon.manager();
    // Its tries are a second or more apart, so that it is BACKOFF nearly always.
    let crashing = until(&manager, 1, ProcessPhase::Starting).await;
    assert!(crashing.detail.starts_with("Exited too quickly") || crashing.pid.is_some(), "{crashing:?}");
    manager.stop(worker(1)).await.unwrap();
    assert_eq!(manager.status(worker(1)).await.unwrap().phase, ProcessPhase::Stopped);
    // To supervisord, either; the process ends before or just after it looks.
    if let Err(error) = manager.start(worker(1)).await {
        assert!(error.to_string().contains("SPAWN_ERROR: web:web_1 (Exited too quickly"), "{error}");
    }
    let failed = until(&manager, 1, ProcessPhase::Failed).await;
    assert_eq!((failed.pid, &*failed.detail), (None, "Exited too quickly (process log may have details)"));
    manager.stop(worker(1)).await.unwrap();

    until(&manager, 3, ProcessPhase::Failed).await;
    let (said, hint) = refusal(manager.start(worker(3)).await);
    assert!(said.starts_with("NO_FILE") && hint.contains("command"), "{said}");
}

#[tokio::test]
async fn a_process_that_comes_back_is_stopped_for_good() {
    let daemon = Daemon::start(&["/bin/sleep 1.1"]).await;
    let manager = daemon.manager();
    // Stopped at many moments around its end: EXITED, and about to be restarted, is among them.
    for round in 0..12 {
        manager.start(worker(1)).await.unwrap();
        sleep(Duration::from_millis(1070 + round * 6)).await;
        assert_ne!(manager.status(worker(1)).await.unwrap().phase, ProcessPhase::Failed);
        manager.stop(worker(1)).await.unwrap();
        sleep(Duration::from_millis(100)).await;
        let status = manager.status(worker(1)).await.unwrap();
        assert_eq!((status.phase, status.pid), (ProcessPhase::Stopped, None), "round {round}");
    }
}

#[tokio::test]
async fn names_and_logins_that_are_wrong() {
    let daemon = Daemon::start(&["/bin/sleep 1000", "/bin/sleep 1000"]).await;
    let manager = daemon.manager();
    let (said, hint) = refusal(manager.check(&[worker(1), worker(7), worker(8)]).await);
    assert_eq!(said, "it has no process named web:web_7, web:web_8; it has web:web_1, web:web_2");
    assert!(hint.contains("manager.program"));
    for result in
        [manager.stop(worker(9)).await, manager.start(worker(9)).await, manager.status(worker(9)).await.map(drop)]
    {
        assert_eq!(refusal(result).0, "BAD_NAME: web:web_9; it has web:web_1, web:web_2");
    }

    let stranger = Supervisord::new(daemon.socket(), "web:web_{port}".into(), None, Duration::from_secs(5));
    let (said, hint) = refusal(stranger.check(&[worker(1)]).await);
    assert!(said.contains("401") && hint.contains("password"), "{said}");
}

#[tokio::test]
async fn patterns_that_are_odd() {
    let daemon = Daemon::start(&["/bin/sleep 1000"]).await;
    let manager = daemon.manager();
    // A whole group is never stopped by mistake, and no name gets out of its place in the XML.
    for name in ["web:*", "web", "web:", "</string><&\u{1}\u{e9}"] {
        let odd = Supervisord::new(
            daemon.socket(),
            name.into(),
            Some(("roll".into(), "se:cret".into())),
            Duration::from_secs(5),
        );
        assert!(refusal(odd.stop(worker(1)).await).0.starts_with("BAD_NAME"));
    }
    assert_ne!(manager.status(worker(1)).await.unwrap().pid, None);
}

#[tokio::test]
async fn nobody_there() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("s");
    let manager = Supervisord::new(at.clone(), "web:web_{port}".into(), None, Duration::from_secs(5));
    assert_eq!(manager.name(worker(1)), "web:web_1");
    let error = manager.stop(worker(1)).await.unwrap_err();
    assert!(error.to_string().contains("Is supervisord running"), "{error}");
    drop(UnixListener::bind(&at).unwrap());
    let error = manager.stop(worker(1)).await.unwrap_err();
    assert!(error.to_string().contains("nobody listens"), "{error}");
}
