//! Other people's sockets, very many of them.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::dial::PYTHON;
use crate::process::Process;
use crate::sandbox::{Place, Sandbox};

/// Open connections and TIME_WAIT sockets.
pub fn size() -> (u32, u32) {
    if std::env::var_os("DEPLOYER_FULL").is_some() { (50_000, 200_000) } else { (2_000, 10_000) }
}

/// Opens them in the sandbox's namespace; they end with what is returned.
pub fn gather(sandbox: &Sandbox) -> Result<Process> {
    let (open, waiting) = size();
    let script = sandbox.dir().join("crowd.py");
    fs::write(&script, include_str!("../app/crowd.py")).context("write crowd.py")?;
    let mut command = sandbox.command(Place::Outside, PYTHON);
    command.args(["-s", "-S"]).arg(&script).args([open.to_string(), waiting.to_string()]);
    let mut crowd = Process::start("crowd", command, &sandbox.dir().join("crowd.log"))?;
    let log = sandbox.dir().join("crowd.log");
    crowd.wait_ready(Duration::from_secs(120), || fs::read_to_string(&log).is_ok_and(|log| log.contains("ready")))?;
    Ok(crowd)
}

/// TCP sockets in use in the sandbox's namespace, and such in TIME_WAIT, which end after 60 s.
pub fn count(sandbox: &Sandbox) -> Result<(u32, u32)> {
    let text = sandbox.in_netns(|| fs::read_to_string("/proc/thread-self/net/sockstat"))?.context("sockstat")?;
    let line = text.lines().find(|line| line.starts_with("TCP:")).context("no line on TCP in sockstat")?;
    let words: Vec<&str> = line.split(' ').collect();
    let after = |name: &str| {
        let value = words.windows(2).find(|pair| pair[0] == name).with_context(|| format!("no {name} in {line}"))?;
        value[1].parse().with_context(|| line.to_owned())
    };
    Ok((after("inuse")?, after("tw")?))
}
