//! `manager = { start, stop, status, user, within }`: the operator's own commands.

use std::time::Duration;

use super::{
    super::{Command, Exec, check::UP_TO_AN_HOUR, command::command, placeholders::tells_apart, raw::Table},
    account,
};

pub(super) fn exec(table: &mut Table<'_>, several: bool) -> Option<Exec> {
    let user = table.maybe("user", account);
    let start = verb(table, several, "start");
    let stop = verb(table, several, "stop");
    let status = verb(table, several, "status");
    let within = table.or("within", Duration::from_secs(10), |value| value.duration(UP_TO_AN_HOUR));
    Some(Exec { user: user?, start: start?, stop: stop?, status: status?, within: within? })
}

fn verb(table: &mut Table<'_>, several: bool, name: &'static str) -> Option<Command> {
    let example = format!("[\"/usr/local/bin/web\", \"{name}\", \"{{port}}\"]");
    table.need(name, &format!("{name} = {example}"), |value| {
        let command = command(value, &example)?;
        let words: Vec<_> = command.argv.iter().map(String::as_str).collect();
        tells_apart(value, several, &words, &example)?;
        Some(command)
    })
}
