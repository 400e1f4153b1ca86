//! How two versions stand side by side: `deploy`.

use std::{collections::BTreeSet, net::SocketAddr, ops::RangeInclusive, path::Path, time::Duration};

use deployer_common::layout::MAX_MEMBERS;

use super::{
    Batch, Deploy, Gate,
    check::UP_TO_AN_HOUR,
    command::command,
    http,
    manager::account,
    paths::{self, Mounts},
    ports::{self, Named},
    raw::{self, Value, quoted},
    roll,
};

const EXAMPLE: &str = "[\"/srv/bin/prepare\", \"{version}\", \"{pool}\"]";
const BAKE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(7 * 24);
const GATE_EVERY: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(1);

/// What of the service has been read before.
pub(super) struct Around<'a, 'b> {
    pub(super) name: &'a str,
    pub(super) workers: &'a [(SocketAddr, Value<'b>)],
    pub(super) spares: usize,
    pub(super) address: Option<SocketAddr>,
    /// Directory of the daemon's state.
    pub(super) state: &'a Path,
}

/// `deploy = { second, lanes, preview, user, prepare, gate, within, gate_every, bake, batch, max_crashes, max_failed }`, and the
/// addresses of the second pool with the value that names them.
pub(super) fn deploy<'b>(value: &Value<'b>, around: &Around<'_, 'b>, mounts: &Mounts) -> Option<(Deploy, Named<'b>)> {
    let mut table = value.table()?;
    let second = table.need("second", "second = \"next\"", |value| second(value, around));
    let lanes = table.or("lanes", 16, |value| value.number(3..=255).and_then(|lanes| u8::try_from(lanes).ok()));
    let preview = table.or("preview", Vec::new(), |value| paths::callers(value, mounts));
    let user = table.maybe("user", account);
    let prepare = table.maybe("prepare", |value| command(value, EXAMPLE));
    let gate = table.maybe("gate", gate);
    let within = table.or("within", Duration::from_secs(60), |value| value.duration(UP_TO_AN_HOUR));
    let bake = table.or("bake", Duration::from_mins(10), |value| value.duration(BAKE));
    let gate_every = table.or("gate_every", Duration::from_secs(10), |value| gate_every(value, bake));
    let batch = table.or("batch", Batch::Percent(25), roll::batch);
    let max_crashes = table.or("max_crashes", 0, |value| value.number(0..=1_000_000).map(u64::from));
    let max_failed = table.or("max_failed", 0.05, share);
    table.done();
    if around.spares > 0 {
        return value.refuse(
            "stands beside `spare`; a service with two pools has no use for spares: its other pool is started for each \
             deploy. Leave one of the two out",
        );
    }
    if around.address.is_some_and(|address| address.is_ipv6()) {
        return value.refuse(
            "needs an IPv4 service address, of which lane addresses have the port; write address = \"127.0.0.1:9000\"",
        );
    }
    let second = second?;
    let files = ["a", "b"].map(|pool| around.state.join("pools").join(format!("{}-{pool}.env", around.name)));
    let deploy = Deploy {
        second: second.iter().map(|(at, _)| *at).collect(),
        lanes: lanes?,
        preview: preview?,
        user: user?,
        prepare: prepare?,
        gate: gate?,
        within: within?,
        gate_every: gate_every?,
        bake: bake?,
        batch: batch?,
        max_crashes: max_crashes?,
        max_failed: max_failed?,
        files,
    };
    Some((deploy, second))
}

/// Between two looks at the gate; `bake` as far as it is known.
fn gate_every(value: &Value<'_>, bake: Option<Duration>) -> Option<Duration> {
    let gate_every = value.duration(GATE_EVERY)?;
    match bake {
        Some(bake) if gate_every > bake => value.refuse(format!(
            "is longer than bake ({}), so that the gate is never looked at while it bakes; write a shorter gate_every, \
             or a longer bake",
            raw::shown(bake)
        )),
        _ => Some(gate_every),
    }
}

/// Addresses as in `workers`, or `"next"`: the ports after those of the workers.
fn second<'b>(value: &Value<'b>, around: &Around<'_, 'b>) -> Option<Named<'b>> {
    let second =
        if value.is_text() && value.text()? == "next" { next(value, around.workers)? } else { ports::workers(value)? };
    let all = second.len() + around.workers.len();
    if all > MAX_MEMBERS {
        return value
            .refuse(format!("makes {all} with the workers; write at most {MAX_MEMBERS} for both pools together"));
    }
    Some(second)
}

/// As many ports as there are workers, at the first worker's address, from the one after the highest on.
fn next<'b>(value: &Value<'b>, workers: &[(SocketAddr, Value<'b>)]) -> Option<Named<'b>> {
    let (first, _) = workers.first()?;
    let taken: BTreeSet<u16> = workers.iter().map(|(at, _)| at.port()).collect();
    let highest = taken.last().copied()?;
    let free: Vec<_> = (highest..=u16::MAX).skip(1).take(workers.len()).collect();
    if free.len() < workers.len() {
        return value.refuse(format!(
            "finds {} ports after {highest}, and needs {}; write an address range",
            free.len(),
            workers.len()
        ));
    }
    Some(free.into_iter().map(|port| (SocketAddr::new(first.ip(), port), value.clone())).collect())
}

/// A list of words is a command, a table a request.
fn gate(value: &Value<'_>) -> Option<Gate> {
    if value.is_list() {
        return command(value, "[\"/srv/bin/smoke-test\", \"{version}\"]").map(Gate::Command);
    }
    http::request(value).map(Gate::Request)
}

/// `"1%"`, `"0.5%"`
fn share(value: &Value<'_>) -> Option<f64> {
    if !value.is_text() {
        return value.wrong_type("a share of the connections, \"1%\"");
    }
    let text = value.text()?;
    match text.strip_suffix('%').map(|number| number.trim().parse::<f64>()) {
        Some(Ok(share)) if (0.0..=100.0).contains(&share) => Some(share / 100.0),
        _ => value.refuse(format!("{} is no share; write \"0%\" to \"100%\"", quoted(text))),
    }
}
