//! supervisord with the workers of the test app.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::app::App;
use crate::http::{Request, Response};
use crate::pace::{SOON, patient};
use crate::process::Process;
use crate::sandbox::{Place, Sandbox};

/// The longest that an answer to one of the harness's own requests may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How the workers are run.
#[derive(Clone, Debug)]
pub struct Options {
    /// One worker each.
    pub ports: RangeInclusive<u16>,
    /// Ports on which others may be started.
    pub spares: Option<RangeInclusive<u16>>,
    /// Where they listen: `127.0.0.1`, or `::` for both families.
    pub host: &'static str,
    /// Their listen() backlog.
    pub backlog: u32,
    /// What they sleep at import.
    pub import_seconds: f32,
    /// What the first request for each template costs.
    pub cold_seconds: f32,
    /// Memory that some of them hold: ports and megabytes.
    pub memory: Vec<(u16, u32)>,
    /// Whether they are the app's [`fast`](App::fast) ones.
    pub fast: bool,
    /// supervisord's `startsecs`, 1 by default: a worker that ends earlier is retried three times, then FATAL.
    pub start_seconds: u32,
}

impl Options {
    /// The usual workers on these ports of 127.0.0.1.
    pub fn ports(ports: RangeInclusive<u16>) -> Self {
        Self {
            ports,
            spares: None,
            host: "127.0.0.1",
            backlog: 128,
            import_seconds: 1.0,
            cold_seconds: 0.15,
            memory: Vec::new(),
            fast: false,
            start_seconds: 1,
        }
    }
}

/// A running supervisord. Dropping it kills it and its workers.
#[derive(Debug)]
pub struct Supervisor<'a> {
    sandbox: &'a Sandbox,
    process: Process,
    options: Options,
    config: PathBuf,
}

impl<'a> Supervisor<'a> {
    /// Starts supervisord and waits until it answers on its socket; the workers may still be starting.
    pub fn start(sandbox: &'a Sandbox, app: &App, options: Options) -> Result<Self> {
        let text = config_text(sandbox.dir(), app, &options);
        Self::start_text(sandbox, options, &text)
    }

    /// The same with a configuration of one's own, for a supervisord of which [`Self::head`] is the beginning; `options`
    /// name the ports.
    pub fn start_text(sandbox: &'a Sandbox, options: Options, text: &str) -> Result<Self> {
        let config = sandbox.dir().join("supervisord.conf");
        fs::create_dir_all(sandbox.dir().join("log")).context("make the log directory")?;
        fs::write(&config, text).context("write config")?;
        Ok(Self { sandbox, process: Self::run(sandbox, &config)?, options, config })
    }

    fn run(sandbox: &Sandbox, config: &Path) -> Result<Process> {
        let mut command = sandbox.command(Place::Workers, "/usr/bin/supervisord");
        command.arg("-n").arg("-c").arg(config);
        let log = sandbox.dir().join("log/supervisord.out");
        let mut process = Process::start("supervisord", command, &log)?;
        let socket = socket_in(sandbox);
        process.wait_ready(SOON, || std::os::unix::net::UnixStream::connect(&socket).is_ok())?;
        Ok(process)
    }

    /// What a configuration says of supervisord itself.
    pub fn head(dir: &Path) -> String {
        let dir = dir.display();
        format!(
            r#"[unix_http_server]
file = {dir}/supervisor.sock
chmod = 0700
[supervisord]
logfile = {dir}/log/supervisord.log
pidfile = {dir}/supervisord.pid
childlogdir = {dir}/log
user = root
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl = unix://{dir}/supervisor.sock
"#
        )
    }

    /// supervisord's XML-RPC socket.
    pub fn socket(&self) -> PathBuf {
        socket_in(self.sandbox)
    }

    /// How supervisord names the worker of a port.
    pub fn program_pattern(&self) -> &'static str {
        "web:web_{port}"
    }

    /// The workers' ports.
    pub fn ports(&self) -> RangeInclusive<u16> {
        self.options.ports.clone()
    }

    /// supervisord's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where a worker is reached directly.
    pub fn address(&self, port: u16) -> SocketAddr {
        let ip = match self.options.host.parse() {
            Ok(IpAddr::V4(ip)) if !ip.is_unspecified() => IpAddr::V4(ip),
            Ok(IpAddr::V6(ip)) if !ip.is_unspecified() && ip != Ipv6Addr::LOCALHOST => ip.into(),
            Ok(IpAddr::V6(Ipv6Addr::LOCALHOST)) => Ipv6Addr::LOCALHOST.into(),
            _ => Ipv4Addr::LOCALHOST.into(),
        };
        SocketAddr::new(ip, port)
    }

    /// Waits until every worker answers `GET /health` itself.
    pub fn wait_up(&self) -> Result<()> {
        self.wait_up_ports(self.ports())
    }

    /// Like [`Self::wait_up`], for some of them.
    pub fn wait_up_ports(&self, ports: impl IntoIterator<Item = u16>) -> Result<()> {
        let deadline = Instant::now() + patient(Duration::from_secs(60));
        for port in ports {
            while !self.is_up(port)? {
                if Instant::now() >= deadline {
                    bail!("worker {port} is not up:\n{}", self.worker_log(port));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    fn is_up(&self, port: u16) -> Result<bool> {
        let answer =
            self.sandbox.in_netns(|| Request::get("/health").send(self.address(port), Duration::from_secs(10)))?;
        Ok(answer.is_ok_and(|a| a.status == 200 && a.header("X-Port") == Some(&port.to_string())))
    }

    /// Sends a request straight to a worker, from outside the sandbox's cgroups, so past all steering.
    pub fn direct(&self, port: u16, request: &Request<'_>) -> Result<Response> {
        self.sandbox.in_netns(|| request.send(self.address(port), ANSWER_LIMIT))?
    }

    /// Pays every worker's first requests, as the daemon's warm-up does; all workers at once.
    pub fn warm(&self) -> Result<()> {
        std::thread::scope(|scope| {
            let start = |port| scope.spawn(move || self.warm_one(port));
            let threads: Vec<_> = self.ports().map(start).collect();
            threads.into_iter().try_for_each(|thread| {
                let result = thread.join();
                result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })
    }

    fn warm_one(&self, port: u16) -> Result<()> {
        let headers = [("User-Agent", "deployer-warm/harness")];
        for path in ["/", "/pin/1"] {
            let request = Request { headers: &headers, ..Request::get(path) };
            let status = self.direct(port, &request)?.status;
            if status != 200 {
                bail!("warm-up of {port}: {path} answered {status}");
            }
        }
        Ok(())
    }

    /// The process id of the worker on a port; `None` while there is none.
    pub fn pid_of(&self, port: u16) -> Result<Option<u32>> {
        let wanted = format!("--port={port}");
        let pids = self.sandbox.pids(Place::Workers)?;
        Ok(pids.into_iter().find(|pid| {
            // A process that has ended meanwhile is not the one.
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|b| *b == 0).any(|arg| arg == wanted.as_bytes())
        }))
    }

    /// What a worker has printed.
    pub fn worker_log(&self, port: u16) -> String {
        let path = self.sandbox.dir().join(format!("log/web_{port}.out"));
        fs::read_to_string(path).unwrap_or_else(|error| error.to_string())
    }

    /// What `supervisorctl` prints (slow: a Python start). Its exit status says little: `status` fails when a worker
    /// is not running.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.sandbox.command(Place::Outside, "supervisorctl");
        command.arg("-c").arg(&self.config).args(arguments);
        let output = command.output().context("run supervisorctl")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until supervisord has ended by itself; `false`: it has not in time.
    pub fn wait_gone(&mut self, limit: Duration) -> Result<bool> {
        Ok(self.process.wait_for(patient(limit))?.is_some())
    }

    /// Starts supervisord once more, after it has ended.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = Self::run(self.sandbox, &self.config)?;
        Ok(())
    }

    /// Kills supervisord itself with SIGKILL; its workers live on.
    pub fn kill_supervisord(&mut self) -> Result<()> {
        self.process.kill().map(drop)
    }
}

impl Drop for Supervisor<'_> {
    fn drop(&mut self) {
        // Quicker than a SIGTERM, which stops the workers first; nothing of theirs needs saving.
        if let Err(error) = self.sandbox.kill_place(Place::Workers) {
            eprintln!("supervisord: {error:#}");
        }
    }
}

fn socket_in(sandbox: &Sandbox) -> PathBuf {
    sandbox.dir().join("supervisor.sock")
}

fn config_text(dir: &Path, app: &App, options: &Options) -> String {
    let worker = if options.fast { app.fast() } else { app.worker() };
    let (shown, app_dir) = (dir.display(), app.dir().display());
    let (worker, first) = (worker.display(), options.ports.start());
    let count = options.ports.clone().count();
    let Options { host, backlog, import_seconds, cold_seconds, start_seconds, .. } = options;
    let memory: Vec<_> = options.memory.iter().map(|(port, megabytes)| format!("{port}:{megabytes}")).collect();
    let memory = memory.join(" ");
    let program = format!(
        r#"[program:web]
command = /usr/bin/python3 -s -E {worker} --port=%(process_num)d
process_name = %(program_name)s_%(process_num)d
numprocs = {count}
numprocs_start = {first}
autostart = true
autorestart = true
startsecs = {start_seconds}
startretries = 3
stopsignal = TERM
stopwaitsecs = 10
redirect_stderr = true
stdout_logfile = {shown}/log/web_%(process_num)d.out
environment = APP_DIR="{app_dir}",WORKER_HOST="{host}",WORKER_BACKLOG="{backlog}",IMPORT_SECONDS="{import_seconds}",COLD_SECONDS="{cold_seconds}",WORKER_MEMORY="{memory}"
"#
    );
    let spares = options.spares.as_ref().map(|spares| spare_text(&program, spares)).unwrap_or_default();
    format!("{}{program}{spares}", Supervisor::head(dir))
}

/// The same program once more, on other ports, and not started; both in one group.
fn spare_text(text: &str, spares: &RangeInclusive<u16>) -> String {
    let (_, program) = text.split_once("[program:web]\n").unwrap_or_default();
    let line = |line: &str| match line.split_once(" = ").map_or(line, |(key, _)| key) {
        "process_name" => "process_name = web_%(process_num)d".to_owned(),
        "numprocs" => format!("numprocs = {}", spares.clone().count()),
        "numprocs_start" => format!("numprocs_start = {}", spares.start()),
        "autostart" => "autostart = false".to_owned(),
        _ => line.to_owned(),
    };
    let program: Vec<_> = program.lines().map(line).collect();
    format!("[program:spare]\n{}\n[group:web]\nprograms = web,spare\n", program.join("\n"))
}
