//! What starts and stops the workers: `manager`. Its kind is told by the key that only that kind has.

mod builtin;
mod exec;
mod systemd;

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use super::{
    Manager,
    check::UP_TO_AN_HOUR,
    paths,
    placeholders::tells_apart,
    raw::{Table, Value, quoted},
};

/// The kinds, by their key.
#[derive(Clone, Copy)]
enum Kind {
    Supervisord,
    Builtin,
    Exec,
    Systemd,
}

const KINDS: &[(&str, Kind)] =
    &[("supervisord", Kind::Supervisord), ("systemd", Kind::Systemd), ("builtin", Kind::Builtin), ("exec", Kind::Exec)];

/// `manager`; `workers`: how many, if that is known.
pub(super) fn manager(value: &Value<'_>, workers: Option<usize>) -> Option<Manager> {
    let mut table = value.table()?;
    let several = workers.is_some_and(|workers| workers > 1);
    let kind = match table.take("kind") {
        Some(kind) => kind.choice(KINDS)?,
        None if table.has("command") => Kind::Builtin,
        None if table.has("start") => Kind::Exec,
        None if table.has("unit") => Kind::Systemd,
        None => Kind::Supervisord,
    };
    let manager = match kind {
        Kind::Supervisord => supervisord(&mut table, several),
        Kind::Builtin => builtin::builtin(&mut table, several).map(|builtin| Manager::Builtin(Box::new(builtin))),
        Kind::Exec => exec::exec(&mut table, several).map(Manager::Exec),
        Kind::Systemd => systemd::systemd(&mut table, several),
    };
    table.done();
    manager
}

/// `manager = { supervisord, program, username, password, stop_within }`
fn supervisord(table: &mut Table<'_>, several: bool) -> Option<Manager> {
    let socket = table.need("supervisord", "supervisord = \"/run/supervisor.sock\"", paths::socket);
    let program = table.need("program", "program = \"web:web_{port}\"", |value| program(value, several));
    let login = login(table);
    let stop_within = table.or("stop_within", Duration::from_secs(30), |value| value.duration(UP_TO_AN_HOUR));
    Some(Manager::Supervisord { socket: socket?, program: program?, login: login?, stop_within: stop_within? })
}

fn login(table: &mut Table<'_>) -> Option<Option<(String, String)>> {
    let username = table.maybe("username", |value| value.word().map(str::to_owned));
    let password = table.maybe("password", |value| value.text().map(str::to_owned));
    match (username?, password?) {
        (Some(username), Some(password)) => Some(Some((username, password))),
        (None, None) => Some(None),
        (Some(_), None) => table.refuse("has a username and no password; write both or neither"),
        (None, Some(_)) => table.refuse("has a password and no username; write both or neither"),
    }
}

fn program(value: &Value<'_>, several: bool) -> Option<String> {
    let text = value.word()?;
    let name = text.split_once(':').map_or(text, |(_, name)| name);
    // supervisord takes `group:*` and `group:` for all processes of the group at once.
    if matches!(name, "" | "*") {
        return value.refuse(format!("{} names a whole group; write one process, \"web:web_{{port}}\"", quoted(text)));
    }
    if name.contains(':') || text.contains(|char: char| char.is_whitespace() || char.is_control()) {
        return value.refuse(format!("{} is no process name; write \"group:name_{{port}}\"", quoted(text)));
    }
    tells_apart(value, several, &[text], "\"web:web_{port}\"")?;
    Some(text.to_owned())
}

/// A user or a group.
pub(super) fn account(value: &Value<'_>) -> Option<String> {
    let name = value.word()?;
    if name.contains(|char: char| char == ':' || char.is_whitespace() || char.is_control()) {
        return value.refuse(format!("{} is no user or group; write a name or a number, \"www-data\"", quoted(name)));
    }
    Some(name.to_owned())
}

/// Fits a manager to its service: the name, and whether two workers have one port.
pub(super) fn of_service(manager: &mut Manager, value: &Value<'_>, service: &str, workers: &[SocketAddr]) {
    match manager {
        Manager::Supervisord { program, .. } => *program = program.replace("{service}", service),
        Manager::Systemd { unit, .. } => *unit = unit.replace("{service}", service),
        Manager::Builtin(builtin) => {
            let ports: BTreeSet<_> = workers.iter().map(SocketAddr::port).collect();
            let is_written = value.table().is_some_and(|table| table.has("log"));
            if ports.len() < workers.len() && !is_written {
                builtin::LOG_BY_ADDRESS.clone_into(&mut builtin.log);
            }
        }
        Manager::Exec(_) => {}
    }
}
