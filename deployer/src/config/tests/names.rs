//! Placeholders, names that two workers share, and the addresses of workers.

use super::{
    MINIMAL,
    bad::{refused, with},
    parse,
};

/// Two workers of one port.
const TWICE: &str = "[\"127.0.0.1:8000\", \"127.0.0.4:8000\"]";

/// A service with these workers and this manager, on lines 2 and 3.
fn service(workers: &str, manager: &str) -> String {
    format!("[service.web]\nworkers = {workers}\nmanager = {{ {manager} }}\n")
}

#[test]
fn two_workers_of_one_port_have_names_of_their_own() {
    let both = "both web 127.0.0.1:8000 and web 127.0.0.4:8000; write {address} and {port} where they differ";
    let alike = "starts web 127.0.0.1:8000 and web 127.0.0.4:8000 in the same way";
    let verbs = |word: &str| {
        ["start", "stop", "status"].map(|verb| format!("{verb} = [\"/x\", \"{verb}\", {word}]")).join(", ")
    };
    let cases = [
        ("supervisord = \"/s\", program = \"web_{port}\"", "program", format!("makes web_8000 the process of {both}")),
        ("unit = \"web@{port}.service\"", "unit", format!("makes web@8000.service the unit of {both}")),
        ("command = [\"/app\", \"{port}\"]", "command", alike.to_owned()),
        (
            "command = [\"/app\", \"{address}:{port}\"], log = \"/l/{port}\"",
            "log",
            format!("makes /l/8000 the log of {both}"),
        ),
    ];
    for (manager, key, reason) in cases {
        refused(&service(TWICE, manager), &[(3, &format!("service.web.manager.{key}"), &reason)]);
    }
    let same = format!("is the same for {both}");
    let keys = ["start", "stop", "status"].map(|verb| format!("service.web.manager.{verb}"));
    let each: Vec<_> = keys.iter().map(|key| (3, key.as_str(), same.as_str())).collect();
    refused(&service(TWICE, &verbs("\"{port}\"")), &each);
    for manager in [
        "supervisord = \"/s\", program = \"web:web_{address}_{port}\"",
        "unit = \"{service}@{address}:{port}.service\"",
        "command = [\"/app\", \"{address}:{port}\"]",
        "command = [\"sh\", \"-c\", \"exec app $DEPLOYER_ADDRESS:$DEPLOYER_PORT\"]",
        &verbs("\"{address}\", \"{port}\""),
    ] {
        assert!(parse(&service(TWICE, manager)).is_ok(), "{manager}: {:?}", parse(&service(TWICE, manager)));
    }
}

/// Pools and spares are workers, too, and so are those of another service.
#[test]
fn names_are_compared_over_pools_and_services() {
    let pools = service("\"127.0.0.1:8000\"", "unit = \"web@{port}.service\"") + "deploy.second = \"127.0.0.4:8000\"\n";
    refused(&pools, &[(3, "service.web.manager.unit", "both web 127.0.0.1:8000 and web 127.0.0.4:8000")]);
    let spares = service("\"127.0.0.1:8000\"", "unit = \"web@{port}.service\"") + "spare = \"127.0.0.4:8000\"\n";
    refused(&spares, &[(3, "service.web.manager.unit", "both web 127.0.0.1:8000 and web 127.0.0.4:8000")]);
    let other = |program: &str| {
        with("")
            + "[service.api]\nworkers = \"127.0.0.4:8000\"\nmanager = { supervisord = \"/run/supervisor.sock\", program = \""
            + program
            + "\" }\n"
    };
    let both = "makes web the process of both web 127.0.0.1:8000 and api 127.0.0.4:8000; write {service} where";
    refused(&other("web"), &[(7, "service.api.manager.program", both)]);
    assert!(parse(&other("{service}")).is_ok());
}

#[test]
fn the_default_log_is_by_address_where_ports_are_not_enough() {
    let log = |workers: &str| {
        let config = parse(&service(workers, "command = [\"/app\", \"{address}:{port}\"]")).unwrap();
        match &config.services["web"].manager {
            super::super::Manager::Builtin(builtin) => builtin.log.clone(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(log("\"127.0.0.4:8000-8001\""), "/var/log/deployer/{service}-{port}.log");
    assert_eq!(log(TWICE), "/var/log/deployer/{service}-{address}-{port}.log");
}

#[test]
fn no_key_takes_a_placeholder_that_nothing_replaces() {
    let none = "is replaced by nothing: this key takes no placeholders";
    let builtin = |more: &str| service("\"127.0.0.1:8000\"", &format!("command = [\"/app\"], {more}"));
    for key in ["user", "group", "cgroup"] {
        refused(&builtin(&format!("{key} = \"web-{{port}}\"")), &[(3, &format!("service.web.manager.{key}"), none)]);
    }
    for (key, listed) in
        [("directory = \"/srv/{prot}\"", "directory"), ("environment = { A = \"{prot}\" }", "environment.A")]
    {
        let reason = "{prot} is replaced by nothing; write {port} or {address} or {service}";
        refused(&builtin(key), &[(3, &format!("service.web.manager.{listed}"), reason)]);
    }
    let cases = [
        ("roll.user = \"{service}\"", "roll.user", none),
        ("callers = [\"/usr/sbin/{service}\"]", "callers[0]", none),
        (
            "warm.requests = [\"GET /{version}\"]",
            "warm.requests[0]",
            "{version} is replaced by nothing; write {port} or",
        ),
        (
            "warm.requests = [{ path = \"/\", headers = { A = \"{x}\" } }]",
            "warm.requests[0].headers.A",
            "write {port} or",
        ),
        ("warm.requests = [{ path = \"/\", body = \"{lane}\" }]", "warm.requests[0].body", "write {port} or"),
        ("version.request = \"GET /{prot}\"", "version.request", "write {port} or {address} or {service}"),
    ];
    for (line, key, reason) in cases {
        refused(&with(line), &[(4, &format!("service.web.{key}"), reason)]);
    }
    refused(&format!("daemon.socket = \"/run/{{service}}.sock\"\n{MINIMAL}"), &[(1, "daemon.socket", none)]);
    refused(&format!("daemon.state = \"/srv/{{host}}\"\n{MINIMAL}"), &[(1, "daemon.state", none)]);
    let fine = "warm.requests = [{ path = \"/{port}\", body = \"{viewer} {port}\" }]";
    assert!(parse(&with(fine)).is_ok(), "{:?}", parse(&with(fine)));
    let password = MINIMAL.replace("program =", "username = \"u\", password = \"{x}\", program =");
    assert!(parse(&password).is_ok());
}

#[test]
fn the_lane_is_known_where_there_are_two() {
    let text = |more: &str| {
        service(
            "\"127.0.0.1:8000\"",
            "command = [\"/app\", \"{port}\"], directory = \"/srv/{pool}\", environment = { L = \"{lane}\" }",
        ) + more
    };
    assert!(parse(&text("deploy.second = \"next\"\n")).is_ok());
    let reason = "as the service has no `deploy`";
    refused(
        &text(""),
        &[(3, "service.web.manager.directory", reason), (3, "service.web.manager.environment.L", reason)],
    );
}

#[test]
fn workers_with_commas() {
    let of = |text: &str| -> Vec<String> {
        let config = parse(&service(&format!("\"{text}\""), "unit = \"{address}:{port}.service\"")).unwrap();
        config.services["web"].workers.iter().map(ToString::to_string).collect()
    };
    assert_eq!(of("8000,8002-8003"), ["127.0.0.1:8000", "127.0.0.1:8002", "127.0.0.1:8003"]);
    assert_eq!(of("8000"), ["127.0.0.1:8000"]);
    assert_eq!(of("127.0.0.4:8000, 8002 , 127.0.0.1:8000"), ["127.0.0.4:8000", "127.0.0.4:8002", "127.0.0.1:8000"]);
    assert_eq!(of("[::1]:8000,8001"), ["[::1]:8000", "[::1]:8001"]);
    let cases = [
        ("8000,", "\"\" is no address"),
        ("8000,,8001", "\"\" is no address"),
        ("8000,70000", "\"70000\" has no port in \"70000\""),
        ("8000,0", "has port 0"),
        ("8003-8000", "ends before it begins; write 127.0.0.1:8000-8003"),
        ("8000;8001", "is no address; write IP:PORT"),
        ("8000-8199,9000-9199", "names more than 256 workers"),
        ("unix:/run/x.sock", "is a unix socket, and workers are reached by TCP"),
        ("/run/x.sock", "is a unix socket"),
        ("web1.example:8000", "the host name \"web1.example\" is not looked up"),
        ("web1.example", "is no address; write IP:PORT"),
    ];
    for (text, reason) in cases {
        refused(&service(&format!("\"{text}\""), "unit = \"{port}.service\""), &[(2, "service.web.workers", reason)]);
    }
    refused(
        &service("\"8000,8001,8000\"", "unit = \"{port}.service\""),
        &[(2, "service.web.workers", "127.0.0.1:8000 is already a worker's")],
    );
}

#[test]
fn a_worker_at_a_unix_socket_is_reached_by_no_caller() {
    let reason = "has the worker listen at a unix socket";
    for words in [
        "\"gunicorn\", \"--bind\", \"unix:/run/web-{port}.sock\"",
        "\"gunicorn\", \"-b\", \"unix:/run/web.sock\"",
        "\"gunicorn\", \"--bind=unix:/run/web-{port}.sock\"",
        "\"gunicorn\", \"-bunix:/run/web-{port}.sock\"",
        "\"uvicorn\", \"--uds\", \"/run/web-{port}.sock\"",
        "\"uvicorn\", \"--uds=/run/web-{port}.sock\"",
        "\"puma\", \"-b\", \"unix:///run/web-{port}.sock\"",
        "\"sh\", \"-c\", \"exec gunicorn -b unix:/run/$DEPLOYER_PORT.sock app\"",
    ] {
        let text = service("\"127.0.0.1:8000-8001\"", &format!("command = [{words}]"));
        refused(&text, &[(3, "service.web.manager.command", reason)]);
    }
    for words in [
        "\"gunicorn\", \"-b\", \"unix:/run/web.sock\", \"-b\", \"127.0.0.1:{port}\"",
        "\"uvicorn\", \"--port\", \"{port}\"",
        "\"sh\", \"-c\", \"gunicorn -b unix:/run/x -b 127.0.0.1:$DEPLOYER_PORT\"",
    ] {
        assert!(parse(&service("\"127.0.0.1:8000-8001\"", &format!("command = [{words}]"))).is_ok(), "{words}");
    }
}

#[test]
fn times_that_contradict_each_other() {
    let longer = "is longer than a drain waits (1m), so that no connection is ever quiet for so long";
    refused(&with("drain.quiet_after = \"61s\""), &[(4, "service.web.drain.quiet_after", longer)]);
    let text = with("drain = { deadline = \"5s\", quiet_after = \"6s\", on_deadline = \"kill\" }");
    refused(&text, &[(4, "service.web.drain.quiet_after", "(5s)")]);
    let leave = |quiet: &str| {
        with(&format!(
            "drain = {{ deadline = \"5s\", on_deadline = \"leave\", leave_max = \"1h\", quiet_after = \"{quiet}\" }}"
        ))
    };
    assert!(parse(&leave("30m")).is_ok(), "a worker that is left is waited for after the deadline");
    refused(&leave("2h"), &[(4, "service.web.drain.quiet_after", "is longer than a drain waits")]);
    assert!(parse(&with("drain.quiet_after = \"60s\"")).is_ok());
    let deploy = service("\"127.0.0.1:8000\"", "unit = \"{port}.service\"")
        + "deploy = { second = \"next\", bake = \"5s\", gate_every = \"6s\", gate = [\"/bin/true\"] }\n";
    refused(&deploy, &[(4, "service.web.deploy.gate_every", "is longer than bake (5s)")]);
}
