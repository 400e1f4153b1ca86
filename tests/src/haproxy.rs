//! HAProxy as Debian has it, with two threads, in front of a backend that a test writes.

use std::fs;
use std::net::TcpStream;

use anyhow::{Context, Result};

use crate::nginx::ADDRESS;
use crate::pace::SOON;
use crate::process::Process;
use crate::sandbox::{Place, Sandbox};

/// A running HAProxy in [`Place::Callers`], at nginx's [`ADDRESS`].
#[derive(Debug)]
pub struct Haproxy {
    process: Process,
}

impl Haproxy {
    /// Starts HAProxy with a text that holds `backend web`, and waits until it accepts connections.
    pub fn start(sandbox: &Sandbox, backend: &str) -> Result<Self> {
        Self::start_threads(sandbox, backend, 2)
    }

    /// The same, with so many threads.
    pub fn start_threads(sandbox: &Sandbox, backend: &str, threads: u32) -> Result<Self> {
        let dir = sandbox.dir().join("haproxy");
        fs::create_dir_all(&dir).context("make HAProxy's directory")?;
        let config = dir.join("haproxy.cfg");
        fs::write(&config, config_text(backend, threads)).context("write haproxy.cfg")?;
        let mut command = sandbox.command(Place::Callers, "/usr/sbin/haproxy");
        command.arg("-db").arg("-f").arg(&config);
        let mut process = Process::start("haproxy", command, &dir.join("haproxy.out"))?;
        process.wait_ready(SOON, || {
            let connected = sandbox.in_netns(|| TcpStream::connect(ADDRESS).is_ok());
            connected.unwrap_or(false)
        })?;
        Ok(Self { process })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

fn config_text(backend: &str, threads: u32) -> String {
    format!(
        "global
  nbthread {threads}
  maxconn 8192
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout http-keep-alive 30s
frontend in
  bind {ADDRESS}
  default_backend web
{backend}"
    )
}
