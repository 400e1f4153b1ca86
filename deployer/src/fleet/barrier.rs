//! Barriers of others, as Kazoo has them (`kazoo.recipe.barrier`): a host waits until a plain one is taken away, or enters
//! and leaves a double one together with others, whatever program they are.
//!
//! Nothing here gives up by itself: connections come back. Who waits no longer drops what waits, and calls
//! [`DoubleBarrier::withdraw`].

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::api::DoubleBarrier as DoubleBarrierAt;

use super::coordinator::{Coordinator, Kind, Link, Op, Trouble, Watch, Why};

/// What a watch does not tell of is seen after this time at the latest.
const LOOK: Duration = Duration::from_secs(2);
/// Between two attempts without a connection.
const PAUSE: Duration = Duration::from_millis(200);
/// Bytes of a path at most.
const PATH_MOST: usize = 1024;
/// Parties of a double barrier at most.
const MOST: u32 = 100_000;
/// The node by which all of a double barrier's parties know that all are there.
const READY: &str = "ready";

/// The barriers that a roll or a deploy is to wait for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The path of a plain one.
    #[serde(default)]
    pub plain: Option<String>,
    /// A double one.
    #[serde(default)]
    pub double: Option<DoubleBarrierAt>,
}

impl Wanted {
    /// None.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether there can be such barriers. Nodes of a double one are made with the daemon's credentials, and so below `root`
    /// alone, if there is one.
    ///
    /// # Errors
    /// Why not, and what to write.
    pub fn check(&self, root: Option<&str>) -> Result<(), String> {
        let paths = self.plain.iter().chain(self.double.as_ref().map(|at| &at.path));
        for path in paths {
            let parts = || path.split('/').skip(1);
            let is_illegal = path.contains(char::is_control) || path.len() > PATH_MOST;
            if !path.starts_with('/') || parts().any(|part| ["", ".", ".."].contains(&part)) || is_illegal {
                return Err(format!(
                    "{path:?} is no path of a barrier; write it from the root of ZooKeeper: /release/monday"
                ));
            }
        }
        match (&self.double, root) {
            (Some(at), Some(root)) if !is_below(&at.path, root) => Err(format!(
                "the double barrier {:?} is not below {root}, the only place where this daemon makes nodes for its clients; \
                 write {root}/NAME, or set barrier_root of [fleet] and restart the daemon",
                at.path
            )),
            (Some(at), _) if !(1..=MOST).contains(&at.parties) => {
                Err(format!("{} parties of {}: write 1 to {MOST}, this host among them", at.parties, at.path))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a path without `.` and `..` is below another.
fn is_below(path: &str, root: &str) -> bool {
    path.strip_prefix(root).and_then(|rest| rest.strip_prefix('/')).is_some_and(|rest| !rest.is_empty())
}

/// Waits until a plain barrier is open: its node is not there.
///
/// # Errors
/// When it cannot be read, and never will: no right to it, or no path. In words.
pub async fn open(fleet: &dyn Coordinator, path: &str) -> Result<(), String> {
    let mut watch = fleet.watch(path, false);
    loop {
        match fleet.get(path).await {
            Ok(None) => return Ok(()),
            Ok(Some(_)) => news(&mut watch).await,
            Err(trouble) => bear(trouble, path).await?,
        }
    }
}

/// What is to be done next.
enum Next {
    /// It is through.
    Done,
    /// Look again at once.
    Again,
    /// Wait for a change.
    Wait,
}

/// This host's part in a double barrier.
pub struct DoubleBarrier {
    fleet: Arc<dyn Coordinator>,
    at: DoubleBarrierAt,
    /// Written into the node, for people, and to know it again.
    who: String,
    /// The node's name, and the session in which it was made.
    node: Option<(String, u64)>,
}

/// What is known of the node `ready` while others are waited for.
#[derive(Default)]
struct Ready {
    /// How often it had been made before this host entered.
    before: Option<u64>,
    /// It was not there when this host had entered: one that was is left over by parties that died in the barrier.
    was_absent: bool,
}

impl DoubleBarrier {
    /// Not entered yet; `who` is of this party alone: Kazoo writes host and process.
    #[must_use]
    pub fn new(fleet: Arc<dyn Coordinator>, at: DoubleBarrierAt, who: String) -> Self {
        Self { fleet, at, who, node: None }
    }

    /// Enters, and waits until all parties have.
    ///
    /// # Errors
    /// When that will never be: no right to it, or no path. In words.
    pub async fn enter(&mut self) -> Result<(), String> {
        let mut sign = self.fleet.watch(&self.below(READY), false);
        let mut all = self.fleet.watch(&self.at.path, true);
        let mut ready = Ready::default();
        loop {
            match self.look_around(&sign, &mut ready).await {
                Ok(Next::Done) => return Ok(()),
                Ok(Next::Again) => {}
                Ok(Next::Wait) => tokio::select! {
                    () = sign.changed() => {}
                    () = all.changed() => {}
                    () = tokio::time::sleep(LOOK) => {}
                },
                Err(trouble) => bear(trouble, &self.at.path).await?,
            }
        }
    }

    /// Whether all are there.
    async fn look_around(&mut self, sign: &Watch, ready: &mut Ready) -> Result<Next, Trouble> {
        // Not before it would be heard of: whoever enters last may leave at once, and takes it away again.
        let Some(made) = sign.made() else { return Ok(Next::Wait) };
        let before = *ready.before.get_or_insert(made);
        let link = *self.fleet.link().borrow();
        let own = self.stand(link).await?;
        let (parties, is_ready) = self.parties().await?;
        if !parties.contains(&own) {
            // It has gone with its session, just now.
            self.node = None;
            return Ok(Next::Again);
        }
        if parties.len() >= self.at.parties as usize {
            self.fleet.ensure(&self.below(READY)).await?;
            return Ok(Next::Done);
        }
        if made > before || (is_ready && ready.was_absent) {
            return Ok(Next::Done);
        }
        ready.was_absent |= !is_ready;
        Ok(Next::Wait)
    }

    /// Sees to it that its node is there: after a lost session, a new one.
    async fn stand(&mut self, link: Link) -> Result<String, Trouble> {
        if let Some((former, _)) = self.node.clone().filter(|(_, session)| *session != link.session) {
            // Nobody is to be counted twice.
            self.remove(&former).await?;
            self.node = None;
        }
        let (name, is_new) = match &self.node {
            Some((name, _)) => (name.clone(), false),
            None => (hex()?, true),
        };
        if is_new {
            self.fleet.ensure(&self.at.path).await?;
            self.remove_former().await?;
            self.node = Some((name.clone(), link.session));
            let data = self.who.clone().into_bytes();
            let made =
                self.fleet.transact(vec![Op::Create { path: self.below(&name), data, kind: Kind::Ephemeral }]).await;
            match made {
                Ok(_) | Err(Trouble::Refused { why: Why::Exists, .. }) => {}
                Err(trouble) => {
                    // What is not known to be made is looked for by its name; what was not made gets a new one.
                    if !matches!(trouble, Trouble::Unknown(_)) {
                        self.node = None;
                    }
                    return Err(trouble);
                }
            }
        }
        Ok(name)
    }

    /// Takes away what a former daemon has left behind, whose session goes on for a while: nobody is to be counted twice.
    async fn remove_former(&self) -> Result<(), Trouble> {
        for name in self.parties().await?.0 {
            let is_own = |data: &[u8]| data == self.who.as_bytes();
            if self.fleet.get(&self.below(&name)).await?.is_some_and(|node| is_own(&node.data)) {
                self.remove(&name).await?;
            }
        }
        Ok(())
    }

    /// Leaves, and waits until all parties have.
    ///
    /// # Errors
    /// As [`Self::enter`].
    pub async fn leave(&mut self) -> Result<(), String> {
        let mut all = self.fleet.watch(&self.at.path, true);
        let (mut is_told, mut first) = (false, None);
        loop {
            let looked = async {
                if !is_told {
                    self.remove(READY).await?;
                    is_told = true;
                }
                self.look_back(&mut first).await
            };
            match looked.await {
                Ok(Next::Done) => break,
                Ok(Next::Again) => {}
                Ok(Next::Wait) => news(&mut all).await,
                Err(trouble) => bear(trouble, &self.at.path).await?,
            }
        }
        self.node = None;
        Ok(())
    }

    /// Whether all have left. The first by name waits for all others; the others leave, and wait for that one.
    async fn look_back(&self, first: &mut Option<String>) -> Result<Next, Trouble> {
        let Some((own, _)) = &self.node else { return Ok(Next::Done) };
        let (parties, _) = self.parties().await?;
        let is_in = parties.contains(own);
        if let Some(first) = first {
            if is_in {
                self.remove(own).await?;
            }
            return Ok(if parties.contains(first) { Next::Wait } else { Next::Done });
        }
        match parties.first() {
            Some(lowest) if is_in && lowest != own => {
                *first = Some(lowest.clone());
                Ok(Next::Again)
            }
            Some(_) if is_in && parties.len() > 1 => Ok(Next::Wait),
            Some(_) if is_in => self.remove(own).await.map(|()| Next::Done),
            // Its session was lost meanwhile: the others do not count on it any more.
            _ => Ok(Next::Done),
        }
    }

    /// Is no party any more, whatever the others do; as far as there is a connection. Without one, its session ends.
    pub async fn withdraw(&mut self) {
        if let Some((own, _)) = self.node.take()
            && let Err(trouble) = self.remove(&own).await
        {
            tracing::warn!(%trouble, path = self.at.path, "this host's node stays in the barrier until its session ends");
        }
    }

    /// The parties in order, and whether `ready` is there.
    async fn parties(&self) -> Result<(Vec<String>, bool), Trouble> {
        let mut names = self.fleet.children(&self.at.path).await?;
        let before = names.len();
        names.retain(|name| name != READY);
        let is_ready = names.len() < before;
        Ok((names, is_ready))
    }

    async fn remove(&self, name: &str) -> Result<(), Trouble> {
        match self.fleet.transact(vec![Op::Delete { path: self.below(name), version: None }]).await {
            Ok(_) | Err(Trouble::Refused { why: Why::Missing, .. }) => Ok(()),
            Err(trouble) => Err(trouble),
        }
    }

    fn below(&self, name: &str) -> String {
        format!("{}/{name}", self.at.path.trim_end_matches('/'))
    }
}

/// Waits until it tells, but not for long.
async fn news(watch: &mut Watch) {
    tokio::time::timeout(LOOK, watch.changed()).await.ok();
}

/// Waits a moment where it may get better.
async fn bear(trouble: Trouble, path: &str) -> Result<(), String> {
    match trouble {
        Trouble::Away(_) | Trouble::Unknown(_) => {
            tokio::time::sleep(PAUSE).await;
            Ok(())
        }
        // Somebody has taken the node above away meanwhile.
        Trouble::Refused { why: Why::Missing, .. } => {
            tokio::time::sleep(PAUSE).await;
            Ok(())
        }
        trouble => Err(format!("the barrier {path} cannot be used: {trouble}")),
    }
}

/// 32 hexadecimal digits that nobody else has.
fn hex() -> Result<String, Trouble> {
    let file = "/proc/sys/kernel/random/uuid";
    match fs::read_to_string(file) {
        Ok(text) => Ok(text.trim().replace('-', "")),
        Err(error) => Err(Trouble::Failed(format!("{file}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str) -> Result<(), String> {
        let double = Some(DoubleBarrierAt { path: path.to_owned(), parties: 2 });
        Wanted { plain: None, double }.check(Some("/release"))
    }

    #[test]
    fn a_double_barrier_is_below_its_root() {
        assert_eq!((check("/release/monday"), check("/release/a/b")), (Ok(()), Ok(())));
        for foreign in ["/release", "/releases/x", "/deployer/shop/hosts", "/zookeeper/config", "/x"] {
            let why = check(foreign).unwrap_err();
            assert!(why.contains("is not below /release, the only place where this daemon makes nodes"), "{why}");
        }
        for none in [
            "release/x",
            "/release/../x",
            "/release/./x",
            "/release//x",
            "/release/",
            "/",
            "",
            "/release/a\nb",
            "/release/a\0",
        ] {
            let why = check(none).unwrap_err();
            assert!(why.contains("is no path of a barrier"), "{none:?}: {why}");
        }
        assert!(check(&format!("/release/{}", "x".repeat(2000))).is_err());
        // One that is only read may be anywhere.
        assert_eq!(Wanted { plain: Some("/anywhere/else".to_owned()), double: None }.check(Some("/release")), Ok(()));
    }
}
