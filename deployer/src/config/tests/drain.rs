//! How workers are emptied.

use std::time::Duration;

use super::{
    super::{Drain, OnDeadline},
    MINIMAL,
    bad::refused,
    parse,
};

/// A minimal service whose `drain`, on line 4, says this.
fn with(drain: &str) -> String {
    format!("{MINIMAL}drain = {{ {drain} }}\n")
}

fn drain(text: &str) -> Drain {
    parse(&with(text)).unwrap().services.remove("web").unwrap().drain
}

#[test]
fn who_is_left_is_waited_for() {
    let hour = Duration::from_secs(3600);
    for (text, on_deadline, leave_max) in [
        ("", OnDeadline::StopRoll, hour),
        ("on_deadline = \"leave\"", OnDeadline::Leave, hour),
        ("on_deadline = \"leave\", leave_max = \"1s\"", OnDeadline::Leave, Duration::from_secs(1)),
        ("leave_max = \"168h\", on_deadline = \"leave\"", OnDeadline::Leave, 7 * 24 * hour),
    ] {
        let drain = drain(text);
        assert_eq!((drain.on_deadline, drain.leave_max), (on_deadline, leave_max), "{text}");
    }
    for (text, quiet) in
        [("", None), ("quiet_after = \"1s\"", Some(1)), ("deadline = \"24h\", quiet_after = \"24h\"", Some(86_400))]
    {
        assert_eq!(drain(text).quiet_after, quiet.map(Duration::from_secs), "{text}");
    }
}

#[test]
fn wrong_drains() {
    let leave = "on_deadline = \"leave\", leave_max = ";
    for (text, key, reason) in [
        ("on_deadline = \"stay\"".to_owned(), "on_deadline", "write \"stop-roll\" or \"kill\" or \"leave\""),
        (format!("{leave}\"999ms\""), "leave_max", "is too short; write 1s to 168h"),
        (format!("{leave}\"169h\""), "leave_max", "is too long; write 1s to 168h"),
        (format!("{leave}3600"), "leave_max", "has no unit"),
        ("leave_max = \"1h\"".to_owned(), "leave_max", "and none is left; write on_deadline = \"leave\" as well"),
        ("on_deadline = \"kill\", leave_max = \"1h\"".to_owned(), "leave_max", "and none is left"),
        ("quiet_after = \"0s\"".to_owned(), "quiet_after", "is too short; write 1s to 24h"),
        ("quiet_after = \"25h\"".to_owned(), "quiet_after", "is too long; write 1s to 24h"),
        ("quiet_after = 30".to_owned(), "quiet_after", "has no unit"),
        ("quiet_after = false".to_owned(), "quiet_after", "is a boolean; write a string"),
        ("quiet = \"1s\"".to_owned(), "quiet", "is unknown; write one of: policy, deadline, on_deadline, leave_max"),
    ] {
        refused(&with(&text), &[(4, &format!("service.web.drain.{key}"), reason)]);
    }
    // What is wrong with the one says nothing about the other.
    let key = "service.web.drain.on_deadline";
    refused(&with("on_deadline = \"stay\", leave_max = \"1h\""), &[(4, key, "is unknown")]);
}
