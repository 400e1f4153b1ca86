//! How workers are stopped, emptied and replaced: `manager`, `drain`, `roll`.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    Batch, Command, Drain, Manager, OnDeadline, OnFailure, Policy, Roll,
    check::UP_TO_AN_HOUR,
    paths,
    raw::{Table, Value, quoted},
};

const DEADLINE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);

/// `manager = { supervisord, program, username, password, stop_within }`; `workers`: how many, if that is known.
pub(super) fn manager(value: &Value<'_>, workers: Option<usize>) -> Option<Manager> {
    let mut table = value.table()?;
    let socket = table.need("supervisord", "supervisord = \"/run/supervisor.sock\"", paths::socket);
    let program = table.need("program", "program = \"web:web_{port}\"", |value| program(value, workers));
    let login = login(&mut table);
    let stop_within = table.or("stop_within", Duration::from_secs(30), |value| value.duration(UP_TO_AN_HOUR));
    table.done();
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

fn program(value: &Value<'_>, workers: Option<usize>) -> Option<String> {
    let text = value.word()?;
    known_placeholders(value, text, &["port"])?;
    let name = text.split_once(':').map_or(text, |(_, name)| name);
    // supervisord takes `group:*` and `group:` for all processes of the group at once.
    if matches!(name, "" | "*") {
        return value.refuse(format!("{} names a whole group; write one process, \"web:web_{{port}}\"", quoted(text)));
    }
    if name.contains(':') || text.contains(|char: char| char.is_whitespace() || char.is_control()) {
        return value.refuse(format!("{} is no process name; write \"group:name_{{port}}\"", quoted(text)));
    }
    if workers.is_some_and(|workers| workers > 1) && !text.contains("{port}") {
        return value.refuse(format!(
            "{} is the same for every worker; \
             write {{port}} where their names differ, \"web:web_{{port}}\"",
            quoted(text)
        ));
    }
    Some(text.to_owned())
}

/// `drain = { policy, deadline, on_deadline }`
pub(super) fn drain(mut table: Table<'_>) -> Option<Drain> {
    let policies = [("steer", Policy::Steer), ("refuse", Policy::Refuse)];
    let ends = [("stop-roll", OnDeadline::StopRoll), ("kill", OnDeadline::Kill)];
    let policy = table.or("policy", Policy::Steer, |value| value.choice(&policies));
    let deadline = table.or("deadline", Duration::from_secs(60), |value| value.duration(DEADLINE));
    let on_deadline = table.or("on_deadline", OnDeadline::StopRoll, |value| value.choice(&ends));
    table.done();
    Some(Drain { policy: policy?, deadline: deadline?, on_deadline: on_deadline? })
}

/// `roll = { batch, max_failures, on_failure, switch, unswitch, switch_within }`
pub(super) fn roll(mut table: Table<'_>) -> Option<Roll> {
    let choices = [("stop", OnFailure::Stop), ("rollback", OnFailure::Rollback)];
    let batch = table.or("batch", Batch::Count(1), batch);
    let max_failures = table.or("max_failures", 1, |value| value.number(1..=256).map(usize_of));
    let on_failure = table.take("on_failure");
    let switch = table.maybe("switch", command);
    let unswitch = table.maybe("unswitch", command);
    let switch_within = table.or("switch_within", Duration::from_secs(60), |value| value.duration(UP_TO_AN_HOUR));
    table.done();
    let chosen = on_failure.as_ref().map_or(Some(OnFailure::Stop), |value| value.choice(&choices));
    if let (Some(value), Some(OnFailure::Rollback), Some(Some(_)), Some(None)) =
        (&on_failure, chosen, &switch, &unswitch)
    {
        return value.refuse(
            "rollback has no way back to the former version; \
             write unswitch, the command that undoes switch",
        );
    }
    Some(Roll {
        batch: batch?,
        max_failures: max_failures?,
        on_failure: chosen?,
        switch: switch?,
        unswitch: unswitch?,
        switch_within: switch_within?,
    })
}

fn batch(value: &Value<'_>) -> Option<Batch> {
    if value.is_integer() {
        return value.number(1..=256).map(|count| Batch::Count(usize_of(count)));
    }
    if !value.is_text() {
        return value.wrong_type("a number of workers, 4, or a share of them, \"10%\"");
    }
    match value.text()?.parse() {
        Ok(batch) => Some(batch),
        Err(reason) => value.refuse(format!("{reason}; write 4 or \"10%\"")),
    }
}

fn command(value: &Value<'_>) -> Option<Command> {
    let items = value.list("a list of words, [\"ln\", \"-sfn\", \"/srv/{version}\", \"/srv/current\"]")?;
    let Some(first) = items.first() else {
        return value.refuse("is empty; write a program and its arguments, or leave the key out");
    };
    let words: Vec<_> = items.iter().map(word).collect();
    let argv = words.into_iter().collect::<Option<Vec<_>>>()?;
    let program = first.word()?;
    // Without a slash it is looked up in PATH; with one, it would depend on the daemon's directory.
    if program.contains('/') && !program.starts_with('/') {
        return first.refuse(format!("{} is a relative path; write an absolute one", quoted(program)));
    }
    Some(Command { argv })
}

fn word(value: &Value<'_>) -> Option<String> {
    let text = value.text()?;
    if text.contains('\0') {
        return value.refuse("contains a NUL character; leave it out");
    }
    known_placeholders(value, text, &["version", "service"])?;
    Some(text.to_owned())
}

/// Refuses `{word}` unless it is replaced by something. Other braces are left alone: `{"a": 1}`, `{}`.
fn known_placeholders(value: &Value<'_>, text: &str, known: &[&str]) -> Option<()> {
    let is_word = |part: &str| {
        part.starts_with(|char: char| char.is_ascii_alphabetic() || char == '_')
            && part.chars().all(|char| char.is_ascii_alphanumeric() || matches!(char, '_' | '-'))
    };
    let parts = text.split('{').skip(1).filter_map(|part| part.split_once('}'));
    for (name, _) in parts {
        if is_word(name) && !known.contains(&name) {
            let known: Vec<_> = known.iter().map(|name| format!("{{{name}}}")).collect();
            return value.refuse(format!("{{{name}}} is replaced by nothing; write {}", known.join(" or ")));
        }
    }
    Some(())
}

fn usize_of(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
