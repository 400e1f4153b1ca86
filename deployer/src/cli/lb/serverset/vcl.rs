//! The text for Varnish, and the file that holds it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use super::parts;
use crate::fleet::serverset::{Endpoint, Set};

/// Begins the line that names the hosts by which the next set is measured.
const MEASURE: &str = "# Measured against: ";

/// What Varnish is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vcl {
    pub(super) text: String,
    /// The hosts by which the next set is measured.
    pub(super) hosts: BTreeSet<String>,
}

impl Vcl {
    /// Of a set, in an order that does not depend on who was published first.
    pub(super) fn of(service: &str, set: &Set, baseline: &BTreeSet<String>) -> Self {
        let endpoints: BTreeSet<_> = set.alive().map(|member| &member.endpoint).collect();
        let word: String = service.chars().map(|char| if char.is_ascii_alphanumeric() { char } else { '_' }).collect();
        let hosts: BTreeSet<_> = baseline.iter().filter(|host| is_plain(host)).cloned().collect();
        let named: Vec<_> = hosts.iter().map(String::as_str).collect();
        let mut text = include_str!("../varnish-set-head.vcl").to_owned();
        text.push_str(&format!("{MEASURE}{}\n\n", named.join(" ")));
        let (backends, choice) = backends(&format!("s1_{word}"), &endpoints);
        text.push_str(&backends);
        text.push_str(&include_str!("../varnish-set.vcl").replace("{{choice}}", &choice));
        text.push_str(include_str!("../varnish-lanes-tail.vcl"));
        Self { text, hosts }
    }

    /// What a former follower has written; `None`: nothing that could be read.
    pub(super) fn read(file: &Path) -> Option<Self> {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(MEASURE)).unwrap_or_default();
        let hosts = line.split_whitespace().map(str::to_owned).collect();
        Some(Self { text, hosts })
    }

    /// Whether Varnish would do the same by both.
    pub(super) fn does_the_same(&self, other: &Self) -> bool {
        let told = |text: &str| -> Vec<String> {
            text.lines().filter(|line| !line.starts_with(MEASURE)).map(str::to_owned).collect()
        };
        told(&self.text) == told(&other.text)
    }

    /// Writes it beside the file, and has it take its place.
    pub(super) fn write(&self, file: &Path) -> Result<(), String> {
        let (folder, name) = parts(file)?;
        let beside = folder.join(format!(".{name}.new"));
        let write = || {
            let mut new = File::create(&beside)?;
            new.write_all(self.text.as_bytes())?;
            new.sync_all()?;
            fs::rename(&beside, file)?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|error: std::io::Error| {
            let _ = fs::remove_file(&beside);
            format!("{} cannot be written: {error}", file.display())
        })
    }
}

/// The backends with their director, and the statement that gives a request one of them.
fn backends(word: &str, endpoints: &BTreeSet<&Endpoint>) -> (String, String) {
    if endpoints.is_empty() {
        return ("backend default none;\n".to_owned(), "set req.backend_hint = default;".to_owned());
    }
    let mut text = String::new();
    for (nth, at) in endpoints.iter().enumerate() {
        let (host, port, nth) = (&at.host, at.port, nth + 1);
        text.push_str(&format!("backend {word}_{nth} {{\n  .host = \"{host}\";\n  .port = \"{port}\";\n}}\n"));
    }
    text.push_str(&format!("\nsub vcl_init {{\n  new {word} = directors.round_robin();\n"));
    for nth in 1..=endpoints.len() {
        text.push_str(&format!("  {word}.add_backend({word}_{nth});\n"));
    }
    text.push_str("}\n");
    (text, format!("set req.backend_hint = {word}.backend();"))
}

/// Whether it can stand in a comment: names in metadata are anybody's.
fn is_plain(host: &str) -> bool {
    !host.is_empty() && host.chars().all(|char| char.is_ascii_alphanumeric() || "._-:".contains(char))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::fleet::serverset::Member;

    fn set(members: &[(&str, u16, &str)]) -> Set {
        let of = |(host, port, name): &(&str, u16, &str)| {
            let metadata = BTreeMap::from([("host".to_owned(), (*name).to_owned())]);
            Member::serving(Endpoint { host: (*host).to_owned(), port: *port }, metadata)
        };
        let members = members.iter().enumerate();
        let members = members.map(|(nth, member)| (format!("member_{nth:010}"), of(member))).collect();
        Set { members, bad: Vec::new() }
    }

    #[test]
    fn the_order_of_publishing_changes_nothing() {
        let (one, two) = (("10.0.0.1", 8080, "app1"), ("10.0.0.2", 8080, "app2"));
        let both = set(&[one, two]);
        let vcl = Vcl::of("web-shop", &both, &both.hosts());
        assert_eq!(vcl, Vcl::of("web-shop", &set(&[two, one]), &both.hosts()));
        assert!(vcl.text.contains("  s1_web_shop.add_backend(s1_web_shop_2);\n}"), "{}", vcl.text);
        assert!(vcl.text.contains("# Measured against: app1 app2\n") && !vcl.text.contains("{{"), "{}", vcl.text);
        let less = Vcl::of("web-shop", &both, &set(&[one]).hosts());
        assert!(vcl != less && vcl.does_the_same(&less));
        assert!(!vcl.does_the_same(&Vcl::of("web-shop", &set(&[one]), &both.hosts())));
    }

    #[test]
    fn names_of_others_do_not_leave_their_line() {
        let odd = set(&[("10.0.0.1", 80, "a\nbackend evil {}"), ("10.0.0.2", 80, "b")]);
        let vcl = Vcl::of("web", &odd, &odd.hosts());
        assert!(!vcl.text.contains("evil") && vcl.hosts == BTreeSet::from(["b".to_owned()]), "{}", vcl.text);
    }

    #[test]
    fn what_was_written_is_measured_against() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.vcl");
        assert_eq!(Vcl::read(&file), None);
        let all = set(&[("10.0.0.1", 80, "app1"), ("10.0.0.2", 80, "app2")]);
        let vcl = Vcl::of("web", &all, &all.hosts());
        vcl.write(&file).unwrap();
        assert_eq!(Vcl::read(&file), Some(vcl.clone()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        assert!(vcl.write(Path::new("/nonexistent/web.vcl")).unwrap_err().contains("/nonexistent/web.vcl"));
    }

    #[test]
    fn nobody_is_no_backend() {
        let vcl = Vcl::of("web", &Set::default(), &BTreeSet::new());
        assert!(
            vcl.text.contains("backend default none;") && !vcl.text.contains("directors.round_robin"),
            "{}",
            vcl.text
        );
    }
}
