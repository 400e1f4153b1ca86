//! Workers whose pages go on asking the version that made them (tests/app/pages.py), and what they say.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::app::App;
use crate::dial::PYTHON;
use crate::pace::SOON;
use crate::process::Process;
use crate::sandbox::{Place, Sandbox};

/// One such worker, without a process manager. Killed when dropped.
#[derive(Debug)]
pub struct Pages {
    /// Where it listens.
    pub address: SocketAddr,
    process: Process,
}

impl Pages {
    /// Starts one in [`Place::Workers`] that is told its version and its lane (0: none), and waits until it listens.
    pub fn start(sandbox: &Sandbox, app: &App, address: SocketAddr, version: &str, lane: u8) -> Result<Self> {
        let mut command = sandbox.command(Place::Workers, PYTHON);
        // Quicker to start; it needs nothing but the standard library.
        command.args(["-s", "-S"]).arg(app.pages());
        command.args([format!("--port={}", address.port()), format!("--host={}", address.ip())]);
        command.env("APP_DIR", app.dir()).env("DEPLOYER_VERSION", version);
        if lane > 0 {
            command.env("DEPLOYER_LANE", lane.to_string());
        }
        let log = sandbox.dir().join(format!("pages-{}-{}.log", address.ip(), address.port()));
        let mut process = Process::start("pages.py", command, &log)?;
        process.wait_ready(SOON, || {
            let connected = sandbox.in_netns(|| TcpStream::connect(address).is_ok());
            connected.unwrap_or(false)
        })?;
        Ok(Self { address, process })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // It has nothing to save.
        self.process.kill().ok();
    }
}

/// The address of a lane, `127.77.0.LANE:PORT`.
pub fn lane_address(lane: u8, port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(127, 77, 0, lane), port))
}

/// Who answered an XHR, and what of it has come through.
#[derive(Clone, Debug, Deserialize)]
pub struct Said {
    /// The worker's version.
    pub version: String,
    /// Its lane; empty: none.
    pub lane: String,
    /// Its process.
    pub pid: u32,
    /// The number of the connection, from 1, at that process.
    pub connection: u64,
    /// The query.
    pub query: String,
    /// The lanes that the request named in its header.
    pub named: Vec<String>,
    /// Its Host.
    pub host: Vec<String>,
}

impl Said {
    /// From the answer's body.
    pub fn parse(body: &str) -> Result<Self> {
        serde_json::from_str(body).with_context(|| format!("the answer to an XHR: {body:?}"))
    }
}
