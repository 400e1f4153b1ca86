//! What the daemon believes: the process behind a manager's socket, its configuration, its secrets.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use deployer_tests::{
    daemon::{Daemon, DeployerBin},
    dial::Server,
    pace::SOON,
    process::{Process, send},
    sandbox::{Place, Sandbox},
};
use rustix::process::Signal;

const NOBODY: u32 = 65534;
/// The password of supervisord's that must not reach another.
const PASSWORD: &str = "hunter2";

fn text(sandbox: &Sandbox, manager: &str, more: &str) -> String {
    let root = sandbox.root_cgroup().display();
    format!(
        "[daemon]\nsocket = {:?}\nstate = {:?}\n[kernel]\ncallers = \"{root}\"\nworkers = \"{root}\"\npins = {:?}\n{more}\n\
         [service.web]\nworkers = \"127.0.0.1:8000-8001\"\ncallers = [{:?}]\nmanager = {{ {manager} }}\n",
        Daemon::socket_of(sandbox),
        sandbox.state(),
        sandbox.pins(),
        sandbox.cgroup(Place::Callers),
    )
}

fn supervisord(socket: &Path) -> String {
    format!("supervisord = {socket:?}, program = \"web:web_{{port}}\", username = \"u\", password = {PASSWORD:?}")
}

fn mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(|| path.display().to_string())
}

/// Listens at a socket, writes down what it hears, and answers nothing.
fn impostor(mut command: Command, socket: &Path, heard: &Path) -> Result<Process> {
    let script = "import os, socket, sys\nserver = socket.socket(socket.AF_UNIX)\nserver.bind(sys.argv[1])\n\
                  os.chmod(sys.argv[1], 0o777)\nserver.listen()\nprint('listens', flush=True)\n\
                  while True:\n    peer, _ = server.accept()\n    print(peer.recv(4096), flush=True)\n    peer.close()\n";
    command.args(["-sEc", script]).arg(socket);
    let mut process = Process::start("impostor", command, heard)?;
    process.wait_ready(SOON, || fs::read_to_string(heard).is_ok_and(|said| said.contains("listens")))?;
    Ok(process)
}

/// A roll is refused, nothing was said to the impostor, and the reason is named.
fn is_refused(sandbox: &Sandbox, socket: &Path, heard: &Path, why: &[&str]) -> Result<()> {
    let servers = Server::start_all(sandbox, "127.0.0.1", 8000..=8001)?;
    let daemon = Daemon::start(sandbox, &text(sandbox, &supervisord(socket), ""))?;
    let output = daemon.cli(&["roll", "web"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let heard = fs::read_to_string(heard)?;
    ensure!(!heard.contains("POST"), "the impostor has heard {heard}");
    for part in why {
        ensure!(output.status.code() == Some(1) && said.contains(part), "no {part:?} in {said}");
    }
    drop(servers);
    Ok(())
}

#[test]
fn another_user_is_no_supervisord() -> Result<()> {
    let sandbox = Sandbox::new("t_peer")?;
    let folder = sandbox.dir().join("theirs");
    fs::create_dir(&folder)?;
    mode(sandbox.dir(), 0o711)?;
    chown(&folder, Some(NOBODY), Some(NOBODY))?;
    let (socket, heard) = (folder.join("supervisor.sock"), sandbox.dir().join("heard"));
    let _impostor = impostor(sandbox.command_as_nobody(Place::Outside, "/usr/bin/python3"), &socket, &heard)?;
    is_refused(&sandbox, &socket, &heard, &["a process of user 65534", "and not one of root", "no worker was touched"])
}

/// Another user could have put a socket there before supervisord did.
#[test]
fn a_socket_where_every_user_may_put_one_is_refused() -> Result<()> {
    for bits in [0o777, 0o1777] {
        let sandbox = Sandbox::new("t_open")?;
        let folder = sandbox.dir().join("open");
        fs::create_dir(&folder)?;
        mode(&folder, bits)?;
        let (socket, heard) = (folder.join("supervisor.sock"), sandbox.dir().join("heard"));
        let _impostor = impostor(sandbox.command(Place::Outside, "/usr/bin/python3"), &socket, &heard)?;
        let fix = format!("chmod o-w {}", folder.display());
        is_refused(&sandbox, &socket, &heard, &["writable by all", &fix])?;
    }
    Ok(())
}

/// The same of the bus to systemd.
#[test]
fn another_user_is_no_bus() -> Result<()> {
    let sandbox = Sandbox::new("t_bus")?;
    let folder = sandbox.dir().join("theirs");
    fs::create_dir(&folder)?;
    mode(sandbox.dir(), 0o711)?;
    chown(&folder, Some(NOBODY), Some(NOBODY))?;
    let (socket, heard) = (folder.join("bus"), sandbox.dir().join("heard"));
    let _impostor = impostor(sandbox.command_as_nobody(Place::Outside, "/usr/bin/python3"), &socket, &heard)?;
    let manager = format!("unit = \"web@{{port}}.service\", bus = \"unix:path={}\"", socket.display());
    let _servers = Server::start_all(&sandbox, "127.0.0.1", 8000..=8001)?;
    let daemon = Daemon::start(&sandbox, &text(&sandbox, &manager, ""))?;
    let output = daemon.cli(&["roll", "web"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let heard = fs::read_to_string(heard)?;
    ensure!(!heard.contains("AUTH"), "the impostor has heard {heard}");
    ensure!(output.status.code() == Some(1) && said.contains("a process of user 65534"), "{said}");
    Ok(())
}

/// Whether a daemon with this configuration ends, and what it says.
fn starts(sandbox: &Sandbox, file: &Path) -> Result<(Option<i32>, String)> {
    let mut command = DeployerBin::find()?.command(sandbox);
    command.arg("daemon").arg("--config").arg(file);
    let log = sandbox.dir().join("start.log");
    fs::write(&log, "")?;
    let mut process = Process::start("deployer daemon", command, &log)?;
    let begun = Instant::now();
    while process.exited()?.is_none() && begun.elapsed() < SOON && !process.log().contains("attached") {
        sleep(Duration::from_millis(10));
    }
    let status = process.exited()?;
    Ok((status.and_then(|status| status.code()), process.log()))
}

#[test]
fn a_configuration_that_others_could_change_is_refused() -> Result<()> {
    let sandbox = Sandbox::new("t_conf")?;
    let file = Daemon::write_config(&sandbox, &text(&sandbox, &supervisord(Path::new("/nonexistent.sock")), ""))?;
    for (bits, owner) in [(0o666, 0), (0o664, 0), (0o600, NOBODY)] {
        mode(&file, bits)?;
        chown(&file, Some(owner), None)?;
        let (code, said) = starts(&sandbox, &file)?;
        let fix = if owner == 0 { "chmod go-w" } else { "chown root" };
        ensure!(
            code == Some(2) && said.contains(&format!("{fix} {}", file.display())),
            "{bits:o} {owner}: {code:?}: {said}"
        );
    }
    // At a reload as well: the former stays in force.
    chown(&file, Some(0), None)?;
    mode(&file, 0o644)?;
    let daemon = Daemon::start(&sandbox, &fs::read_to_string(&file)?)?;
    mode(&file, 0o666)?;
    send(daemon.pid(), Signal::HUP)?;
    let begun = Instant::now();
    while !daemon.log().contains("the former stays") {
        ensure!(begun.elapsed() < SOON && !daemon.log().contains("configuration read again"), "{}", daemon.log());
        sleep(Duration::from_millis(20));
    }
    ensure!(daemon.log().contains("chmod go-w"), "{}", daemon.log());
    Ok(())
}

#[test]
fn a_secret_of_another_user_is_refused() -> Result<()> {
    let sandbox = Sandbox::new("t_digest")?;
    let digest: PathBuf = sandbox.dir().join("zookeeper.secret");
    fs::write(&digest, "deployer:secret\n")?;
    let fleet = format!("[fleet]\nconnect = \"127.0.0.1:1\"\nname = \"test\"\ndigest = {digest:?}");
    let file = Daemon::write_config(&sandbox, &text(&sandbox, &supervisord(Path::new("/nonexistent.sock")), &fleet))?;
    for (bits, owner, fix) in [(0o640, 0, "chmod 600"), (0o604, 0, "chmod 600"), (0o600, NOBODY, "chown root")] {
        mode(&digest, bits)?;
        chown(&digest, Some(owner), None)?;
        let output = DeployerBin::find()?.command(&sandbox).arg("config").arg("check").arg(&file).output()?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let named = said.contains(&format!("{fix} {}", digest.display()));
        ensure!(output.status.code() == Some(2) && named, "{bits:o} {owner}: {said}");
        let (code, said) = starts(&sandbox, &file)?;
        ensure!(code == Some(2) && said.contains(fix), "{bits:o} {owner}: {code:?}: {said}");
    }
    Ok(())
}
