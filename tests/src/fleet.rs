//! Hosts that are a fleet: each a network namespace with its own daemon, workers and nginx, on a bridge with ZooKeeper and
//! with a Varnish that takes them in turn.

pub mod flips;
mod front;
mod host;
pub mod kazoo;
mod network;
pub mod orders;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

pub use self::front::{FRONT, Front};
pub use self::host::{Host, address};
pub use self::network::{HUB, Hub};
use crate::app::App;
use crate::browser::{Browsers, BrowsersHandle, Seen};
use crate::daemon::Daemon;
use crate::journal::Journal;
use crate::sandbox::{Place, Sandbox};
use crate::site;
use crate::zookeeper::{PORT, Spot, ZooKeeper};

/// The fleet's name.
pub const NAME: &str = "shop";
/// Below which all fleets are.
const ROOT: &str = "/deployer";

/// What a fleet is like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Hosts, 1-9.
    pub hosts: u8,
    /// Workers of each pool.
    pub workers: u16,
    /// How long both pools stand side by side, as `8s`: longer than pages live, and caches have copies of them.
    pub bake: &'static str,
    /// More keys of `deploy`, as `, gate = [..]`.
    pub deploy: String,
    /// Nodes of ZooKeeper: 0 (none), 1 or 3.
    pub zookeepers: u16,
    /// Whether the daemons know of each other. Otherwise each is alone.
    pub is_fleet: bool,
    /// More lines of `[fleet]`.
    pub more: &'static str,
    /// Whether each host's gate waits while there is a file `hold` in its directory; see [`Fleet::hold`].
    pub is_gated: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            hosts: 5,
            workers: 2,
            bake: "8s",
            deploy: String::new(),
            zookeepers: 1,
            is_fleet: true,
            more: "session_timeout = \"2s\"",
            is_gated: false,
        }
    }
}

impl Plan {
    /// Hosts that do not know of each other, without ZooKeeper.
    #[must_use]
    pub fn alone() -> Self {
        Self { zookeepers: 0, is_fleet: false, ..Self::default() }
    }

    /// A host's configuration.
    #[must_use]
    pub fn text(&self, sandbox: &Sandbox, app: &App, name: &str, published: SocketAddr) -> String {
        let extra = if self.is_fleet {
            let (connect, more) = (self.connect(), self.more);
            format!(
                "publish = \"{published}\"\n\n[fleet]\nconnect = \"{connect}{ROOT}\"\nname = \"{NAME}\"\n\
                 host = \"{name}\"\n{more}\n"
            )
        } else {
            String::new()
        };
        let gate = if self.is_gated {
            let hold = sandbox.dir().join("hold");
            let waits = format!("while test -e {}; do sleep 0.1; done", hold.display());
            format!(", gate = [\"/bin/sh\", \"-c\", {waits:?}], within = \"100s\"")
        } else {
            String::new()
        };
        let plan = site::Plan {
            workers: self.workers,
            bake: self.bake,
            deploy: format!("{}{gate}", self.deploy),
            extra,
            ..site::Plan::default()
        };
        plan.text(sandbox, app)
    }

    /// ZooKeeper's nodes, as clients want them.
    #[must_use]
    pub fn connect(&self) -> String {
        let nodes: Vec<_> = self.nodes().iter().map(SocketAddr::to_string).collect();
        nodes.join(",")
    }

    fn nodes(&self) -> Vec<SocketAddr> {
        (0..self.zookeepers).map(|nth| SocketAddr::from((HUB, PORT + nth))).collect()
    }
}

/// All of it. Gone when dropped.
pub struct Fleet {
    /// What it is like.
    pub plan: Plan,
    /// Varnish, and where the browsers are.
    pub front: Front,
    /// Host 1 is the first.
    pub hosts: Vec<Host>,
    /// Its nodes; `None`: there are to be none.
    pub zookeeper: Option<ZooKeeper<'static>>,
    /// Last: the others' cables end here.
    pub hub: Hub,
}

impl Fleet {
    /// Starts everything; each host's workers are up, and Varnish takes all hosts in turn.
    pub fn start(plan: Plan) -> Result<Self> {
        let mut fleet = Self::dark(plan)?;
        fleet.start_hosts()?;
        fleet.start_front()?;
        Ok(fleet)
    }

    /// A fleet whose hosts have all joined it, and whose Varnish follows its server sets.
    pub fn joined(plan: Plan) -> Result<Self> {
        let mut fleet = Self::start(plan)?;
        fleet.wait_joined()?;
        fleet.follow()?;
        Ok(fleet)
    }

    /// Only ZooKeeper runs; see [`Self::start_hosts`] and [`Self::start_front`].
    pub fn dark(plan: Plan) -> Result<Self> {
        ensure!((1..=9).contains(&plan.hosts), "{} hosts", plan.hosts);
        let hub = Hub::new("fleet_hub")?;
        let front = Front::new(&hub)?;
        let hosts = (1..=plan.hosts).map(|number| Host::new(&hub, &plan, number)).collect::<Result<_>>()?;
        let zookeeper = (plan.zookeepers > 0).then(|| ZooKeeper::start_at(spot(&hub.sandbox), &plan.nodes()));
        let zookeeper = zookeeper.transpose()?;
        Ok(Self { plan, front, hosts, zookeeper, hub })
    }

    /// Starts all hosts that are off, at once, and waits until their workers are up.
    pub fn start_hosts(&mut self) -> Result<()> {
        let workers = self.plan.workers;
        self.each_mut(|host| host.start().and_then(|()| host.wait_up(workers)))
    }

    /// Starts Varnish, which takes all hosts in turn.
    pub fn start_front(&mut self) -> Result<()> {
        let hosts: Vec<_> = self.hosts.iter().map(|host| (host.name.as_str(), host.published())).collect();
        let config = Daemon::config_of(&self.host(1).sandbox);
        self.front.start(&config, &hosts)
    }

    /// Has Varnish's hosts follow the server sets.
    pub fn follow(&mut self) -> Result<()> {
        let sets = format!("{}{ROOT}/{NAME}", self.plan.connect());
        self.front.follow(&sets)
    }

    /// One more host, off, and not known to Varnish unless by the server sets.
    pub fn add_host(&mut self) -> Result<&mut Host> {
        let number = self.hosts.len() as u8 + 1;
        ensure!(number <= 9, "no room for more hosts");
        self.hosts.push(Host::new(&self.hub, &self.plan, number)?);
        self.hosts.last_mut().context("a host")
    }

    /// A host by its number, from 1.
    pub fn host(&self, number: usize) -> &Host {
        &self.hosts[number - 1]
    }

    /// The same.
    pub fn host_mut(&mut self, number: usize) -> &mut Host {
        &mut self.hosts[number - 1]
    }

    /// ZooKeeper.
    pub fn zookeeper(&mut self) -> Result<&mut ZooKeeper<'static>> {
        self.zookeeper.as_mut().context("a fleet without ZooKeeper")
    }

    /// Does something on all hosts at once.
    pub fn each<T: Send>(&self, work: impl Fn(&Host) -> Result<T> + Sync) -> Result<Vec<T>> {
        let work = &work;
        thread::scope(|scope| {
            let threads: Vec<_> = self.hosts.iter().map(|host| scope.spawn(move || work(host))).collect();
            threads.into_iter().map(|thread| thread.join().map_err(|panic| anyhow!("{panic:?}"))?).collect()
        })
    }

    fn each_mut(&mut self, work: impl Fn(&mut Host) -> Result<()> + Sync) -> Result<()> {
        let work = &work;
        thread::scope(|scope| {
            let threads: Vec<_> = self.hosts.iter_mut().map(|host| scope.spawn(move || work(host))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|panic| anyhow!("{panic:?}"))?)
        })
    }

    /// Forty sessions in front of Varnish: some 130 requests a second.
    pub fn browse(&self, run: &str) -> Result<BrowsersHandle> {
        let browsers = Browsers {
            target: FRONT,
            sessions: 40,
            xhrs: 10,
            spread: Duration::from_secs(4),
            cache_seconds: 2,
            ..Browsers::new(run)
        };
        browsers.start(&self.front.sandbox)
    }

    /// What the workers of all hosts have written down.
    pub fn journal(&self) -> Result<Journal> {
        let mut all = Journal::default();
        for host in &self.hosts {
            let journal = Journal::read(&host.app.journal_dir())?;
            all.entries.extend(journal.entries);
            all.connections.extend(journal.connections);
        }
        Ok(all)
    }

    /// Nothing of a run has failed, no page has met two versions, and nothing was sent twice; but for what Varnish puts down
    /// to these hosts, which had failures of their own.
    pub fn judge(&self, run: &str, seen: &Seen, ill: &[&str]) -> Result<()> {
        // Whatever a backend's name is, its host's is in it.
        let is_ill = |name: &str| ill.iter().any(|host| name.contains(host));
        let theirs: usize = seen.blamed.iter().filter(|(name, _)| is_ill(name)).map(|(_, count)| count).sum();
        ensure!(seen.mixed == 0, "{seen}\n{}", self.log());
        ensure!(seen.failed == theirs, "{theirs} of {ill:?}, {:?} blamed: {seen}\n{}", seen.blamed, self.log());
        let journal = self.journal()?;
        // Varnish may try what a host has not answered once more.
        let doubled: Vec<_> = journal.doubled().into_iter().filter(|id| id.starts_with(&format!("{run}-"))).collect();
        let doubled = if ill.is_empty() { doubled } else { Vec::new() };
        ensure!(doubled.is_empty(), "{} sent twice: {:?}", doubled.len(), &doubled[..doubled.len().min(5)]);
        Ok(())
    }

    /// CPU time that everything has used so far.
    pub fn cpu_time(&self) -> Result<Duration> {
        let sandboxes = self.hosts.iter().map(|host| &host.sandbox).chain([&self.front.sandbox, &*self.hub.sandbox]);
        let of = |sandbox: &Sandbox| Place::ALL.iter().map(|place| sandbox.cpu_time(*place)).sum::<Result<Duration>>();
        sandboxes.map(of).sum()
    }

    /// What all daemons, and who follows them, have printed.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = self.front.log();
        for host in &self.hosts {
            let log = host.log();
            let lines: Vec<_> = log.lines().collect();
            write!(text, "\n== {}\n{}", host.name, lines[lines.len().saturating_sub(60)..].join("\n")).ok();
        }
        text
    }
}

fn spot(hub: &Arc<Sandbox>) -> Spot<'static> {
    let (runs_in, netns, dir) = (Arc::clone(hub), hub.netns_path().to_owned(), hub.dir().join("zookeeper"));
    Spot { command: Box::new(move |program| runs_in.command(Place::Outside, program)), netns, dir }
}
