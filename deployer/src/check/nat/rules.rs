//! Rules as far as they matter here, and a worker's connection on its way through them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
};

/// The kernel allows 16 jumps deep for nft; whatever is deeper is garbage.
const DEEPEST: usize = 64;

/// Chains that belong together: jumps stay inside.
#[derive(Debug, Default)]
pub(super) struct Ruleset {
    /// By the name that jumps use.
    pub(super) chains: BTreeMap<String, Chain>,
}

#[derive(Debug, Default)]
pub(super) struct Chain {
    /// As it is shown: "nat OUTPUT".
    pub(super) shown: String,
    /// Called by the kernel for outgoing connections.
    pub(super) is_base: bool,
    pub(super) rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
pub(super) struct Rule {
    /// Place in the chain. A rule with several outcomes (a map of verdicts) is listed once for each, under one number.
    pub(super) number: usize,
    /// All of them must hold.
    pub(super) matches: Vec<Match>,
    pub(super) action: Action,
    /// As the tool shows it, where the command that deletes it does not say so.
    pub(super) text: Option<String>,
    /// The command that deletes it.
    pub(super) delete: String,
}

/// What becomes of a connection that matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Goes on to the next rule.
    Continue,
    Effect(Effect),
    /// Out of all chains.
    Accept,
    /// Back to the calling chain.
    Return,
    /// Calls a chain.
    Jump(String),
    /// Goes over to a chain.
    Goto(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Another destination.
    Redirects,
    /// Dropped or rejected.
    Refuses,
}

/// Holds if any alternative does; an alternative holds if all its tests do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Match {
    pub(super) any: Vec<Vec<Test>>,
    pub(super) negated: bool,
}

/// A test of a TCP connection to a worker of this host, over loopback therefore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Test {
    Port(RangeInclusive<u16>),
    Address(RangeInclusive<IpAddr>),
    /// Holds for every such connection ("tcp", "-o lo").
    Always,
    /// Holds for none ("udp", "-o eth0").
    Never,
    /// Depends on what is not known here: the caller's user, marks, sets.
    Unknown,
}

/// How far something holds; the order is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Truth {
    No,
    Maybe,
    Yes,
}

impl Test {
    /// The addresses of a family.
    pub(super) fn family(is_v4: bool) -> Self {
        if is_v4 {
            Self::Address(Ipv4Addr::UNSPECIFIED.into()..=Ipv4Addr::BROADCAST.into())
        } else {
            Self::Address(Ipv6Addr::UNSPECIFIED.into()..=Ipv6Addr::from([0xff; 16]).into())
        }
    }

    fn of(&self, worker: SocketAddr) -> Truth {
        let known = match self {
            Self::Port(ports) => ports.contains(&worker.port()),
            // All IPv4 addresses order before all IPv6 ones, so a range of one family has none of the other.
            Self::Address(addresses) => addresses.contains(&worker.ip()),
            Self::Always => true,
            Self::Never => false,
            Self::Unknown => return Truth::Maybe,
        };
        if known { Truth::Yes } else { Truth::No }
    }
}

impl Match {
    pub(super) fn one(test: Test, negated: bool) -> Self {
        Self { any: vec![vec![test]], negated }
    }

    /// Names ports on purpose, rather than by leaving some out.
    fn names_ports(&self) -> bool {
        !self.negated && self.any.iter().flatten().any(|test| matches!(test, Test::Port(_)))
    }

    fn of(&self, worker: SocketAddr) -> Truth {
        let all = |tests: &Vec<Test>| tests.iter().map(|test| test.of(worker)).min().unwrap_or(Truth::Yes);
        let truth = self.any.iter().map(all).max().unwrap_or(Truth::No);
        match (truth, self.negated) {
            (Truth::Yes, true) => Truth::No,
            (Truth::No, true) => Truth::Yes,
            (truth, _) => truth,
        }
    }
}

/// A rule that a worker's connections come to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hit<'a> {
    pub(super) chain: &'a str,
    pub(super) rule: &'a Rule,
    pub(super) effect: Effect,
    /// The port is named on the way, or every condition is known to hold; otherwise only some callers may be meant.
    pub(super) sure: bool,
}

/// How a connection came to a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    certain: bool,
    names_port: bool,
}

/// Whether a chain lets a connection go on behind the call.
enum After {
    Continue,
    Stop,
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    worker: SocketAddr,
    /// Each chain once for each way: rules with thousands of paths through them are no trap.
    seen: BTreeSet<(&'a str, Way)>,
    hits: Vec<Hit<'a>>,
}

impl Ruleset {
    /// Rules that change or refuse new connections to `worker`. Goes on behind one that does: the next one takes over
    /// when it is deleted.
    pub(super) fn hits(&self, worker: SocketAddr) -> Vec<Hit<'_>> {
        let mut walk = Walk { ruleset: self, worker, seen: BTreeSet::new(), hits: Vec::new() };
        for (name, _) in self.chains.iter().filter(|(_, chain)| chain.is_base) {
            walk.chain(name, Way { certain: true, names_port: false }, 0);
        }
        walk.hits
    }
}

impl<'a> Walk<'a> {
    fn chain(&mut self, name: &str, way: Way, depth: usize) -> After {
        let Some((name, chain)) = self.ruleset.chains.get_key_value(name) else {
            return After::Continue;
        };
        if depth > DEEPEST || !self.seen.insert((name, way)) {
            return After::Continue;
        }
        for rule in &chain.rules {
            if let Some(after) = self.rule(&chain.shown, rule, way, depth) {
                return after;
            }
        }
        After::Continue
    }

    /// `None`: on to the next rule.
    fn rule(&mut self, chain: &'a str, rule: &'a Rule, way: Way, depth: usize) -> Option<After> {
        let truth = rule.matches.iter().map(|one| one.of(self.worker)).min().unwrap_or(Truth::Yes);
        if truth == Truth::No {
            return None;
        }
        let certain = truth == Truth::Yes;
        let way = Way {
            certain: way.certain && certain,
            names_port: way.names_port || rule.matches.iter().any(Match::names_ports),
        };
        let after = match &rule.action {
            Action::Continue => None,
            Action::Effect(effect) => {
                self.hits.push(Hit { chain, rule, effect: *effect, sure: way.certain || way.names_port });
                None
            }
            Action::Accept => Some(After::Stop),
            Action::Return => Some(After::Continue),
            Action::Jump(to) => match self.chain(to, way, depth + 1) {
                After::Stop => Some(After::Stop),
                After::Continue => None,
            },
            Action::Goto(to) => Some(self.chain(to, way, depth + 1)),
        };
        // Some callers' connections go on behind what only some of them meet.
        after.filter(|_| certain)
    }
}
