//! Varnish as Debian has it, passing everything on to backends that a test writes.

use std::fs;
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result};

use crate::nginx::ADDRESS;
use crate::pace::SOON;
use crate::process::Process;
use crate::sandbox::{Place, Sandbox};

/// A running Varnish in [`Place::Callers`], at nginx's [`ADDRESS`].
#[derive(Debug)]
pub struct Varnish {
    process: Process,
}

impl Varnish {
    /// Starts Varnish with a text that gives requests a backend, and waits until it accepts connections.
    pub fn start(sandbox: &Sandbox, backends: &str, parameters: &[&str]) -> Result<Self> {
        // What is there twice is run one after the other. Nothing is cached: all requests are for the workers.
        let text = format!("{backends}\nsub vcl_recv {{\n  return (pass);\n}}\n");
        Self::start_caching(sandbox, ADDRESS, &text, parameters)
    }

    /// The same, with nothing but this text, which may let it cache, at another address.
    pub fn start_caching(sandbox: &Sandbox, address: SocketAddr, text: &str, parameters: &[&str]) -> Result<Self> {
        let dir = sandbox.dir().join("varnish");
        fs::create_dir_all(&dir).context("make Varnish's directory")?;
        let vcl = dir.join("web.vcl");
        fs::write(&vcl, text).context("write web.vcl")?;
        let mut command = sandbox.command(Place::Callers, "/usr/sbin/varnishd");
        command.args(["-F", "-j", "none", "-a", &address.to_string(), "-s", "malloc,32m", "-n"]).arg(dir.join("work"));
        command.arg("-f").arg(&vcl);
        command.args(parameters.iter().flat_map(|parameter| ["-p", parameter]));
        let mut process = Process::start("varnishd", command, &dir.join("varnish.out"))?;
        // It compiles its configuration first.
        process.wait_ready(SOON, || {
            let connected = sandbox.in_netns(|| TcpStream::connect(address).is_ok());
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
