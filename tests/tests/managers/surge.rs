//! Rolls with spares, under load: capacity never dips, and no spare is left.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use deployer_tests::{
    api::{Api, Ending},
    app::Fault,
    daemon::{Daemon, ServiceConfig},
    journal::Journal,
    process::run,
    sandbox::{Place, Sandbox},
    stage::Stage,
};
use serde_json::Value;

use super::{
    daemon::{Built, all_up},
    scene::SOON,
};

/// nginx knows nothing of them.
const SPARES: [u16; 2] = [8040, 8041];

fn spare(surge: usize) -> ServiceConfig {
    ServiceConfig { surge, extra: "spare = \"127.0.0.1:8040-8041\"".to_owned(), ..ServiceConfig::default() }
}

/// Nothing runs as a spare, and nothing listens where one would.
fn no_spare_is_left(sandbox: &Sandbox) -> Result<()> {
    for port in SPARES {
        let procs = sandbox.cgroup(Place::Workers).join(format!("web/{port}/cgroup.procs"));
        let pids = fs::read_to_string(&procs).unwrap_or_default();
        ensure!(pids.is_empty(), "spare {port} runs: {pids}");
        let mut command = sandbox.command(Place::Outside, "ss");
        command.args(["-tlnH", "sport", "=", &format!(":{port}")]);
        let listening = run(&mut command)?;
        ensure!(listening.trim().is_empty(), "somebody listens on {port}: {listening}");
    }
    let workers = Api::of(sandbox).workers()?;
    ensure!(workers.len() == 4, "the status shows a spare: {:?}", workers.keys());
    Ok(())
}

/// Looks every 20 ms how many serve, until it is told to stop; the fewest, and how often it has looked.
fn fewest_up(api: Api, over: Arc<AtomicBool>) -> Result<(usize, usize)> {
    let (mut fewest, mut looks) = (usize::MAX, 0);
    while !over.load(Ordering::SeqCst) {
        let up = api.workers()?.values().filter(|worker| worker["phase"] == "up").count();
        (fewest, looks) = (fewest.min(up), looks + 1);
        sleep(Duration::from_millis(20));
    }
    Ok((fewest, looks))
}

/// A roll from v1 to v2; the fewest that served in it.
fn watched_roll(built: &Built<'_>, what: &str) -> Result<usize> {
    let over = Arc::new(AtomicBool::new(false));
    let (api, told) = (Api::of(built.sandbox), Arc::clone(&over));
    let looking = thread::spawn(move || fewest_up(api, told));
    let ending = built.roll()?.end();
    over.store(true, Ordering::SeqCst);
    let looked = looking.join().map_err(|panic| anyhow::anyhow!("{panic:?}"))?;
    let (ending, (fewest, looks)) = (ending?, looked?);
    eprintln!("{what}: {:.1} s, at least {fewest} of 4 up in {looks} looks", ending.seconds);
    ending.must("done", &["4 workers restarted"])?;
    ensure!(looks > 10 && ending.changed == 4, "{looks} looks, {ending:?}");
    Ok(fewest)
}

#[test]
fn capacity_never_dips() -> Result<()> {
    let sandbox = Sandbox::new("surge")?;
    let built = Built::of(&sandbox, &spare(2))?;
    no_spare_is_left(&sandbox)?;
    for verb in ["drain", "enable"] {
        let refused = built.daemon.cli(&[verb, "web", "8040"])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(2) && said.contains("127.0.0.1:8040 is a spare of web"), "{said}");
    }
    let fewest = watched_roll(&built, "with two spares")?;
    ensure!(fewest >= 4, "only {fewest} were up");
    no_spare_is_left(&sandbox)?;
    let log = built.daemon.log();
    ensure!(!log.contains("a move that the table"), "{log}");
    let journal = Journal::read(&built.app.journal_dir())?;
    let by_spares = journal.entries.iter().filter(|entry| SPARES.contains(&entry.port) && entry.id.starts_with("load"));
    let versions: Vec<_> = by_spares.map(|entry| entry.version.as_str()).collect();
    eprintln!("{} requests served by spares", versions.len());
    ensure!(!versions.is_empty() && versions.iter().all(|version| *version == "v2"), "by spares: {versions:?}");
    built.unharmed("a roll with spares")
}

/// The twin: the same roll, and the spares are not used.
#[test]
fn without_a_surge_it_does() -> Result<()> {
    let sandbox = Sandbox::new("nosurge")?;
    let built = Built::of(&sandbox, &spare(0))?;
    let fewest = watched_roll(&built, "without spares")?;
    ensure!(fewest < 4, "{fewest} were up all the time");
    no_spare_is_left(&sandbox)?;
    built.unharmed("a roll without spares")
}

/// Kills the daemon when a worker or spare is in a phase; the next one brings the roll to its end.
fn killed_at(label: &str, at: (u16, &str)) -> Result<()> {
    let sandbox = Sandbox::new(label)?;
    let mut built = Built::of(&sandbox, &spare(2))?;
    let mut roll = built.roll()?;
    roll.until_phase(at.0, at.1)?;
    built.daemon.process().kill()?;
    sleep(Duration::from_millis(500));
    built.daemon = Daemon::start(&sandbox, &spare(2).text_built_in(&sandbox, &built.app))?;
    let (code, printed) = roll.left()?;
    let ending = Ending::read(roll.seen.last().context("no events")?)?;
    eprintln!("killed with {at:?}: {ending:?}");
    ensure!(code == Some(0) && ending.changed == 4, "exit {code:?}, {ending:?}: {printed}");
    ensure!(roll.seen.iter().any(|event| event["event"] == "resumed"), "not resumed");
    all_up(&sandbox)?;
    no_spare_is_left(&sandbox)?;
    let log = built.daemon.log();
    ensure!(!log.contains("a move that the table"), "{log}");
    built.unharmed("a daemon killed in a surge")
}

#[test]
fn killed_while_a_spare_starts() -> Result<()> {
    killed_at("spstart", (8041, "starting"))
}

#[test]
fn killed_while_spares_serve() -> Result<()> {
    killed_at("spserve", (8002, "stopping"))
}

#[test]
fn killed_while_a_spare_is_retired() -> Result<()> {
    killed_at("spretire", (8040, "draining"))
}

/// All spares, or no roll: the workers are as they were.
#[test]
fn a_spare_that_does_not_come_up() -> Result<()> {
    for (label, on_failure, unswitch_to, result) in
        [("spfail", "stop", None, "failed"), ("spback", "rollback", Some("v1".to_owned()), "rolled-back")]
    {
        let sandbox = Sandbox::new(label)?;
        let built = Built::of(&sandbox, &ServiceConfig { on_failure, unswitch_to, ..spare(2) })?;
        built.app.set_fault("v2", 8041, Some(Fault::Status500))?;
        let before = built.pids()?;
        let ending = built.roll()?.end()?;
        eprintln!("{ending:?}");
        ending.must(result, &["a spare did not come up", "127.0.0.1:8041", "500", "no worker was touched"])?;
        ensure!(ending.changed == 0 && ending.failed.is_empty(), "{ending:?}");
        ensure!(built.pids()? == before, "other processes");
        no_spare_is_left(&sandbox)?;
        let current = built.app.current_version()?;
        ensure!(current == if result == "failed" { "v2" } else { "v1" }, "{current} is in place");
        built.unharmed("a spare that does not come up")?;
    }
    Ok(())
}

/// A roll that nobody remembers has left its spares running: they serve, and the next roll begins without them.
#[test]
fn spares_that_were_left_running() -> Result<()> {
    let sandbox = Sandbox::new("spleft")?;
    let mut built = Built::of(&sandbox, &spare(2))?;
    built.roll()?.until_phase(8000, "draining")?;
    built.daemon.process().kill()?;
    fs::remove_dir_all(sandbox.state())?;
    built.daemon = Daemon::start(&sandbox, &spare(2).text_built_in(&sandbox, &built.app))?;
    let begun = Instant::now();
    let spares = || -> Result<Vec<Value>> {
        let workers = Api::of(&sandbox).workers()?;
        Ok(SPARES.iter().filter_map(|port| workers.get(port)).filter(|it| it["phase"] == "up").cloned().collect())
    };
    while spares()?.len() < 2 {
        ensure!(begun.elapsed() < SOON, "{:?}: {}", Api::of(&sandbox).phases(), built.daemon.log());
        sleep(Duration::from_millis(20));
    }
    ensure!(spares()?.iter().all(|spare| spare["spare"] == true), "{:?}", spares());
    all_up(&sandbox)?;
    let mut roll = built.roll()?;
    let ending = {
        roll.left()?;
        Ending::read(roll.seen.last().context("no events")?)?
    };
    ending.must("done", &["4 workers restarted"])?;
    let order: Vec<_> = roll.seen.iter().filter_map(|event| event["event"].as_str()).collect();
    let first = |name| order.iter().position(|event| *event == name);
    ensure!(first("retire") < first("command") && first("command") < first("surge"), "{order:?}");
    no_spare_is_left(&sandbox)?;
    built.unharmed("spares that were left running")
}

/// supervisord with a second program for the spares, in the same group.
#[test]
fn spares_under_supervisord() -> Result<()> {
    let sandbox = Sandbox::new("spsuper")?;
    let stage = Stage::with_spares(&sandbox, 8040..=8041)?;
    let daemon = stage.daemon(&spare(2))?;
    no_spare_is_left(&sandbox)?;
    let mut roll = stage.roll(&daemon, &["--to", "v2"])?;
    roll.left()?;
    Ending::read(roll.seen.last().context("no events")?)?.must("done", &["4 workers restarted"])?;
    let spare_was = |phase: &str| {
        roll.seen
            .iter()
            .any(|event| event["worker"] == "127.0.0.1:8040" && event["spare"] == true && event["phase"] == phase)
    };
    ensure!(["up", "drained", "down"].iter().all(|phase| spare_was(phase)), "{:?}", roll.seen);
    no_spare_is_left(&sandbox)?;
    stage.unharmed("spares under supervisord").map(drop)
}

/// A manager that does not know the spares: said before anything is touched.
#[test]
fn a_manager_without_processes_for_the_spares() -> Result<()> {
    let sandbox = Sandbox::new("spnone")?;
    let stage = Stage::new(&sandbox)?;
    let daemon = stage.daemon(&spare(2))?;
    let refused = daemon.cli(&["roll", "web", "--to", "v2"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1), "{said}");
    for part in ["has no process named", "8040", "it must be able to start the spares", "no worker was touched"] {
        ensure!(said.contains(part), "{part:?} is missing in {said:?}");
    }
    stage.unharmed("no processes for the spares").map(drop)
}
