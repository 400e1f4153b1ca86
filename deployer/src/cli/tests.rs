//! What is understood on the command line, what is shown, and what a client makes of a daemon's answers.

mod client;
mod follow;
mod happened;
mod lines;
mod live;
mod report;
mod status;

use std::{io, path::Path, time::Duration};

use clap::CommandFactory as _;

use super::{client::encoded, *};
use crate::api::{Event, Phase, What};

const AT: &str = "127.0.0.1:8003";

fn event(time_ms: u64, what: What) -> Event {
    Event { seq: 0, time_ms, roll: "web-1".to_owned(), what }
}

fn phase(was: Phase, phase: Phase, reason: &str) -> What {
    What::Phase { worker: AT.parse().unwrap(), spare: false, phase, was, reason: reason.to_owned() }
}

fn spare(was: Phase, phase: Phase) -> What {
    What::Phase { worker: AT.parse().unwrap(), spare: true, phase, was, reason: String::new() }
}

fn begun() -> What {
    let workers = ["127.0.0.1:8003", "[::1]:8004"].map(|worker| vec![worker.parse().unwrap()]);
    What::Begun {
        service: "web".to_owned(),
        to: Some("v2".to_owned()),
        by: "root (pid 4711)".to_owned(),
        batches: workers.to_vec(),
        spares: Vec::new(),
    }
}

fn finished(result: Exit, text: &str, changed: usize, failed: &[&str]) -> What {
    let failed = failed.iter().map(|worker| worker.parse().unwrap()).collect();
    What::Finished { result, text: text.to_owned(), changed, failed, seconds: 12.34 }
}

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split(' '))
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_verb_is_understood() {
    for line in [
        "deployer daemon --config f.toml",
        "deployer config check f.toml",
        "deployer lb nginx",
        "deployer lb haproxy --config f.toml --service web",
        "deployer lb nginx web --config f.toml",
        "deployer lb nginx --lanes 16",
        "deployer lb varnish --via 127.0.0.1:8080",
        "deployer launch",
        "deployer check",
        "deployer check --config f.toml --json",
        "deployer roll web",
        "deployer --socket /tmp/s roll web --to v2 --batch 10% --dry-run --json",
        "deployer status --json --socket /tmp/s",
        "deployer drain web 8003 --for 10m",
        "deployer enable web 8003",
        "deployer bypass",
        "deployer bypass web --off",
        "deployer bypass --force",
        "deployer detach --force",
    ] {
        assert!(parse(line).is_ok(), "{line}: {:?}", parse(line));
    }
}

#[test]
fn mistakes_are_usage_errors() {
    for line in [
        "deployer",
        "deployer roll",
        "deployer roll web --batch 0",
        "deployer roll web --batch 101%",
        "deployer drain web",
        "deployer drain web 0",
        "deployer drain web 65536",
        "deployer drain web 8003 --for 10",
        "deployer drain web 8003 --for 0s",
        "deployer drain web 8003 --for -1s",
        "deployer nonsense",
    ] {
        let error = parse(line).unwrap_err();
        // Without any argument, clap's own code differs between help that was asked for and help that was not.
        assert_eq!(clap_code(&error), 2, "{line}: {error}");
    }
    let error = Cli::try_parse_from(["deployer", "roll", ""]).unwrap_err();
    assert_eq!(clap_code(&error), 2);
}

#[test]
fn help_is_no_error() {
    for line in ["deployer --help", "deployer roll --help", "deployer help drain", "deployer --version"] {
        assert_eq!(clap_code(&parse(line).unwrap_err()), 0, "{line}");
    }
    let help = parse("deployer roll --help").unwrap_err().to_string();
    assert!(help.contains("--dry-run") && help.contains("7  incomplete"), "{help}");
}

#[test]
fn exit_codes_are_those_of_the_api() {
    let all = [
        Exit::Done,
        Exit::Failed,
        Exit::Usage,
        Exit::Stopped,
        Exit::Busy,
        Exit::RolledBack,
        Exit::NoDaemon,
        Exit::Incomplete,
    ];
    for (code, exit) in (0..).zip(all) {
        assert_eq!(exit.code(), code);
        assert!(EXIT_CODES.contains(&format!("\n  {code}  ")), "{code}");
    }
}

#[test]
fn times_have_units() {
    assert_eq!(drain::time("10m"), Ok(600_000));
    assert_eq!(drain::time("250ms"), Ok(250));
    for wrong in ["", "10", "m", "1.5h", "0ms", "1d"] {
        assert!(drain::time(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn names_stay_one_segment() {
    assert_eq!(encoded("web-1_a"), "web-1_a");
    assert_eq!(encoded("../a b?%\u{e9}"), "%2E%2E%2Fa%20b%3F%25%C3%A9");
}

#[test]
fn ignored_signals_are_found() {
    assert_eq!(signals::ignored("Name:\tx\nSigIgn:\t0000000000001003\nSigCgt:\t01\n"), 0x1003);
    assert_eq!(signals::ignored("nonsense"), 0);
    assert_eq!(signals::ignored("SigIgn:\tz"), 0);
}

#[test]
fn only_a_reader_that_left_is_forgiven() {
    assert_eq!(out::said(Err(io::ErrorKind::BrokenPipe.into())), Ok(Exit::Done));
    assert_eq!(out::said(Err(io::ErrorKind::StorageFull.into())).unwrap_err().exit, Exit::Failed);
}

#[test]
fn a_config_is_fine_or_a_usage_error() {
    let text = "[service.web]\nworkers = \"127.0.0.1:8000-8002\"\n\
                manager = { supervisord = \"/run/s.sock\", program = \"web_{port}\" }\n";
    let config = crate::config::Config::parse(Path::new("f.toml"), text).unwrap();
    assert_eq!(config::fine(Path::new("f.toml"), &config), "f.toml: fine: 1 service, 3 workers");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f.toml");
    assert_eq!(config::check(&file), Exit::Usage);
    std::fs::write(&file, text).unwrap();
    assert_eq!(config::check(&file), Exit::Done);
    std::fs::write(&file, "nonsense = 1").unwrap();
    assert_eq!(config::check(&file), Exit::Usage);
}
