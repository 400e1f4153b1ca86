//! The page, taken apart; and what every page must be.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use deployer_tests::prometheus::{self, promtool};
use deployer_tests::sandbox::Sandbox;

/// What families of histograms are called in expressions.
const OF_HISTOGRAMS: [&str; 3] = ["_bucket", "_count", "_sum"];

/// A family: its help, its type, how many series it has.
#[derive(Debug, Default)]
pub(crate) struct Family {
    help: String,
    kind: String,
    series: usize,
}

/// Reads a page of the sandbox's daemon, which promtool must have nothing against, and takes it apart.
pub(crate) fn read(sandbox: &Sandbox) -> Result<BTreeMap<String, Family>> {
    let text = prometheus::page(sandbox)?;
    let output = promtool(&["check", "metrics"], &text)?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
    let families = families(&text)?;
    for (name, family) in &families {
        ensure!(!family.help.is_empty() && !family.kind.is_empty(), "{name}: {family:?}");
        ensure!(name.starts_with("deployer_") || name.starts_with("process_"), "{name}");
    }
    Ok(families)
}

fn families(text: &str) -> Result<BTreeMap<String, Family>> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let (what, rest) = rest.split_once(' ').with_context(|| line.to_owned())?;
            let (name, value) = rest.split_once(' ').with_context(|| line.to_owned())?;
            let family = families.entry(name.to_owned()).or_default();
            match what {
                "HELP" => family.help = value.to_owned(),
                "TYPE" => family.kind = value.to_owned(),
                _ => anyhow::bail!("line {line:?}"),
            }
            continue;
        }
        let name = line.split(['{', ' ']).next().context("an empty line")?;
        let base = OF_HISTOGRAMS.iter().find_map(|end| name.strip_suffix(end));
        let histogram = base.filter(|base| families.get(*base).is_some_and(|family| family.kind == "histogram"));
        let family = families.get_mut(histogram.unwrap_or(name));
        family.with_context(|| format!("{name} has neither HELP nor TYPE"))?.series += 1;
    }
    Ok(families)
}

/// What a text calls ours, whatever else is in it.
pub(crate) fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
    let ours = words.filter(|word| word.starts_with("deployer_") || word.starts_with("process_"));
    ours.map(str::to_owned).collect()
}

/// Names that are not on the page with at least one series.
pub(crate) fn unknown(families: &BTreeMap<String, Family>, names: &BTreeSet<String>) -> Vec<String> {
    let is_there = |name: &str| families.get(name).is_some_and(|family| family.series > 0);
    let of_histogram = |name: &str| OF_HISTOGRAMS.iter().any(|end| name.strip_suffix(end).is_some_and(is_there));
    names.iter().filter(|name| !is_there(name) && !of_histogram(name)).cloned().collect()
}
