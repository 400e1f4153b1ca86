//! What the tests of deploys share.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use deployer_tests::pace::patient;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::site::{Plan, Site};
use serde_json::Value;

/// The service address.
pub(crate) const SITE: &str = "127.0.0.1:9000";
/// The first version's lane.
pub(crate) const OLD_LANE: &str = "127.77.0.1:9000";
/// The second's.
pub(crate) const NEW_LANE: &str = "127.77.0.2:9000";

/// Two workers a pool.
pub(crate) fn small() -> Plan {
    Plan { workers: 2, ..Plan::default() }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() * 1000.0)
}

/// A daemon that stops the world at a failpoint.
#[derive(Debug)]
pub(crate) struct Failpoint(PathBuf);

impl Failpoint {
    /// Its environment.
    pub(crate) fn at(sandbox: &Sandbox, name: &str) -> Result<(Self, Vec<(&'static str, String)>)> {
        let dir = sandbox.dir().join("failpoint");
        std::fs::create_dir_all(&dir).context("the failpoint's directory")?;
        let environment =
            vec![("DEPLOYER_FAILPOINT", name.to_owned()), ("DEPLOYER_FAILPOINT_DIR", dir.display().to_string())];
        Ok((Self(dir), environment))
    }

    /// Waits until it is reached.
    pub(crate) fn wait(&self, site: &Site<'_>) -> Result<()> {
        until("the failpoint is reached", || Ok(self.0.join("reached").exists())).with_context(|| site.daemon.log())
    }

    /// Lets the daemon go on.
    pub(crate) fn go(&self) -> Result<()> {
        std::fs::write(self.0.join("go"), "").context("let the daemon go on")
    }
}

/// Waits until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + patient(Duration::from_secs(30));
    while !holds()? {
        ensure!(Instant::now() < end, "{what}: not after a long time");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// One pool is current, all of it up with this version; nobody of the other is left.
pub(crate) fn is_settled(pools: &[Value; 2], current: usize, version: &str, workers: u16) -> Result<()> {
    let (new, old) = (&pools[current], &pools[1 - current]);
    ensure!(new["current"] == true && new["version"] == version && new["up"] == workers, "{pools:?}");
    ensure!(old["current"] == false && old["up"] == 0 && old["lane"] == 0 && old["open"] == 0, "{pools:?}");
    Ok(())
}

/// Nobody runs in a pool.
pub(crate) fn is_gone(site: &Site<'_>, plan: &Plan, pool: usize) -> Result<()> {
    for port in plan.ports(pool) {
        let pids = site.pids(port)?;
        ensure!(pids.is_empty(), "worker {port} still runs: {pids:?}\n{}", site.daemon.log());
    }
    Ok(())
}
