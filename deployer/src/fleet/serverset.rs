//! Server sets: who serves, in the format of Finagle and twitter.common, for whoever reads it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::coordinator::{Coordinator, Kind, Op, Trouble, Why};

/// Begins the name of every member; ten digits follow.
pub const PREFIX: &str = "member_";
/// Longer than any JSON of a member that somebody means.
const LONGEST: usize = 64 * 1024;
/// A name in the DNS is at most that long.
const LONGEST_HOST: usize = 253;
/// Members may name other ports than their first, within reason.
const MOST_ENDPOINTS: usize = 64;

/// An address as it is dialled.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// A name of the DNS, or an address: letters, digits, `.`, `-`, `_`, `:`.
    pub host: String,
    /// 1 to 65535.
    pub port: u16,
}

/// What a member says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Status {
    /// It has ended.
    Dead,
    /// It does not serve yet.
    Starting,
    /// It serves.
    #[default]
    Alive,
    /// It serves what it has begun.
    Stopping,
    /// It has stopped.
    Stopped,
    /// It serves, and has trouble.
    Warning,
    /// Nobody knows.
    Unknown,
}

/// A member of a server set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Where it serves.
    pub endpoint: Endpoint,
    /// Where else, by name.
    pub additional: BTreeMap<String, Endpoint>,
    /// How it is.
    pub status: Status,
    /// Which part it serves, if there are several.
    pub shard: Option<i32>,
    /// All else. Of ours: `version`, `lane`, `epoch`, `host`, `fleet`.
    pub metadata: BTreeMap<String, String>,
}

/// A server set, read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set {
    /// Its members, by their nodes' names.
    pub members: BTreeMap<String, Member>,
    /// Nodes that are no members, and why, in words.
    pub bad: Vec<String>,
}

const STATUSES: [(&str, Status); 7] = [
    ("DEAD", Status::Dead),
    ("STARTING", Status::Starting),
    ("ALIVE", Status::Alive),
    ("STOPPING", Status::Stopping),
    ("STOPPED", Status::Stopped),
    ("WARNING", Status::Warning),
    ("UNKNOWN", Status::Unknown),
];

impl Member {
    /// One that serves at this address; it says so for `http`, too.
    #[must_use]
    pub fn serving(endpoint: Endpoint, metadata: BTreeMap<String, String>) -> Self {
        let additional = BTreeMap::from([("http".to_owned(), endpoint.clone())]);
        Self { endpoint, additional, status: Status::Alive, shard: None, metadata }
    }

    /// The host's name in the fleet, or else where it serves.
    #[must_use]
    pub fn host(&self) -> &str {
        self.metadata.get("host").map_or(&self.endpoint.host, String::as_str)
    }

    /// The JSON that others read.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let endpoint = |at: &Endpoint| json!({ "host": at.host, "port": at.port });
        let status = STATUSES.iter().find(|(_, status)| *status == self.status).map_or("UNKNOWN", |(name, _)| name);
        let additional: Map<_, _> = self.additional.iter().map(|(name, at)| (name.clone(), endpoint(at))).collect();
        let mut all = json!({
            "serviceEndpoint": endpoint(&self.endpoint),
            "additionalEndpoints": additional,
            "status": status,
        });
        if let Some(shard) = self.shard {
            all["shard"] = shard.into();
        }
        if !self.metadata.is_empty() {
            all["metadata"] = json!(self.metadata);
        }
        all.to_string().into_bytes()
    }

    /// Reads what anybody may have written: what is not known is left out, what is missing is as usual.
    ///
    /// # Errors
    /// When there is no address in it that can be dialled; in words.
    pub fn parse(data: &[u8]) -> Result<Self, String> {
        if data.len() > LONGEST {
            return Err(format!("{} bytes are no member of a server set", data.len()));
        }
        let all: Value = serde_json::from_slice(data).map_err(|error| format!("no JSON: {error}"))?;
        let first = all.get("serviceEndpoint").ok_or("no serviceEndpoint")?;
        let endpoint = endpoint(first).map_err(|why| format!("serviceEndpoint: {why}"))?;
        let none = Map::new();
        let more = all.get("additionalEndpoints").and_then(Value::as_object).unwrap_or(&none);
        let more = more.iter().take(MOST_ENDPOINTS);
        let additional = more.filter_map(|(name, at)| Some((name.clone(), self::endpoint(at).ok()?))).collect();
        let status = match all.get("status") {
            None => Status::Alive,
            Some(status) => status.as_str().and_then(named).unwrap_or(Status::Unknown),
        };
        let shard = all.get("shard").and_then(Value::as_i64).and_then(|shard| i32::try_from(shard).ok());
        let metadata = all.get("metadata").and_then(Value::as_object).unwrap_or(&none);
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let metadata = metadata.iter().map(|(key, value)| (key.clone(), text(value))).collect();
        Ok(Self { endpoint, additional, status, shard, metadata })
    }
}

impl Set {
    /// Those that serve.
    pub fn alive(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| matches!(member.status, Status::Alive | Status::Warning))
    }

    /// The names of the hosts that serve.
    #[must_use]
    pub fn hosts(&self) -> BTreeSet<String> {
        self.alive().map(|member| member.host().to_owned()).collect()
    }
}

fn named(name: &str) -> Option<Status> {
    STATUSES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, status)| *status)
}

fn endpoint(value: &Value) -> Result<Endpoint, String> {
    let host = value.get("host").and_then(Value::as_str).ok_or("no host")?;
    // It comes into configurations of others as it is.
    let legal = |char: char| char.is_ascii_alphanumeric() || "._-:".contains(char);
    if host.is_empty() || host.len() > LONGEST_HOST || host.starts_with('-') || !host.chars().all(legal) {
        return Err("host is no name and no address".to_owned());
    }
    let port = value.get("port").ok_or("no port")?;
    let number = port.as_u64().or_else(|| port.as_str()?.parse().ok());
    match number.map(u16::try_from) {
        Some(Ok(port @ 1..)) => Ok(Endpoint { host: host.to_owned(), port }),
        _ => Err("port is no number from 1 to 65535".to_owned()),
    }
}

/// Reads a set; one that is not there is empty.
///
/// # Errors
/// As the coordinator's.
pub async fn read(fleet: &dyn Coordinator, set: &str) -> Result<Set, Trouble> {
    let mut found = Set::default();
    for name in fleet.children(set).await?.into_iter().filter(|name| name.starts_with(PREFIX)) {
        // It may have gone meanwhile.
        let Some(node) = fleet.get(&format!("{set}/{name}")).await? else { continue };
        match Member::parse(&node.data) {
            Ok(member) => drop(found.members.insert(name, member)),
            Err(why) => found.bad.push(format!("{set}/{name}: {why}")),
        }
    }
    Ok(found)
}

/// Enters a member into a set, in place of the one at `known`, or else of all that have the same host in their metadata: a
/// daemon that was restarted has left one behind. Readers know members by their nodes, so each change is a new node.
/// Returns its path.
///
/// # Errors
/// As the coordinator's; with [`Trouble::Unknown`], `known` is to be forgotten before it is tried again.
pub async fn publish(
    fleet: &dyn Coordinator,
    set: &str,
    member: &Member,
    known: Option<&str>,
) -> Result<String, Trouble> {
    let create =
        || Op::Create { path: format!("{set}/{PREFIX}"), data: member.to_json(), kind: Kind::EphemeralSequential };
    let delete = |path: String| Op::Delete { path, version: None };
    if let Some(known) = known {
        match fleet.transact(vec![create(), delete(known.to_owned())]).await {
            Err(Trouble::Refused { why: Why::Missing, .. }) => {}
            answer => return made(answer?),
        }
    }
    fleet.ensure(set).await?;
    let mut steps = vec![create()];
    steps.extend(of_host(fleet, set, member.host()).await?.into_iter().map(delete));
    made(fleet.transact(steps).await?)
}

fn made(paths: Vec<String>) -> Result<String, Trouble> {
    paths.into_iter().next().ok_or_else(|| Trouble::Unknown("nobody said what was made".to_owned()))
}

/// Takes all members of a host out of a set.
///
/// # Errors
/// As the coordinator's.
pub async fn withdraw(fleet: &dyn Coordinator, set: &str, host: &str) -> Result<(), Trouble> {
    for path in of_host(fleet, set, host).await? {
        match fleet.transact(vec![Op::Delete { path, version: None }]).await {
            Ok(_) | Err(Trouble::Refused { why: Why::Missing, .. }) => {}
            Err(trouble) => return Err(trouble),
        }
    }
    Ok(())
}

/// The paths of a host's members.
async fn of_host(fleet: &dyn Coordinator, set: &str, host: &str) -> Result<Vec<String>, Trouble> {
    let found = read(fleet, set).await?.members.into_iter();
    Ok(found.filter(|(_, member)| member.host() == host).map(|(name, _)| format!("{set}/{name}")).collect())
}

/// Whether a set may become that small: never less than half of its baseline, and never nothing, unless an operator has
/// accepted that. The baseline holds only hosts that the roster has enabled: who is drained or forgotten leaves without a
/// word.
///
/// # Errors
/// Why not, in words.
pub fn may_shrink(baseline: &BTreeSet<String>, wanted: &BTreeSet<String>, accepted: bool) -> Result<(), String> {
    let (were, are) = (baseline.len(), wanted.len());
    if accepted || were == 0 || (are > 0 && are * 2 >= were) {
        return Ok(());
    }
    let missing: Vec<_> = baseline.difference(wanted).map(String::as_str).collect();
    let shown = missing.iter().take(8).copied().collect::<Vec<_>>().join(", ");
    let more = if missing.len() > 8 { format!(" and {} more", missing.len() - 8) } else { String::new() };
    let left = if are == 0 { "nobody".to_owned() } else { format!("only {are}") };
    Err(format!("{left} of {were} hosts would be left; missing: {shown}{more}"))
}

#[cfg(test)]
mod tests;
