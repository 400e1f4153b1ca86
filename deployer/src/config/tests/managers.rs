//! Managers that are not supervisord, right and wrong.

use rustix::process::Signal;

use super::{
    super::{Backoff, Builtin, Exec, Manager},
    MINIMAL,
    bad::refused,
    command, parse,
};
use std::time::Duration;

const SUPERVISORD: &str = "supervisord = \"/run/supervisor.sock\", program = \"web\"";
const START: &str = "start = [\"/web\", \"start\", \"{port}\"]";
const STOP: &str = "stop = [\"/web\", \"stop\", \"{address}\", \"{service}\"]";
const STATUS: &str = "status = [\"pgrep\", \"-f\", \"web {port}\"]";

/// A service under the built-in manager with all keys.
pub(super) const FULL: &str = r#"
[service.app]
workers = "127.0.0.1:8200-8201"
[service.app.manager]
kind = "builtin"
command = ["/usr/bin/python3", "app.py", "--port={port}"]
user = "www"
group = "33"
directory = "/srv/app/"
log = "/var/log/{port}.log"
log_size = 20000
log_keep = 0
cgroup = "/sys/fs/cgroup/app.slice"
stop_signal = "INT"
stop_within = "1m"
kill = false
restart = { first = "200ms", most = "5s" }
[service.app.manager.environment]
API_KEY = "s3cret"
EMPTY = ""
"a.b" = "{port}"
[service.own]
workers = "127.0.0.1:8300-8301"
manager = { start = ["/a", "{port}"], stop = ["b", "{port}"], status = ["c", "{port}"], within = "5s" }
"#;

fn with(manager: &str) -> String {
    MINIMAL.replace(SUPERVISORD, manager)
}

fn manager(text: &str) -> Manager {
    parse(text).unwrap().services["web"].manager.clone()
}

fn plain() -> Builtin {
    Builtin {
        command: command(&["/usr/bin/python3", "app.py", "--port={port}"]).unwrap(),
        user: None,
        group: None,
        directory: "/".into(),
        environment: [].into(),
        log: "/var/log/deployer/{service}-{port}.log".to_owned(),
        log_size: 10_000_000,
        log_keep: 5,
        cgroup: "deployer".into(),
        stop_signal: Signal::TERM,
        stop_within: Duration::from_secs(10),
        kill: true,
        told: [].into(),
        restart: Backoff { first: Duration::from_secs(1), most: Duration::from_secs(60) },
    }
}

#[test]
fn built_in_with_all_defaults() {
    let line = "command = [\"/usr/bin/python3\", \"app.py\", \"--port={port}\"]";
    assert_eq!(manager(&with(line)), Manager::Builtin(Box::new(plain())));
    assert_eq!(manager(&with(&format!("kind = \"builtin\", {line}"))), Manager::Builtin(Box::new(plain())));
}

#[test]
fn built_in_with_everything() {
    let wanted = Builtin {
        user: Some("www".to_owned()),
        group: Some("33".to_owned()),
        directory: "/srv/app".into(),
        environment: [("API_KEY", "s3cret"), ("EMPTY", ""), ("a.b", "{port}")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        log: "/var/log/{port}.log".to_owned(),
        log_size: 20_000,
        log_keep: 0,
        cgroup: "/sys/fs/cgroup/app.slice".into(),
        stop_signal: Signal::INT,
        stop_within: Duration::from_secs(60),
        kill: false,
        restart: Backoff { first: Duration::from_millis(200), most: Duration::from_secs(5) },
        ..plain()
    };
    let found = parse(FULL).unwrap().services["app"].manager.clone();
    assert_eq!(found, Manager::Builtin(Box::new(wanted)));
    let shown = format!("{found:?}");
    assert!(shown.contains("API_KEY") && !shown.contains("s3cret"), "{shown}");
}

#[test]
fn exec() {
    let text = with(&format!("{START}, {STOP}, {STATUS}"));
    let wanted = Exec {
        user: None,
        start: command(&["/web", "start", "{port}"]).unwrap(),
        stop: command(&["/web", "stop", "{address}", "{service}"]).unwrap(),
        status: command(&["pgrep", "-f", "web {port}"]).unwrap(),
        within: Duration::from_secs(10),
    };
    assert_eq!(manager(&text), Manager::Exec(wanted.clone()));
    let text = with(&format!("kind = \"exec\", {START}, {STOP}, {STATUS}, within = \"3s\""));
    assert_eq!(manager(&text), Manager::Exec(Exec { within: Duration::from_secs(3), ..wanted.clone() }));
    let text = with(&format!("{START}, {STOP}, {STATUS}, user = \"www-data\""));
    assert_eq!(manager(&text), Manager::Exec(Exec { user: Some("www-data".to_owned()), ..wanted }));
}

#[test]
fn sizes() {
    for (written, bytes) in [("\"10kB\"", 10_000), ("\"3MB\"", 3_000_000), ("\"1000GB\"", 1_000_000_000_000)] {
        let Manager::Builtin(found) = manager(&with(&format!("command = [\"x\"], log_size = {written}"))) else {
            panic!("another manager")
        };
        assert_eq!(found.log_size, bytes);
    }
}

#[test]
fn wrong_ones() {
    let cases = [
        ("kind = \"upstart\"", "kind", "write \"supervisord\" or \"systemd\" or \"builtin\" or \"exec\""),
        ("kind = \"builtin\"", "command", "is missing; write command = [\"/usr/bin/python3\""),
        ("kind = \"supervisord\", program = \"web\"", "supervisord", "is missing"),
        ("command = []", "command", "is empty"),
        ("command = [\"bin/app\"]", "command[0]", "relative path"),
        ("command = [\"app\", \"{ports}\"]", "command[1]", "write {port} or {address} or {service}"),
        ("command = [\"app\"], stop = [\"x\"]", "stop", "is unknown; write one of: kind, command, user"),
        ("command = [\"app\"], user = \"a:b\"", "user", "is no user or group"),
        ("command = [\"app\"], user = \"\"", "user", "is empty"),
        ("command = [\"app\"], group = 33", "group", "is an integer"),
        ("command = [\"app\"], directory = \"srv\"", "directory", "absolute path"),
        ("command = [\"app\"], environment = [\"A=b\"]", "environment", "write a table"),
        ("command = [\"app\"], environment = { A = 1 }", "environment.A", "is an integer"),
        ("command = [\"app\"], environment = { \"A=\" = \"\" }", "environment.\"A=\"", "no name of a variable"),
        ("command = [\"app\"], environment = { A = \"\\u0000\" }", "environment.A", "NUL"),
        ("command = [\"app\"], log = \"/\"", "log", "is a directory"),
        ("command = [\"app\"], log = \"/{pid}\"", "log", "{pid} is replaced by nothing"),
        ("command = [\"app\"], log_size = 1", "log_size", "write 10000 to 1000000000000 bytes"),
        ("command = [\"app\"], log_size = \"10\"", "log_size", "is no size; write a number of bytes"),
        ("command = [\"app\"], log_size = \"99999999999999999999GB\"", "log_size", "out of range"),
        ("command = [\"app\"], log_size = \"-1kB\"", "log_size", "is no size"),
        ("command = [\"app\"], log_size = true", "log_size", "is a boolean; write a number of bytes"),
        ("command = [\"app\"], log_keep = 101", "log_keep", "from 0 to 100"),
        ("command = [\"app\"], cgroup = \"../x\"", "cgroup", "no path below the cgroup v2 root"),
        ("command = [\"app\"], cgroup = \"/x/..\"", "cgroup", "contains .."),
        ("command = [\"app\"], stop_signal = \"SIGTERM\"", "stop_signal", "write \"TERM\" or \"INT\""),
        ("command = [\"app\"], stop_within = \"0s\"", "stop_within", "too short"),
        ("command = [\"app\"], kill = \"no\"", "kill", "write true or false"),
        ("command = [\"app\"], restart = { most = \"500ms\" }", "restart", "a `most` below its `first`"),
        ("command = [\"app\"], restart = { limit = 3 }", "restart.limit", "one of: first, most"),
        ("start = [\"/web\"], stop = [\"/web\"]", "status", "is missing; write status = [\"/usr/local/bin/web\""),
        ("start = [\"/web\"], stop = [\"/web\"], status = \"/web\"", "status", "write a list of words"),
    ];
    for (value, name, reason) in cases {
        refused(&with(value), &[(3, &format!("service.web.manager.{name}"), reason)]);
    }
}

#[test]
fn several_workers_must_be_told_apart() {
    let several = |manager: &str| with(manager).replace("8000", "8000-8001");
    for told in [
        "command = [\"app\", \"--port={port}\"]",
        "command = [\"sh\", \"-c\", \"exec app -p $DEPLOYER_PORT\"]",
        "command = [\"app\"], environment = { PORT = \"{port}\" }",
        "command = [\"app\"], directory = \"/srv/{port}\"",
    ] {
        assert!(parse(&several(told)).is_ok(), "{told}");
    }
    let key = "service.web.manager.command";
    let alike = "starts web 127.0.0.1:8000 and web 127.0.0.1:8001 in the same way";
    for told in ["command = [\"app\"]", "command = [\"app\", \"{service}\"], environment = { A = \"1\" }"] {
        refused(&several(told), &[(3, key, alike)]);
    }
    let same = "is the same for every worker; write {port}";
    refused(
        &several("command = [\"app\", \"{port}\"], log = \"/var/log/web.log\""),
        &[(3, "service.web.manager.log", same)],
    );
    let both = "is the same for both web 127.0.0.1:8000 and web 127.0.0.1:8001; write {port} where they differ";
    refused(&several(&format!("{START}, {STOP}, {STATUS}")), &[(3, "service.web.manager.stop", both)]);
    let stop = "stop = [\"/web\", \"stop\"]";
    refused(&several(&format!("{START}, {stop}, {STATUS}")), &[(3, "service.web.manager.stop", same)]);
}
