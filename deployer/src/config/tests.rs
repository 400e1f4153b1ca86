//! What a configuration means, and what is said about a wrong one.

mod any;
mod bad;
mod bad_settings;
mod deploy;
mod drain;
mod fleet;
mod limits;
mod managers;
mod metrics;
mod names;
mod surge;

use super::*;

/// A machine with cgroup2 at the usual place.
const MOUNTS: &[u8] = b"/dev/sda1 / ext4 rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";

const MINIMAL: &str = r#"[service.web]
workers = "127.0.0.1:8000"
manager = { supervisord = "/run/supervisor.sock", program = "web" }
"#;

const FULL: &str = r#"[daemon]
socket = "/run/d.sock"
state = "/srv/state"
on_start = "hold"
group = "deploy"
mode = "observe"

[kernel]
callers = "/sys/fs/cgroup/lb.slice/"
workers = "/sys/fs/cgroup/app.slice"
lease = "5m"
pins = "/sys/fs/bpf/two"

[metrics]
listen = "localhost:9469"

[fleet]
connect = "zk1:2181,zk2:2182/apps/web"
name = "shop"
host = "app17"
session_timeout = "4s"
acl = "anyone"
enrol = false

[service.web]
mode = "enforce"
address = "127.0.0.1:9000"
publish = "10.0.0.17:8080"
workers = ["127.0.0.1:8000-8001", "localhost:8010"]
min_up = "50%"
cold_limit = "5m"
callers = ["/sys/fs/cgroup/lb.slice", "/usr/sbin/nginx"]
manager = { supervisord = "/run/supervisor.sock", program = "web:web_{port}", username = "u", password = "pw", stop_within = "250ms" }
drain = { policy = "refuse", deadline = "2h", on_deadline = "kill", quiet_after = "5m", outsiders = "hold" }
version = { request = { path = "/version" }, header = "X-Version" }

[service.web.roll]
batch = "10%"
max_failures = 3
on_failure = "rollback"
switch = ["ln", "-sfn", "/srv/{version}", "/srv/{service}"]
unswitch = ["/bin/undo", "{\"a\": 1}"]
switch_within = "1m"

[service.web.warm]
requests = ["GET /?a=b", { method = "POST", path = "/x", headers = { X-B = "2", "X-A" = "1" }, body = "b", status = 204 }]
repeat = 3
within = "30s"

[service.api]
workers = "[::1]:8100-8103"
manager.supervisord = "/run/supervisor.sock"
manager.program = "api_{port}"
roll.batch = 4
version = { request = "GET /v", json = "build.version" }
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    check::config_with(Path::new("deployer.toml"), text, &paths::Mounts::parse(MOUNTS))
}

fn request(method: &str, path: &str) -> Request {
    Request {
        method: method.to_owned(),
        tls: None,
        path: path.to_owned(),
        headers: Vec::new(),
        body: String::new(),
        status: None,
    }
}

fn command(words: &[&str]) -> Option<Command> {
    Some(Command { argv: words.iter().map(ToString::to_string).collect() })
}

/// A service with all defaults.
fn plain(name: &str, workers: &[&str], program: &str) -> Service {
    Service {
        name: name.to_owned(),
        mode: Mode::Enforce,
        address: None,
        publish: None,
        workers: workers.iter().map(|worker| worker.parse().unwrap()).collect(),
        spares: Vec::new(),
        callers: Vec::new(),
        manager: Manager::Supervisord {
            socket: "/run/supervisor.sock".into(),
            program: program.to_owned(),
            login: None,
            stop_within: Duration::from_secs(30),
        },
        protect: false,
        deploy: None,
        limits: Limits { min_up: 1, cold_limit: Duration::from_secs(60) },
        drain: Drain {
            policy: Policy::Steer,
            deadline: Duration::from_secs(60),
            on_deadline: OnDeadline::StopRoll,
            leave_max: Duration::from_secs(3600),
            quiet_after: None,
            outsiders: Outsiders::Cut,
        },
        roll: Roll {
            batch: Batch::Count(1),
            surge: 0,
            max_failures: 1,
            on_failure: OnFailure::Stop,
            user: None,
            switch: None,
            unswitch: None,
            switch_within: Duration::from_secs(60),
        },
        warm: Warm { requests: Vec::new(), repeat: 1, within: Duration::from_secs(20) },
        version: None,
        tls: None,
    }
}

fn posted() -> Request {
    Request {
        tls: None,
        headers: vec![("X-B".into(), "2".into()), ("X-A".into(), "1".into())],
        body: "b".to_owned(),
        status: Some(204),
        ..request("POST", "/x")
    }
}

fn full_web() -> Service {
    Service {
        address: Some("127.0.0.1:9000".parse().unwrap()),
        publish: Some("10.0.0.17:8080".parse().unwrap()),
        callers: vec![Caller::Cgroup("/sys/fs/cgroup/lb.slice".into()), Caller::Executable("/usr/sbin/nginx".into())],
        manager: Manager::Supervisord {
            socket: "/run/supervisor.sock".into(),
            program: "web:web_{port}".to_owned(),
            login: Some(("u".to_owned(), "pw".to_owned())),
            stop_within: Duration::from_millis(250),
        },
        limits: Limits { min_up: 2, cold_limit: Duration::from_secs(300) },
        drain: Drain {
            policy: Policy::Refuse,
            deadline: Duration::from_secs(7200),
            on_deadline: OnDeadline::Kill,
            leave_max: Duration::from_secs(3600),
            quiet_after: Some(Duration::from_secs(300)),
            outsiders: Outsiders::Hold,
        },
        roll: Roll {
            batch: Batch::Percent(10),
            surge: 0,
            max_failures: 3,
            on_failure: OnFailure::Rollback,
            user: None,
            switch: command(&["ln", "-sfn", "/srv/{version}", "/srv/{service}"]),
            unswitch: command(&["/bin/undo", "{\"a\": 1}"]),
            switch_within: Duration::from_secs(60),
        },
        warm: Warm { requests: vec![request("GET", "/?a=b"), posted()], repeat: 3, within: Duration::from_secs(30) },
        version: Some(VersionRequest {
            request: request("GET", "/version"),
            place: VersionPlace::Header("X-Version".to_owned()),
        }),
        ..plain("web", &["127.0.0.1:8000", "127.0.0.1:8001", "127.0.0.1:8010"], "")
    }
}

#[test]
fn minimal() {
    let expected = Config {
        daemon: Daemon {
            socket: "/run/deployer/deployer.sock".into(),
            group: None,
            state: "/var/lib/deployer".into(),
            on_start: OnStart::Resume,
        },
        kernel: Kernel {
            callers: None,
            workers: None,
            lease: Duration::from_secs(10),
            pins: DEFAULT_PINS.into(),
            self_test: Duration::from_secs(60),
        },
        metrics: None,
        fleet: Fleet::local(),
        services: BTreeMap::from([("web".to_owned(), plain("web", &["127.0.0.1:8000"], "web"))]),
    };
    assert_eq!(parse(MINIMAL).unwrap(), expected);
}

#[test]
fn full() {
    let mut api = plain("api", &["[::1]:8100", "[::1]:8101", "[::1]:8102", "[::1]:8103"], "api_{port}");
    api.mode = Mode::Observe;
    api.roll.batch = Batch::Count(4);
    api.version =
        Some(VersionRequest { request: request("GET", "/v"), place: VersionPlace::Json("build.version".to_owned()) });
    let expected = Config {
        daemon: Daemon {
            socket: "/run/d.sock".into(),
            group: Some("deploy".to_owned()),
            state: "/srv/state".into(),
            on_start: OnStart::Hold,
        },
        kernel: Kernel {
            callers: Some("/sys/fs/cgroup/lb.slice".into()),
            workers: Some("/sys/fs/cgroup/app.slice".into()),
            lease: Duration::from_secs(300),
            pins: "/sys/fs/bpf/two".into(),
            self_test: Duration::from_secs(60),
        },
        metrics: Some(Metrics { listen: "127.0.0.1:9469".parse().unwrap() }),
        fleet: Fleet {
            connect: Some(Connect { servers: "zk1:2181,zk2:2182".to_owned(), path: "/apps/web".to_owned() }),
            name: "shop".to_owned(),
            host: "app17".to_owned(),
            session_timeout: Duration::from_secs(4),
            digest: None,
            acl: Acl::Anyone,
            enrol: false,
            barrier_root: None,
        },
        services: BTreeMap::from([("api".to_owned(), api), ("web".to_owned(), full_web())]),
    };
    assert_eq!(parse(FULL).unwrap(), expected);
}

#[test]
fn a_service_is_protected_where_it_says_so() {
    let with = |line: &str| parse(&format!("{MINIMAL}{line}\n")).map(|config| config.services["web"].protect);
    assert!(matches!((with(""), with("protect = true"), with("protect = false")), (Ok(false), Ok(true), Ok(false))));
    for wrong in ["protect = 1", "protect = \"yes\"", "protect = { user = \"www\" }"] {
        let error = with(wrong).unwrap_err().to_string();
        assert!(error.contains("service.web.protect") && error.contains("write true or false"), "{error}");
    }
}

#[test]
fn an_ipv6_service_may_have_ipv4_workers() {
    let text = MINIMAL.replace("[service.web]", "[service.web]\naddress = \"[::1]:9000\"");
    assert_eq!(parse(&text).unwrap().services["web"].address, Some("[::1]:9000".parse().unwrap()));
}

#[test]
fn version_is_the_body_unless_said_otherwise() {
    let text = format!("{MINIMAL}version = {{ request = \"GET /version\" }}");
    let version = parse(&text).unwrap().services["web"].version.clone();
    assert_eq!(version.unwrap().place, VersionPlace::Body);
}

#[test]
fn the_deepest_mount_decides_what_is_a_cgroup() {
    let mounts = b"cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\ntmpfs /sys/fs/cgroup/bin tmpfs rw 0 0\n\
        cgroup2 /my\\040cgroups cgroup2 rw 0 0\ntmpfs /over cgroup2 rw 0 0\ntmpfs /over tmpfs rw 0 0\n";
    let callers = r#"callers = ["/sys/fs/cgroup/bin/lb", "/my cgroups/lb", "/my cgroupsx", "/over/lb"]"#;
    let mounts = paths::Mounts::parse(mounts);
    let text = format!("{MINIMAL}{callers}");
    let config = check::config_with(Path::new("x"), &text, &mounts).unwrap();
    assert_eq!(
        config.services["web"].callers,
        [
            Caller::Executable("/sys/fs/cgroup/bin/lb".into()),
            Caller::Cgroup("/my cgroups/lb".into()),
            Caller::Executable("/my cgroupsx".into()),
            Caller::Executable("/over/lb".into()),
        ]
    );
}

#[test]
fn the_password_is_not_shown() {
    let shown = format!("{:?}", parse(FULL).unwrap());
    assert!(shown.contains("\"***\"") && !shown.contains("pw"), "{shown}");
}

#[test]
fn load_names_the_file_it_cannot_read() {
    let error = Config::load(Path::new("/nonexistent/deployer.toml")).unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/deployer.toml: cannot be read: "), "{error}");
    assert!(error.problems().is_empty());
}

#[test]
fn a_batch_leaves_somebody_to_serve() {
    let of = |text: &str, total| text.parse::<Batch>().unwrap().of(total);
    assert_eq!([of("4", 40), of("10%", 40), of("1%", 40), of("100%", 40), of("9", 4)], [4, 4, 1, 39, 3]);
    assert_eq!([of("1", 1), of("100%", 1), of("100%", 2)], [1, 1, 1]);
}
