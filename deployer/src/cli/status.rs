//! `deployer status`: services and workers, as a table or as JSON.

use std::{path::Path, time::Duration};

use super::{
    client::{Client, Failure},
    happened, lines,
    out::{self, clean, short},
};
use crate::api::{
    CallerStatus, Exit, Hold, Phase, PoolStatus, SelfTest, ServiceStatus, Status, TestResult, TicketHold, WorkerStatus,
};

const HEADINGS: [&str; 12] = [
    "address",
    "phase",
    "for",
    "version",
    "open",
    "direct",
    "away",
    "steered",
    "picked",
    "refused",
    "fallbacks",
    "reason",
];
/// Said of what does not stop a roll.
const NOT_STEERED: &str = "not one of the service's callers, so cut at a roll's deadline";
/// Callers that are named of those that were not steered.
const UNSTEERED: usize = 8;
/// The columns of numbers.
const FLUSH_RIGHT: [usize; 8] = [2, 4, 5, 6, 7, 8, 9, 10];

pub(super) async fn run(client: &Client, json: bool) -> Result<Exit, Failure> {
    let status: Status = client.get("/v1/status").await?;
    if !json {
        return out::say(&table(&status));
    }
    let line = serde_json::to_string(&status)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot write the status as JSON: {error}")))?;
    out::say(&line)
}

/// All there is to see.
pub(super) fn table(status: &Status) -> String {
    let mut text = String::new();
    for warning in warnings(status) {
        text.push_str(&format!("!!! {warning}\n"));
    }
    let (version, callers) = (clean(&status.version), clean(&status.callers));
    text.push_str(&format!("deployer {version}, pid {}, callers in {callers}\n", status.pid));
    for waits in &status.deferred {
        text.push_str(&format!("the new configuration of {} waits: {}\n", clean(&waits.service), clean(&waits.why)));
    }
    if status.services.is_empty() {
        text.push_str("no services\n");
    }
    for service in &status.services {
        text.push('\n');
        text.push_str(&heading(service));
        text.push_str(&not_steered(service));
        text.push_str(&pools(service));
        text.push_str(&workers(&service.workers));
    }
    text
}

/// Entries of `callers` that do not fit, and callers that were not steered: a line each.
fn not_steered(service: &ServiceStatus) -> String {
    let mut text = String::new();
    for CallerStatus { caller, processes, left_out } in &service.callers {
        let caller = clean(caller);
        if *processes == 0 {
            text.push_str(&format!("  callers: {caller}: no process is one\n"));
        } else if *left_out > 0 {
            text.push_str(&format!("  callers: {caller}: {left_out} of {processes} processes are NOT STEERED\n"));
        }
    }
    for caller in service.unsteered_callers.iter().take(UNSTEERED) {
        let who = match (&caller.process, caller.pid) {
            (Some(process), Some(pid)) => format!("{} ({}, last pid {pid})", clean(&caller.caller), clean(process)),
            _ => clean(&caller.caller),
        };
        let (count, ago) = (caller.connections, short(caller.last_s));
        text.push_str(&format!(
            "  not steered in the last 5 minutes: {who}: {count} connections, the last {ago} ago\n"
        ));
    }
    let more = service.unsteered_callers.len().saturating_sub(UNSTEERED);
    if more > 0 {
        text.push_str(&format!("  not steered in the last 5 minutes: {more} more callers\n"));
    }
    text
}

/// The pools of a service that has two: a line each, and one for what lanes led to.
fn pools(service: &ServiceStatus) -> String {
    let mut text: String = service.pools.iter().map(pool).collect();
    let Some(lanes) = service.lanes else { return text };
    let counts = [
        (lanes.lane, "by their lane"),
        (lanes.preview, "to look at a version that has not been current"),
        (lanes.stale, "whose lane is retired, to the current pool"),
        (lanes.unopened, "whose lane has not been current, to the current pool"),
        (lanes.moved, "that dialled the other pool, to the current one"),
    ];
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    let counts: Vec<_> = counts.map(|(count, what)| format!("{count} {what}")).collect();
    if !counts.is_empty() {
        text.push_str(&format!("  lanes: {}\n", counts.join(", ")));
    }
    text
}

/// `  pool b  lane 3  v2  current  8 of 8 up  12 open  100 % of new connections  for 34 s`
fn pool(pool: &PoolStatus) -> String {
    let version = pool.version.as_ref().map_or_else(|| "-".to_owned(), |version| clean(version));
    let is = match (pool.current, pool.flips_at_ms) {
        (true, _) => "current".to_owned(),
        (false, Some(at)) => format!("current from {} on", happened::time(at)),
        (false, None) if pool.open_lane => "by its lane".to_owned(),
        (false, None) if pool.lane != 0 => "by preview".to_owned(),
        (false, None) => "retired".to_owned(),
    };
    let lane = if pool.lane == 0 { "no lane".to_owned() } else { format!("lane {}", pool.lane) };
    let mut line = format!("  pool {}  {lane}  {version}  {is}", clean(&pool.pool));
    line.push_str(&format!("  {} of {} up  {} open", pool.up, pool.workers, pool.open));
    if let Some(share) = pool.share {
        line.push_str(&format!("  {:.0} % of new connections", share * 100.0));
    }
    if let Some(former) = pool.former.filter(|former| *former > 0) {
        line.push_str(&format!("  {former} kept alive since before the flip"));
    }
    line.push_str(&format!("  for {}\n", short(pool.age_s)));
    line
}

/// What the daemon at a configuration's socket, or else at the client's, says of itself; `None`: none answers.
pub(super) fn asked(socket: Option<&Path>, client: &Client) -> Option<Status> {
    let mut client = match socket {
        Some(socket) => Client::new(socket.to_owned()),
        None => client.clone(),
    };
    // The status takes no time; a check has more to say than that a daemon hangs.
    client.answer_within = Duration::from_secs(5);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(client.get("/v1/status")).ok()
}

/// The self-test, where it is not as it should be.
fn untrue(test: &SelfTest) -> Option<String> {
    let detail = clean(&test.detail);
    match test.result {
        TestResult::Failed => Some(format!("SELF-TEST FAILED: {detail}")),
        TestResult::Untested => Some(format!("THE STEERING IS NOT TESTED: {detail}")),
        // Said above, or nothing to say.
        TestResult::Ok | TestResult::Bypassed | TestResult::Detached => None,
    }
}

/// What must not be overlooked: that nothing is steered.
fn warnings(status: &Status) -> Vec<String> {
    let mut warnings = Vec::new();
    if !status.attached {
        warnings.push("NOT ATTACHED: nothing is in the kernel, every connection goes where it was dialled".to_owned());
    }
    if status.bypassed {
        let text = "BYPASSED: every connection goes where it was dialled; back with `deployer bypass --off`";
        warnings.push(text.to_owned());
    }
    for service in status.services.iter().filter(|service| service.mode == "bypass" && !status.bypassed) {
        let name = clean(&service.name);
        warnings.push(format!(
            "{name} IS BYPASSED: its connections go where they were dialled; back with `deployer bypass {name} --off`"
        ));
    }
    warnings.extend(status.trouble.iter().map(|what| clean(what)));
    warnings.extend(status.self_test.as_ref().and_then(untrue));
    warnings
}

/// One line, and one for what was counted if anything was.
fn heading(service: &ServiceStatus) -> String {
    let (mode, policy) = (clean(&service.mode), clean(&service.policy));
    let mut line = format!("{}: mode {mode}, policy {policy}", clean(&service.name));
    if service.min_up > 1 {
        line.push_str(&format!(", min_up {}", service.min_up));
    }
    if let Some(address) = service.address {
        line.push_str(&format!(", address {address}"));
    }
    if let Some(roll) = &service.roll {
        line.push_str(&format!(", roll {} runs", clean(roll)));
    }
    line.push('\n');
    let counts = [
        (service.dialled, "to the service address"),
        (service.exhausted, "REFUSED because no worker could take them"),
        (service.unsteered, "of callers that are not steered"),
        (service.would_change, "would have gone elsewhere"),
    ];
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    let counts: Vec<_> = counts.map(|(count, what)| format!("{count} {what}")).collect();
    if !counts.is_empty() {
        line.push_str(&format!("  connections: {}\n", counts.join(", ")));
    }
    if service.binds_refused > 0 {
        line.push_str(&format!("  protected: {} bind() calls of other processes refused\n", service.binds_refused));
    }
    let proofs = proofs(&service.workers);
    if !proofs.is_empty() {
        line.push_str(&format!("  since the tables were made: {}\n", proofs.join(", ")));
    }
    line
}

/// What was counted for workers and should not have been, or tells of harm.
fn proofs(workers: &[WorkerStatus]) -> Vec<String> {
    let sum = |of: fn(&WorkerStatus) -> u64| workers.iter().map(of).fold(0, u64::saturating_add);
    let counts = [
        (sum(|worker| worker.late), "late (established to a worker that was drained)"),
        (sum(|worker| worker.to_cold), "to cold workers"),
        (sum(|worker| worker.closed_port), "met a worker's closed port"),
        (sum(|worker| worker.fallback_floor), "to draining workers, as too few were up"),
        (sum(|worker| worker.failed), "could not be established"),
        (sum(|worker| worker.reset), "reset by a worker"),
        (sum(|worker| worker.cut), "cut by the end of a worker"),
        (sum(|worker| worker.outsiders_cut), "of other callers cut at the deadline of a drain"),
        (sum(|worker| worker.unnoted), "without a note, as the kernel refused socket storage (net.core.optmem_max)"),
    ];
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    counts.map(|(count, what)| format!("{count} {what}")).collect()
}

fn workers(workers: &[WorkerStatus]) -> String {
    let mut rows = vec![HEADINGS.map(str::to_owned).to_vec()];
    rows.extend(workers.iter().map(row));
    let table = out::columns(&rows, &FLUSH_RIGHT);
    let mut text = String::with_capacity(table.len());
    let beneath = std::iter::once(String::new()).chain(workers.iter().map(holds));
    for (line, beneath) in table.lines().zip(beneath) {
        text.push_str(line);
        text.push('\n');
        text.push_str(&beneath);
    }
    text
}

/// What holds a worker's drain, a line a connection.
fn holds(worker: &WorkerStatus) -> String {
    let rows: Vec<_> = worker.holds.iter().map(hold).collect();
    let lines = out::columns(&rows, &[]);
    let mut text: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    let calls: Vec<_> = worker.ticket_holds.iter().map(call).collect();
    let lines = out::columns(&calls, &[]);
    lines.lines().for_each(|line| text.push_str(&format!("    {line}\n")));
    if worker.more_holds > 0 {
        text.push_str(&format!("      and {} more\n", worker.more_holds));
    }
    text + &gone(worker.gone)
}

/// Connections that are open and hold nothing.
fn gone(connections: usize) -> String {
    match connections {
        0 => String::new(),
        1 => "      1 connection holds nothing: its caller is gone, and the worker has not closed it\n".to_owned(),
        many => {
            format!(
                "      {many} connections hold nothing: their callers are gone, and the worker has not closed them\n"
            )
        }
    }
}

fn hold(hold: &Hold) -> Vec<String> {
    let who = match (&hold.process, hold.pid) {
        (Some(process), Some(pid)) => who(process, pid, hold.user.as_deref()),
        _ => "no process on this host".to_owned(),
    };
    let age = hold.age_s.map_or("age unknown".to_owned(), |age| format!("open for {}", out::short(age)));
    let idle = hold.idle_s.map(|idle| format!("quiet for {}", out::short(idle))).unwrap_or_default();
    let why = if hold.outsider { format!("{}; {NOT_STEERED}", clean(&hold.why)) } else { clean(&hold.why) };
    vec![format!("held by {}", hold.peer), who, age, idle, why]
}

/// A process whose connect() call holds a worker's drain.
fn call(hold: &TicketHold) -> Vec<String> {
    let why = if hold.outsider { format!("no SYN sent yet; {NOT_STEERED}") } else { "no SYN sent yet".to_owned() };
    vec!["held by a connect() call".to_owned(), who(&hold.process, hold.pid, hold.user.as_deref()), why]
}

fn who(process: &str, pid: u32, user: Option<&str>) -> String {
    let user = user.map(|user| format!(", user {}", clean(user))).unwrap_or_default();
    format!("{} (pid {pid}{user})", clean(process))
}

fn row(worker: &WorkerStatus) -> Vec<String> {
    let version = worker.version.as_deref().map_or("-".to_owned(), clean);
    let taken = worker.fallback_draining.saturating_add(worker.fallback_floor).saturating_add(worker.fallback_cold);
    // A connection that met a cold worker is what all of this is there to avoid.
    let fallbacks =
        if worker.fallback_cold > 0 { format!("{taken} ({} cold)", worker.fallback_cold) } else { taken.to_string() };
    vec![
        lines::name(worker.at, worker.spare),
        word(worker.phase).to_owned(),
        out::short(worker.for_s),
        version,
        worker.open.to_string(),
        worker.direct.to_string(),
        worker.away.to_string(),
        worker.steered.to_string(),
        worker.picked.to_string(),
        worker.refused.to_string(),
        fallbacks,
        clean(&worker.reason),
    ]
}

/// A phase as it is shown, and as it stands in JSON.
pub(super) fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Up => "up",
        Phase::Draining => "draining",
        Phase::Drained => "drained",
        Phase::Stopping => "stopping",
        Phase::Starting => "starting",
        Phase::Listening => "listening",
        Phase::Warming => "warming",
        Phase::Down => "down",
        Phase::Failed => "failed",
        Phase::Stranger => "stranger",
    }
}
