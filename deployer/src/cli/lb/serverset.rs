//! `deployer lb varnish SERVICE --from-serverset`: Varnish's backends from the set that a fleet's hosts publish, once, or
//! kept up to date.

mod follow;
mod vcl;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;

use self::vcl::Vcl;
use crate::{
    api::Exit,
    cli::{client::Failure, out},
    config,
    fleet::{
        board::Board,
        coordinator::Trouble,
        paths::Paths,
        serverset::{self, Set},
        zookeeper::{Acl, Settings, ZooKeeper},
    },
    roll::record::unix_ms,
};

/// How long a connection is waited for where nobody follows.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A follower has no nodes of its own that a session would keep.
const SESSION: Duration = Duration::from_secs(10);
/// So long an operator's word counts, milliseconds.
const ACCEPTED_MS: u64 = 10 * 60 * 1000;

/// Where backends come from, and go to.
#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Options {
    /// Varnish's backends are the hosts of this fleet that serve: zk1:2181,zk2:2181/deployer/FLEET
    #[arg(long, value_name = "SERVERS/PATH/FLEET", requires = "service")]
    pub(super) from_serverset: Option<config::Connect>,
    /// A file with one line user:password for ZooKeeper
    #[arg(long, value_name = "FILE", requires = "from_serverset")]
    digest: Option<PathBuf>,
    /// Write into this file, at once or not at all [default: standard output]
    #[arg(long, value_name = "FILE", requires = "from_serverset")]
    out: Option<PathBuf>,
    /// Keep it up to date, until it is ended
    #[arg(long, requires = "out")]
    follow: bool,
    /// Run this when the file has changed; words between blanks, no shell
    #[arg(long, value_name = "COMMAND", requires = "follow")]
    reload: Option<String>,
    /// Also where fewer than half of the hosts are left, or nobody
    #[arg(long, requires = "from_serverset")]
    force: bool,
}

/// A fleet's set, and what was made of it last.
struct Source<'a> {
    board: Board,
    service: &'a str,
    options: &'a Options,
    /// Hosts that have been in it, as far as the roster has them enabled.
    baseline: BTreeSet<String>,
}

/// What `deployer fleet accept-shrink` writes.
#[derive(Deserialize)]
struct Accepted {
    at_ms: u64,
}

pub(super) fn run(service: &str, connect: &config::Connect, options: &Options) -> Exit {
    crate::cli::block_on(async {
        let zookeeper = std::sync::Arc::new(ZooKeeper::start(settings(connect, options)?));
        let board = Board { coordinator: zookeeper, paths: Paths::new(&connect.path) };
        let former = options.out.as_deref().and_then(Vcl::read);
        let baseline = former.as_ref().map(|vcl| vcl.hosts.clone()).unwrap_or_default();
        let mut source = Source { board, service, options, baseline };
        if options.follow {
            return follow::run(&mut source, former).await;
        }
        let vcl = source.once().await?;
        match &options.out {
            None => out::say(&vcl.text),
            Some(file) => vcl.write(file).map(|()| Exit::Done).map_err(|why| Failure::new(Exit::Failed, why)),
        }
    })
}

fn settings(connect: &config::Connect, options: &Options) -> Result<Settings, Failure> {
    let secret = options.digest.as_deref().map(config::secret).transpose();
    let secret = secret.map_err(|why| Failure::new(Exit::Usage, why))?;
    Ok(Settings {
        servers: connect.servers.clone(),
        session_timeout: SESSION,
        digest: secret.map(|secret| format!("{}:{}", secret.user, secret.password)),
        acl: Acl::Anyone,
    })
}

impl Source<'_> {
    /// What Varnish is to be told now.
    async fn once(&mut self) -> Result<Vcl, Failure> {
        let mut link = self.board.coordinator.link();
        let connected = link.wait_for(|link| link.is_connected);
        // If it does not come, the read below says why.
        let _ = tokio::time::timeout(CONNECT_WITHIN, connected).await;
        let failed = |why: String| Failure::new(Exit::Failed, why);
        let set = self.read().await.map_err(|trouble| failed(trouble.to_string()))?;
        for bad in &set.bad {
            out::error(&format!("left out: {bad}"));
        }
        self.judge(&set).await.map_err(|trouble| failed(trouble.to_string()))?.map_err(failed)?;
        Ok(Vcl::of(self.service, &set, &self.baseline))
    }

    fn active(&self) -> String {
        self.board.paths.active_set(self.service)
    }

    fn shrink(&self) -> String {
        format!("{}/shrink", self.board.paths.service(self.service))
    }

    async fn read(&self) -> Result<Set, Trouble> {
        serverset::read(&*self.board.coordinator, &self.active()).await
    }

    /// Whether a set may be applied; it counts for the next one then. `Err` within: why not, and what to do.
    async fn judge(&mut self, set: &Set) -> Result<Result<(), String>, Trouble> {
        let (hosts, name) = (set.hosts(), self.service);
        let enabled = self.enabled().await?;
        let is_enabled = |host: &String| enabled.as_ref().is_none_or(|enabled| enabled.contains(host));
        self.baseline.retain(is_enabled);
        let is_accepted = self.options.force || self.is_accepted().await?;
        if let Err(why) = serverset::may_shrink(&self.baseline, &hosts, is_accepted) {
            return Ok(Err(format!(
                "the server set of {name} has shrunk, and is not applied: {why}; if that is right, deployer fleet \
                 accept-shrink {name} on any host of the fleet, or --force here"
            )));
        }
        if hosts.is_empty() && !self.options.force && !is_accepted {
            return Ok(Err(format!(
                "nobody is in the server set of {name} ({}): are the fleet and the service named as in its configuration, \
                 and does the service have `publish`? --force writes a text without backends",
                self.active()
            )));
        }
        if is_accepted {
            self.baseline.clear();
        }
        self.baseline.extend(hosts.into_iter().filter(is_enabled));
        Ok(Ok(()))
    }

    /// The hosts that the roster has enabled; `None`: there is no roster, so that nobody was taken out of it on purpose.
    async fn enabled(&self) -> Result<Option<BTreeSet<String>>, Trouble> {
        let roster = self.board.roster().await?;
        if roster.is_empty() {
            return Ok(None);
        }
        Ok(Some(roster.into_iter().filter(|(_, entry)| entry.state == "enabled").map(|(host, _)| host).collect()))
    }

    /// Whether an operator has said lately that the set is as it should be.
    async fn is_accepted(&self) -> Result<bool, Trouble> {
        let Some(node) = self.board.coordinator.get(&self.shrink()).await? else { return Ok(false) };
        let Ok(Accepted { at_ms }) = serde_json::from_slice(&node.data) else { return Ok(false) };
        // Clocks of hosts differ a little.
        Ok(unix_ms().abs_diff(at_ms) <= ACCEPTED_MS)
    }
}

/// The folder and the name of a file.
fn parts(file: &Path) -> Result<(&Path, &str), String> {
    let name =
        file.file_name().and_then(|name| name.to_str()).ok_or_else(|| format!("{} is no file", file.display()))?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((folder, name))
}
