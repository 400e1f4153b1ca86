//! `[metrics]`.

use super::{
    MINIMAL,
    bad::{refused, with},
    parse,
};

/// [`MINIMAL`] with metrics on line 4 and 5.
fn listening(listen: &str) -> String {
    with(&format!("[metrics]\nlisten = {listen}"))
}

#[test]
fn one_address_or_all() {
    for (text, at) in
        [("127.0.0.1:9469", "127.0.0.1:9469"), ("localhost:1", "127.0.0.1:1"), ("0.0.0.0:80", "0.0.0.0:80")]
    {
        let config = parse(&listening(&format!("\"{text}\""))).unwrap();
        assert_eq!(config.metrics.unwrap().listen.to_string(), at);
    }
    assert_eq!(parse(MINIMAL).unwrap().metrics, None);
}

#[test]
fn what_is_no_address_is_refused() {
    let cases = [
        ("9469", "is an integer; write a string"),
        ("\"127.0.0.1\"", "has no port"),
        ("\"127.0.0.1:0\"", "port 0"),
        ("\"0.0.0.0:0\"", "is every address and none"),
        ("\"127.0.0.1:9469-9470\"", "is a range; write one address"),
        ("\"metrics:9469\"", "has no IP address before the port"),
    ];
    for (listen, reason) in cases {
        refused(&listening(listen), &[(5, "metrics.listen", reason)]);
    }
    refused(&with("[metrics]\n"), &[(4, "metrics.listen", "is missing; write listen = \"127.0.0.1:9469\"")]);
    refused(&with("[metrics]\nlisten = \"[::1]:9\"\nport = 1\n"), &[(6, "metrics.port", "one of: listen")]);
}

#[test]
fn it_takes_nobodys_port() {
    for listen in ["127.0.0.1:8000", "[::1]:8000", "0.0.0.0:8000", "[::]:8000"] {
        let reason = "is already a worker's in service.web.workers (line 2); write another port for metrics";
        refused(&listening(&format!("\"{listen}\"")), &[(5, "metrics.listen", reason)]);
    }
    let before = format!("[metrics]\nlisten = \"127.0.0.1:8000\"\n{MINIMAL}");
    refused(&before, &[(4, "service.web.workers", "is already where metrics are served, by metrics.listen (line 2)")]);
}
