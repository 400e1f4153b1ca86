//! Connections in another program's sockmap: what their ends write bypasses TCP, so that one in use looks unused.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use deployer_tests::daemon::ServiceConfig;
use deployer_tests::dial::PYTHON;
use deployer_tests::sandbox::{Place, Sandbox};
use deployer_tests::stage::Stage;

const PORT: u16 = 8000;
/// Seconds that the answer takes: longer than a connection must be quiet that looks unused.
const SLOW: &str = "4";

struct Redirected(Child);

impl Drop for Redirected {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_request_in_a_sockmap_is_waited_for() -> Result<()> {
    let sandbox = Sandbox::new("sockmap")?;
    let stage = Stage::new(&sandbox)?;
    // Otherwise one that is older than the roll must be quiet for longer.
    let config = ServiceConfig { batch: "1".to_owned(), drain: "quiet_after = \"1s\"", ..ServiceConfig::default() };
    let daemon = stage.daemon(&config)?;
    let mut command = sandbox.command(Place::Callers, PYTHON);
    command.args(["-c", include_str!("../../app/sockmap.py"), &PORT.to_string(), SLOW]).stdout(Stdio::piped());
    let mut caller = Redirected(command.spawn().context("start sockmap.py")?);
    let mut said = BufReader::new(caller.0.stdout.take().context("its output")?).lines();
    let mut said = || said.next().context("sockmap.py has ended")?.context("what sockmap.py says");
    ensure!(said()? == "asked");
    let mut roll = stage.roll(&daemon, &["--to", "v2"])?;
    roll.until_phase(PORT, "draining")?;
    let answer = said()?;
    ensure!(answer == "HTTP/1.1 200", "the caller was told: {answer}\n{}", daemon.log());
    drop(caller);
    roll.end()?.must("done", &["4 workers"])?;
    stage.unharmed("a request in a sockmap")?;
    Ok(())
}
