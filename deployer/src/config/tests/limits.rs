//! The floor, and how long a cold worker is kept back.

use super::{
    super::{Limits, Service},
    bad::refused,
    parse,
};

/// So many workers on line 2; `more` begins on line 4.
fn with(workers: u16, more: &str) -> String {
    format!(
        "[service.web]\nworkers = \"127.0.0.1:8000-{}\"\n\
         manager = {{ supervisord = \"/s\", program = \"web_{{port}}\" }}\n{more}\n",
        7999 + workers
    )
}

fn web(workers: u16, more: &str) -> Service {
    parse(&with(workers, more)).unwrap().services.remove("web").unwrap()
}

const SPARE: &str = "spare = \"127.0.0.1:8040-8043\"";

#[test]
fn a_share_is_rounded_up() {
    for (workers, min_up, expected) in [
        (4, "1", 1),
        (4, "3", 3),
        (4, "\"50%\"", 2),
        (5, "\"50%\"", 3),
        (5, "\"1%\"", 1),
        (40, "\"90%\"", 36),
        (1, "1", 1),
        (1, "\"100%\"", 1),
        (2, "\"1\"", 1),
    ] {
        assert_eq!(web(workers, &format!("min_up = {min_up}")).limits.min_up, expected, "{min_up} of {workers}");
    }
}

#[test]
fn spares_do_not_count_among_the_workers() {
    let config = web(4, &format!("{SPARE}\nmin_up = \"100%\"\nroll.surge = 1"));
    assert_eq!(config.limits.min_up, 4);
    let key = "service.web.min_up";
    let five = with(4, &format!("{SPARE}\nmin_up = 5\nroll.surge = 4"));
    refused(&five, &[(5, key, "is 5, and there are 4 in `workers`; write at most 4")]);
}

#[test]
fn a_floor_that_nobody_could_ever_leave() {
    let key = "service.web.min_up";
    for min_up in ["4", "\"100%\"", "\"76%\""] {
        let reason = "none of them could ever be drained; write at most 3, or have spares started first";
        refused(&with(4, &format!("min_up = {min_up}")), &[(4, key, reason)]);
    }
    // Spares that nobody starts help nobody.
    refused(&with(4, &format!("{SPARE}\nmin_up = 4")), &[(5, key, "roll.surge = 1")]);
    let back = format!("{SPARE}\nmin_up = 4\nroll = {{ surge = 2, on_failure = \"rollback\" }}");
    refused(&with(4, &back), &[(5, key, "could be rolled back, in which spares have no part; write at most 3")]);
}

#[test]
fn wrong_limits() {
    let key = "service.web.min_up";
    for (min_up, reason) in [
        ("0", "0 is out of range; write a whole number from 1 to 256"),
        ("-1", "out of range"),
        ("\"0%\"", "a share from 1% to 100%"),
        ("\"101%\"", "a share from 1% to 100%"),
        ("\"half\"", "write 4 or \"10%\""),
        ("0.5", "is a float; write a number of workers"),
        ("257", "out of range"),
    ] {
        refused(&with(4, &format!("min_up = {min_up}")), &[(4, key, reason)]);
    }
    let key = "service.web.cold_limit";
    for (limit, reason) in [
        ("60", "has no unit"),
        ("\"999ms\"", "is too short; write 1s to 1h"),
        ("\"2h\"", "is too long; write 1s to 1h"),
        ("\"soon\"", "is no duration"),
    ] {
        refused(&with(4, &format!("cold_limit = {limit}")), &[(4, key, reason)]);
    }
    let config = web(4, "cold_limit = \"1h\"");
    assert_eq!(config.limits, Limits { min_up: 1, cold_limit: std::time::Duration::from_secs(3600) });
}
