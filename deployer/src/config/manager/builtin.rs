//! `manager = { command, user, group, directory, environment, log, log_size, log_keep, cgroup, stop_signal,
//! stop_within, kill, restart }`: the daemon starts the workers itself.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;

use super::{
    super::{
        Backoff, Builtin,
        check::UP_TO_AN_HOUR,
        command::{command, word},
        names::listens_by_tcp,
        paths,
        placeholders::tells_apart,
        raw::{Table, Value, quoted},
    },
    account,
};

const EXAMPLE: &str = "[\"/usr/bin/python3\", \"app.py\", \"--port={port}\"]";
const LOG: &str = "/var/log/deployer/{service}-{port}.log";
/// The same where two workers have one port.
pub(super) const LOG_BY_ADDRESS: &str = "/var/log/deployer/{service}-{address}-{port}.log";
/// 10 MB.
const LOG_SIZE: u64 = 10_000_000;
const SIGNALS: &[(&str, Signal)] = &[
    ("TERM", Signal::TERM),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("HUP", Signal::HUP),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("WINCH", Signal::WINCH),
    ("KILL", Signal::KILL),
];

pub(super) fn builtin(table: &mut Table<'_>, several: bool) -> Option<Builtin> {
    let run = table.need("command", &format!("command = {EXAMPLE}"), |value| {
        let command = command(value, EXAMPLE)?;
        listens_by_tcp(value, &command.argv)?;
        Some(command)
    });
    let user = table.maybe("user", account);
    let group = table.maybe("group", account);
    let directory = table.or("directory", PathBuf::from("/"), paths::absolute);
    let environment = table.section("environment").and_then(|table| environment(&table));
    let log = table.or("log", LOG.to_owned(), |value| log(value, several));
    let log_size = table.or("log_size", LOG_SIZE, |value| value.size(10_000..=1_000_000_000_000));
    let log_keep = table.or("log_keep", 5, |value| value.number(0..=100));
    let cgroup = table.or("cgroup", PathBuf::from("deployer"), cgroup);
    let stop_signal = table.or("stop_signal", Signal::TERM, |value| value.choice(SIGNALS));
    let stop_within = table.or("stop_within", Duration::from_secs(10), |value| value.duration(UP_TO_AN_HOUR));
    let kill = table.or("kill", true, Value::boolean);
    let restart = table.section("restart").and_then(restart);
    Some(Builtin {
        command: run?,
        user: user?,
        group: group?,
        directory: directory?,
        environment: environment?,
        log: log?,
        log_size: log_size?,
        log_keep: log_keep?,
        cgroup: cgroup?,
        stop_signal: stop_signal?,
        stop_within: stop_within?,
        kill: kill?,
        told: BTreeMap::new(),
        restart: restart?,
    })
}

fn environment(table: &Table<'_>) -> Option<BTreeMap<String, String>> {
    let variables: Vec<_> = table.entries().into_iter().map(|(name, value)| variable(name, &value)).collect();
    variables.into_iter().collect()
}

fn variable(name: &str, value: &Value<'_>) -> Option<(String, String)> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return value.refuse("is no name of a variable; write one without = and NUL");
    }
    Some((name.to_owned(), word(value)?))
}

/// A path with placeholders.
fn log(value: &Value<'_>, several: bool) -> Option<String> {
    let text = paths::absolute(value)?.to_str()?.to_owned();
    if Path::new(&text).file_name().is_none() {
        return value.refuse(format!("is a directory; write the path of a file in it, \"{LOG}\""));
    }
    tells_apart(value, several, &[&text], &format!("\"{LOG}\""))?;
    Some(text)
}

/// A directory of cgroup v2, absolute or below the root of the hierarchy.
fn cgroup(value: &Value<'_>) -> Option<PathBuf> {
    let text = value.word()?;
    if text.starts_with('/') {
        return paths::absolute(value);
    }
    let path = Path::new(text);
    if path.components().any(|part| !matches!(part, Component::Normal(_))) {
        return value.refuse(format!("{} is no path below the cgroup v2 root; write \"deployer\"", quoted(text)));
    }
    Some(path.components().collect())
}

/// `restart = { first, most }`
fn restart(mut table: Table<'_>) -> Option<Backoff> {
    let first = table.or("first", Duration::from_secs(1), |value| value.duration(UP_TO_AN_HOUR));
    let most = table.or("most", Duration::from_mins(1), |value| value.duration(UP_TO_AN_HOUR));
    table.done();
    let (first, most) = (first?, most?);
    if most < first {
        return table.refuse("has a `most` below its `first`; write the longest wait there, most = \"60s\"");
    }
    Some(Backoff { first, most })
}
