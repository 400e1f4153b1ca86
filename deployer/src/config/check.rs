//! From the file as written to the checked types: the tables, and what must hold between them.

use std::{
    collections::BTreeMap, net::Ipv4Addr, ops::RangeInclusive, path::Path, path::PathBuf, sync::Arc, time::Duration,
};

use deployer_common::lanes::LANE_NET;
use toml::de::DeTable;

use super::{
    Config, ConfigError, DEFAULT_PINS, DEFAULT_SOCKET, Daemon, Fleet, Gate, Kernel, Manager, Metrics, Mode, OnStart,
    Request, Service,
    deploy::{self, Around},
    drain,
    error::Report,
    fleet, http, limits, manager,
    names::{self, Names},
    paths::{self, Mounts},
    placeholders,
    ports::{self, Claims, Named},
    raw::{Table, Value, quoted},
    roll, tls,
};

/// For limits that guard against a hang: shorter would fail every time, longer would be none.
pub(super) const UP_TO_AN_HOUR: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);

const SELF_TEST: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(1);
const LEASE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_mins(10);

/// Checks a text; callers are told apart by this machine's mounts.
pub(super) fn config(path: &Path, text: &str) -> Result<Config, ConfigError> {
    config_with(path, text, &Mounts::read())
}

/// Checks a text as if on a machine with these mounts.
pub(super) fn config_with(path: &Path, text: &str, mounts: &Mounts) -> Result<Config, ConfigError> {
    let report = Report::new(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    errors.iter().for_each(|error| report.add_syntax(error));
    // What is left of a broken file would only yield errors that follow from the first.
    let checked = if errors.is_empty() { file(Table::root(document.get_ref(), &report), mounts) } else { None };
    report.finish(path, checked)
}

fn file(mut root: Table<'_>, mounts: &Mounts) -> Option<Config> {
    let daemon = root.section("daemon").map(daemon);
    let kernel = root.section("kernel").and_then(kernel);
    let mode = daemon.as_ref().and_then(|(_, mode)| *mode);
    let mut claims = Claims::default();
    let metrics = root.maybe("metrics", |value| metrics(value, &mut claims));
    let fleet = root.take("fleet").map_or_else(|| Some(Fleet::local()), |value| fleet::fleet(&value));
    let state = daemon.as_ref().and_then(|(daemon, _)| Some(daemon.as_ref()?.state.clone())).unwrap_or_default();
    let default = Defaults { mode, state: &state, mounts };
    let services = root.section("service").and_then(|table| services(&table, &default, claims));
    placeholders::check(&root);
    root.done();
    Some(Config { daemon: daemon?.0?, kernel: kernel?, metrics: metrics?, fleet: fleet?, services: services? })
}

/// What the rest of the file, and the machine, say for all services.
struct Defaults<'a> {
    mode: Option<Mode>,
    state: &'a Path,
    mounts: &'a Mounts,
}

/// The section and the services' default mode, which may be right where the rest is not.
fn daemon(mut table: Table<'_>) -> (Option<Daemon>, Option<Mode>) {
    let socket = table.or("socket", PathBuf::from(DEFAULT_SOCKET), paths::socket);
    let group = table.maybe("group", |value| value.word().map(str::to_owned));
    let mode = table.or("mode", Mode::Enforce, mode);
    let state = table.or("state", PathBuf::from("/var/lib/deployer"), paths::absolute);
    let choices = [("resume", OnStart::Resume), ("hold", OnStart::Hold)];
    let on_start = table.or("on_start", OnStart::Resume, |value| value.choice(&choices));
    table.done();
    let section = || Some(Daemon { socket: socket?, group: group?, state: state?, on_start: on_start? });
    (section(), mode)
}

fn kernel(mut table: Table<'_>) -> Option<Kernel> {
    let callers = table.maybe("callers", paths::absolute);
    let workers = table.maybe("workers", paths::absolute);
    let lease = table.or("lease", Duration::from_secs(10), |value| value.duration(LEASE));
    let pins = table.or("pins", PathBuf::from(DEFAULT_PINS), pins);
    let self_test = table.or("self_test", Duration::from_secs(60), |value| value.duration(SELF_TEST));
    table.done();
    Some(Kernel { callers: callers?, workers: workers?, lease: lease?, pins: pins?, self_test: self_test? })
}

fn metrics<'a>(value: &Value<'a>, claims: &mut Claims<'a>) -> Option<Metrics> {
    let mut table = value.table()?;
    let listen =
        table.need("listen", "listen = \"127.0.0.1:9469\"", |value| Some((ports::listen(value)?, value.clone())));
    table.done();
    let (listen, value) = listen?;
    claims.metrics(listen, value);
    Some(Metrics { listen })
}

/// The kernel reserves dots in names of a bpf file system (`bpf_lookup` in kernel/bpf/inode.c).
fn pins(value: &Value<'_>) -> Option<PathBuf> {
    let path = paths::absolute(value)?;
    match path.file_name().and_then(|name| name.to_str()) {
        Some(name) if !name.contains('.') => Some(path),
        _ => value.refuse("must end in a name without dots, right below a bpf file system"),
    }
}

fn mode(value: &Value<'_>) -> Option<Mode> {
    value.choice(&[("observe", Mode::Observe), ("enforce", Mode::Enforce)])
}

fn services<'a>(
    table: &Table<'a>,
    default: &Defaults<'_>,
    mut claims: Claims<'a>,
) -> Option<BTreeMap<String, Service>> {
    let entries = table.entries();
    if entries.is_empty() {
        return table.refuse("names no service; write a table [service.NAME] with workers and manager");
    }
    let mut services = Vec::new();
    let mut names = Names::default();
    for (name, value) in entries {
        services.push(service(name, &value, default, &mut claims, &mut names));
    }
    claims.check();
    names.check();
    let services: Option<Vec<_>> = services.into_iter().collect();
    Some(services?.into_iter().map(|service| (service.name.clone(), service)).collect())
}

fn service<'a>(
    name: &str,
    value: &Value<'a>,
    default: &Defaults<'_>,
    claims: &mut Claims<'a>,
    names: &mut Names<'a>,
) -> Option<Service> {
    let name = service_name(name, value);
    let mut table = value.table()?;
    let (workers, spares) = members(&mut table, claims);
    let (count, spare) = (workers.as_ref().map(Vec::len), spares.as_ref().map(Vec::len));
    let (mode, address) = mode_and_address(&mut table, default.mode);
    if let Some(Some((address, value))) = &address {
        claims.service(*address, value.clone());
        ports::same_family(value, *address, workers.as_deref().unwrap_or_default());
    }
    let publish = table.maybe("publish", ports::address);
    let callers = table.or("callers", Vec::new(), |value| paths::callers(value, default.mounts));
    let example = "manager = { supervisord = \"/run/supervisor.sock\", program = \"web:web_{port}\" }";
    let manager = table.need("manager", example, |value| {
        Some((manager::manager(value, count.map(|count| count + spare.unwrap_or(0)))?, value.clone()))
    });
    let protect = table.or("protect", false, Value::boolean);
    let drain = table.section("drain").and_then(drain::drain);
    let policy = drain.as_ref().map(|drain| drain.policy);
    let roll = table.section("roll").and_then(|table| roll::roll(table, spare, policy));
    let limits = limits::limits(&mut table, count, roll.as_ref());
    let warm = table.section("warm").and_then(http::warm);
    let version = table.maybe("version", http::version);
    let tls = table.or("tls", None, tls::tls);
    let around = Around {
        name: name.as_deref().unwrap_or_default(),
        workers: workers.as_deref().unwrap_or_default(),
        spares: spare.unwrap_or(0),
        address: address.as_ref().and_then(|address| Some(address.as_ref()?.0)),
        state: default.state,
    };
    let deploy = table.maybe("deploy", |value| {
        if let Some(address) = around.address {
            // Lane addresses are told apart by nothing but the port.
            claims.service((Ipv4Addr::from([LANE_NET[0], LANE_NET[1], 0, 0]), address.port()).into(), value.clone());
        }
        deploy::deploy(value, &around, default.mounts)
    });
    table.done();
    let (deploy, second) = deploy?.unzip();
    claims.workers(second.as_deref().unwrap_or_default());
    if let (Some(workers), Some(second)) = (&workers, &second) {
        let first = workers.iter().take(1);
        ports::one_family(&first.chain(second).cloned().collect::<Vec<_>>());
    }
    let workers: Vec<_> = workers?.into_iter().map(|(worker, _)| worker).collect();
    let spares: Vec<_> = spares?.into_iter().map(|(spare, _)| spare).collect();
    let (mut manager, value) = manager?;
    let second = deploy.as_ref().map(|deploy| deploy.second.as_slice()).unwrap_or_default();
    let all: Vec<_> = [&workers, &spares, second].concat();
    let name = name?;
    manager::of_service(&mut manager, &value, &name, &all);
    names.enter(&value, &names::Named { service: &name, manager: &manager, workers: &all });
    let tls = tls?.map(Arc::new);
    let for_it = |request: &mut Request| *request = request.of(&name, tls.as_ref());
    let (mut warm, mut version, mut deploy) = (warm?, version?, deploy);
    warm.requests.iter_mut().for_each(for_it);
    version.iter_mut().for_each(|version| for_it(&mut version.request));
    if let Some(Gate::Request(request)) = deploy.as_mut().and_then(|deploy| deploy.gate.as_mut()) {
        for_it(request);
    }
    if let (Manager::Builtin(builtin), Some(deploy)) = (&mut manager, &deploy) {
        let pools = [&workers, &deploy.second].into_iter().zip(&deploy.files);
        builtin.told = pools.flat_map(|(pool, file)| pool.iter().map(|at| (*at, file.clone()))).collect();
    }
    Some(Service {
        name,
        mode: mode?,
        address: address?.map(|(address, _)| address),
        publish: publish?,
        workers,
        spares,
        callers: callers?,
        manager,
        protect: protect?,
        limits: limits?,
        drain: drain?,
        roll: roll?,
        deploy,
        warm,
        version,
        tls,
    })
}

/// Workers and spares: one pool, of one family.
fn members<'a>(table: &mut Table<'a>, claims: &mut Claims<'a>) -> (Option<Named<'a>>, Option<Named<'a>>) {
    let workers = table.need("workers", "workers = \"127.0.0.1:8000-8039\"", ports::workers);
    let count = workers.as_ref().map(Vec::len);
    let spares = table.or("spare", Vec::new(), |value| ports::spares(value, count));
    claims.workers(workers.as_deref().unwrap_or_default());
    claims.spares(spares.as_deref().unwrap_or_default());
    let all = workers.iter().chain(&spares).flatten().cloned();
    ports::one_family(&all.collect::<Vec<_>>());
    (workers, spares)
}

type NamedAddress<'a> = (std::net::SocketAddr, Value<'a>);

/// Both keys: who only observes does not steer, and at the service address nobody listens.
fn mode_and_address<'a>(
    table: &mut Table<'a>,
    default: Option<Mode>,
) -> (Option<Mode>, Option<Option<NamedAddress<'a>>>) {
    let written = table.take("mode");
    let mode = written.as_ref().map_or(default, mode);
    let address = table.maybe("address", |value| Some((ports::address(value)?, value.clone())));
    if let (Some(Mode::Observe), Some(Some((address, value)))) = (mode, &address) {
        written.as_ref().unwrap_or(value).refuse::<()>(format!(
            "in mode observe nobody answers at the service address {address}; \
             write mode = \"enforce\" or leave address out"
        ));
    }
    (mode, address)
}

fn service_name(name: &str, value: &Value<'_>) -> Option<String> {
    let legal = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || matches!(char, '-' | '_');
    let begins = name.starts_with(|char: char| char.is_ascii_lowercase());
    if begins && name.len() <= 63 && name.chars().all(legal) {
        return Some(name.to_owned());
    }
    value.refuse(format!(
        "{} is no service name; write 1 to 63 of a-z, 0-9, - and _, beginning with a letter",
        quoted(name)
    ))
}
