//! The built-in manager, and what only it does.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use deployer::{
    config::{self, Command},
    workers::{self, ProcessManager, ProcessPhase},
};
use deployer_tests::{
    daemon::DeployerBin,
    sandbox::{Place, Sandbox},
};
use rustix::process::Signal;
use tokio::time::sleep;

use super::scene::{Fixture, PORTS, SOON, STOP_WITHIN, Scene, at, is_alive, kill, play, proc};

/// The first wait before a restart; it doubles up to 1 s.
const FIRST: Duration = Duration::from_millis(200);

/// What the manager needs.
pub(crate) struct Builtin {
    launcher: PathBuf,
    config: config::Builtin,
}

impl Builtin {
    fn with(&self, change: impl FnOnce(&mut config::Builtin)) -> workers::Builtin {
        let mut config = self.config.clone();
        change(&mut config);
        workers::Builtin::new("web", config, self.launcher.clone())
    }

    fn cgroup(&self, port: u16) -> PathBuf {
        self.config.cgroup.join(format!("web/{port}"))
    }

    fn log(&self, port: u16) -> PathBuf {
        self.config.log.replace("{port}", &port.to_string()).into()
    }

    /// The processes in a worker's cgroup.
    fn pids(&self, port: u16) -> Vec<u32> {
        let text = fs::read_to_string(self.cgroup(port).join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// How often a worker has begun.
    fn begun(&self, port: u16) -> usize {
        fs::read_to_string(self.log(port)).unwrap_or_default().lines().filter(|line| *line == "begun").count()
    }
}

impl Fixture for Builtin {
    const RESTARTS: bool = true;
    const KILLS: bool = true;

    fn new(sandbox: &Sandbox, worker: &[String], directory: &Path) -> Result<Self> {
        let mut argv = worker.to_vec();
        argv.extend(["{port}".to_owned(), directory.display().to_string()]);
        let config = config::Builtin {
            command: Command { argv },
            told: [].into(),
            user: None,
            group: None,
            directory: "/".into(),
            environment: [("A".to_owned(), "{service} {port}".to_owned())].into(),
            log: format!("{}/deep/er/{{port}}.log", directory.display()),
            log_size: 50_000,
            log_keep: 2,
            cgroup: sandbox.cgroup(Place::Workers),
            stop_signal: Signal::TERM,
            stop_within: STOP_WITHIN,
            kill: true,
            restart: config::Backoff { first: FIRST, most: Duration::from_secs(1) },
        };
        Ok(Self { launcher: DeployerBin::find()?.path().to_owned(), config })
    }

    fn manager(&self) -> Result<Box<dyn ProcessManager>> {
        Ok(Box::new(self.with(|_| ())))
    }
}

super::cases::suite!(Builtin);

impl Scene<'_, Builtin> {
    /// As when the daemon dies: nobody tends the workers.
    fn no_manager(&mut self) -> Result<()> {
        self.manager = Box::new(self.fixture.with(|config| config.cgroup = "/nonexistent".into()));
        Ok(())
    }

    async fn wait(&self, what: &str, mut is: impl FnMut() -> bool) -> Result<()> {
        let begun = Instant::now();
        while !is() {
            ensure!(begun.elapsed() < SOON, "waited in vain for {what}");
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

#[test]
fn a_clean_environment_in_a_cgroup_of_its_own() -> Result<()> {
    play::<Builtin>(async |scene| {
        let pid = scene.up(8001).await?;
        let mut environment: Vec<_> = proc(pid, "environ")?.split_terminator('\0').map(str::to_owned).collect();
        environment.sort_unstable();
        let home = "HOME=/root LOGNAME=root".replace(' ', "\n");
        let wanted = format!(
            "A=web 8001\nDEPLOYER_ADDRESS=127.0.0.1\nDEPLOYER_PORT=8001\nDEPLOYER_SERVICE=web\n{home}\n\
             PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nUSER=root"
        );
        ensure!(environment.join("\n") == wanted, "{environment:#?}");
        ensure!(scene.fixture.pids(8001) == [pid], "{:?}", scene.fixture.pids(8001));
        ensure!(proc(pid, "stat")?.split(' ').nth(5) == Some(&pid.to_string()), "no session of its own");
        let file = |number: u32| fs::read_link(format!("/proc/{pid}/fd/{number}"));
        let log = scene.fixture.log(8001);
        ensure!(file(0)? == Path::new("/dev/null") && file(1)? == log && file(2)? == log, "{:?}", file(1));
        scene.manager.stop(at(8001)).await?;
        ensure!(!scene.fixture.cgroup(8001).exists(), "its cgroup is left");
        Ok(())
    })
}

#[test]
fn as_another_user() -> Result<()> {
    play::<Builtin>(async |scene| {
        // Where another user may look.
        let log = scene.sandbox.dir().join("as-nobody-{port}.log").display().to_string();
        let manager = scene.fixture.with(|config| {
            config.user = Some("nobody".to_owned());
            config.command.argv = ["/bin/sleep", "1000"].map(str::to_owned).into();
            config.directory = "/tmp".into();
            config.log = log;
        });
        manager.check(&[at(8000)]).await?;
        manager.start(at(8000)).await?;
        let pid = manager.status(at(8000)).await?.pid.context("no process")?;
        let status = proc(pid, "status")?;
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
        ensure!(
            line("Uid:") == "65534\t65534\t65534\t65534" && line("Gid:") == "65534\t65534\t65534\t65534",
            "{status}"
        );
        ensure!(line("Groups:") == "65534" && line("CapEff:") == "0000000000000000", "{status}");
        ensure!(fs::read_link(format!("/proc/{pid}/cwd"))? == Path::new("/tmp"));
        let environment = proc(pid, "environ")?;
        ensure!(environment.contains("USER=nobody\0"), "{environment:?}");
        manager.stop(at(8000)).await?;
        ensure!(!is_alive(pid));
        Ok(())
    })
}

/// What is changed for the worse, what is said of it, and whether a check says so before.
type Wrong = (fn(&mut config::Builtin), &'static str, bool);

const WRONG: [Wrong; 7] = [
    (|it| it.command.argv[0] = "/nonexistent/app".into(), "trying to run /nonexistent/app: No such file", false),
    (|it| it.directory = "/nonexistent".into(), "the directory /nonexistent: No such file", false),
    (|it| it.user = Some("nobody-has-it".into()), "there is no user `nobody-has-it` in /etc/passwd", true),
    (|it| it.group = Some("nobody-has-it".into()), "there is no group `nobody-has-it` in /etc/group", true),
    (|it| it.cgroup = "/proc/deployer".into(), "cgroup /proc/deployer/web", true),
    // A directory of the sandbox's that is no cgroup.
    (|it| it.cgroup = Path::new(&it.log).with_file_name("no-cgroup"), "cgroup.procs: No such file", false),
    (|it| it.log = "/proc/{port}.log".into(), "the log /proc/8000.log: ", false),
];

#[test]
fn what_cannot_be_started_is_said() -> Result<()> {
    play::<Builtin>(async |scene| {
        for (change, said, checked) in WRONG {
            let manager = scene.fixture.with(change);
            let Err(error) = manager.start(at(8000)).await else { anyhow::bail!("started without {said}") };
            eprintln!("{error}");
            ensure!(error.to_string().contains(said) && !error.may_come_yet(), "{error}\ndoes not say {said}");
            let check = manager.check(&[at(8000)]).await;
            ensure!(check.is_err() || !checked, "not found by check: {said}");
        }
        // None of that is in the way of a start that works.
        scene.replace_manager()?;
        scene.up(8000).await?;
        Ok(())
    })
}

/// A child that has inherited the listener would keep it open, and nobody would accept.
#[test]
fn a_child_does_not_outlive_its_worker() -> Result<()> {
    play::<Builtin>(async |scene| {
        scene.fault(8000, "child")?;
        let pid = scene.up(8000).await?;
        ensure!(scene.fixture.pids(8000).len() == 2, "no child");
        kill(pid).await?;
        let next = scene.answers(8000, Some(pid)).await?;
        scene.wait("two processes", || scene.fixture.pids(8000).len() == 2).await?;
        ensure!(scene.status(8000).await?.pid == Some(next));
        let all = scene.fixture.pids(8000);
        scene.manager.stop(at(8000)).await?;
        ensure!(!all.iter().any(|pid| is_alive(*pid)), "something of {all:?} is left");
        Ok(())
    })
}

#[test]
fn nobody_is_killed_who_must_not_be() -> Result<()> {
    play::<Builtin>(async |scene| {
        scene.manager = Box::new(scene.fixture.with(|config| config.kill = false));
        scene.fault(8000, "deaf")?;
        let pid = scene.up(8000).await?;
        let Err(error) = scene.manager.stop(at(8000)).await else { anyhow::bail!("stopped, though it is deaf") };
        eprintln!("{error}");
        ensure!(error.may_come_yet() && is_alive(pid), "{error}");
        // What ends later, having been asked to, stays stopped.
        kill(pid).await?;
        scene.until(8000, ProcessPhase::Stopped).await?;
        scene.stays_stopped(8000).await
    })
}

/// The next daemon finds three kinds of workers: that run, that were stopped, that have ended by themselves.
#[test]
fn the_next_daemon() -> Result<()> {
    play::<Builtin>(async |scene| {
        let (runs, crashed) = (scene.up(8000).await?, scene.up(8002).await?);
        scene.up(8001).await?;
        scene.manager.stop(at(8001)).await?;
        scene.no_manager()?;
        // Whoever tended them has to see that first.
        sleep(Duration::from_millis(100)).await;
        kill(crashed).await?;
        sleep(2 * FIRST).await;
        ensure!(scene.answer(8002).await.is_none(), "somebody tends it still");
        scene.replace_manager()?;
        let workers: Vec<_> = PORTS.map(at).collect();
        scene.manager.adopt(&workers, &[]).await?;
        ensure!(scene.status(8000).await?.pid == Some(runs));
        scene.answers(8002, Some(crashed)).await?;
        // Never started before: a daemon that begins after a reboot starts it.
        scene.answers(8003, None).await?;
        scene.stays_stopped(8001).await?;
        // A found one is tended as any other.
        kill(runs).await?;
        scene.answers(8000, Some(runs)).await?;
        Ok(())
    })
}

/// As at a reload: the workers go on, and each is started again once.
#[test]
fn nobody_is_tended_twice() -> Result<()> {
    play::<Builtin>(async |scene| {
        let pid = scene.up(8000).await?;
        let other = scene.fixture.with(|config| config.environment.clear());
        other.adopt(&[at(8000)], &[]).await?;
        ensure!(scene.status(8000).await?.pid == Some(pid));
        kill(pid).await?;
        let next = scene.answers(8000, Some(pid)).await?;
        sleep(3 * FIRST).await;
        ensure!(scene.fixture.begun(8000) == 2 && scene.fixture.pids(8000) == [next], "{:?}", scene.fixture.pids(8000));
        ensure!(!proc(next, "environ")?.contains("A=web"), "not as the newer configuration has it");
        Ok(())
    })
}

#[test]
fn restarts_come_ever_later() -> Result<()> {
    play::<Builtin>(async |scene| {
        scene.fault(8000, "crash")?;
        let begun = Instant::now();
        scene.manager.start(at(8000)).await?;
        let status = scene.until(8000, ProcessPhase::Failed).await?;
        eprintln!("{status:?}");
        ensure!(
            status.detail.contains("exit status: 1") && status.detail.contains("fault: crash at start"),
            "{status:?}"
        );
        let next =
            status.detail.split_once("; start ").and_then(|(_, it)| it.split_once(" in ")?.0.parse::<u32>().ok());
        ensure!(next.is_some_and(|nth| nth >= 4), "{status:?}");
        scene.wait("a fourth start", || scene.fixture.begun(8000) >= 4).await?;
        sleep(Duration::from_secs(2)).await;
        // 0.2, 0.4, 0.8, then each second.
        let most = 5 + begun.elapsed().as_secs() as usize;
        let starts = scene.fixture.begun(8000);
        ensure!((4..=most).contains(&starts), "{starts} starts in {:?}", begun.elapsed());
        // What is mended comes up by itself.
        scene.fault(8000, "")?;
        scene.answers(8000, None).await?;
        Ok(())
    })
}

/// Another process has the address: nothing is started beside it, and no start counts as failed. The worker is started as soon
/// as the address is free.
#[test]
fn another_process_listens() -> Result<()> {
    play::<Builtin>(async |scene| {
        let listener = tokio::net::TcpListener::bind(at(8000)).await?;
        scene.manager.adopt(&[at(8000)], &[]).await?;
        let status = scene.until(8000, ProcessPhase::Starting).await?;
        let by = format!("(pid {}, ", std::process::id());
        // Longer than the first pauses between two starts that failed.
        sleep(8 * FIRST).await;
        let later = scene.status(8000).await?;
        ensure!(later.phase == ProcessPhase::Starting && later.detail.contains(&by), "{later:?} {status:?}");
        ensure!(later.detail.contains("waits for 127.0.0.1:8000 to be free"), "{later:?}");
        ensure!(scene.fixture.begun(8000) == 0);
        drop(listener);
        let free = Instant::now();
        scene.wait("a start", || scene.fixture.begun(8000) == 1).await?;
        ensure!(free.elapsed() < Duration::from_secs(5), "{:?}", free.elapsed());
        scene.answers(8000, None).await?;
        Ok(())
    })
}

#[test]
fn logs_are_rotated_under_a_worker() -> Result<()> {
    play::<Builtin>(async |scene| {
        let pid = scene.up(8000).await?;
        let log = scene.fixture.log(8000);
        let former = |nth: u32| PathBuf::from(format!("{}.{nth}", log.display()));
        for nth in 1..=2 {
            // Each answer writes 3 kB.
            for _ in 0..20 {
                scene.answer(8000).await;
            }
            scene.wait("a former log", || former(nth).exists()).await?;
            ensure!(fs::metadata(&log)?.len() < 50_000, "not cut");
        }
        ensure!(scene.answer(8000).await == Some(pid), "another process");
        let text = fs::read_to_string(&log)?;
        ensure!(text.starts_with("answered "), "written at another place than the end: {:?}", &text[..20]);
        Ok(())
    })
}

/// Asked for by two at once, one after the other is done: never two processes, never half a stop.
#[test]
fn starts_and_stops_exclude_each_other() -> Result<()> {
    play::<Builtin>(async |scene| {
        for _ in 0..5 {
            let (a, b, c, d) = tokio::join!(
                scene.manager.start(at(8000)),
                scene.manager.stop(at(8000)),
                scene.manager.start(at(8000)),
                scene.manager.start(at(8000))
            );
            [a, b, c, d].into_iter().collect::<Result<(), _>>()?;
            ensure!(scene.fixture.pids(8000).len() == 1, "{:?}", scene.fixture.pids(8000));
            ensure!(scene.status(8000).await?.phase == ProcessPhase::Running);
        }
        scene.manager.stop(at(8000)).await?;
        scene.stays_stopped(8000).await
    })
}
