//! Users by number and by name, for messages and for what is expected of a worker.

use std::fs;

const PASSWD: &str = "/etc/passwd";

/// A user's name, or the number where `/etc/passwd` has none.
#[must_use]
pub fn name(uid: u32) -> String {
    let passwd = fs::read(PASSWD).unwrap_or_default();
    name_in(&String::from_utf8_lossy(&passwd), uid).unwrap_or_else(|| uid.to_string())
}

/// A user's number, by name or number; `None`: `/etc/passwd` does not know the name (it may be another directory's).
#[must_use]
pub fn number(user: &str) -> Option<u32> {
    let passwd = fs::read(PASSWD).unwrap_or_default();
    number_in(&String::from_utf8_lossy(&passwd), user)
}

/// The entries: name, password, number.
fn entries(passwd: &str) -> impl Iterator<Item = (&str, u32)> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        Some((name, fields.nth(1)?.parse().ok()?))
    })
}

fn name_in(passwd: &str, uid: u32) -> Option<String> {
    entries(passwd).find(|(_, number)| *number == uid).map(|(name, _)| name.to_owned())
}

fn number_in(passwd: &str, user: &str) -> Option<u32> {
    let known = entries(passwd).find(|(name, _)| *name == user).map(|(_, number)| number);
    known.or_else(|| user.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_names_and_numbers() {
        let passwd = "root:x:0:0::/root:/bin/sh\nbroken\nbad:x:no:1::/:\n7:x:70:7::/:\n";
        assert_eq!(name_in(passwd, 0).as_deref(), Some("root"));
        assert_eq!(name_in(passwd, 33), None);
        assert_eq!([number_in(passwd, "root"), number_in(passwd, "33")], [Some(0), Some(33)]);
        assert_eq!([number_in(passwd, "7"), number_in(passwd, "nowhere")], [Some(70), None]);
        assert_eq!(name(4_000_000_000), "4000000000");
    }
}
