//! What is replaced in which key: the one list of placeholders, and the check of every text of the file against it.
//!
//! A text of a key that is not in [`KEYS`] must have no placeholder at all: it would be used as it is written, and a
//! directory named `{port}` is what no operator wants.

use std::net::SocketAddr;

use super::raw::{Table, Value};

/// Facts of a worker.
const WORKER: &[&str] = &["port", "address", "service"];
/// Facts of a worker of a service with two pools.
const POOL: &[&str] = &["port", "address", "service", "pool", "lane", "version"];
/// Facts of a roll.
const ROLL: &[&str] = &["version", "service"];
/// Facts of a deploy.
const DEPLOY: &[&str] = &["version", "service", "pool", "lane"];

/// What may be in the texts of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allowed {
    /// Used as it is written, whatever it holds.
    Anything,
    /// These are replaced, and no other word may stand in braces.
    Only(&'static [&'static str]),
    /// As [`WORKER`], and of a service with `deploy` as [`POOL`].
    OfItsPool,
    /// As [`WORKER`]; a placeholder of another key is refused, and every other word in braces left alone: bodies are JSON
    /// and GraphQL.
    Body,
}

/// Keys, `*` for a service's name and `[]` for an item of a list. The longest that a key begins with counts.
const KEYS: &[(&str, Allowed)] = &[
    ("service.*.manager.program", Allowed::Only(WORKER)),
    ("service.*.manager.unit", Allowed::Only(WORKER)),
    ("service.*.manager.username", Allowed::Anything),
    ("service.*.manager.password", Allowed::Anything),
    ("service.*.manager.command", Allowed::OfItsPool),
    ("service.*.manager.directory", Allowed::OfItsPool),
    ("service.*.manager.environment", Allowed::OfItsPool),
    ("service.*.manager.log", Allowed::Only(WORKER)),
    ("service.*.manager.start", Allowed::Only(WORKER)),
    ("service.*.manager.stop", Allowed::Only(WORKER)),
    ("service.*.manager.status", Allowed::Only(WORKER)),
    ("service.*.warm.requests", Allowed::Only(WORKER)),
    ("service.*.warm.requests.[].body", Allowed::Body),
    ("service.*.version.request", Allowed::Only(WORKER)),
    ("service.*.version.request.body", Allowed::Body),
    ("service.*.tls.server_name", Allowed::Only(WORKER)),
    ("service.*.roll.switch", Allowed::Only(ROLL)),
    ("service.*.roll.unswitch", Allowed::Only(ROLL)),
    ("service.*.deploy.prepare", Allowed::Only(DEPLOY)),
    // A request to each worker, or a command.
    ("service.*.deploy.gate", Allowed::Only(WORKER)),
    ("service.*.deploy.gate.body", Allowed::Body),
    ("service.*.deploy.gate.[]", Allowed::Only(DEPLOY)),
];

/// Puts a worker's facts in the place of `{port}`, `{address}` and `{service}`. The address is the IP address alone, of
/// IPv6 without brackets.
pub(crate) fn filled(text: &str, service: &str, at: SocketAddr) -> String {
    text.replace("{port}", &at.port().to_string())
        .replace("{address}", &at.ip().to_string())
        .replace("{service}", service)
}

/// Refuses every placeholder of the file that nothing replaces.
pub(super) fn check(root: &Table<'_>) {
    let with_pools: Vec<&str> = services_with_pools(root);
    root.walk(&mut |path, value| {
        let Some(text) = value.if_text() else { return };
        let has_pools = path.get(1).is_some_and(|service| with_pools.contains(service));
        if let Some(reason) = wrong(text, path, has_pools) {
            value.refuse_once(&reason);
        }
    });
}

fn services_with_pools<'a>(root: &Table<'a>) -> Vec<&'a str> {
    let mut found = Vec::new();
    root.walk(&mut |path, _| {
        if let ["service", name, "deploy", ..] = path {
            found.push(*name);
        }
    });
    found
}

fn allowed(path: &[&str]) -> Allowed {
    let is_under = |key: &str| {
        let mut parts = path.iter();
        key.split('.').all(|wanted| parts.next().is_some_and(|part| wanted == "*" || wanted == *part))
    };
    let longest = KEYS.iter().filter(|(key, _)| is_under(key)).max_by_key(|(key, _)| key.len());
    longest.map_or(Allowed::Only(&[]), |(_, allowed)| *allowed)
}

/// Why a text may not stand in a key.
fn wrong(text: &str, path: &[&str], has_pools: bool) -> Option<String> {
    let allowed = allowed(path);
    let known = match allowed {
        Allowed::Anything => return None,
        Allowed::Only(known) => known,
        Allowed::OfItsPool if has_pools => POOL,
        Allowed::OfItsPool | Allowed::Body => WORKER,
    };
    let name = words(text).find(|(name, is_shell_s)| {
        let is_a_fact = POOL.contains(name);
        // A shell's `${HOME}`, in what a shell may read.
        let is_free = !is_a_fact && (allowed == Allowed::Body || *is_shell_s && !known.is_empty());
        !known.contains(name) && !is_free
    });
    let (name, _) = name?;
    if known.is_empty() {
        return Some(format!("{{{name}}} is replaced by nothing: this key takes no placeholders; write what is meant"));
    }
    let listed: Vec<_> = known.iter().map(|name| format!("{{{name}}}")).collect();
    let listed = listed.join(" or ");
    Some(match allowed {
        Allowed::OfItsPool if POOL.contains(&name) => {
            format!("{{{name}}} is replaced by nothing, as the service has no `deploy`; write {listed}")
        }
        _ => format!("{{{name}}} is replaced by nothing; write {listed}"),
    })
}

/// The words in braces, and whether a `$` stands before them. Other braces are left alone: `{"a": 1}`, `{}`.
fn words(text: &str) -> impl Iterator<Item = (&str, bool)> {
    let is_word = |part: &str| {
        part.starts_with(|char: char| char.is_ascii_alphabetic() || char == '_')
            && part.chars().all(|char| char.is_ascii_alphanumeric() || matches!(char, '_' | '-'))
    };
    text.match_indices('{').filter_map(move |(at, _)| {
        let (name, _) = text[at + 1..].split_once('}')?;
        is_word(name).then_some((name, text[..at].ends_with('$')))
    })
}

/// Refuses a text that names several workers alike in the same way for all of them.
pub(super) fn tells_apart(value: &Value<'_>, several: bool, texts: &[&str], example: &str) -> Option<()> {
    if several && !texts.iter().any(|text| ["{port}", "{address}"].iter().any(|place| text.contains(place))) {
        // A misspelt one is told of by `check`.
        if texts.iter().flat_map(|text| words(text)).any(|(name, _)| !POOL.contains(&name)) {
            return None;
        }
        return value.refuse(format!("is the same for every worker; write {{port}} where they differ, {example}"));
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reason(text: &str, key: &str, has_pools: bool) -> String {
        wrong(text, &key.split('.').collect::<Vec<_>>(), has_pools).unwrap_or_default()
    }

    #[test]
    fn the_longest_key_counts() {
        let of = |key: &str| allowed(&key.split('.').collect::<Vec<_>>());
        assert_eq!(of("service.web.warm.requests.[]"), Allowed::Only(WORKER));
        assert_eq!(of("service.web.warm.requests.[].headers.X-A"), Allowed::Only(WORKER));
        assert_eq!(of("service.web.warm.requests.[].body"), Allowed::Body);
        assert_eq!(of("service.web.deploy.gate.[]"), Allowed::Only(DEPLOY));
        assert_eq!(of("service.web.deploy.gate.path"), Allowed::Only(WORKER));
        assert_eq!(of("service.web.manager.user"), Allowed::Only(&[]));
        assert_eq!(of("daemon.socket"), Allowed::Only(&[]));
    }

    #[test]
    fn says_what_may_be_written() {
        let none = "{port} is replaced by nothing: this key takes no placeholders; write what is meant";
        assert_eq!(reason("/run/{port}", "daemon.socket", false), none);
        let worker = "{prot} is replaced by nothing; write {port} or {address} or {service}";
        assert_eq!(reason("a {prot}", "service.web.manager.program", false), worker);
        let pool =
            "{lane} is replaced by nothing, as the service has no `deploy`; write {port} or {address} or {service}";
        assert_eq!(reason("/{lane}", "service.web.manager.directory", false), pool);
        assert_eq!(reason("/{lane}", "service.web.manager.directory", true), "");
        assert_eq!(
            reason("{lane}", "service.web.manager.log", true).split(';').next(),
            Some("{lane} is replaced by nothing")
        );
    }

    #[test]
    fn braces_that_are_no_placeholder_are_left_alone() {
        for text in ["{}", "{\"a\": 1}", "{ port }", "{1}", "}{", "{port", "${HOME}/{port}"] {
            assert_eq!(reason(text, "service.web.manager.command.[]", false), "", "{text}");
        }
        assert_eq!(reason("{viewer}", "service.web.warm.requests.[].body", false), "");
        assert!(reason("{version}", "service.web.warm.requests.[].body", false).contains("write {port}"));
        assert_eq!(reason("{x}", "service.web.manager.password", false), "");
        assert!(reason("${HOME}/x", "daemon.state", false).contains("takes no placeholders"));
    }

    proptest! {
        #[test]
        fn what_is_allowed_is_never_refused(name in prop::sample::select(POOL), around in "[^{}]{0,8}") {
            let text = format!("{around}{{{name}}}{around}");
            prop_assert_eq!(reason(&text, "service.web.manager.command.[]", true), "");
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,20}|[{}$a-z]{0,20}") {
            let _ = reason(&text, "service.web.manager.command.[]", false);
            let _ = reason(&text, "x", false);
        }
    }
}
