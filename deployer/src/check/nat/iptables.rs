//! What `iptables-save -t nat` prints.

use std::{ops::RangeInclusive, vec::IntoIter};

use super::{
    rules::{Action, Chain, Effect, Match, Rule, Ruleset, Test},
    statement::address,
    words,
};

/// Reads the nat table. `command` deletes rules in it: `iptables`, `ip6tables-legacy`.
pub(super) fn parse(text: &str, command: &str, is_v4: bool) -> Ruleset {
    let mut ruleset = Ruleset::default();
    let mut in_nat = false;
    for line in text.lines() {
        if let Some(table) = line.strip_prefix('*') {
            in_nat = table.trim() == "nat";
        } else if in_nat && let Some(chain) = line.strip_prefix(':') {
            let name = chain.split_whitespace().next().unwrap_or_default();
            self::chain(&mut ruleset, name);
        } else if in_nat && line.starts_with("-A ") {
            let mut words = words::split(line).into_iter().skip(1);
            let Some(name) = words.next() else { continue };
            let chain = self::chain(&mut ruleset, &name);
            let rule = rule(&name, words.collect(), chain.rules.len(), command, is_v4);
            chain.rules.push(rule);
        }
    }
    ruleset
}

fn chain<'a>(ruleset: &'a mut Ruleset, name: &str) -> &'a mut Chain {
    ruleset.chains.entry(name.to_owned()).or_insert_with(|| Chain {
        shown: format!("nat {name}"),
        is_base: name == "OUTPUT",
        rules: Vec::new(),
    })
}

fn rule(chain: &str, words: Vec<String>, number: usize, command: &str, is_v4: bool) -> Rule {
    let as_written = words.iter().map(String::as_str);
    let delete = words::shell([command, "-t", "nat", "-D", chain].into_iter().chain(as_written));
    let mut options = Options { words: words.into_iter(), matches: Vec::new() };
    options.matches.push(Match::one(Test::family(is_v4), false));
    let action = options.read();
    Rule { number, matches: options.matches, action, text: None, delete }
}

struct Options {
    words: IntoIter<String>,
    matches: Vec<Match>,
}

impl Options {
    /// Takes all matches, up to the target; what follows it are the target's own options.
    fn read(&mut self) -> Action {
        let mut negated = false;
        while let Some(option) = self.words.next() {
            if option == "!" {
                negated = true;
                continue;
            }
            if option == "-j" || option == "-g" {
                return target(self.words.next().unwrap_or_default(), option == "-g");
            }
            if option.starts_with('-')
                && let Some(any) = self.option(&option)
            {
                self.matches.push(Match { any, negated });
            }
            negated = false;
        }
        Action::Continue
    }

    /// One option and its value; `None`: says nothing about connections.
    fn option(&mut self, option: &str) -> Option<Vec<Vec<Test>>> {
        let test = match option {
            "--comment" => {
                self.words.next();
                return None;
            }
            "-m" => match self.value().as_str() {
                // They hold by what their options say, which are understood.
                "tcp" | "multiport" | "comment" | "addrtype" => return None,
                "udp" | "sctp" | "icmp" | "icmp6" | "dccp" => Test::Never,
                _ => Test::Unknown,
            },
            "-p" => match self.value().as_str() {
                "tcp" | "6" | "all" | "0" => Test::Always,
                _ => Test::Never,
            },
            "-d" => address(&self.value()).map_or(Test::Unknown, Test::Address),
            "-o" => device(&self.value()),
            "--dst-type" => match self.value().split(',').any(|kind| kind == "LOCAL") {
                true => Test::Always,
                false => Test::Never,
            },
            "--dport" | "--dports" => {
                return Some(self.value().split(',').map(|part| vec![ports(part)]).collect());
            }
            _ => Test::Unknown,
        };
        Some(vec![vec![test]])
    }

    fn value(&mut self) -> String {
        self.words.next().unwrap_or_default()
    }
}

/// `8000` or `8000:8010`.
fn ports(text: &str) -> Test {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    let first = if first.is_empty() { Ok(0) } else { first.parse() };
    let last = if last.is_empty() { Ok(u16::MAX) } else { last.parse() };
    match (first, last) {
        (Ok(first), Ok(last)) => Test::Port(RangeInclusive::new(first, last)),
        _ => Test::Unknown,
    }
}

/// Connections to workers of this host go out by `lo`, whatever their address.
fn device(name: &str) -> Test {
    let matches = name.strip_suffix('+').map_or(name == "lo", |begin| "lo".starts_with(begin));
    if matches { Test::Always } else { Test::Never }
}

fn target(name: String, goes: bool) -> Action {
    match name.as_str() {
        "REDIRECT" | "DNAT" | "NETMAP" => Action::Effect(Effect::Redirects),
        "DROP" | "REJECT" => Action::Effect(Effect::Refuses),
        "ACCEPT" => Action::Accept,
        "RETURN" => Action::Return,
        // Targets such as MARK and LOG are no chains: nothing is found under the name, and the next rule is looked at.
        _ if goes => Action::Goto(name),
        _ => Action::Jump(name),
    }
}

/// How many rules iptables knows of in a chain, if it knows the chain.
pub(super) fn count(ruleset: &Ruleset, chain: &str) -> Option<usize> {
    ruleset.chains.get(chain).map(|chain| chain.rules.len())
}
