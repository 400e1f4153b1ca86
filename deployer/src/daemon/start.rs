//! How a daemon comes to be: over what an earlier one has left in the kernel and on the disk.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::{Context, Result};
use deployer_common::layout::MAX_WORKERS;
use tracing::info;

use super::{
    Daemon,
    fleet::Fleet,
    former::{Former, Resumed, Scene},
    server::{self, Bound},
};
use crate::{
    config::{self, Config},
    keepalive::Keepalive,
    kernel::{self, Attached, Attachment, Decisions, Events, Programs, Tables},
    metrics::{Figures, Ledger},
    report::{Meters, Source},
    roll::{
        record::unix_ms,
        world::{Host, World},
    },
    service::{self, blocking, registry::Registry, watch},
};

const LOOKING: &str = "looking for listening workers (sock_diag)";

/// What works with the tables.
struct Parts {
    tables: Arc<Tables>,
    registry: Arc<Registry>,
    world: Arc<dyn World>,
    meters: Arc<Meters>,
    ledger: Arc<Ledger>,
    keepalive: Arc<Keepalive>,
}

/// What holds on to the kernel.
type Held = (Attachment, Programs, Decisions);

/// Attaches, and takes over what is there. The socket is given its name by the caller, who then answers on it.
pub(super) async fn start(config: Config) -> Result<(Arc<Daemon>, Bound, Events)> {
    // A state directory that is another's, or a later deployer's, is not to be worked with.
    let former = Former::open(&config)?;
    let attachment = kernel::attachment(config.kernel.callers.as_deref(), config.kernel.workers.as_deref())?;
    // Before anything is attached: a second daemon must not even begin.
    let socket = server::bind(&config.daemon)?;
    let Attached { programs, tables, events, decisions } = Programs::attach(&attachment, &config.kernel.pins)?;
    let parts = parts(&config, &former, Arc::new(tables)).await?;
    let resumed = take_up(&config, &former, &parts.registry, &parts.tables, &parts.world).await?;
    info!(callers = %attachment.callers.display(), services = config.services.len(), "attached");
    let fleet = Fleet::open(&config)?;
    let daemon = Arc::new(assemble(config, former, parts, (attachment, programs, decisions), fleet));
    daemon.go_on(resumed);
    Ok((daemon, socket, events))
}

async fn parts(config: &Config, former: &Former, tables: Arc<Tables>) -> Result<Parts> {
    let root = kernel::cgroup::root().context("looking for the cgroup v2 root")?;
    let registry = Arc::new(Registry::new(Arc::clone(&tables), root)?);
    registry.remember(former.flips());
    let meters = Arc::new(Meters::new(Arc::clone(&tables) as Arc<dyn Source>, former.shelf.clone()));
    let keepalive = Arc::new(blocking(|| Ok(Keepalive::load())).await?);
    let ledger = Arc::new(ledger(config, former, &tables, &keepalive));
    let world: Arc<dyn World> = Arc::new(Host {
        tables: Arc::clone(&tables),
        meters: Arc::clone(&meters),
        ledger: Arc::clone(&ledger),
        keepalive: Arc::clone(&keepalive),
    });
    Ok(Parts { tables, registry, world, meters, ledger, keepalive })
}

fn assemble(
    config: Config,
    former: Former,
    parts: Parts,
    (attachment, programs, decisions): Held,
    fleet: Fleet,
) -> Daemon {
    let Parts { tables, registry, world, meters, ledger, keepalive } = parts;
    Daemon {
        tables,
        registry,
        world,
        meters,
        ledger,
        keepalive,
        journal: former.journal,
        fleet: Arc::new(fleet),
        boot: former.boot,
        shelf: former.shelf,
        history: former.history,
        warnings: former.warnings,
        attachment,
        config: config.into(),
        programs: Some(programs).into(),
        decisions: Arc::new(decisions.into()),
        lost: Default::default(),
        links_lost: Default::default(),
        unserved: Default::default(),
        losses: Default::default(),
        refused_binds: Default::default(),
        begun_ms: unix_ms(),
        holds: Default::default(),
        watched: Default::default(),
        self_test: Default::default(),
        reloads: Default::default(),
        rolls: Default::default(),
        gate: Default::default(),
        told: Default::default(),
        closing: false.into(),
        health: Default::default(),
    }
}

/// What is counted by version; no worker has been entered yet.
fn ledger(config: &Config, former: &Former, tables: &Arc<Tables>, keepalive: &Arc<Keepalive>) -> Ledger {
    let (tables, keepalive) = (Arc::clone(tables), Arc::clone(keepalive));
    let read = move |place, at| Figures::read(&tables, place, keepalive.closed(at));
    Ledger::open(Box::new(read), MAX_WORKERS, &config.daemon.state, &former.boot)
}

/// What an earlier daemon has left steers on. Other services are published last, when it is known which workers serve.
async fn take_up(
    config: &Config,
    former: &Former,
    registry: &Registry,
    tables: &Tables,
    world: &Arc<dyn World>,
) -> Result<Resumed> {
    former.history.started(env!("CARGO_PKG_VERSION"), std::process::id());
    registry.keep_callers(config, |service| former.has_same_callers(service));
    let inherited = registry.inherited(config);
    registry.apply(&observing(config, &inherited))?;
    watch::take_over(registry, tables, &inherited).await.context(LOOKING)?;
    watch::adopt(registry, tables, &inherited).await.context(LOOKING)?;
    former.bypass(registry, tables, &inherited);
    let (lease, on_start) = (config.kernel.lease, config.daemon.on_start);
    let scene = Scene { services: &registry.services(), world, lease, on_start };
    let resumed = former.settle(&scene).await.context(LOOKING)?;
    registry.apply(config)?;
    service::adopt(&registry.services()).await;
    if former.rebooted {
        registry.services().into_values().for_each(|service| drop(tokio::spawn(service::boot::raise(service))));
    }
    if !inherited.is_empty() {
        info!(services = ?inherited, "taken over from the daemon before, steering all the while");
    }
    Ok(resumed)
}

/// The same configuration, in which services that are not `known` decide nothing yet: their workers are entered as down
/// until the sockets have been looked at.
pub(super) fn observing(config: &Config, known: &BTreeSet<String>) -> Config {
    let mut config = config.clone();
    for (_, service) in config.services.iter_mut().filter(|(name, _)| !known.contains(*name)) {
        service.mode = config::Mode::Observe;
    }
    config
}
