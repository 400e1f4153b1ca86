//! nginx as users have it: a plain `upstream`, all else at its defaults; kept-alive connections to it where a test says so.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::pace::SOON;
use crate::process::Process;
use crate::sandbox::{Place, Sandbox};

/// Where nginx listens, in the sandbox's namespace.
pub const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// What nginx's `upstream` block names.
#[derive(Clone, Debug)]
pub enum Upstream {
    /// One `server` line a worker.
    Workers {
        /// The workers' ports.
        ports: RangeInclusive<u16>,
        /// Added to each line: nothing, `max_fails=0`, `max_fails=1 fail_timeout=0s`, ...
        params: String,
    },
    /// One line: the service address, where the kernel picks the worker.
    ServiceAddress(SocketAddr),
}

impl Upstream {
    /// One `server` line a worker, with these parameters.
    pub fn workers(ports: RangeInclusive<u16>, params: &str) -> Self {
        Self::Workers { ports, params: params.to_owned() }
    }

    fn block(&self) -> String {
        format!("  upstream web {{\n{}  }}\n", self.lines())
    }

    fn lines(&self) -> String {
        match self {
            Self::Workers { ports, params } => {
                ports.clone().map(|port| format!("    server 127.0.0.1:{port} {params};\n")).collect()
            }
            Self::ServiceAddress(address) => format!("    server {address};\n"),
        }
    }
}

/// The file's name.
const TRIES: &str = "tries.log";

/// Connections to one address of an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tries {
    /// Asked for.
    pub dialled: u64,
    /// Established.
    pub connected: u64,
}

/// A running nginx in [`Place::Callers`].
#[derive(Debug)]
pub struct Nginx {
    process: Process,
    errors: PathBuf,
}

impl Nginx {
    /// Starts nginx and waits until it accepts connections.
    pub fn start(sandbox: &Sandbox, upstream: &Upstream) -> Result<Self> {
        Self::start_with(sandbox, upstream, "")
    }

    /// The same, writing down each of its tries for [`Self::tries`].
    pub fn start_logged(sandbox: &Sandbox, upstream: &Upstream) -> Result<Self> {
        let format = "  log_format tries '$upstream_addr|$upstream_connect_time';\n";
        let log = sandbox.dir().join("nginx").join(TRIES);
        let directive = format!("access_log {} tries;", log.display());
        Self::start_text(sandbox, &format!("{format}{}", upstream.block()), &directive)
    }

    /// The same, with more directives in its `location`.
    pub fn start_with(sandbox: &Sandbox, upstream: &Upstream, directives: &str) -> Result<Self> {
        Self::start_text(sandbox, &upstream.block(), directives)
    }

    /// The same, with this in its `http`, which names an upstream `web`.
    pub fn start_text(sandbox: &Sandbox, http: &str, directives: &str) -> Result<Self> {
        let location = format!(
            "    location / {{
      proxy_pass http://web;
      proxy_read_timeout 60s;
      {directives}
    }}"
        );
        Self::start_server(sandbox, http, &location)
    }

    /// The same, with these in its `http` and in its `server` block.
    pub fn start_server(sandbox: &Sandbox, http: &str, server: &str) -> Result<Self> {
        Self::start_server_at(sandbox, ADDRESS, http, server)
    }

    fn start_server_at(sandbox: &Sandbox, address: SocketAddr, http: &str, server: &str) -> Result<Self> {
        let dir = sandbox.dir().join("nginx");
        fs::create_dir_all(&dir).context("make nginx's directory")?;
        let (config, errors) = (dir.join("nginx.conf"), dir.join("error.log"));
        fs::write(&config, config_text(&dir, address, http, server)).context("write nginx.conf")?;
        let mut command = sandbox.command(Place::Callers, "/usr/sbin/nginx");
        command.arg("-p").arg(&dir).arg("-c").arg(&config);
        command.arg("-e").arg(&errors);
        let mut process = Process::start("nginx", command, &dir.join("nginx.out"))?;
        process.wait_ready(SOON, || {
            let connected = sandbox.in_netns(|| TcpStream::connect(address).is_ok());
            connected.unwrap_or(false)
        })?;
        Ok(Self { process, errors })
    }

    /// What `deployer lb` prints for a service with lanes: maps, and behind them a location.
    pub fn start_lanes(sandbox: &Sandbox, text: &str) -> Result<Self> {
        Self::start_lanes_at(sandbox, ADDRESS, text)
    }

    /// The same at another address of the namespace.
    pub fn start_lanes_at(sandbox: &Sandbox, address: SocketAddr, text: &str) -> Result<Self> {
        let (http, server) = text.split_once("\n# In the server block of").context("no part for a server block")?;
        Self::start_server_at(sandbox, address, http, &format!("#{server}"))
    }

    /// The master's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has dialled so far in requests that have ended, by port, if it was started to write that down.
    pub fn tries(&self) -> Result<BTreeMap<u16, Tries>> {
        let log = fs::read_to_string(self.errors.with_file_name(TRIES)).context("nginx's log of tries")?;
        // A line may be seen in the middle of its being written.
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        let mut tries: BTreeMap<u16, Tries> = BTreeMap::new();
        for line in whole.lines() {
            let (addresses, times) = line.split_once('|').with_context(|| format!("line {line:?}"))?;
            for (address, time) in addresses.split(", ").zip(times.split(", ")) {
                let at: SocketAddr = address.parse().with_context(|| format!("line {line:?}"))?;
                let of = tries.entry(at.port()).or_default();
                of.dialled += 1;
                of.connected += u64::from(time != "-");
            }
        }
        Ok(tries)
    }

    /// The lines of the error log at `warn` or worse.
    pub fn error_lines(&self) -> Result<Vec<String>> {
        let log = fs::read_to_string(&self.errors).context("nginx's error log")?;
        let grave = ["[warn]", "[error]", "[crit]", "[alert]", "[emerg]"];
        Ok(log.lines().filter(|line| grave.iter().any(|word| line.contains(word))).map(str::to_owned).collect())
    }
}

/// Debian's nginx 1.22 keeps its files where only one instance may: all paths are moved into `dir`.
fn config_text(dir: &Path, address: SocketAddr, http: &str, server: &str) -> String {
    let dir = dir.display();
    format!(
        r#"daemon off;
user root;
worker_processes 1;
pid {dir}/nginx.pid;
error_log {dir}/error.log warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi;
  scgi_temp_path {dir}/scgi;
{http}
  server {{
    listen {address} backlog=4096;
{server}
  }}
}}
"#
    )
}
