//! How soon the former version serves after `deployer rollback`, beside what a reload of nginx takes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer_tests::nginx::{ADDRESS, Nginx};
use deployer_tests::pages::Pages;
use deployer_tests::probe::Probe;
use deployer_tests::process;
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::site::{self, Plan, Site};
use rustix::time::{ClockId, clock_gettime};

/// Each way is taken so often.
const TIMES: usize = 3;

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// From a command to the first call of connect() that met another version, in milliseconds.
fn until(sandbox: &Sandbox, address: &str, version: &str, command: impl FnOnce() -> Result<()>) -> Result<f64> {
    let probe = Probe::start(sandbox, address, 1)?;
    std::thread::sleep(Duration::from_millis(100));
    let begun = now_ns();
    command()?;
    std::thread::sleep(Duration::from_millis(500));
    let probed = probe.stop()?;
    ensure!(probed.failed.is_empty(), "{:?}", probed.failed);
    let first = probed.dialled.iter().find(|dialled| dialled.begun_ns > begun && dialled.version == version);
    let first = first.with_context(|| format!("nobody has met {version}"))?;
    Ok((first.begun_ns - begun) as f64 / 1e6)
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

#[test]
fn one_write_against_a_reload() -> Result<()> {
    let sandbox = Sandbox::new("rollback")?;
    let site = Site::start(&sandbox, Plan { bake: "2s", ..Plan::default() })?;
    let mut back = Vec::new();
    for nth in 0..TIMES {
        let version = format!("v{}", nth + 2);
        let deploying = site.deploying(&version, &["--bake", "20s"])?;
        site.wait("flipped", |pools| pools.iter().any(|pool| pool["current"] == true && pool["version"] == *version))?;
        let rollback = || site.must(&["rollback", "web"]).map(drop);
        back.push(until(&sandbox, &site::ADDRESS.to_string(), "v1", rollback)?);
        // Its pages need not be waited for.
        let (exit, said) = site.deploy("v1", &["--supersede"])?;
        ensure!(exit == 0, "{said}");
        let output = deploying.wait_with_output()?;
        ensure!(output.status.code() == Some(5), "{output:?}");
    }
    let reloads = reloads(&sandbox, &site)?;
    let (back, reload) = (median(back), median(reloads));
    eprintln!(
        "rollback: {back:.1} ms from the command to the first connection; the same by nginx -s reload: {reload:.1} ms"
    );
    // A debug build, on a machine that others use, too: beside other tests either takes ten times as long as alone.
    ensure!(back < 1000.0 && back < 3.0 * reload.max(20.0), "{back} ms, {reload} ms");
    Ok(())
}

/// The same where another upstream is written into nginx's file, which is read again.
fn reloads(sandbox: &Sandbox, site: &Site<'_>) -> Result<Vec<f64>> {
    let ports = [8200, 8201];
    let start =
        |nth: usize| Pages::start(sandbox, &site.app, ([127, 0, 0, 1], ports[nth]).into(), &format!("w{nth}"), 0);
    let _workers = [start(0)?, start(1)?];
    let server = format!("location / {{ proxy_pass http://127.0.0.1:{}; }}", ports[0]);
    let _nginx = Nginx::start_server(sandbox, "", &server)?;
    let dir = sandbox.dir().join("nginx");
    let file = dir.join("nginx.conf");
    let mut took = Vec::new();
    for nth in 1..=TIMES {
        let to = nth % 2;
        let text = std::fs::read_to_string(&file)?.replace(&ports[1 - to].to_string(), &ports[to].to_string());
        std::fs::write(&file, text)?;
        let reload = || {
            let mut command = sandbox.command(Place::Callers, "/usr/sbin/nginx");
            command.arg("-p").arg(&dir).arg("-c").arg(&file).arg("-e").arg(dir.join("error.log"));
            process::run(command.args(["-s", "reload"])).map(drop)
        };
        took.push(until(sandbox, &ADDRESS.to_string(), &format!("w{to}"), reload)?);
    }
    Ok(took)
}
