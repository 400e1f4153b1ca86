//! The fleet that this host is a member of: `[fleet]`, and `publish` of a service.

use std::{
    fmt, io,
    net::IpAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    paths,
    raw::{Table, Value, quoted},
};
use crate::trust;

/// Where double barriers are, below the fleet, unless `barrier_root` says another place.
const BARRIERS: &str = "barriers";
/// Where everything of all fleets is, unless `connect` has a path.
const DEFAULT_PATH: &str = "/deployer";
/// A fleet of one host, which no other can join.
const LOCAL: &str = "local";
const SESSION_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_mins(2);
/// Longest name of a fleet or a host; that of a host's name in Linux is 64.
const LONGEST: usize = 64;
/// More than these are no user and password.
const LONGEST_SECRET: usize = 4096;

/// `[fleet]`: with whom this host flips together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fleet {
    /// ZooKeeper; `None`: this host is a fleet of its own, and nobody else is asked.
    pub connect: Option<Connect>,
    /// The fleet's name, 1-64 of letters, digits, `-` and `_`; `local` without `connect`.
    pub name: String,
    /// This host's name in it, 1-64 of letters, digits, `-`, `_` and `.`; default: the machine's host name.
    pub host: String,
    /// After so long without a connection the host is no longer in the fleet's sets; 500 ms to 2 min, default 10 s.
    pub session_timeout: Duration,
    /// A file with one line `user:password`, as whom it authenticates itself; see [`secret`].
    pub digest: Option<PathBuf>,
    /// Who may read and write what it makes. Default [`Acl::Anyone`].
    pub acl: Acl,
    /// It puts itself into the roster when it is not in it; default true.
    pub enrol: bool,
    /// Below which double barriers of clients may be; see [`Fleet::barrier_root`].
    pub barrier_root: Option<String>,
}

/// A connect string of ZooKeeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// `zk1:2181,zk2:2181`, each with its port.
    pub servers: String,
    /// Below which all fleets are, absolute, not `/`; default `/deployer`.
    pub path: String,
}

/// Who may read and write nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acl {
    /// Whoever reaches ZooKeeper.
    Anyone,
    /// Who has the digest.
    Creator,
    /// Who has the digest writes, anybody reads.
    CreatorAndReaders,
}

/// As whom ZooKeeper's digest scheme knows somebody.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// Without a colon.
    pub user: String,
    /// Not empty.
    pub password: String,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("user", &self.user).field("password", &"***").finish()
    }
}

impl fmt::Display for Connect {
    /// As it is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.servers, self.path)
    }
}

impl Fleet {
    /// What holds without `[fleet]`: this host alone.
    #[must_use]
    pub fn local() -> Self {
        Self {
            connect: None,
            name: LOCAL.to_owned(),
            host: machine(),
            session_timeout: Duration::from_secs(10),
            digest: None,
            acl: Acl::Anyone,
            enrol: true,
            barrier_root: None,
        }
    }

    /// Below which the daemon makes nodes for its clients' double barriers: as configured, else `barriers` below the fleet's
    /// own path. `None`: this host is alone.
    #[must_use]
    pub fn barrier_root(&self) -> Option<String> {
        let connect = self.connect.as_ref()?;
        Some(self.barrier_root.clone().unwrap_or_else(|| format!("{}/{}/{BARRIERS}", connect.path, self.name)))
    }
}

impl std::str::FromStr for Connect {
    type Err = String;

    /// `zk1:2181,zk2:2181/deployer`; the error goes on after the quoted text.
    fn from_str(text: &str) -> Result<Self, String> {
        let (servers, path) = text.find('/').map_or((text, DEFAULT_PATH), |at| text.split_at(at));
        let mut seen: Vec<&str> = Vec::new();
        for server in servers.split(',') {
            self::server(server)?;
            if seen.contains(&server) {
                return Err(format!("names {} twice; write each server once", quoted(server)));
            }
            seen.push(server);
        }
        self::path(path)?;
        Ok(Self { servers: servers.to_owned(), path: path.to_owned() })
    }
}

/// `[fleet]`.
pub(super) fn fleet(value: &Value<'_>) -> Option<Fleet> {
    let mut table = value.table()?;
    let example = "connect = \"zk1:2181,zk2:2181,zk3:2181/deployer\"";
    let connect = table.need("connect", example, |value| {
        let text = value.word()?;
        text.parse().map_or_else(|why| value.refuse(format!("{} {why}", quoted(text))), Some)
    });
    let name = table.need("name", "name = \"shop\"", |value| named(value, "fleet", "-_"));
    let host = host(&mut table);
    let timeout = table.or("session_timeout", Duration::from_secs(10), |value| value.duration(SESSION_TIMEOUT));
    let has_digest = table.has("digest");
    let digest = table.maybe("digest", digest);
    let acl = table.or("acl", Acl::Anyone, |value| acl(value, has_digest));
    let enrol = table.or("enrol", true, Value::boolean);
    let fleets = connect.as_ref().zip(name.as_deref());
    let barrier_root = table.maybe("barrier_root", |value| barrier_root(value, fleets));
    table.done();
    Some(Fleet {
        connect: Some(connect?),
        name: name?,
        host: host?,
        session_timeout: timeout?,
        digest: digest?,
        acl: acl?,
        enrol: enrol?,
        barrier_root: barrier_root?,
    })
}

/// A path at which no client could write into what fleets keep: there it would be taken for a host, or a state.
fn barrier_root(value: &Value<'_>, fleets: Option<(&Connect, &str)>) -> Option<String> {
    let text = value.word()?;
    let whole =
        text.strip_prefix('/').ok_or_else(|| "is no path from the root of ZooKeeper; write /release".to_owned());
    if let Err(why) = whole.and_then(|_| path(text)) {
        return value.refuse(format!("{} {why}", quoted(text)));
    }
    let is_within = |inner: &str, outer: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if let Some((connect, name)) = fleets {
        let (fleets, own) = (&connect.path, format!("{}/{name}/{BARRIERS}", connect.path));
        if !is_within(text, &own) && (is_within(text, fleets) || is_within(fleets, text)) {
            return value.refuse(format!(
                "{} is where fleets keep what they agree on; write a path beside {fleets}, /release, or one below {own}",
                quoted(text)
            ));
        }
    }
    Some(text.to_owned())
}

/// The machine's name is good where it is one of a host in a fleet.
fn host(table: &mut Table<'_>) -> Option<String> {
    let machine = machine();
    if !table.has("host") && !is_name(&machine, "-_.") {
        table.need("host", "host = \"app17\": the machine's own name is none", |_| None::<()>);
        return None;
    }
    table.or("host", machine, |value| named(value, "host", "-_."))
}

/// The host name of this machine.
fn machine() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// It becomes a part of a path in ZooKeeper, in which `.` and `..` are none.
fn is_name(text: &str, also: &str) -> bool {
    let legal = |char: char| char.is_ascii_alphanumeric() || also.contains(char);
    (1..=LONGEST).contains(&text.len())
        && text.starts_with(|char: char| char.is_ascii_alphanumeric())
        && text.chars().all(legal)
}

fn named(value: &Value<'_>, what: &str, also: &str) -> Option<String> {
    let text = value.text()?;
    if is_name(text, also) {
        return Some(text.to_owned());
    }
    let also = also.chars().map(|char| format!(", {char}")).collect::<String>();
    value.refuse(format!(
        "{} is no name of a {what}; write 1 to {LONGEST} of letters, digits{also}, beginning with a letter or digit",
        quoted(text)
    ))
}

fn acl(value: &Value<'_>, has_digest: bool) -> Option<Acl> {
    let choices = [("anyone", Acl::Anyone), ("creator", Acl::Creator), ("creator-and-readers", Acl::CreatorAndReaders)];
    let acl = value.choice(&choices)?;
    if acl != Acl::Anyone && !has_digest {
        return value.refuse(
            "needs somebody whom ZooKeeper knows; write digest = \"/etc/deployer/zookeeper.secret\", or acl = \"anyone\"",
        );
    }
    Some(acl)
}

/// Looked into at once: without it, nothing is done in ZooKeeper that an operator would see.
fn digest(value: &Value<'_>) -> Option<PathBuf> {
    let path = paths::absolute(value)?;
    match secret(&path) {
        Ok(_) => Some(path),
        Err(why) => value.refuse(why),
    }
}

/// Reads a file of one line `user:password`.
///
/// # Errors
/// When it cannot be read, others than its owner may read or write it, or it holds something else; in words, with what to do.
pub fn secret(path: &Path) -> Result<Secret, String> {
    let shown = path.display();
    let failed = |error: io::Error| {
        let make = format!("write `user:password` into it, and chmod 600 {shown}");
        format!("{shown} cannot be read: {error}; {make}")
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err(format!("{shown} is no file; write the path of one with a line `user:password`"));
    }
    trust::file(path, &about, true).map_err(|found| found.to_string())?;
    let mut text = String::new();
    let mut start = io::Read::take(file, LONGEST_SECRET as u64);
    io::Read::read_to_string(&mut start, &mut text).map_err(failed)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    match line.split_once(':') {
        Some((user, password)) if !user.is_empty() && !password.is_empty() && !line.contains(char::is_control) => {
            Ok(Secret { user: user.to_owned(), password: password.to_owned() })
        }
        // What is in it is not shown.
        _ => Err(format!("{shown} is not one line `user:password`; write that into it, and nothing else")),
    }
}

/// `HOST:PORT` or `[IPv6]:PORT`; the error goes on after the whole text.
fn server(text: &str) -> Result<(), String> {
    let wrong = || format!("has {}, which is no server; write HOST:PORT, zk1:2181, with commas between", quoted(text));
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(if is_host(text) { format!("has no port after {text}; write {text}:2181") } else { wrong() });
    };
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || !matches!(port.parse::<u16>(), Ok(1..)) {
        return Err(format!("has no port in {}; write 1 to 65535, {host}:2181", quoted(port)));
    }
    if is_host(host) { Ok(()) } else { Err(wrong()) }
}

/// A name, which is looked up at each connection, or an address.
fn is_host(text: &str) -> bool {
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return matches!(inner.parse(), Ok(IpAddr::V6(_)));
    }
    let legal = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_' | '.');
    text.starts_with(|char: char| char.is_ascii_alphanumeric()) && text.len() <= 253 && text.chars().all(legal)
}

/// A path in ZooKeeper of which no part is empty, `.` or `..`; the error goes on after the whole text.
fn path(text: &str) -> Result<(), String> {
    let parts = text.strip_prefix('/').unwrap_or(text);
    let legal = |part: &str| {
        let graphic = part.chars().all(|char| char.is_ascii_graphic() && char != ',');
        !part.is_empty() && part != "." && part != ".." && graphic
    };
    if parts.is_empty() || !parts.split('/').all(legal) {
        return Err(format!(
            "has {}, which is no path; write parts without blanks, {DEFAULT_PATH}, behind the last server",
            quoted(text)
        ));
    }
    if parts.split('/').next() == Some("zookeeper") {
        return Err(format!("is in /zookeeper, where ZooKeeper keeps its own; write {DEFAULT_PATH}"));
    }
    if text.len() > 512 {
        return Err("has a path that is too long; write at most 512 letters".to_owned());
    }
    Ok(())
}
