//! Users and groups, from `/etc/passwd` and `/etc/group`: workers run under local accounts.

use std::{collections::BTreeMap, fmt, fs, io};

use serde::{Deserialize, Serialize};

/// Whose a process is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// All its groups.
    pub(crate) groups: Vec<u32>,
}

/// A user, for the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) home: String,
    uid: u32,
    gid: u32,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {}, group {}", self.uid, self.gid)
    }
}

/// The accounts of this machine.
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    pub(crate) fn read() -> io::Result<Self> {
        let read = |path: &str| {
            fs::read(path)
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
        };
        Ok(Self { passwd: read("/etc/passwd")?, group: read("/etc/group")? })
    }

    /// By name or number. A number needs no entry.
    pub(crate) fn user(&self, wanted: &str) -> Option<User> {
        let number: Option<u32> = wanted.parse().ok();
        let users = self.passwd.lines().filter_map(User::parse);
        let mut users = users.filter(|user| user.name == wanted || Some(user.uid) == number);
        users.next().or_else(|| {
            let uid = number?;
            Some(User { name: wanted.to_owned(), home: "/".to_owned(), uid, gid: uid })
        })
    }

    /// The user with this name or number, or the one that this process runs as.
    ///
    /// # Errors
    /// There is no such user.
    pub(crate) fn user_or_own(&self, wanted: Option<&str>) -> io::Result<User> {
        let own = || rustix::process::geteuid().as_raw().to_string();
        let name = wanted.map_or_else(own, str::to_owned);
        let none = || io::Error::new(io::ErrorKind::NotFound, format!("there is no user `{name}` in /etc/passwd"));
        self.user(&name).ok_or_else(none)
    }

    fn gid(&self, wanted: &str) -> Option<u32> {
        let entry = self.groups().find(|(name, ..)| *name == wanted).map(|(_, gid, _)| gid);
        entry.or_else(|| wanted.parse().ok())
    }

    /// What a process of this user is, in this group if one is given.
    pub(crate) fn identity(&self, user: &User, group: Option<&str>) -> Result<Identity, String> {
        let gid = match group {
            Some(group) => self.gid(group).ok_or_else(|| format!("there is no group `{group}` in /etc/group"))?,
            None => user.gid,
        };
        let mut groups = vec![gid];
        let others = self.groups().filter(|(.., members)| members.split(',').any(|member| member == user.name));
        groups.extend(others.map(|(_, gid, _)| gid));
        groups.sort_unstable();
        groups.dedup();
        Ok(Identity { uid: user.uid, gid, groups })
    }

    /// Name, number, members.
    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            Some((name, gid, fields.next().unwrap_or_default()))
        })
    }
}

/// Where programs are found; the daemon's own `PATH` depends on what started it.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl User {
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    /// What every process of this user finds in its environment.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        let all = [("PATH", PATH), ("HOME", &self.home), ("USER", &self.name), ("LOGNAME", &self.name)];
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<_> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
        let home = if home.is_empty() { "/" } else { home };
        Some(Self { name: name.to_owned(), home: home.to_owned(), uid: uid.parse().ok()?, gid: gid.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nbroken\nwww:x:33:34::/var/www:/bin/false\nbad:x:no:1::/:\n"
                .to_owned(),
            group: "root:x:0:\nwww:x:34:\nlogs:x:40:root,www\nbroken\nssl:x:41:www\nother:x:42:awww\n".to_owned(),
        }
    }

    #[test]
    fn a_user_s_groups_are_all_taken() {
        let accounts = accounts();
        let user = accounts.user("www").unwrap();
        assert_eq!((user.name.as_str(), user.home.as_str()), ("www", "/var/www"));
        let identity = |group| accounts.identity(&user, group);
        assert_eq!(identity(None), Ok(Identity { uid: 33, gid: 34, groups: vec![34, 40, 41] }));
        assert_eq!(identity(Some("root")), Ok(Identity { uid: 33, gid: 0, groups: vec![0, 40, 41] }));
        assert_eq!(identity(Some("77")).unwrap().gid, 77);
        assert!(identity(Some("nobody-has-it")).unwrap_err().contains("`nobody-has-it` in /etc/group"));
    }

    #[test]
    fn a_number_needs_no_entry() {
        let accounts = accounts();
        assert_eq!(accounts.user("33").unwrap().name, "www");
        let user = accounts.user("1234").unwrap();
        assert_eq!(accounts.identity(&user, None), Ok(Identity { uid: 1234, gid: 1234, groups: vec![1234] }));
        assert_eq!(accounts.user("bad"), None);
        assert_eq!(accounts.user("nobody-has-it"), None);
    }
}
