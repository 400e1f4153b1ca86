//! What `nft -a list ruleset` prints.

use std::collections::BTreeMap;

use super::{
    rules::{Chain, Match, Rule, Ruleset, Test},
    statement::{self, Sets},
    words,
};

/// A piece of the listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token<'a> {
    Word(&'a str),
    /// Between double quotes; it has no escapes.
    Text(&'a str),
    Open,
    Close,
    Comma,
    Semicolon,
    Line,
    /// The number in `# handle 4`.
    Handle(&'a str),
}

/// Reads every table of the families `ip`, `ip6` and `inet`: each is a ruleset of its own.
pub(super) fn parse(text: &str) -> Vec<(String, Ruleset)> {
    let tokens = tokens(text);
    let mut rest = &tokens[..];
    let mut rulesets = Vec::new();
    while let Some((_, tail)) = rest.split_first() {
        if let [Token::Word("table"), Token::Word(family), Token::Word(name), Token::Open, body @ ..] = rest {
            let (body, after) = block(body);
            if ["ip", "ip6", "inet"].contains(family) {
                rulesets.push((format!("{family} {name}"), table(family, name, body)));
            }
            rest = after;
        } else {
            rest = tail;
        }
    }
    rulesets
}

/// How many rules stand in a chain of a table.
pub(super) fn count(ruleset: &Ruleset, chain: &str) -> usize {
    ruleset.chains.get(chain).and_then(|chain| chain.rules.last()).map_or(0, |rule| rule.number + 1)
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    for line in text.lines() {
        line_tokens(line, &mut tokens);
        tokens.push(Token::Line);
    }
    tokens
}

fn line_tokens<'a>(line: &'a str, tokens: &mut Vec<Token<'a>>) {
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let one = match first {
            '{' => Some(Token::Open),
            '}' => Some(Token::Close),
            ',' => Some(Token::Comma),
            ';' => Some(Token::Semicolon),
            _ => None,
        };
        if let Some(token) = one {
            tokens.push(token);
            rest = rest[1..].trim_start();
        } else if first == '"' {
            let (text, after) = rest[1..].split_once('"').unwrap_or((&rest[1..], ""));
            tokens.push(Token::Text(text));
            rest = after.trim_start();
        } else if first == '#' {
            let handle = rest.split_once("handle ").and_then(|(_, after)| after.split_whitespace().next());
            tokens.extend(handle.map(Token::Handle));
            return;
        } else {
            let ends = |char: char| char.is_whitespace() || "{},;\"#".contains(char);
            let (word, after) = rest.split_at(rest.find(ends).unwrap_or(rest.len()));
            tokens.push(Token::Word(word));
            rest = after.trim_start();
        }
    }
}

/// What stands before the brace that closes a block, and what behind it.
pub(super) fn block<'t, 'a>(tokens: &'t [Token<'a>]) -> (&'t [Token<'a>], &'t [Token<'a>]) {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Open => depth += 1,
            Token::Close if depth == 0 => return (&tokens[..at], &tokens[at + 1..]),
            Token::Close => depth -= 1,
            _ => {}
        }
    }
    (tokens, &[])
}

fn table(family: &str, name: &str, body: &[Token<'_>]) -> Ruleset {
    let mut sets: Sets<'_> = BTreeMap::new();
    let mut chains = Vec::new();
    for (kind, named, body) in items(body) {
        match kind {
            "set" | "map" => {
                let at =
                    body.windows(3).position(|three| three == [Token::Word("elements"), Token::Word("="), Token::Open]);
                sets.insert(named, at.map_or(&[][..], |at| block(&body[at + 3..]).0));
            }
            "chain" => chains.push((named, body)),
            _ => {}
        }
    }
    let chains = chains.into_iter().map(|(named, body)| (named.to_owned(), chain(family, name, named, body, &sets)));
    Ruleset { chains: chains.collect() }
}

/// `KIND NAME { … }`, one after the other.
fn items<'t, 'a>(mut rest: &'t [Token<'a>]) -> Vec<(&'a str, &'a str, &'t [Token<'a>])> {
    let mut items = Vec::new();
    while let Some((token, tail)) = rest.split_first() {
        rest = match rest {
            [Token::Word(kind), Token::Word(name), Token::Open, body @ ..] => {
                let (body, after) = block(body);
                items.push((*kind, *name, body));
                after
            }
            // Of another kind: not to be mistaken for one.
            _ if *token == Token::Open => block(tail).1,
            _ => tail,
        };
    }
    items
}

fn chain(family: &str, table: &str, name: &str, body: &[Token<'_>], sets: &Sets<'_>) -> Chain {
    let mut chain = Chain { shown: format!("nat {family} {table} {name}"), is_base: false, rules: Vec::new() };
    let mut number = 0;
    for line in lines(body) {
        if let [Token::Word("type"), kind @ ..] = line {
            chain.is_base = kind.starts_with(&[Token::Word("nat"), Token::Word("hook"), Token::Word("output")]);
            continue;
        }
        let Some(Token::Handle(handle)) = line.last() else { continue };
        if line.len() == 1 {
            // The chain's own.
            continue;
        }
        let delete = words::shell(["nft", "delete", "rule", family, table, name, "handle", *handle]);
        let text = Some(shown(line));
        for outcome in statement::read(line, sets) {
            let mut matches = outcome.matches;
            if family != "inet" {
                matches.push(Match::one(Test::family(family == "ip"), false));
            }
            chain.rules.push(Rule {
                number,
                matches,
                action: outcome.action,
                text: text.clone(),
                delete: delete.clone(),
            });
        }
        number += 1;
    }
    chain
}

/// Rules end with their line, unless it ends inside of a set.
fn lines<'t, 'a>(body: &'t [Token<'a>]) -> impl Iterator<Item = &'t [Token<'a>]> {
    let mut depth = 0_usize;
    let ends = move |token: &Token<'a>| {
        match token {
            Token::Open => depth += 1,
            Token::Close => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && *token == Token::Line
    };
    body.split(ends).filter(|line| !line.is_empty())
}

fn shown(line: &[Token<'_>]) -> String {
    let parts = line.iter().filter_map(|token| match token {
        Token::Word(word) => Some((*word).to_owned()),
        Token::Text(text) => Some(format!("\"{text}\"")),
        Token::Open => Some("{".to_owned()),
        Token::Close => Some("}".to_owned()),
        Token::Comma => Some(",".to_owned()),
        Token::Semicolon | Token::Line | Token::Handle(_) => None,
    });
    parts.collect::<Vec<_>>().join(" ").replace(" ,", ",")
}
