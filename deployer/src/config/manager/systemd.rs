//! `manager = { kind = "systemd", … }`

use std::time::Duration;

use crate::config::{
    Manager,
    check::UP_TO_AN_HOUR,
    placeholders::tells_apart,
    raw::{Table, Value, quoted},
};

/// Longest name of a unit, with its suffix (`UNIT_NAME_MAX` of systemd's `unit-name.h`).
const LONGEST: usize = 255;

/// `{ kind = "systemd", unit, bus, stop_within }`; `several`: there is more than one worker.
pub(super) fn systemd(table: &mut Table<'_>, several: bool) -> Option<Manager> {
    let unit = table.need("unit", "unit = \"web@{port}.service\"", |value| unit(value, several));
    let bus = table.maybe("bus", bus);
    let stop_within = table.or("stop_within", Duration::from_secs(30), |value| value.duration(UP_TO_AN_HOUR));
    Some(Manager::Systemd { unit: unit?, bus: bus?, stop_within: stop_within? })
}

fn unit(value: &Value<'_>, several: bool) -> Option<String> {
    let text = value.word()?;
    // systemd's own alphabet (unit-name.c: VALID_CHARS_WITH_AT), and the braces of our names.
    let legal = |char: char| char.is_ascii_alphanumeric() || ":-_.\\@{}".contains(char);
    let is_template_itself = text.ends_with("@.service");
    if !text.ends_with(".service") || !text.chars().all(legal) || text.len() > LONGEST || text.starts_with(['.', '@']) {
        return value.refuse(format!("{} is no service unit's name; write \"web@{{port}}.service\"", quoted(text)));
    }
    if is_template_itself {
        return value
            .refuse(format!("{} is a template, which cannot run; write \"web@{{port}}.service\"", quoted(text)));
    }
    tells_apart(value, several, &[text], "\"web@{port}.service\"")?;
    Some(text.to_owned())
}

/// A socket of this host: whoever answers there has the workers in hand.
fn bus(value: &Value<'_>) -> Option<String> {
    let text = value.word()?;
    let local = ["unix:path=/", "unix:abstract="].iter().any(|start| text.starts_with(start));
    if !local || text.parse::<zbus::Address>().is_err() {
        return value.refuse(format!(
            "{} is no D-Bus address of a unix socket; \
             write \"unix:path=/run/dbus/system_bus_socket\", or leave it out for the system bus",
            quoted(text)
        ));
    }
    Some(text.to_owned())
}
