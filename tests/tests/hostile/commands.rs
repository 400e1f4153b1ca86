//! The operator's commands: what a worker reports is never part of one, and one that is late leaves nothing behind.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use deployer_tests::{
    api::{Api, Ending, Roll},
    app::{App, Fault},
    daemon::{Daemon, DeployerBin, ServiceConfig},
    pace::SOON,
    rig::Setup,
    sandbox::{Place, Sandbox},
    stage::default_signals,
};

/// What is no version.
const NOT_VERSIONS: [&str; 10] = ["--help", "-rf", "$(x)", "a;b", "", "../x", "a b", "a\nb", "v\u{e9}", "{version}"];

/// Two workers of the built-in manager; `roll` in TOML, without braces, stands for what the usual service says there.
fn text(sandbox: &Sandbox, app: &App, roll: &str) -> String {
    let usual = ServiceConfig::default().text_built_in(sandbox, app).replace("8000-8003", "8000-8001");
    let line = usual.lines().find(|line| line.starts_with("roll = ")).unwrap_or_default().to_owned();
    usual.replace(&line, &format!("roll = {{ {roll} }}"))
}

fn start<'a>(sandbox: &'a Sandbox, text: &str) -> Result<Daemon<'a>> {
    let daemon = Daemon::start_with(sandbox, DeployerBin::find()?, text, &[("SECRET", "of the daemon".to_owned())])?;
    let begun = Instant::now();
    while !Api::of(sandbox).phases().is_ok_and(|phases| phases.values().all(|phase| phase == "up")) {
        ensure!(begun.elapsed() < SOON, "the workers do not come up:\n{}", daemon.log());
        sleep(Duration::from_millis(20));
    }
    Ok(daemon)
}

fn roll(daemon: &Daemon<'_>) -> Result<Ending> {
    let mut command = default_signals(&daemon.cli_command(&["roll", "web", "--to", "v2", "--json"]));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Roll::by(command.spawn().context("start deployer roll")?)?.end()
}

/// The workers report this text as their version v1, and a roll to v2 fails and would go back to it.
fn turned_back(sandbox: &Sandbox, reported: &str, unswitch: &str) -> Result<(App, Ending)> {
    let app = App::new(sandbox, &["v1", "v2"])?;
    fs::write(app.dir().join("releases/v1/VERSION"), reported)?;
    app.set_fault("v2", 8001, Some(Fault::Status500))?;
    let (switch, link) = (app.switch_command(), app.dir().join("current"));
    let unswitch = unswitch.replace("LINK", &link.display().to_string());
    let daemon = start(
        sandbox,
        &text(sandbox, &app, &format!("on_failure = \"rollback\", switch = {switch:?}, unswitch = [{unswitch}]")),
    )?;
    let seen = Api::of(sandbox).workers()?;
    let end = roll(&daemon)?;
    eprintln!("{reported}: {end:?}");
    ensure!(!end.text.contains('\n'), "{end:?}");
    for worker in seen.values() {
        ensure!(worker["version"].is_null(), "shown as its version: {worker}");
        let reason = worker["reason"].as_str().unwrap_or_default();
        ensure!(reason.contains("reports a version that is not valid: \""), "{worker}");
        ensure!(worker["invalid_version"].is_string(), "{worker}");
    }
    end.must("failed", &["`unswitch` was not run", "no worker has reported a valid version"])?;
    Ok((app, end))
}

#[test]
fn a_worker_s_text_moves_no_link() -> Result<()> {
    let sandbox = Sandbox::new("h_link")?;
    let done = turned_back(&sandbox, "../../../tmp/evil", "\"ln\", \"-sfn\", \"releases/{version}\", \"LINK\"");
    let link = fs::read_link(sandbox.dir().join("app/current"))?;
    ensure!(link == Path::new("releases/v2"), "the link leads to {}", link.display());
    done.map(drop)
}

#[test]
fn a_worker_s_text_is_not_run() -> Result<()> {
    let sandbox = Sandbox::new("h_text")?;
    let pwned = sandbox.dir().join("pwned");
    let reported = format!("v1;id>{}", pwned.display());
    let done = turned_back(&sandbox, &reported, "\"sh\", \"-c\", \"echo {version}\"");
    ensure!(!pwned.exists(), "root ran it: {}", fs::read_to_string(&pwned)?);
    done.map(drop)
}

#[test]
fn what_is_no_version_is_refused() -> Result<()> {
    let sandbox = Sandbox::new("h_to")?;
    let extra = "version = { request = \"GET /version\" }\ndeploy = { second = \"next\" }\n";
    let rig = Setup { extra, ..Setup::default() }.start(&sandbox)?;
    let long = "x".repeat(129);
    for wrong in NOT_VERSIONS.into_iter().chain([long.as_str()]) {
        let to = format!("--to={wrong}");
        for verb in [&["roll", "web", &to, "--dry-run"][..], &["deploy", "web", &to], &["roll", "web", "--fleet", &to]]
        {
            let (exit, said) = rig.verb(verb)?;
            ensure!(exit == 2 && said.contains("is not a valid version"), "{verb:?}: exit {exit}: {said}");
        }
        let separate = rig.verb(&["roll", "web", "--to", wrong, "--dry-run"])?;
        ensure!(separate.0 == 2 && separate.1.contains("is not a valid version"), "{wrong:?}: {separate:?}");
        let socket = sandbox.dir().join("web.sock");
        for (path, more) in [("roll", ",\"dry_run\":true"), ("deploy", ""), ("fleet/deploy", "")] {
            let body = format!("{{\"to\":{}{more}}}", serde_json::to_string(wrong)?);
            let said = api(&socket, &format!("/v1/services/web/{path}"), &body)?;
            let is_known = !said.contains("the API has no");
            ensure!(
                !is_known || (said.starts_with("HTTP/1.1 400 ") && said.contains("is not a valid version")),
                "{said}"
            );
        }
    }
    let (exit, said) = rig.verb(&["roll", "web", "--to=1.2.3-rc1+x_y", "--dry-run"])?;
    ensure!(exit == 0, "{said}");
    Ok(())
}

/// Posts a body; all that comes back.
fn api(socket: &Path, path: &str, body: &str) -> Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    let length = body.len();
    write!(stream, "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

/// Processes whose last argument is this number of seconds, which is a test's own.
fn sleepers(seconds: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let ends = format!("\0{seconds}\0");
    let sleeps = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(ends.as_bytes()));
    pids.filter(sleeps).collect()
}

/// Ends what a test would leave, also when it fails.
struct Sleepers(String);

impl Sleepers {
    fn new(number: u32) -> Self {
        Self(format!("1000.{number}{}", std::process::id()))
    }
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        for pid in sleepers(&self.0) {
            deployer_tests::process::send(pid, rustix::process::Signal::KILL).ok();
        }
    }
}

fn cgroups_of_commands(sandbox: &Sandbox) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(sandbox.cgroup(Place::Daemon))?.flatten();
    Ok(entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}

/// In its process group, in sessions of their own, and orphaned by a double fork.
#[test]
fn a_late_command_leaves_no_process() -> Result<()> {
    let sandbox = Sandbox::new("h_late")?;
    let app = App::new(&sandbox, &["v1", "v2"])?;
    let own = Sleepers::new(1);
    let script = format!(
        "sleep {0} & setsid sleep {0} & (setsid sh -c 'env -i sleep {0} & exec sleep {0}' &) & touch {1}; exec sleep {0}",
        own.0,
        sandbox.dir().join("ran").display()
    );
    let daemon = start(
        &sandbox,
        &text(&sandbox, &app, &format!("switch = [\"sh\", \"-c\", {script:?}], switch_within = \"1s\"")),
    )?;
    let end = roll(&daemon)?;
    eprintln!("{end:?}");
    let left = sleepers(&own.0);
    ensure!(left.is_empty(), "{} processes of a late command are left", left.len());
    ensure!(sandbox.dir().join("ran").exists(), "the command has not run");
    end.must("failed", &["still running after 1 s", "no worker was touched"])?;
    ensure!(cgroups_of_commands(&sandbox)?.is_empty(), "{:?}", cgroups_of_commands(&sandbox)?);
    Ok(())
}

/// A command that ends in time may leave something in the background, which goes on where the daemon is.
#[test]
fn a_command_may_leave_a_process_behind() -> Result<()> {
    let sandbox = Sandbox::new("h_left")?;
    let app = App::new(&sandbox, &["v1", "v2"])?;
    let own = Sleepers::new(2);
    let script =
        format!("ln -sfn releases/{{version}} {}; setsid sleep {} &", app.dir().join("current").display(), own.0);
    let daemon = start(&sandbox, &text(&sandbox, &app, &format!("switch = [\"sh\", \"-c\", {script:?}]")))?;
    roll(&daemon)?.must("done", &[])?;
    let left = sleepers(&own.0);
    ensure!(left.len() == 1, "{left:?}");
    ensure!(sandbox.pids(Place::Daemon)?.contains(&left[0]), "it is not in the daemon's cgroup");
    ensure!(cgroups_of_commands(&sandbox)?.is_empty(), "{:?}", cgroups_of_commands(&sandbox)?);
    Ok(())
}

#[test]
fn a_command_finds_nothing_of_the_daemon_s_environment() -> Result<()> {
    let sandbox = Sandbox::new("h_env")?;
    let app = App::new(&sandbox, &["v1", "v2"])?;
    let (link, said) = (app.dir().join("current"), sandbox.dir().join("said"));
    let script = format!("ln -sfn releases/{{version}} {}; env > {}", link.display(), said.display());
    let daemon = start(&sandbox, &text(&sandbox, &app, &format!("switch = [\"sh\", \"-c\", {script:?}]")))?;
    roll(&daemon)?.must("done", &[])?;
    let said = fs::read_to_string(said)?;
    ensure!(!said.contains("SECRET"), "{said}");
    for wanted in ["DEPLOYER_SERVICE=web", "DEPLOYER_VERSION=v2", "HOME=/root", "USER=root", "LANG=C.UTF-8"] {
        ensure!(said.lines().any(|line| line == wanted), "no {wanted} in {said}");
    }
    Ok(())
}

#[test]
fn a_command_runs_as_its_user() -> Result<()> {
    let sandbox = Sandbox::new("h_user")?;
    let app = App::new(&sandbox, &["v1", "v2"])?;
    let script = "grep -E '^(Uid|Gid|Groups|CapEff):' /proc/self/status | tr '\\t' ' ' >&2; echo $USER >&2; exit 1";
    let text = text(&sandbox, &app, &format!("switch = [\"sh\", \"-c\", {script:?}], user = \"nobody\""));
    let daemon = start(&sandbox, &text)?;
    let end = roll(&daemon)?;
    let words: Vec<_> = end.text.split_whitespace().collect();
    let text = words.join(" ");
    end.must("failed", &["no worker was touched"])?;
    for wanted in ["Uid: 65534 65534 65534 65534", "Gid: 65534 65534 65534 65534", "CapEff: 0000000000000000", "nobody"]
    {
        ensure!(text.contains(wanted), "no {wanted} in {text}");
    }
    ensure!(!text.contains("Groups: 0"), "{text}");
    Ok(())
}
