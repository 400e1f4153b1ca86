//! Configuration files that are wrong: line, key and reason, never a panic.

use anyhow::{Context, Result, ensure};

use deployer_tests::daemon::{Daemon, DeployerBin};
use deployer_tests::sandbox::Sandbox;

use super::must;

const GOOD: &str = r#"[daemon]
socket = "/run/deployer-test/none.sock"
[kernel]
lease = "5s"
[service.web]
workers = "127.0.0.1:8000-8003"
callers = ["/usr/sbin/nginx"]
manager = { supervisord = "/run/supervisor.sock", program = "web:web_{port}" }
drain = { policy = "steer", deadline = "60s", on_deadline = "stop-roll" }
roll = { batch = 2, max_failures = 1, on_failure = "stop", switch = ["ln", "-sfn", "releases/{version}", "/srv/current"] }
warm = { requests = ["GET /", "GET /pin/1"], repeat = 3, within = "20s" }
version = { request = "GET /version" }
"#;

const PORTS: &str = "\"127.0.0.1:8000-8003\"";
/// Two workers of one port.
const TWICE: &str = "[\"127.0.0.1:8000\", \"127.0.0.4:8000\"]";
const MANAGER: &str = "{ supervisord = \"/run/supervisor.sock\", program = \"web:web_{port}\" }";
const UNIX: &str = "{ command = [\"gunicorn\", \"--bind\", \"unix:/run/web-{port}.sock\"] }";

/// What is replaced by what; the line, key and reason that the message must name.
type Case = (&'static str, &'static str, [&'static str; 3]);

const CASES: &[Case] = &[
    ("[service.web]", "[service.web", [":5:", "not TOML", "table"]),
    ("[service.web]", "[servis.web]", [":5:", "servis", "is unknown"]),
    ("[service.web]", "[service.Web]", [":5:", "service.Web", "is no service name"]),
    ("socket = \"/run", "socket = \"run", [":2:", "daemon.socket", "absolute path"]),
    ("lease = \"5s\"", "lease = 5", [":4:", "kernel.lease", "has no unit"]),
    ("lease = \"5s\"", "lease = \"5 years\"", [":4:", "kernel.lease", "is no duration"]),
    ("lease", "leese", [":4:", "kernel.leese", "is unknown"]),
    ("8000-8003", "8003-8000", [":6:", "service.web.workers", "ends before it begins"]),
    ("8000-8003", "0-3", [":6:", "service.web.workers", "port 0"]),
    ("8000-8003", "8000-70000", [":6:", "service.web.workers", "no port"]),
    ("8000-8003", "-8000", [":6:", "service.web.workers", "port"]),
    ("127.0.0.1:8000-8003", "web1:8000", [":6:", "service.web.workers", "is not looked up"]),
    ("127.0.0.1:8000-8003", "0.0.0.0:8000-8003", [":6:", "service.web.workers", "write 127.0.0.1"]),
    ("workers = ", "walkers = ", [":5:", "service.web.workers", "is missing"]),
    ("[\"/usr/sbin/nginx\"]", "[\"nginx\"]", [":7:", "service.web.callers[0]", "absolute path"]),
    ("web_{port}\"", "web\"", [":8:", "service.web.manager.program", "same for every worker"]),
    ("supervisord = \"/run/supervisor.sock\"", "systemd = true", [":8:", "service.web.manager", "is unknown"]),
    ("\"steer\"", "\"drop\"", [":9:", "service.web.drain.policy", "\"steer\" or \"refuse\""]),
    ("\"60s\"", "\"0s\"", [":9:", "service.web.drain.deadline", "too short"]),
    ("batch = 2", "batch = \"0%\"", [":10:", "service.web.roll.batch", "neither a number"]),
    ("batch = 2", "batch = -1", [":10:", "service.web.roll.batch", "out of range"]),
    ("max_failures = 1", "max_failures = 0", [":10:", "service.web.roll.max_failures", "out of range"]),
    ("\"stop\"", "\"rollback\"", [":10:", "service.web.roll.on_failure", "write unswitch"]),
    ("{version}", "{release}", [":10:", "service.web.roll.switch[2]", "is replaced by nothing"]),
    ("\"GET /\"", "\"FETCH\"", [":11:", "service.web.warm.requests[0]", "is no request"]),
    ("repeat = 3", "repeat = 0", [":11:", "service.web.warm.repeat", "out of range"]),
    ("request = ", "rekwest = ", [":12:", "service.web.version", "is missing"]),
    ("127.0.0.1:8000-8003", "unix:/run/x.sock", [":6:", "service.web.workers", "is a unix socket"]),
    ("/run/deployer-test", "/run/{service}", [":2:", "daemon.socket", "this key takes no placeholders"]),
    ("/version", "/{version}", [":12:", "service.web.version.request", "write {port} or {address} or {service}"]),
    (PORTS, TWICE, [":8:", "service.web.manager.program", "both web 127.0.0.1:8000 and web 127.0.0.4:8000"]),
    (MANAGER, "{ command = [\"/srv/app\"] }", [":8:", "service.web.manager.command", "in the same way"]),
    (MANAGER, UNIX, [":8:", "service.web.manager.command", "listen at a unix socket (unix:/run/web-{port}.sock)"]),
    (MANAGER, "{ command = [\"/a\", \"{port}\"], directory = \"/{prot}\" }", [":8:", "directory", "write {port} or"]),
    (
        MANAGER,
        "{ command = [\"/a\", \"{port}\"], user = \"u{port}\" }",
        [":8:", "manager.user", "takes no placeholders"],
    ),
    (
        "\"60s\"",
        "\"60s\", quiet_after = \"61s\"",
        [":9:", "service.web.drain.quiet_after", "longer than a drain waits (1m)"],
    ),
];

#[test]
fn bad_files() -> Result<()> {
    let sandbox = Sandbox::new("badfiles")?;
    let bin = DeployerBin::find()?;
    let check = |text: &[u8]| {
        let file = sandbox.dir().join("bad.toml");
        std::fs::write(&file, text)?;
        bin.command(&sandbox).args(["config", "check"]).arg(&file).output().context("run deployer")
    };
    must(&check(GOOD.as_bytes())?, "config check", 0, &["1 service, 4 workers"])?;
    must(&check(GOOD.replace("127.0.0.1:8000-8003", "8000,8002-8004").as_bytes())?, "config check", 0, &["4 workers"])?;
    for (from, to, named) in CASES {
        ensure!(GOOD.contains(from), "{from} is not in the good file");
        must(&check(GOOD.replacen(from, to, 1).as_bytes())?, "config check", 2, named)?;
    }
    eprintln!("{} bad files", CASES.len());
    // No text at all.
    for bytes in [&b""[..], b"\xff\xfe\x00", b"\0", &[b'['; 100_000], &vec![b'a'; 1 << 20]] {
        must(&check(bytes)?, "config check", 2, &["bad.toml"])?;
    }
    for path in ["/nonexistent/deployer.toml", "/tmp"] {
        let output = bin.command(&sandbox).args(["config", "check", path]).output()?;
        must(&output, "config check", 2, &[path, "cannot be read"])?;
    }
    Ok(())
}

#[test]
fn a_daemon_does_not_begin_with_a_bad_file() -> Result<()> {
    let sandbox = Sandbox::new("badstart")?;
    let bin = DeployerBin::find()?;
    let file = Daemon::write_config(&sandbox, &GOOD.replace("policy", "polizy"))?;
    let output = bin.command(&sandbox).args(["daemon", "--config"]).arg(file).output()?;
    must(&output, "daemon", 2, &["deployer.toml:9:", "service.web.drain.polizy", "is unknown"])?;
    let cgroup = sandbox.dir().join("no-cgroup");
    let text = GOOD.replace("[kernel]\n", &format!("[kernel]\ncallers = {cgroup:?}\nworkers = {cgroup:?}\n"));
    let text = text.replace("[daemon]\n", &format!("[daemon]\nstate = {:?}\n", sandbox.state()));
    let file = Daemon::write_config(&sandbox, &text)?;
    let output = bin.command(&sandbox).args(["daemon", "--config"]).arg(file).output()?;
    must(&output, "daemon", 1, &["no-cgroup"])?;
    ensure!(!std::path::Path::new("/run/deployer-test").exists(), "it has made its socket's directory");
    Ok(())
}
