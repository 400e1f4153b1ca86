//! What goes wrong in a roll, under load: nothing is lost, the roll stops and says which worker and why, the failed one
//! is out and all others serve on. Run with `--test-threads=1`.

mod crash;
mod drains;
mod manager;
mod policies;
mod workers;

use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;

use deployer_tests::daemon::Daemon;
use deployer_tests::process::send;
use deployer_tests::stage::Stage;

/// Has a daemon read this configuration (SIGHUP), and waits until it has; returns what it says of it.
fn reload(stage: &Stage<'_>, daemon: &Daemon<'_>, text: &str) -> Result<String> {
    Daemon::write_config(stage.sandbox, text)?;
    let before = daemon.log().len();
    let said = || daemon.log()[before..].to_owned();
    send(daemon.pid(), Signal::HUP)?;
    stage.wait(Duration::from_secs(5), || Ok(said().contains("configuration ")))?;
    Ok(said())
}
