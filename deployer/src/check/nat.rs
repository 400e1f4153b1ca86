//! Rules that were left behind by other ways of taking workers out: nat rules for outgoing connections that send a
//! worker's connections elsewhere, behind the back of the connect hook.
//!
//! `iptables` and `nft` read what the two families of tools print, `rules` follows a connection through it.

mod iptables;
mod nft;
mod rules;
mod statement;
#[cfg(test)]
mod tests;
mod tools;
mod words;

use std::{collections::BTreeMap, net::SocketAddr};

use super::{Finding, addresses};
use rules::{Effect, Hit, Ruleset};

pub(super) fn findings(workers: &[SocketAddr]) -> Vec<Finding> {
    let seen = tools::look();
    let mut found = seen.problems;
    found.extend(seen.rulesets.iter().flat_map(|ruleset| leftovers(ruleset, workers)));
    if found.is_empty() {
        found.push(Finding::ok("nat rules", format!("none sends a worker's connections elsewhere ({})", seen.looked)));
    }
    found
}

/// One finding for each rule that concerns workers.
fn leftovers(ruleset: &Ruleset, workers: &[SocketAddr]) -> Vec<Finding> {
    let mut by_rule: BTreeMap<(&str, usize), Vec<(SocketAddr, Hit<'_>)>> = BTreeMap::new();
    for &worker in workers {
        for hit in ruleset.hits(worker) {
            let hits = by_rule.entry((hit.chain, hit.rule.number)).or_default();
            match hits.iter_mut().find(|(at, _)| *at == worker) {
                Some((_, former)) => former.sure |= hit.sure,
                None => hits.push((worker, hit)),
            }
        }
    }
    let mut found = Vec::new();
    for hits in by_rule.into_values() {
        // A rule may be sure of one worker and not of another.
        for sure in [true, false] {
            found.extend(finding(hits.iter().filter(|(_, hit)| hit.sure == sure)));
        }
    }
    found
}

/// About one rule, in one mood.
fn finding<'a>(mut hits: impl Iterator<Item = &'a (SocketAddr, Hit<'a>)>) -> Option<Finding> {
    let (first, hit) = hits.next()?;
    let workers: Vec<_> = [*first].into_iter().chain(hits.map(|(worker, _)| *worker)).collect();
    let which = if workers.len() == 1 { "it" } else { "them" };
    let effect = match (hit.effect, hit.sure) {
        (Effect::Redirects, true) => "redirects",
        (Effect::Redirects, false) => "may redirect",
        (Effect::Refuses, true) => "drops connections to",
        (Effect::Refuses, false) => "may drop connections to",
    };
    let text = hit.rule.text.as_ref().map(|text| format!(" ({text})")).unwrap_or_default();
    let detail = format!("{} rule {effect} {which}{text}", hit.chain);
    let finding =
        if hit.sure { Finding::fail(addresses(&workers), detail) } else { Finding::warn(addresses(&workers), detail) };
    Some(finding.fix("delete", hit.rule.delete.clone()))
}
