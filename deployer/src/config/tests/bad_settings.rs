//! Wrong settings of a service, beyond its addresses.

use super::{
    MINIMAL,
    bad::{refused, with},
    parse,
};

fn manager(manager: &str) -> String {
    MINIMAL.replace("supervisord = \"/run/supervisor.sock\", program = \"web\"", manager)
}

#[test]
fn managers() {
    let key = |name: &str| format!("service.web.manager{}{name}", if name.is_empty() { "" } else { "." });
    let long = format!("supervisord = \"/{}\", program = \"web\"", "a".repeat(107));
    let cases = [
        ("supervisord = \"run/s\", program = \"web\"", "supervisord", "absolute path"),
        ("supervisord = \"/run/../s\", program = \"web\"", "supervisord", "contains .."),
        ("supervisord = \"/\", program = \"web\"", "supervisord", "is a directory"),
        ("supervisord = \"/\\u0000\", program = \"web\"", "supervisord", "NUL"),
        (&long, "supervisord", "108 bytes long"),
        ("supervisord = \"/s\", program = \"\"", "program", "is empty"),
        ("supervisord = \"/s\", program = \"web:*\"", "program", "whole group"),
        ("supervisord = \"/s\", program = \"a b\"", "program", "is no process name"),
        (
            "supervisord = \"/s\", program = \"a_{version}\"",
            "program",
            "{version} is replaced by nothing; write {port}",
        ),
        ("supervisord = \"/s\", program = \"a\", username = \"u\"", "", "no password"),
        ("supervisord = \"/s\", program = \"a\", password = \"u\"", "", "no username"),
        ("supervisord = \"/s\", program = \"a\", stop_within = \"2h\"", "stop_within", "too long; write 100ms to 1h"),
    ];
    for (value, name, reason) in cases {
        refused(&manager(value), &[(3, &key(name), reason)]);
    }
    let text = MINIMAL.replace("8000", "8000-8001");
    refused(&text, &[(3, &key("program"), "same for every worker; write {port}")]);
    refused(&MINIMAL.replace("supervisord =", "systemd = 1, supervisord ="), &[(3, &key("systemd"), "is unknown")]);
}

#[test]
fn systemd() {
    let key = |name: &str| format!("service.web.manager.{name}");
    let unit = "kind = \"systemd\", unit = ";
    let cases = [
        ("kind = \"systemd\"".to_owned(), "unit", "is missing; write unit = \"web@{port}.service\""),
        ("kind = \"upstart\"".to_owned(), "kind", "is unknown; write \"supervisord\" or"),
        (format!("{unit}\"web\""), "unit", "is no service unit's name"),
        (format!("{unit}\"web@1.socket\""), "unit", "is no service unit's name"),
        (format!("{unit}\"a/b@1.service\""), "unit", "is no service unit's name"),
        (format!("{unit}\"{}@1.service\"", "a".repeat(250)), "unit", "is no service unit's name"),
        (format!("{unit}\"web@.service\""), "unit", "is a template, which cannot run"),
        (format!("{unit}\"web@{{prot}}.service\""), "unit", "{prot} is replaced by nothing; write {port} or {address}"),
        (format!("{unit}\"web@1.service\", bus = \"/run/bus\""), "bus", "is no D-Bus address of a unix socket"),
        (format!("{unit}\"web@1.service\", bus = \"tcp:host=a,port=1\""), "bus", "is no D-Bus address"),
        (format!("{unit}\"web@1.service\", program = \"web\""), "program", "is unknown; write one of: kind, unit"),
        (format!("{unit}\"web@1.service\", stop_within = \"2h\""), "stop_within", "too long"),
    ];
    for (value, name, reason) in cases {
        refused(&manager(&value), &[(3, &key(name), reason)]);
    }
    let text = manager(&format!("{unit}\"web.service\"")).replace("8000", "8000-8001");
    refused(&text, &[(3, &key("unit"), "same for every worker; write {port}")]);
    let right = manager(&format!("{unit}\"web@{{address}}:{{port}}.service\", bus = \"unix:abstract=a\""));
    let config = parse(&right).unwrap();
    let expected = crate::config::Manager::Systemd {
        unit: "web@{address}:{port}.service".to_owned(),
        bus: Some("unix:abstract=a".to_owned()),
        stop_within: std::time::Duration::from_secs(30),
    };
    assert_eq!(config.services["web"].manager, expected);
}

#[test]
fn durations() {
    let key = "service.web.drain.deadline";
    let cases = [
        ("60", "has no unit"),
        ("\"60\"", "is no duration"),
        ("\"s\"", "is no duration"),
        ("\"\"", "is no duration"),
        ("\"1.5s\"", "is no duration"),
        ("\"10 s\"", "is no duration; write a whole number and ms, s, m or h"),
        ("\"999ms\"", "too short; write 1s to 24h"),
        ("\"25h\"", "too long; write 1s to 24h"),
        ("\"99999999999999999999999h\"", "too long"),
        ("true", "is a boolean"),
    ];
    for (value, reason) in cases {
        refused(&with(&format!("drain.deadline = {value}")), &[(4, key, reason)]);
    }
    refused(&format!("kernel.lease = \"11m\"\n{MINIMAL}"), &[(1, "kernel.lease", "write 1s to 10m")]);
    refused(&with("warm.within = \"10ms\""), &[(4, "service.web.warm.within", "write 100ms to 1h")]);
    refused(&with("roll.switch_within = \"2h\""), &[(4, "service.web.roll.switch_within", "write 100ms to 1h")]);
}

#[test]
fn rolls() {
    let cases = [
        ("batch = \"0%\"", "batch", "neither a number"),
        ("batch = \"101%\"", "batch", "neither a number"),
        ("batch = 1.5", "batch", "is a float; write a number of workers, 4, or a share"),
        ("batch = -1", "batch", "-1 is out of range"),
        ("max_failures = 0", "max_failures", "from 1 to 256"),
        ("on_failure = \"undo\"", "on_failure", "write \"stop\" or \"rollback\""),
        ("switch = [\"a\"]\nroll.on_failure = \"rollback\"", "on_failure", "write unswitch"),
        ("switch = []", "switch", "is empty; write a program"),
        ("switch = \"ln -s\"", "switch", "is a string; write a list of words"),
        ("switch = [\"\"]", "switch[0]", "is empty"),
        ("switch = [\"bin/x\"]", "switch[0]", "relative path"),
        ("switch = [\"x\", 1]", "switch[1]", "is an integer"),
        ("unswitch = [\"x\", \"{ver}\"]", "unswitch[1]", "{ver} is replaced by nothing; write {version} or {service}"),
    ];
    for (value, name, reason) in cases {
        let line = 4 + value.matches('\n').count();
        refused(&with(&format!("roll.{value}")), &[(line, &format!("service.web.roll.{name}"), reason)]);
    }
    assert!(parse(&with("roll.on_failure = \"rollback\"")).is_ok());
    let reason = "\"wait\" is unknown; write \"cut\" or \"hold\"";
    refused(&with("drain.outsiders = \"wait\""), &[(4, "service.web.drain.outsiders", reason)]);
    refused(&with("drain.policy = \"drop\""), &[(4, "service.web.drain.policy", "write \"steer\" or \"refuse\"")]);
}

#[test]
fn requests() {
    let cases = [
        ("\"/\"", "", "is no request; write a method and a path, \"GET /\""),
        ("1", "", "is an integer; write \"GET /path\" or a table"),
        ("\"get /\"", "", "\"get\" is no method, which has upper-case letters only; write GET"),
        ("\"CONNECT /\"", "", "tunnel"),
        ("\"GET x\"", "", "does not begin with /"),
        ("\"GET /a b\"", "", "contains ' '; write %20"),
        ("\"GET /é\"", "", "write %C3%A9"),
        ("\"GET /\\n\"", "", "write %0A"),
        ("{ method = \"GET\" }", ".path", "is missing"),
        ("{ path = \"/\", status = 99 }", ".status", "from 100 to 599"),
        ("{ path = \"/\", status = 600 }", ".status", "from 100 to 599"),
        ("{ path = \"/\", method = \"\" }", ".method", "is no method"),
        ("{ path = \"/\", headers = { \"X A\" = \"1\" } }", ".headers.\"X A\"", "is no header name"),
        ("{ path = \"/\", headers = { X-A = \"1\\r\\nB: 2\" } }", ".headers.X-A", "contains '\\r'"),
        ("{ path = \"/\", headers = { X-A = \" 1\" } }", ".headers.X-A", "begins or ends with a blank"),
        ("{ path = \"/\", headers = { X-A = 1 } }", ".headers.X-A", "is an integer"),
        ("{ path = \"/\", headers = { Content-Length = \"1\" } }", ".headers.Content-Length", "leave it out"),
        ("{ path = \"/\", bdy = \"\" }", ".bdy", "one of: method, path, headers, body, status"),
    ];
    for (value, name, reason) in cases {
        let key = format!("service.web.warm.requests[0]{name}");
        refused(&with(&format!("warm.requests = [{value}]")), &[(4, &key, reason)]);
    }
    for repeat in ["0", "1001"] {
        let text = with(&format!("warm.repeat = {repeat}"));
        refused(&text, &[(4, "service.web.warm.repeat", "from 1 to 1000")]);
    }
}

#[test]
fn versions_and_callers() {
    let cases = [
        ("version = {}", "version.request", "is missing; write request = "),
        ("version = { request = \"GET /\", header = \"a\", json = \"b\" }", "version", "both header and json"),
        ("version = { request = \"GET /\", header = \"a:\" }", "version.header", "is no header name"),
        ("version = { request = \"GET /\", json = \"a..b\" }", "version.json", "empty part"),
        ("version = { request = \"HEAD /\" }", "version", "write GET"),
        ("version = \"GET /\"", "version", "is a string; write a table"),
        ("callers = \"/usr/sbin/nginx\"", "callers", "is a string; write a list of paths"),
        ("callers = [\"nginx\"]", "callers[0]", "absolute path"),
        ("callers = [\"/\"]", "callers[0]", "is a directory"),
    ];
    for (text, key, reason) in cases {
        refused(&with(text), &[(4, &format!("service.web.{key}"), reason)]);
    }
}
