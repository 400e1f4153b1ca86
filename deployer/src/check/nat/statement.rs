//! A rule of nft: selectors that are compared, then a verdict.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use super::{
    nft::{Token, block},
    rules::{Action, Effect, Match, Test},
};

/// Elements of the named sets and maps of a table.
pub(super) type Sets<'t> = BTreeMap<&'t str, &'t [Token<'t>]>;

/// What a rule does if its matches hold.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) matches: Vec<Match>,
    pub(super) action: Action,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Port,
    Address,
    Protocol,
    Family,
    Device,
    /// `fib daddr type`
    Kind,
    /// Of another protocol than TCP.
    Foreign,
    Other,
}

/// One element of a set: what is compared with the fields, and what a map gives for it.
struct Element<'t> {
    key: &'t [Token<'t>],
    value: &'t [Token<'t>],
}

struct Reader<'t> {
    rest: &'t [Token<'t>],
    sets: &'t Sets<'t>,
    matches: Vec<Match>,
    /// Behind `redirect` or `dnat` only maps matter.
    action: Action,
}

/// Reads a rule; a map of verdicts gives several outcomes.
pub(super) fn read<'t>(line: &'t [Token<'t>], sets: &'t Sets<'t>) -> Vec<Outcome> {
    let mut reader = Reader { rest: line, sets, matches: Vec::new(), action: Action::Continue };
    while !reader.rest.is_empty() {
        if let Some(fields) = reader.fields() {
            if let Some(outcomes) = reader.compare(&fields) {
                return outcomes;
            }
        } else if reader.word() {
            break;
        }
    }
    vec![Outcome { matches: reader.matches, action: reader.action }]
}

impl<'t> Reader<'t> {
    /// `ip daddr . tcp dport`
    fn fields(&mut self) -> Option<Vec<Field>> {
        let mut fields = vec![self.field()?];
        while let [Token::Word("."), after @ ..] = self.rest {
            self.rest = after;
            if let Some(field) = self.field() {
                fields.push(field);
            } else {
                self.rest = self.rest.get(1..).unwrap_or_default();
                fields.push(Field::Other);
            }
        }
        Some(fields)
    }

    fn field(&mut self) -> Option<Field> {
        let [Token::Word(first), after @ ..] = self.rest else { return None };
        if ["oif", "oifname"].contains(first) {
            self.rest = after;
            return Some(Field::Device);
        }
        let [Token::Word(second), behind @ ..] = after else { return None };
        // `redirect to :tcp dport map …`
        let field = match (first.trim_start_matches(':'), *second) {
            ("ip" | "ip6", "to") => return None,
            ("tcp" | "th", "dport") => Field::Port,
            ("ip", "protocol") | ("ip6", "nexthdr") | ("meta", "l4proto") => Field::Protocol,
            ("ip" | "ip6", "daddr") => Field::Address,
            ("meta", "oif" | "oifname") => Field::Device,
            ("meta", "nfproto") => Field::Family,
            ("udp" | "udplite" | "sctp" | "dccp" | "icmp" | "icmpv6" | "esp" | "ah" | "comp", _) => Field::Foreign,
            ("fib", "daddr") if behind.first() == Some(&Token::Word("type")) => {
                self.rest = &behind[1..];
                return Some(Field::Kind);
            }
            ("tcp" | "th" | "ip" | "ip6" | "meta" | "ct", _) => Field::Other,
            _ => return None,
        };
        if field == Field::Address {
            // In a table of both families the field itself says which is meant, also where it is compared with `!=`.
            self.matches.push(Match::one(Test::family(first.trim_start_matches(':') == "ip"), false));
        }
        self.rest = behind;
        Some(field)
    }

    /// What follows fields. Outcomes, if that is a map of verdicts.
    fn compare(&mut self, fields: &[Field]) -> Option<Vec<Outcome>> {
        let Some(Token::Word(word)) = self.rest.first() else {
            self.operand(fields, "==");
            return None;
        };
        let operation = *word;
        match operation {
            "set" => {
                // A change, not a comparison.
                self.rest = self.rest.get(2..).unwrap_or_default();
                return None;
            }
            "vmap" => {
                self.rest = &self.rest[1..];
                return Some(self.verdicts(fields));
            }
            "map" | "==" | "!=" | "<" | ">" | "<=" | ">=" => {
                self.rest = &self.rest[1..];
                self.operand(fields, operation);
            }
            _ => self.operand(fields, "=="),
        }
        None
    }

    /// A set, the name of one, or a value.
    fn operand(&mut self, fields: &[Field], operation: &str) {
        let any = match self.elements() {
            Some(elements) => elements.iter().map(|element| tests(fields, element.key, "==")).collect(),
            None => {
                let value = self.value();
                vec![tests(fields, value, operation)]
            }
        };
        self.matches.push(Match { any, negated: operation == "!=" });
    }

    fn elements(&mut self) -> Option<Vec<Element<'t>>> {
        match self.rest {
            [Token::Open, after @ ..] => {
                let (inside, behind) = block(after);
                self.rest = behind;
                Some(elements(inside))
            }
            [Token::Word(word), after @ ..] if word.starts_with('@') => {
                let inside = self.sets.get(&word[1..])?;
                self.rest = after;
                Some(elements(inside))
            }
            _ => None,
        }
    }

    /// `127.0.0.1 . 8003`, `fin,syn / fin,syn,rst`: a token, and more as long as they are joined.
    fn value(&mut self) -> &'t [Token<'t>] {
        let joins =
            |token: Option<&Token<'_>>| matches!(token, Some(Token::Comma | Token::Word("." | "/" | "|" | "&")));
        let mut len = 1;
        while joins(self.rest.get(len)) {
            len += 2;
        }
        let (value, after) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = after;
        value
    }

    fn verdicts(&mut self, fields: &[Field]) -> Vec<Outcome> {
        let Some(elements) = self.elements() else { return Vec::new() };
        let outcome = |element: &Element<'_>| {
            let mut matches = self.matches.clone();
            matches.push(Match { any: vec![tests(fields, element.key, "==")], negated: false });
            Outcome { matches, action: verdict(element.value).unwrap_or(Action::Continue) }
        };
        elements.iter().map(outcome).collect()
    }

    /// Anything but a comparison. `true`: the rule ends here.
    fn word(&mut self) -> bool {
        let Some((token, after)) = self.rest.split_first() else { return true };
        let line = self.rest;
        self.rest = after;
        let Token::Word(word) = token else {
            if *token == Token::Open {
                self.rest = block(after).1;
            }
            return false;
        };
        if self.action != Action::Continue {
            return false;
        }
        if let Some(action) = verdict(line) {
            let ends = action != Action::Effect(Effect::Redirects);
            self.action = action;
            return ends;
        }
        match *word {
            "counter" | "log" => {}
            "comment" | "packets" | "bytes" | "prefix" | "level" => self.rest = after.get(1..).unwrap_or_default(),
            _ => self.matches.push(Match::one(Test::Unknown, false)),
        }
        false
    }
}

fn verdict(tokens: &[Token<'_>]) -> Option<Action> {
    let [Token::Word(word), after @ ..] = tokens else { return None };
    let chain = || match after.first() {
        Some(Token::Word(name)) => (*name).to_owned(),
        _ => String::new(),
    };
    Some(match *word {
        "redirect" | "dnat" => Action::Effect(Effect::Redirects),
        "drop" | "reject" => Action::Effect(Effect::Refuses),
        "accept" => Action::Accept,
        "return" => Action::Return,
        "jump" => Action::Jump(chain()),
        "goto" => Action::Goto(chain()),
        _ => return None,
    })
}

fn elements<'t>(inside: &'t [Token<'t>]) -> Vec<Element<'t>> {
    let parts = inside.split(|token| *token == Token::Comma);
    let elements = parts.map(|part| {
        let begin = part.iter().position(|token| *token != Token::Line).unwrap_or(part.len());
        let part = &part[begin..];
        match part.iter().position(|token| *token == Token::Word(":")) {
            Some(colon) => Element { key: &part[..colon], value: &part[colon + 1..] },
            None => Element { key: part, value: &[] },
        }
    });
    elements.filter(|element| !element.key.is_empty()).collect()
}

/// The fields compared with one value, part by part.
fn tests(fields: &[Field], value: &[Token<'_>], operation: &str) -> Vec<Test> {
    let mut parts = value.split(|token| *token == Token::Word("."));
    // Behind the first token of a part there may be `timeout 1h`, `counter …`.
    fields.iter().map(|field| test(*field, parts.next().and_then(<[_]>::first), operation)).collect()
}

fn test(field: Field, value: Option<&Token<'_>>, operation: &str) -> Test {
    let Some(Token::Word(word) | Token::Text(word)) = value else { return Test::Unknown };
    let known = |holds: bool| if holds { Test::Always } else { Test::Never };
    match field {
        Field::Foreign => Test::Never,
        Field::Other => Test::Unknown,
        _ if *word == "*" => Test::Always,
        _ if word.starts_with('@') => Test::Unknown,
        Field::Port => ports(word, operation).map_or(Test::Unknown, Test::Port),
        _ if !["==", "!=", "map"].contains(&operation) => Test::Unknown,
        Field::Address => address(word).map_or(Test::Unknown, Test::Address),
        Field::Protocol => known(["tcp", "6"].contains(word)),
        Field::Family => match *word {
            "ipv4" => Test::family(true),
            "ipv6" => Test::family(false),
            _ => Test::Unknown,
        },
        // Connections to workers of this host go out by `lo`, whatever their address.
        Field::Device => known(word.strip_suffix('*').map_or(*word == "lo", |begin| "lo".starts_with(begin))),
        Field::Kind => known(*word == "local"),
    }
}

/// `8000`, `8000-8010`; with the operation `>=`, all from there on.
fn ports(word: &str, operation: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    match operation {
        "<" => last.checked_sub(1).map(|last| 0..=last),
        "<=" => Some(0..=last),
        ">" => first.checked_add(1).map(|first| first..=u16::MAX),
        ">=" => Some(first..=u16::MAX),
        _ => Some(first..=last),
    }
}

/// `127.0.0.1`, `127.0.0.0/8`, `127.0.0.1-127.0.0.5`.
pub(super) fn address(text: &str) -> Option<RangeInclusive<IpAddr>> {
    if let Some((first, last)) = text.split_once('-') {
        return Some(first.parse().ok()?..=last.parse().ok()?);
    }
    let Some((ip, bits)) = text.split_once('/') else {
        let ip = text.parse().ok()?;
        return Some(ip..=ip);
    };
    let bits: u32 = bits.parse().ok()?;
    match ip.parse().ok()? {
        IpAddr::V4(ip) if bits <= 32 => {
            let rest = u32::MAX.checked_shr(bits).unwrap_or(0);
            let first = u32::from(ip) & !rest;
            Some(Ipv4Addr::from(first).into()..=Ipv4Addr::from(first | rest).into())
        }
        IpAddr::V6(ip) if bits <= 128 => {
            let rest = u128::MAX.checked_shr(bits).unwrap_or(0);
            let first = u128::from(ip) & !rest;
            Some(Ipv6Addr::from(first).into()..=Ipv6Addr::from(first | rest).into())
        }
        _ => None,
    }
}
