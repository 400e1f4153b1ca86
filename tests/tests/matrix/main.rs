//! The kill matrix: a roll is stopped at each of its transitions, and something is taken away from it there, under load.
//! No request fails, the roll completes or ends with a reason, and no worker is left out. Run with `--test-threads=1`.
//!
//! Every cell runs with `--full`; otherwise one or two of each column.

mod cell;
mod fault;
mod table;

use anyhow::{Context, Result, ensure};
use deployer_tests::daemon::DeployerBin;
use deployer_tests::process::run;
use deployer_tests::sandbox::Sandbox;

use cell::Scene;
use fault::Fault;
use table::Table;

/// The names of all transitions, in the order in which a roll comes to them, without those of a deploy alone, which suite
/// `versions` has; the binary knows them, if it was built with feature `failpoints`.
fn points(sandbox: &Sandbox) -> Result<Vec<String>> {
    let printed = run(DeployerBin::find()?.command(sandbox).arg("failpoints"))?;
    let of_a_deploy = |name: &&str| name.starts_with("flip") || name.starts_with("fleet") || *name == "returned";
    let points: Vec<_> = printed.split_whitespace().filter(|name| !of_a_deploy(name)).map(str::to_owned).collect();
    ensure!(points.len() > 10, "hardly any failpoints: {printed:?}");
    Ok(points)
}

/// The rows to run in a column: all, or some that are far apart and others than in the next column.
fn sample(points: &[String], column: usize) -> Vec<String> {
    if std::env::var_os("DEPLOYER_FULL").is_some() {
        return points.to_vec();
    }
    let chosen = std::env::var("MATRIX_POINT").ok();
    if let Some(chosen) = chosen {
        return points.iter().filter(|point| **point == chosen).cloned().collect();
    }
    vec![points[(3 + column * 5) % points.len()].clone()]
}

fn column(column: usize, fault: Fault) -> Result<()> {
    let all = {
        let sandbox = Sandbox::new("points")?;
        points(&sandbox)?
    };
    let (mut table, mut failures) = (Table::new(fault.name()), Vec::new());
    let mut rows = sample(&all, column).into_iter().peekable();
    while rows.peek().is_some() {
        let sandbox = Sandbox::new("matrix")?;
        let mut scene = Scene::set(&sandbox, fault)?;
        for point in rows.by_ref() {
            let outcome = scene.cell(&point).with_context(|| format!("{point} x {}", fault.name()));
            table.add(&point, &outcome);
            let spoilt = outcome.is_err() || fault.spoils();
            failures.extend(outcome.err().map(|error| format!("{error:#}\n{}", scene.log())));
            if spoilt {
                break;
            }
        }
        if failures.is_empty() {
            scene.end()?;
        }
    }
    eprintln!("{table}");
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

macro_rules! columns {
    ($($nth:literal $name:ident: $fault:ident,)+) => {
        $(#[test]
        fn $name() -> Result<()> {
            column($nth, Fault::$fault)
        })+
    };
}

columns! {
    0 daemon_killed: DaemonKilled,
    1 daemon_stands_still: DaemonStandsStill,
    2 no_space_for_the_state: NoSpace,
    3 pins_unmounted: PinsUnmounted,
    4 callers_cgroup_deleted: CgroupDeleted,
    5 supervisord_hangs: ManagerHangs,
    6 supervisord_dies: ManagerDies,
    7 worker_ignores_sigterm: StubbornWorker,
    8 no_descriptors: NoDescriptors,
    9 disk_hangs: DiskHangs,
}
