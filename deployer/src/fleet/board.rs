//! What is read and written of a fleet in its coordinator, in the fleet's own words.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    coordinator::{Coordinator, Kind, Op, Trouble, Why},
    driver::{Said, Seen},
    paths::{Mark, Paths},
    sound,
    state::{FORMAT, FleetState, Phase},
};

/// Epochs whose marks are kept.
const KEPT: u64 = 4;

/// A fleet's nodes.
#[derive(Clone)]
pub struct Board {
    /// Where they are kept.
    pub coordinator: Arc<dyn Coordinator>,
    /// Where they are there.
    pub paths: Paths,
}

/// A host in the roster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// `enabled`, or `drained`: it is not expected of anything, and in no server set.
    pub state: String,
    /// Who said so.
    pub by: String,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
}

/// What a driver has read before: what hosts have said does not change.
#[derive(Debug, Default)]
pub struct Known {
    epoch: u64,
    said: BTreeMap<(Mark, String), Said>,
}

fn read<T: DeserializeOwned>(path: &str, data: &[u8]) -> Result<T, Trouble> {
    serde_json::from_slice(data).map_err(|error| {
        Trouble::Failed(format!("what {path} holds is not understood ({error}); a later deployer may have written it"))
    })
}

fn text(value: &impl Serialize) -> Vec<u8> {
    // Plain data of strings and numbers.
    serde_json::to_vec(value).unwrap_or_default()
}

fn create(path: String, data: Vec<u8>, kind: Kind) -> Op {
    Op::Create { path, data, kind }
}

impl Board {
    /// A service's state, and the version of its node; `None`: nothing was ever ordered.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub async fn state(&self, service: &str) -> Result<Option<(FleetState, i32)>, Trouble> {
        let path = self.paths.state(service);
        match self.coordinator.get(&path).await? {
            Some(node) => {
                let state: FleetState = read(&path, &node.data)?;
                if state.format > FORMAT {
                    let later = state.format;
                    return Err(Trouble::Failed(format!(
                        "{path} has format {later}, of a later deployer; this one knows {FORMAT}: upgrade it"
                    )));
                }
                sound::state(&state).map_err(|why| Trouble::Failed(format!("{path} {why}")))?;
                Ok(Some((state, node.version)))
            }
            None => Ok(None),
        }
    }

    /// What a host has said for good of an epoch.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub async fn said(&self, service: &str, epoch: u64, host: &str) -> Result<BTreeSet<Mark>, Trouble> {
        let mut said = BTreeSet::new();
        for mark in Mark::ALL.into_iter().filter(|mark| *mark != Mark::Ready) {
            let path = format!("{}/{host}", self.paths.marks(service, epoch, mark));
            if self.coordinator.get(&path).await?.is_some() {
                said.insert(mark);
            }
        }
        Ok(said)
    }

    /// Says something of an epoch, once.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub async fn say(&self, service: &str, epoch: u64, mark: Mark, host: &str, said: &Said) -> Result<(), Trouble> {
        let above = self.paths.marks(service, epoch, mark);
        let path = format!("{above}/{host}");
        let kind = if mark == Mark::Ready { Kind::Ephemeral } else { Kind::Persistent };
        let make = create(path.clone(), text(said), kind);
        match self.coordinator.transact(vec![make.clone()]).await {
            Err(Trouble::Refused { why: Why::Missing, .. }) => {
                self.coordinator.ensure(&above).await?;
                self.coordinator.transact(vec![make]).await.map(drop)
            }
            // A former session's, which would go with it.
            Err(Trouble::Refused { why: Why::Exists, .. }) if kind == Kind::Ephemeral => {
                self.coordinator.transact(vec![Op::Delete { path, version: None }, make]).await.map(drop)
            }
            Err(Trouble::Refused { why: Why::Exists, .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Confirms that a host flips, if the state is still the one that was read.
    ///
    /// # Errors
    /// See [`Trouble`]; [`Trouble::Refused`]: the state has changed.
    pub async fn confirm(&self, service: &str, epoch: u64, host: &str, version: i32) -> Result<(), Trouble> {
        let path = format!("{}/{host}", self.paths.marks(service, epoch, Mark::Confirmed));
        let check = Op::Check { path: self.paths.state(service), version };
        self.coordinator.transact(vec![check, create(path, b"{}".to_vec(), Kind::Persistent)]).await.map(drop)
    }

    /// The roster.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub async fn roster(&self) -> Result<BTreeMap<String, Enrolled>, Trouble> {
        let above = self.paths.roster();
        let mut roster = BTreeMap::new();
        for host in self.coordinator.children(&above).await? {
            let path = format!("{above}/{host}");
            let Some(node) = self.coordinator.get(&path).await? else { continue };
            match read(&path, &node.data) {
                Ok(enrolled) => drop(roster.insert(host, enrolled)),
                // It does not stand in the way of the others.
                Err(trouble) => tracing::warn!(%trouble, host, "the roster"),
            }
        }
        Ok(roster)
    }

    /// What is seen of a service's epoch; the roster only if it is asked for.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub async fn seen(&self, service: &str, state: &FleetState, known: &mut Known) -> Result<Seen, Trouble> {
        if known.epoch != state.epoch {
            *known = Known { epoch: state.epoch, said: BTreeMap::new() };
        }
        let mut seen = Seen {
            alive: self.coordinator.children(&self.paths.hosts()).await?.into_iter().collect(),
            ..Seen::default()
        };
        for mark in Mark::ALL {
            let above = self.paths.marks(service, state.epoch, mark);
            let mut who = BTreeMap::new();
            let hosts = self.coordinator.children(&above).await?;
            // Who is ready in another session may say otherwise.
            known.said.retain(|(of, host), _| *of != mark || super::state::contains(&hosts, host));
            for host in hosts {
                let said = self.what(mark, &above, &host, known).await?;
                who.insert(host, said);
            }
            seen.marks.insert(mark, who);
        }
        let waits = matches!(state.phase, Phase::Prepare | Phase::Roll);
        if let Some(barrier) = state.order.barrier.as_ref().filter(|_| waits) {
            // One that cannot be read is as good as held, and does not stand in the way of an abort.
            seen.barrier_held = match self.coordinator.get(barrier).await {
                Ok(node) => node.is_some(),
                Err(Trouble::Failed(_)) => true,
                Err(trouble) => return Err(trouble),
            };
        }
        Ok(seen)
    }

    async fn what(&self, mark: Mark, above: &str, host: &str, known: &mut Known) -> Result<Said, Trouble> {
        let key = (mark, host.to_owned());
        // Of the rest it counts that it is there.
        let has_more = matches!(mark, Mark::Ready | Mark::Failed | Mark::Rolled | Mark::Flipped);
        if let Some(said) = known.said.get(&key) {
            return Ok(said.clone());
        }
        let mut said = Said::default();
        if has_more && let Some(node) = self.coordinator.get(&format!("{above}/{host}")).await? {
            // What makes no sense says nothing: of a clock, too.
            said = read(&format!("{above}/{host}"), &node.data).unwrap_or_default();
        }
        known.said.insert(key, said.clone());
        Ok(said)
    }

    /// Writes a new state, by whoever holds this driver's node, and says so in the log.
    ///
    /// # Errors
    /// See [`Trouble`]; [`Trouble::Refused`]: somebody else has changed it, or drives.
    pub async fn change(
        &self,
        service: &str,
        driver: &str,
        version: Option<i32>,
        next: &FleetState,
        said: &str,
        more: Vec<Op>,
    ) -> Result<(), Trouble> {
        let path = self.paths.state(service);
        let data = text(next);
        let mut ops = vec![Op::Check { path: driver.to_owned(), version: 0 }];
        ops.push(match version {
            Some(version) => Op::Set { path, data, version },
            None => create(path, data, Kind::Persistent),
        });
        let line = format!("epoch {} {:?}: {said}", next.epoch, next.phase).into_bytes();
        ops.push(create(format!("{}/e-", self.paths.log(service)), line, Kind::Sequential));
        ops.extend(more);
        self.coordinator.transact(ops).await.map(drop)
    }

    /// Writes what somebody wants into the state.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub async fn ask(&self, service: &str, version: i32, next: &FleetState) -> Result<(), Trouble> {
        let path = self.paths.state(service);
        self.coordinator.transact(vec![Op::Set { path, data: text(next), version }]).await.map(drop)
    }

    /// Makes what a service's orders need: nodes in which hosts say things.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub async fn lay_out(&self, service: &str, epoch: u64) -> Result<(), Trouble> {
        for path in [self.paths.driver(service), self.paths.log(service), self.paths.roster(), self.paths.hosts()] {
            self.coordinator.ensure(&path).await?;
        }
        for mark in Mark::ALL {
            self.coordinator.ensure(&self.paths.marks(service, epoch, mark)).await?;
        }
        Ok(())
    }

    /// Takes away what hosts have said of old epochs, and old lines of the log.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub async fn tidy(&self, service: &str, epoch: u64) -> Result<(), Trouble> {
        let above = self.paths.epochs(service);
        let oldest = epoch.saturating_sub(KEPT);
        for name in self.coordinator.children(&above).await? {
            if name.parse::<u64>().is_ok_and(|of| of < oldest) {
                self.remove(&format!("{above}/{name}")).await?;
            }
        }
        let log = self.paths.log(service);
        let lines = self.coordinator.children(&log).await?;
        for line in lines.iter().rev().skip(200) {
            self.remove(&format!("{log}/{line}")).await?;
        }
        Ok(())
    }

    /// Takes a node away with all below it.
    async fn remove(&self, path: &str) -> Result<(), Trouble> {
        let mut open = vec![path.to_owned()];
        while let Some(path) = open.last().cloned() {
            let below = self.coordinator.children(&path).await?;
            if !below.is_empty() {
                open.extend(below.into_iter().map(|name| format!("{path}/{name}")));
                continue;
            }
            match self.coordinator.transact(vec![Op::Delete { path, version: None }]).await {
                Ok(_) | Err(Trouble::Refused { .. }) => drop(open.pop()),
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(())
    }

    /// Who drives a service, the first in line first: the names of their nodes.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub async fn drivers(&self, service: &str) -> Result<Vec<String>, Trouble> {
        self.coordinator.children(&self.paths.driver(service)).await
    }

    /// Gets in line to drive a service; the path of the node that says so.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub async fn get_in_line(&self, service: &str, host: &str) -> Result<String, Trouble> {
        let above = self.paths.driver(service);
        self.coordinator.ensure(&above).await?;
        let made = create(format!("{above}/d-"), host.as_bytes().to_vec(), Kind::EphemeralSequential);
        let made = self.coordinator.transact(vec![made]).await?;
        made.into_iter().next().ok_or_else(|| Trouble::Unknown("getting in line".to_owned()))
    }

    /// Takes a node away, if it is there.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub async fn take_away(&self, path: &str) -> Result<(), Trouble> {
        match self.coordinator.transact(vec![Op::Delete { path: path.to_owned(), version: None }]).await {
            Ok(_) | Err(Trouble::Refused { .. }) => Ok(()),
            Err(trouble) => Err(trouble),
        }
    }

    /// Writes a persistent node, whatever it held.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub async fn put(&self, path: &str, value: &impl Serialize) -> Result<(), Trouble> {
        let data = text(value);
        if let Some(node) = self.coordinator.get(path).await? {
            let set = Op::Set { path: path.to_owned(), data, version: node.version };
            return self.coordinator.transact(vec![set]).await.map(drop);
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.coordinator.ensure(above).await?;
        }
        self.coordinator.transact(vec![create(path.to_owned(), data, Kind::Persistent)]).await.map(drop)
    }

    /// Writes an ephemeral node of this session; one of a former session of the same owner is taken over.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub async fn hold(&self, path: &str, value: &impl Serialize) -> Result<(), Trouble> {
        let (path, kind) = (path.to_owned(), Kind::Ephemeral);
        let make = create(path.clone(), text(value), kind);
        match self.coordinator.transact(vec![make.clone()]).await {
            Err(Trouble::Refused { why: Why::Exists, .. }) => {
                self.coordinator.transact(vec![Op::Delete { path, version: None }, make]).await.map(drop)
            }
            Err(Trouble::Refused { why: Why::Missing, .. }) => {
                if let Some((above, _)) = path.rsplit_once('/') {
                    self.coordinator.ensure(above).await?;
                }
                self.coordinator.transact(vec![make]).await.map(drop)
            }
            other => other.map(drop),
        }
    }
}
