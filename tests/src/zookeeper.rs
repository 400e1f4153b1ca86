//! Debian's ZooKeeper: one server, or an ensemble, wherever a test wants it.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::pace::patient;
use crate::process::{Process, suspend};
use crate::sandbox::{Place, Sandbox, in_netns};

/// Where the first server of a sandbox listens; the others are at the next ports.
pub const PORT: u16 = 2181;
/// A server's figures answer within this time, or it does not serve.
const PROBE: Duration = Duration::from_millis(500);
/// A Java machine starts within this time.
const READY: Duration = Duration::from_secs(40);
/// What the servers are run with: fast to start, and small.
const JAVA: &[&str] = &[
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-Xmx128m",
    "-Dzookeeper.jmx.log4j.disable=true",
    "-cp",
    "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-simple.jar",
    "org.apache.zookeeper.server.quorum.QuorumPeerMain",
];

/// Where the servers of an ensemble run.
pub struct Spot<'a> {
    /// Makes a command that runs a program there, whose process is that program's own.
    pub command: Box<dyn Fn(&str) -> Command + Send + Sync + 'a>,
    /// The file that names the network namespace.
    pub netns: PathBuf,
    /// For their files; made if it is not there.
    pub dir: PathBuf,
}

impl<'a> Spot<'a> {
    /// A sandbox, outside of what is steered.
    pub fn of(sandbox: &'a Sandbox) -> Self {
        Self {
            command: Box::new(|program| sandbox.command(Place::Outside, program)),
            netns: sandbox.netns_path().to_owned(),
            dir: sandbox.dir().join("zookeeper"),
        }
    }
}

/// One server.
#[derive(Debug)]
struct Server {
    address: SocketAddr,
    config: PathBuf,
    log: PathBuf,
    process: Option<Process>,
}

/// Running servers, killed when dropped.
pub struct ZooKeeper<'a> {
    spot: Spot<'a>,
    servers: Vec<Server>,
}

impl<'a> ZooKeeper<'a> {
    /// One server, or an ensemble of three, on a sandbox's loopback from [`PORT`] on; ready.
    pub fn start(sandbox: &'a Sandbox, servers: u16) -> Result<Self> {
        let addresses: Vec<_> = (0..servers).map(|nth| SocketAddr::from(([127, 0, 0, 1], PORT + nth))).collect();
        Self::start_at(Spot::of(sandbox), &addresses)
    }

    /// The same at these addresses; if there are several, their ports + 1000 and + 2000 are used among them.
    pub fn start_at(spot: Spot<'a>, addresses: &[SocketAddr]) -> Result<Self> {
        ensure!(!addresses.is_empty(), "a ZooKeeper without servers");
        fs::create_dir_all(&spot.dir).context("make ZooKeeper's directory")?;
        let servers = (0..addresses.len()).map(|nth| prepare(&spot.dir, addresses, nth)).collect::<Result<_>>()?;
        let mut ensemble = Self { spot, servers };
        for nth in 0..addresses.len() {
            ensemble.launch(nth)?;
        }
        ensemble.wait_ready()?;
        Ok(ensemble)
    }

    /// All addresses, as clients want them: `a:1,b:2`.
    pub fn connect(&self) -> String {
        let addresses: Vec<_> = self.servers.iter().map(|server| server.address.to_string()).collect();
        addresses.join(",")
    }

    /// How many servers there are, running or not.
    pub fn count(&self) -> usize {
        self.servers.len()
    }

    /// A server's address.
    pub fn address(&self, nth: usize) -> SocketAddr {
        self.servers[nth].address
    }

    /// What a server says of itself; `None`: it does not serve.
    pub fn figures(&self, nth: usize) -> Option<String> {
        let address = self.servers[nth].address;
        let answer = in_netns(&self.spot.netns, || ask(address, "srvr")).ok()?;
        answer.ok().filter(|text| text.contains("Mode:"))
    }

    /// Which server leads; of a single one, that one.
    pub fn leader(&self) -> Result<usize> {
        let deadline = Instant::now() + patient(READY);
        loop {
            let leads = |nth: &usize| {
                self.figures(*nth)
                    .is_some_and(|text| text.contains("Mode: leader") || text.contains("Mode: standalone"))
            };
            match (0..self.servers.len()).find(leads) {
                Some(nth) => return Ok(nth),
                None if Instant::now() >= deadline => bail!("no server leads:\n{}", self.logs()),
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Waits until all that run serve.
    pub fn wait_ready(&mut self) -> Result<()> {
        for nth in 0..self.servers.len() {
            let (netns, address) = (self.spot.netns.clone(), self.servers[nth].address);
            if let Some(process) = &mut self.servers[nth].process {
                process.wait_ready(READY, || {
                    let answer = in_netns(&netns, || ask(address, "srvr"));
                    matches!(answer, Ok(Ok(text)) if text.contains("Mode:"))
                })?;
            }
        }
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self, nth: usize) -> Result<()> {
        match self.servers[nth].process.take() {
            Some(mut process) => process.stop(Duration::from_secs(10)).map(drop),
            None => Ok(()),
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self, nth: usize) -> Result<()> {
        match self.servers[nth].process.take() {
            Some(mut process) => process.kill().map(drop),
            None => Ok(()),
        }
    }

    /// SIGKILL to all.
    pub fn kill_all(&mut self) -> Result<()> {
        (0..self.servers.len()).try_for_each(|nth| self.kill(nth))
    }

    /// Starts a server that was stopped or killed, with the data that it had; see [`Self::wait_ready`].
    pub fn launch(&mut self, nth: usize) -> Result<()> {
        let server = &mut self.servers[nth];
        ensure!(server.process.is_none(), "server {nth} of ZooKeeper runs already");
        let mut command = (self.spot.command)("java");
        command.args(JAVA).arg(&server.config);
        server.process = Some(Process::start("ZooKeeper", command, &server.log)?);
        Ok(())
    }

    /// SIGSTOP: its connections stay, and nothing answers.
    pub fn suspend(&self, nth: usize) -> Result<()> {
        suspend(self.servers[nth].process.as_ref().context("it does not run")?.pid())
    }

    /// SIGCONT.
    pub fn resume(&mut self, nth: usize) -> Result<()> {
        self.servers[nth].process.as_mut().context("it does not run")?.signal(Signal::CONT)
    }

    /// The ends of the servers' logs.
    pub fn logs(&self) -> String {
        let logs = self.servers.iter().filter_map(|server| server.process.as_ref().map(Process::log_tail));
        logs.collect::<Vec<_>>().join("\n--\n")
    }
}

impl Drop for ZooKeeper<'_> {
    fn drop(&mut self) {
        // Not asked to end: one that is suspended would not.
        if let Err(error) = self.kill_all() {
            eprintln!("ZooKeeper: {error:#}");
        }
    }
}

/// Writes down a server's configuration.
fn prepare(dir: &Path, addresses: &[SocketAddr], nth: usize) -> Result<Server> {
    let data = dir.join(format!("data{nth}"));
    fs::create_dir_all(&data).with_context(|| format!("make {}", data.display()))?;
    let address = addresses[nth];
    let mut text = format!(
        "tickTime=500\nminSessionTimeout=500\nmaxSessionTimeout=60000\ninitLimit=20\nsyncLimit=10\ndataDir={}\n\
         clientPort={}\nclientPortAddress={}\nadmin.enableServer=false\nmaxClientCnxns=0\n\
         4lw.commands.whitelist=ruok,srvr,mntr\n",
        data.display(),
        address.port(),
        address.ip(),
    );
    if addresses.len() > 1 {
        fs::write(data.join("myid"), (nth + 1).to_string()).context("write myid")?;
        for (other, at) in addresses.iter().enumerate() {
            let (ip, port) = (at.ip(), at.port());
            text.push_str(&format!("server.{}={ip}:{}:{}\n", other + 1, port + 1000, port + 2000));
        }
    }
    let config = dir.join(format!("zoo{nth}.cfg"));
    fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
    Ok(Server { address, config, log: dir.join(format!("server{nth}.log")), process: None })
}

/// Sends one of the commands of four letters, and returns the answer.
fn ask(address: SocketAddr, command: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PROBE)?;
    stream.set_read_timeout(Some(PROBE))?;
    stream.write_all(command.as_bytes())?;
    stream.shutdown(Shutdown::Write).ok();
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
