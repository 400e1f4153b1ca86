//! A real connection through the hooks, which must land as the tables say.
//!
//! For the moment of a test a service stands in the tables that no configuration names: one worker that is up, and one
//! that is down and refuses. Both are listeners of the daemon's own, on addresses of 127.0.0.0/8 that it holds, so that no
//! real service and no real worker has any part in it. A child process is put among the callers and dials the service
//! address, at which no socket listens (its port is bound), and then the worker that is down: whatever the hooks do not do,
//! it meets something else than it must.
//!
//! Who is steered there is said by rules, as in a real service, made by the same code: once by the child's executable, and
//! once by its cgroup. A look-up that does not work on this host, or that gives what the kernel does not see, fails the test.

mod child;
mod place;
pub mod probe;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use deployer_common::{
    layout::{CallerRule, Frontend, MAX_CALLERS, MAX_MEMBERS, NO_WORKER, Slot},
    word::{LimitsWord, Mode, Policy, ServiceWord, State},
};
use socket2::{Domain, Socket, Type};
use tokio::{net::TcpListener, time::timeout};

use self::{
    child::{By, Prober},
    probe::{Dialled, Order},
};
use super::{blocking, registry::Registry};
use crate::{
    api::TestResult,
    kernel::{Tables, diag, host},
};

/// Where all of it is: not 127.0.0.1, which has other spellings and other users.
const IP: Ipv4Addr = Ipv4Addr::new(127, 83, 84, 1);
/// A connection that the caller has is in the accept queue.
const ACCEPT_WITHIN: Duration = Duration::from_secs(1);

/// One test: its result, and what is wrong in words.
pub async fn run(registry: &Registry, tables: &Arc<Tables>, callers: &Path) -> (TestResult, String) {
    // Not where the programs were attached: they went with it.
    if !callers.exists() {
        let gone = format!(
            "the callers' cgroup {} is gone, and the programs that were attached to it; make it again, or restart the \
             daemon with another",
            callers.display()
        );
        return (TestResult::Failed, gone);
    }
    match test(registry, tables, callers).await {
        Ok(None) => (TestResult::Ok, String::new()),
        Ok(Some(wrong)) => (TestResult::Failed, wrong),
        Err(error) => (TestResult::Untested, format!("{error:#}")),
    }
}

/// What is wrong; an error stands in the way of a test.
async fn test(registry: &Registry, tables: &Arc<Tables>, callers: &Path) -> Result<Option<String>> {
    for by in [By::Executable, By::Cgroup] {
        let wrong = test_by(by, registry, tables, callers).await?;
        if wrong.is_some() {
            return Ok(wrong);
        }
    }
    Ok(None)
}

/// The same, where the child is steered by one of its properties alone.
async fn test_by(by: By, registry: &Registry, tables: &Arc<Tables>, callers: &Path) -> Result<Option<String>> {
    let mut child = Prober::start(callers)?;
    let result = test_with(&mut child, by, registry, tables).await;
    child.end().await;
    result.map(|wrong| wrong.map(|wrong| wrong.told(by, callers)))
}

/// What is wrong.
enum Wrong {
    /// No rule can be made.
    Rule(String),
    /// A connection met what it should not have met.
    Met(String),
}

impl Wrong {
    fn told(self, by: By, callers: &Path) -> String {
        match self {
            Self::Rule(why) => format!("no rule of `callers` can be made for the self-test's own process: {why}"),
            Self::Met(what) => format!(
                "{what} (the self-test's caller is told by {by}); does another program overrule deployer's (`bpftool \
                 cgroup tree {}`), or a nat rule (`deployer check`)?",
                callers.display()
            ),
        }
    }
}

async fn test_with(child: &mut Prober, by: By, registry: &Registry, tables: &Arc<Tables>) -> Result<Option<Wrong>> {
    let (pid, root) = (child.pid, registry.cgroup_root().to_owned());
    let rules = match blocking(move || Ok(by.rules(pid, &root))).await? {
        Ok(Some(rules)) => rules,
        Ok(None) => return Ok(None),
        Err(why) => return Ok(Some(Wrong::Rule(why))),
    };
    let stage = Stage::set().context("binding addresses of 127.0.0.0/8 for the self-test")?;
    let lent = registry.lend().context("every place in the tables is taken; give a service or worker up")?;
    let entries = Entries { registry, tables, stage: &stage, lent };
    let result = match entries.enter(&rules).await {
        Ok(()) => ask(child, &stage).await,
        Err(error) => Err(error),
    };
    entries.leave().await?;
    Ok(result?.map(Wrong::Met))
}

/// The addresses.
struct Stage {
    up: TcpListener,
    down: TcpListener,
    /// Bound, and not listening.
    _held: Socket,
    address: SocketAddr,
    at: [SocketAddr; 2],
}

impl Stage {
    fn set() -> io::Result<Self> {
        let any = SocketAddr::from((IP, 0));
        let listen = || {
            let listener = std::net::TcpListener::bind(any)?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        let held = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        held.bind(&any.into())?;
        let address = held.local_addr()?.as_socket().ok_or_else(|| io::Error::other("no address"))?;
        let (up, down) = (listen()?, listen()?);
        let at = [up.local_addr()?, down.local_addr()?];
        Ok(Self { up, down, _held: held, address, at })
    }
}

/// What stands in the tables for the moment of a test.
struct Entries<'a> {
    registry: &'a Registry,
    tables: &'a Arc<Tables>,
    stage: &'a Stage,
    lent: (u32, [u32; 2]),
}

impl Entries<'_> {
    async fn enter(&self, rules: &[CallerRule]) -> Result<()> {
        let (service, workers) = self.lent;
        for (worker, at) in workers.into_iter().zip(self.stage.at) {
            self.tables.set_seed(worker, 0);
            self.tables.counts().forget_listeners(worker);
            self.tables.write_worker(worker, service, at)?;
        }
        self.tables.publish(workers[0], State::Up, 0);
        self.tables.publish(workers[1], State::Down, 0);
        let mut slot = Slot {
            len: [2, 0],
            callers_len: rules.len().min(MAX_CALLERS) as u16,
            previewers_len: 0,
            callers: [CallerRule { kind: 0, place: 0, id: 0 }; MAX_CALLERS],
            members: [0; MAX_MEMBERS],
        };
        slot.callers.iter_mut().zip(rules).for_each(|(place, rule)| *place = *rule);
        slot.members[..2].copy_from_slice(&workers.map(|worker| worker as u16));
        self.tables.write_slot(2 * service, &slot)?;
        self.tables.set_limits(service, LimitsWord::new(0, 0));
        self.tables.publish_service(service, ServiceWord::new(Mode::Enforce, Policy::Refuse, (2 * service) as u16));
        self.tables
            .insert_frontend(self.stage.address, Frontend { service: service as u16, pool: 0, worker: NO_WORKER })?;
        self.tables.insert_frontend(self.stage.at[1], Frontend { service: service as u16, pool: 0, worker: workers[1] })
    }

    /// Takes all of it out again.
    async fn leave(self) -> Result<()> {
        let (service, workers) = self.lent;
        self.tables.publish_service(service, ServiceWord(0));
        self.stage.at.iter().chain([&self.stage.address]).for_each(|at| self.tables.forget(*at));
        // Without it the places stay taken, as a program may still read them.
        blocking(host::grace_period).await.context("waiting for an RCU grace period (membarrier)")?;
        workers.iter().for_each(|worker| {
            self.tables.publish(*worker, State::Absent, 0);
        });
        self.registry.take_back(self.lent);
        Ok(())
    }
}

/// Has the child dial, and looks where it came out.
async fn ask(child: &mut Prober, stage: &Stage) -> Result<Option<String>> {
    let seen = child.ask(&Order { steered: stage.address, refused: stage.at[1] }).await?;
    Ok(match steered(stage, &seen.steered).await {
        Some(wrong) => Some(wrong),
        None => refused(stage, &seen.refused),
    })
}

/// What is wrong with the connection that had to be steered.
async fn steered(stage: &Stage, seen: &Dialled) -> Option<String> {
    let (address, wanted) = (stage.address, stage.at[0]);
    let (local, peer) = match seen {
        Dialled::To { local, peer } => (*local, *peer),
        Dialled::Refused => {
            return Some(format!(
                "the connect hook did not run, or did not take the caller for one: a caller that dialled {address} was not \
                 steered to {wanted}"
            ));
        }
        Dialled::Failed(why) => {
            return Some(format!("a caller that dialled {address} was not steered to {wanted}: {why}"));
        }
    };
    let landed = async {
        while let Ok((_, from)) = stage.up.accept().await {
            if from == local {
                return;
            }
        }
    };
    if timeout(ACCEPT_WITHIN, landed).await.is_err() {
        let elsewhere = ends_at(local).await.map_or_else(|| "elsewhere".to_owned(), |at| format!("at {at}"));
        return Some(format!("a caller that dialled {address} landed {elsewhere} instead of at {wanted}"));
    }
    (peer != address).then(|| {
        format!("the getpeername hook did not run: a caller that dialled {address} is shown {peer} as its peer")
    })
}

/// Where a connection has landed: the other end's own address, which a firewall's rule keeps from the caller's socket;
/// else what the caller's socket says.
async fn ends_at(local: SocketAddr) -> Option<SocketAddr> {
    let all = blocking(|| diag::sockets(diag::states::ESTABLISHED, None)).await.ok()?;
    let there = all.iter().find(|socket| socket.peer == local).map(|socket| socket.local);
    there.or_else(|| all.iter().find(|socket| socket.local == local).map(|socket| socket.peer))
}

/// What is wrong with the connection that had to be refused.
fn refused(stage: &Stage, seen: &Dialled) -> Option<String> {
    let at = stage.down.local_addr().unwrap_or(stage.at[1]);
    match seen {
        Dialled::Refused => None,
        Dialled::To { .. } => Some(format!("a caller that dialled {at}, a worker that is down, was not refused")),
        Dialled::Failed(why) => {
            Some(format!("a caller that dialled {at}, a worker that is down, was not refused: {why}"))
        }
    }
}
