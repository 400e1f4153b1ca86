//! Logs of workers that run as another user, in folders that this user may change.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use deployer_tests::{
    api::Api,
    daemon::{Daemon, DeployerBin},
    pace::SOON,
    process::run,
    sandbox::{Place, Sandbox},
};

const NOBODY: u32 = 65534;
const SECRET: &str = "of root alone\n";
/// Between two looks of the daemon at the size of a log, and a moment.
const LOOKS: Duration = Duration::from_secs(8);

/// A worker that runs as `nobody`, with its log in a folder.
struct Scene<'a> {
    sandbox: &'a Sandbox,
    /// That user's home.
    home: PathBuf,
    log: PathBuf,
}

impl<'a> Scene<'a> {
    /// Nothing runs yet; the folder of the log is not there.
    fn new(sandbox: &'a Sandbox) -> Result<Self> {
        let home = sandbox.dir().join("home");
        fs::create_dir(&home)?;
        chown(&home, Some(NOBODY), Some(NOBODY))?;
        let log = home.join("logs/web-8000.log");
        Ok(Self { sandbox, home, log })
    }

    /// The folder of the log, which the user owns.
    fn folder(&self) -> Result<&Path> {
        let folder = self.log.parent().context("no folder")?;
        fs::create_dir_all(folder)?;
        chown(folder, Some(NOBODY), Some(NOBODY))?;
        Ok(folder)
    }

    fn text(&self) -> String {
        let (sandbox, root) = (self.sandbox, self.sandbox.root_cgroup().display());
        // It says more than the log holds, so that this is rotated.
        let script = "import http.server, sys, threading, time\n\
                      def chat():\n    while True: print('x' * 99, flush=True); time.sleep(0.002)\n\
                      threading.Thread(target=chat, daemon=True).start()\n\
                      http.server.HTTPServer(('127.0.0.1', 8000), http.server.SimpleHTTPRequestHandler).serve_forever()";
        format!(
            "[daemon]\nsocket = {:?}\nstate = {:?}\n[kernel]\ncallers = \"{root}\"\nworkers = \"{root}\"\npins = {:?}\n\
             [service.web]\nworkers = \"127.0.0.1:8000\"\ncallers = [{:?}]\nmanager = {{ command = [\"/usr/bin/python3\", \
             \"-sEc\", {script:?}], user = \"nobody\", cgroup = {:?}, log = {:?}, log_size = \"10kB\", restart = {{ first = \
             \"200ms\", most = \"1s\" }} }}\n",
            Daemon::socket_of(sandbox),
            sandbox.state(),
            sandbox.pins(),
            sandbox.cgroup(Place::Callers),
            sandbox.cgroup(Place::Workers),
            self.log,
        )
    }

    fn daemon(&self) -> Result<Daemon<'a>> {
        Daemon::start(self.sandbox, &self.text())
    }

    /// Waits until the worker is up, or what holds of it.
    fn wait(&self, daemon: &Daemon<'_>, what: &str, holds: impl Fn(&serde_json::Value) -> bool) -> Result<()> {
        let begun = Instant::now();
        loop {
            let seen = Api::of(self.sandbox).workers().unwrap_or_default();
            if seen.get(&8000).is_some_and(&holds) {
                return Ok(());
            }
            ensure!(begun.elapsed() < SOON, "waited in vain until the worker is {what}: {seen:?}\n{}", daemon.log());
            sleep(Duration::from_millis(20));
        }
    }

    fn up(&self, daemon: &Daemon<'_>) -> Result<()> {
        self.wait(daemon, "up", |worker| worker["phase"] == "up")
    }

    /// Waits until the daemon has said this.
    fn said(&self, daemon: &Daemon<'_>, words: &str, within: Duration) -> Result<()> {
        let begun = Instant::now();
        while !daemon.log().contains(words) {
            ensure!(begun.elapsed() < within, "the daemon has not said {words:?}:\n{}", daemon.log());
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits until there is a former log.
    fn rotated(&self, daemon: &Daemon<'_>) -> Result<()> {
        let begun = Instant::now();
        while !self.log.with_extension("log.1").exists() {
            ensure!(begun.elapsed() < SOON, "the log is not rotated:\n{}", daemon.log());
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// A file that only root may read, in a folder that only root may change.
    fn secret(&self, text: &str) -> Result<PathBuf> {
        let folder = self.sandbox.dir().join("root");
        fs::create_dir_all(&folder)?;
        let file = folder.join("web-8000.log");
        fs::write(&file, text)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        Ok(file)
    }
}

#[test]
fn a_second_name_of_a_file_of_root_is_not_written() -> Result<()> {
    let sandbox = Sandbox::new("l_hard")?;
    let scene = Scene::new(&sandbox)?;
    let secret = scene.secret(SECRET)?;
    fs::hard_link(&secret, scene.folder()?.join("web-8000.log"))?;
    let daemon = scene.daemon()?;
    scene.up(&daemon)?;
    sleep(Duration::from_millis(500));
    ensure!(fs::read_to_string(&secret)? == SECRET, "the worker's words are in a file of root");
    ensure!(fs::metadata(&scene.log)?.uid() == NOBODY, "the log is not its user's");
    Ok(())
}

#[test]
fn a_folder_that_leads_elsewhere_is_not_entered() -> Result<()> {
    let sandbox = Sandbox::new("l_dir")?;
    let scene = Scene::new(&sandbox)?;
    let elsewhere = sandbox.dir().join("elsewhere");
    fs::create_dir(&elsewhere)?;
    symlink(&elsewhere, scene.home.join("logs"))?;
    let daemon = scene.daemon()?;
    let begun = Instant::now();
    while !daemon.log().contains("cannot be started") && Api::of(&sandbox).phases()?.values().any(|phase| phase != "up")
    {
        ensure!(begun.elapsed() < SOON, "neither a worker nor a reason:\n{}", daemon.log());
        sleep(Duration::from_millis(20));
    }
    let made: Vec<_> = fs::read_dir(&elsewhere)?.flatten().collect();
    ensure!(made.is_empty(), "root has made files elsewhere: {made:?}");
    scene.said(&daemon, "symbolic link that another user may have put there", SOON)
}

/// A FIFO would have root wait for a reader; a folder is no log; a link is not followed.
#[test]
fn what_is_no_file_is_refused_at_once() -> Result<()> {
    let sandbox = Sandbox::new("l_fifo")?;
    let scene = Scene::new(&sandbox)?;
    scene.folder()?;
    run(Command::new("mkfifo").arg(&scene.log))?;
    let daemon = scene.daemon()?;
    scene.said(&daemon, "not a plain file", Duration::from_secs(5))?;
    fs::remove_file(&scene.log)?;
    scene.up(&daemon)?;
    ensure!(fs::metadata(&scene.log)?.uid() == NOBODY, "the log is not its user's");
    Ok(())
}

#[test]
fn a_rotation_follows_no_folder_elsewhere() -> Result<()> {
    let sandbox = Sandbox::new("l_rot")?;
    let scene = Scene::new(&sandbox)?;
    let folder = scene.folder()?.to_owned();
    let text = SECRET.repeat(2000);
    let secret = scene.secret(&text)?;
    let daemon = scene.daemon()?;
    scene.up(&daemon)?;
    fs::rename(&folder, scene.home.join("away"))?;
    symlink(secret.parent().context("no folder")?, &folder)?;
    sleep(LOOKS);
    ensure!(fs::read_to_string(&secret)? == text, "root has cut a file of root");
    let beside: Vec<_> = fs::read_dir(secret.parent().context("no folder")?)?.flatten().map(|it| it.path()).collect();
    ensure!(beside == [secret], "root has copied it: {beside:?}");
    Ok(())
}

#[test]
fn logs_are_their_users_and_are_rotated_by_them() -> Result<()> {
    let sandbox = Sandbox::new("l_own")?;
    let mut scene = Scene::new(&sandbox)?;
    scene.folder()?;
    // What an earlier daemon has written, as root.
    fs::write(&scene.log, "before\n")?;
    fs::set_permissions(&scene.log, fs::Permissions::from_mode(0o640))?;
    let daemon = scene.daemon()?;
    scene.up(&daemon)?;
    scene.rotated(&daemon)?;
    let owners = |scene: &Scene<'_>| -> Result<Vec<(String, u32)>> {
        let entries = fs::read_dir(scene.log.parent().context("no folder")?)?.flatten();
        let about =
            |entry: fs::DirEntry| Ok((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.uid()));
        let mut all = entries.map(about).collect::<Result<Vec<_>>>()?;
        all.sort();
        all.retain(|(name, _)| !name.ends_with(".new"));
        Ok(all)
    };
    let of = |name: &str, uid: u32| (format!("web-8000.log{name}"), uid);
    ensure!(owners(&scene)? == [of("", NOBODY), of(".1", NOBODY), of(".old", 0)], "{:?}", owners(&scene)?);
    drop(daemon);
    sandbox.kill_place(Place::Workers)?;
    // In a folder of root's the log is its user's all the same, who could not make it there.
    scene.log = sandbox.dir().join("var/web-8000.log");
    let daemon = scene.daemon()?;
    scene.up(&daemon)?;
    scene.rotated(&daemon)?;
    ensure!(owners(&scene)? == [of("", NOBODY), of(".1", NOBODY)], "{:?}", owners(&scene)?);
    Ok(())
}

/// `deployer check` names what another user could change.
#[test]
fn a_check_fails_on_unsafe_paths() -> Result<()> {
    let sandbox = Sandbox::new("l_check")?;
    let mut scene = Scene::new(&sandbox)?;
    let open = sandbox.dir().join("open");
    fs::create_dir(&open)?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777))?;
    scene.log = open.join("deep/web-8000.log");
    let switch = sandbox.dir().join("switch");
    fs::write(&switch, "#!/bin/sh\n")?;
    fs::set_permissions(&switch, fs::Permissions::from_mode(0o777))?;
    let text = format!("{}roll.switch = [{switch:?}]\n", scene.text());
    let file = Daemon::write_config(&sandbox, &text)?;
    let check = || -> Result<(bool, String)> {
        let output = DeployerBin::find()?.command(&sandbox).arg("check").arg("--config").arg(&file).output()?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
    };
    let fails = |said: &str, part: &str| said.lines().any(|line| line.starts_with("FAIL") && line.contains(part));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o646))?;
    let (fit, said) = check()?;
    for part in ["service.web.manager.log", "service.web.roll.switch", "configuration: "] {
        ensure!(!fit && fails(&said, part), "{part}: {said}");
    }
    ensure!(said.contains(&format!("chmod o-w {}", open.display())), "{said}");
    for path in [&open, &switch] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
    let (_, said) = check()?;
    ensure!(!fails(&said, "writable by") && !fails(&said, "written by"), "{said}");
    Ok(())
}
