//! Wrong configurations: each problem has its line, its key, a reason and what to write instead.

use super::{MINIMAL, parse};

/// A service whose workers are on line 2, manager on line 3; `more` begins on line 4.
pub(super) fn with(more: &str) -> String {
    format!("{MINIMAL}{more}\n")
}

/// [`MINIMAL`] with other workers.
fn workers(workers: &str) -> String {
    MINIMAL.replace("\"127.0.0.1:8000\"", workers).replace("\"web\"", "\"web_{port}\"")
}

/// Asserts that exactly these problems are found: line, key, part of the reason.
#[track_caller]
pub(super) fn refused(text: &str, expected: &[(usize, &str, &str)]) {
    let error = parse(text).unwrap_err();
    let found = error.problems();
    assert_eq!(found.len(), expected.len(), "{error}");
    for (problem, (line, key, reason)) in found.iter().zip(expected) {
        assert_eq!((problem.line, problem.key.as_str()), (*line, *key), "{error}");
        assert!(problem.reason.contains(reason), "{error}\ndoes not say: {reason}");
    }
}

#[test]
fn shown_by_line_key_reason() {
    let text = with("\n\n[service.api]\nworkers = \"127.0.0.1:8039-8000\"\nmode = 1\n");
    let expected = "deployer.toml:6: service.api.manager: is missing; write manager = { supervisord = \
        \"/run/supervisor.sock\", program = \"web:web_{port}\" }\n\
        deployer.toml:7: service.api.workers: \"127.0.0.1:8039-8000\" ends before it begins; \
        write 127.0.0.1:8000-8039\n\
        deployer.toml:8: service.api.mode: is an integer; write a string";
    assert_eq!(parse(&text).unwrap_err().to_string(), expected);
}

#[test]
fn every_problem_of_a_file_at_once() {
    let text = "[daemon]\nsocket = \"d.sock\"\nmode = \"off\"\ncolour = 1\n[kernel]\nlease = 10\n\
        [service.web]\nworkers = \"127.0.0.1:0\"\nmanager = { program = 1 }\nroll = { batch = 0, bach = 1 }\n\
        [service.Web]\n[servce.api]\n";
    refused(
        text,
        &[
            (2, "daemon.socket", "write the absolute path"),
            (3, "daemon.mode", "\"off\" is unknown; write \"observe\" or \"enforce\""),
            (4, "daemon.colour", "is unknown; write one of: socket, group, mode, state, on_start"),
            (6, "kernel.lease", "has no unit"),
            (8, "service.web.workers", "port 0"),
            (9, "service.web.manager.supervisord", "is missing; write supervisord = "),
            (9, "service.web.manager.program", "is an integer; write a string"),
            (10, "service.web.roll.batch", "0 is out of range; write a whole number from 1 to 256"),
            (10, "service.web.roll.bach", "one of: batch, surge, max_failures, on_failure"),
            (11, "service.Web", "is no service name"),
            (11, "service.Web.workers", "is missing; write workers = "),
            (11, "service.Web.manager", "is missing"),
            (12, "servce", "is unknown; write one of: daemon, kernel, metrics, fleet, service"),
        ],
    );
}

#[test]
fn not_toml() {
    refused("[daemon\nx = 1", &[(1, "", "not TOML: ")]);
    refused("\n\na = = 1", &[(3, "", "not TOML: ")]);
    refused(&with("mode = \"observe\"\nmode = \"enforce\""), &[(5, "", "duplicate key")]);
    refused(&format!("{MINIMAL}[service.web]\n"), &[(4, "", "duplicate key")]);
}

#[test]
fn services() {
    refused("", &[(1, "service", "names no service; write a table [service.NAME]")]);
    refused("[service]", &[(1, "service", "names no service")]);
    refused("service = 1", &[(1, "service", "is an integer; write a table")]);
    refused("[[service]]\n", &[(1, "service", "is a list; write a table")]);
    refused("[service]\nweb = 1", &[(2, "service.web", "is an integer; write a table")]);
    let named = |name: &str| MINIMAL.replace("web]", &format!("{name}]"));
    for name in ["1web", "_web", "\"\"", "\"a b\"", "Web", "\"a.b\"", "\"é\""] {
        refused(&named(name), &[(1, &format!("service.{name}"), "beginning with a letter")]);
    }
    let long = "a".repeat(64);
    refused(&named(&long), &[(1, &format!("service.{long}"), "1 to 63")]);
    assert!(parse(&named(&long[1..])).is_ok());
}

#[test]
fn worker_addresses() {
    let key = "service.web.workers";
    let cases = [
        ("\"127.0.0.1:0-3\"", "has port 0"),
        ("\"127.0.0.1:8003-8000\"", "ends before it begins; write 127.0.0.1:8000-8003"),
        ("\"127.0.0.1:8000-8256\"", "names 257 workers; write at most 256"),
        ("\"127.0.0.1:65536\"", "no port in \"65536\""),
        ("\"127.0.0.1:+80\"", "no port in \"+80\""),
        ("\"127.0.0.1:1-2-3\"", "no port in \"2-3\""),
        ("\"127.0.0.1\"", "has no port; write 127.0.0.1:8000"),
        ("\"[::1]\"", "has no port; write [::1]:8000"),
        ("\"web\"", "is no address; write IP:PORT"),
        ("\"::1:8000\"", "without brackets; write [::1]:8000"),
        ("\"web1:8000\"", "\"web1\" is not looked up"),
        ("\"0.0.0.0:8000\"", "write 127.0.0.1"),
        ("\"[::]:8000\"", "write [::1]"),
        ("\"[::ffff:127.0.0.1]:8000\"", "in disguise; write 127.0.0.1"),
        ("\"224.0.0.1:8000\"", "group of machines"),
        ("\"[fe80::1]:8000\"", "link-local"),
        ("[]", "names no worker"),
        ("8000", "is an integer; write a string"),
        ("[\"127.0.0.1:8000-8199\", \"127.0.0.1:9000-9199\"]", "names 400 workers"),
    ];
    for (value, reason) in cases {
        refused(&workers(value), &[(2, key, reason)]);
    }
    refused(
        &workers("[\n\"127.0.0.1:1\",\n8000,\n\"x\"]"),
        &[(4, "service.web.workers[1]", "write a string"), (5, "service.web.workers[2]", "is no address")],
    );
    assert!(parse(&workers("\"192.0.2.7:8000-8255\"")).is_ok());
}

#[test]
fn addresses_used_twice() {
    refused(
        &workers("[\"127.0.0.1:8000-8003\",\n\"localhost:8002-8005\"]"),
        &[(
            3,
            "service.web.workers[1]",
            "127.0.0.1:8002 (and 1 more) is already a worker's in service.web.workers[0] (line 2)",
        )],
    );
    let other = "[service.api]\naddress = \"127.0.0.1:9000\"\nworkers = \"127.0.0.1:8000\"\n\
        manager = { supervisord = \"/run/s\", program = \"api\" }";
    refused(
        &with(&format!("address = \"127.0.0.1:9000\"\n{other}")),
        &[
            (
                6,
                "service.api.address",
                "already a service's in service.web.address (line 4); write an address of its own",
            ),
            (7, "service.api.workers", "already a worker's in service.web.workers (line 2); write each worker once"),
        ],
    );
    refused(
        &with("address = \"127.0.0.1:8000\""),
        &[(4, "service.web.address", "already a worker's in service.web.workers (line 2); write a service address")],
    );
}

#[test]
fn service_address() {
    let key = "service.web.address";
    refused(&with("address = \"127.0.0.1:1-2\""), &[(4, key, "is a range; write one address, 127.0.0.1:1")]);
    refused(&with("address = \"0.0.0.0:1\""), &[(4, key, "write 127.0.0.1")]);
    refused(&with("address = 9000"), &[(4, key, "is an integer")]);
    let text = workers("\"[::1]:8000\"") + "address = \"127.0.0.1:9000\"";
    refused(&text, &[(4, key, "is IPv4, its worker [::1]:8000 is IPv6; write an IPv6 address, \"[::1]:9000\"")]);
    let observed = "nobody answers at the service address 127.0.0.1:9000; write mode = \"enforce\"";
    let text = with("address = \"127.0.0.1:9000\"\nmode = \"observe\"");
    refused(&text, &[(5, "service.web.mode", observed)]);
    let text = format!("daemon.mode = \"observe\"\n{}", with("address = \"127.0.0.1:9000\""));
    refused(&text, &[(5, key, observed)]);
}

#[test]
fn workers_of_two_families() {
    let text = workers("[\"127.0.0.1:8000\", \"[::1]:8001\"]");
    refused(&text, &[(2, "service.web.workers[1]", "[::1]:8001 is of another address family than 127.0.0.1:8000")]);
}

#[test]
fn more_callers_than_the_kernel_has_room_for() {
    let list: Vec<_> = (0..9).map(|nth| format!("\"/usr/bin/caller{nth}\"")).collect();
    let text = with(&format!("callers = [{}]", list.join(", ")));
    refused(&text, &[(4, "service.web.callers", "has 9 entries; the most is 8")]);
}

#[test]
fn one_port_of_localhost_for_two() {
    let text = with("[service.api]\nworkers = \"[::1]:8000\"\nmanager = { supervisord = \"/s\", program = \"api\" }");
    refused(&text, &[(5, "service.api.workers", "[::1]:8000 is already a worker's in")]);
}
