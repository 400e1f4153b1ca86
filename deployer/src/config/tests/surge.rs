//! Spares, and rolls that use them.

use super::{
    super::{Batch, Config},
    bad::refused,
    parse,
};

/// Four workers on line 2; `more` begins on line 4.
fn with(more: &str) -> String {
    format!(
        "[service.web]\nworkers = \"127.0.0.1:8000-8003\"\n\
         manager = {{ supervisord = \"/s\", program = \"web_{{port}}\" }}\n{more}\n"
    )
}

fn good(more: &str) -> Config {
    parse(&with(more)).unwrap()
}

const SPARE: &str = "spare = \"127.0.0.1:8040-8043\"";

#[test]
fn a_batch_is_as_large_as_the_surge() {
    let config = good(&format!("{SPARE}\nroll.surge = 3"));
    let web = &config.services["web"];
    let ports: Vec<_> = web.spares.iter().map(|spare| spare.port()).collect();
    assert_eq!((ports, web.roll.surge), (vec![8040, 8041, 8042, 8043], 3));
    assert_eq!(web.roll.batch, Batch::Count(3));
    assert_eq!(web.members().count(), 8);
    // Never larger than it; with it, it may be all workers.
    assert_eq!(Batch::Count(8).of_surge(4, 3), 3);
    assert_eq!(Batch::Count(8).of_surge(4, 6), 4);
    assert_eq!(Batch::Count(1).of_surge(4, 6), 1);
    assert_eq!(Batch::Percent(1).of_surge(4, 6), 1);
    assert_eq!(Batch::Count(1).of_surge(1, 1), 1);
}

#[test]
fn spares_alone_change_nothing() {
    let config = good(SPARE);
    assert_eq!((config.services["web"].roll.surge, config.services["web"].roll.batch), (0, Batch::Count(1)));
    let written = good(&format!("{SPARE}\nroll = {{ surge = 4, batch = 2 }}"));
    assert_eq!(written.services["web"].roll.batch, Batch::Count(2));
    good(&format!("{SPARE}\ndrain.policy = \"refuse\""));
    good("roll.surge = 0");
}

#[test]
fn a_surge_needs_spares_and_steering() {
    let key = "service.web.roll.surge";
    refused(&with("roll.surge = 1"), &[(4, key, "has no spares to start; write their addresses, spare = ")]);
    refused(&with(&format!("{SPARE}\nroll.surge = 5")), &[(5, key, "is 5, and there are 4 in `spare`")]);
    refused(&with(&format!("{SPARE}\nroll.surge = -1")), &[(5, key, "out of range; write a whole number from 0")]);
    refused(&with(&format!("{SPARE}\nroll.surge = \"10%\"")), &[(5, key, "is a string")]);
    let refuse = format!("{SPARE}\ndrain.policy = \"refuse\"\nroll.surge = 2");
    refused(&with(&refuse), &[(6, key, "needs drain.policy = \"steer\"")]);
}

#[test]
fn spares_have_addresses_of_their_own() {
    let key = "service.web.spare";
    for (spare, reason) in [
        ("127.0.0.1:8003-8004", "127.0.0.1:8003 is already a worker's in service.web.workers (line 2)"),
        ("[::1]:8040", "is of another address family"),
        ("127.0.0.1:8040-8300", "names 261 workers; write at most 256"),
        ("127.0.0.1:8040-8292", "makes 257 with the workers; write at most 256 together"),
        ("127.0.0.1", "has no port"),
    ] {
        refused(&with(&format!("spare = \"{spare}\"")), &[(4, key, reason)]);
    }
    let twice = with("spare = [\"127.0.0.1:8040\", \"localhost:8040\"]");
    refused(&twice, &[(4, "service.web.spare[1]", "is already a spare's in")]);
    let address = with(&format!("{SPARE}\naddress = \"127.0.0.1:8041\""));
    refused(
        &address,
        &[(5, "service.web.address", "127.0.0.1:8041 is already a spare's in service.web.spare (line 4)")],
    );
    let other = "\n[service.api]\nworkers = \"127.0.0.1:8042\"\nmanager = { supervisord = \"/s\", program = \"api\" }";
    let other = with(&format!("{SPARE}{other}"));
    refused(&other, &[(6, "service.api.workers", "is already a spare's in service.web.spare (line 4)")]);
}

#[test]
fn one_worker_and_a_spare_need_names_of_their_own() {
    let text = "[service.web]\nworkers = \"127.0.0.1:8000\"\nspare = \"127.0.0.1:8040\"\n\
                manager = { supervisord = \"/s\", program = \"web\" }\n";
    refused(text, &[(4, "service.web.manager.program", "same for every worker; write {port}")]);
}
