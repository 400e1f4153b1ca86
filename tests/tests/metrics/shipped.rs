//! The shipped rules and dashboard, as far as they can be judged without a daemon.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use deployer_tests::prometheus::{monitoring, promtool, rules};
use serde_json::Value;

use crate::page::names;

/// The expressions of a dashboard.
pub(crate) fn expressions() -> Result<Vec<String>> {
    let text = fs::read_to_string(monitoring().join("dashboard.json")).context("the dashboard")?;
    let dashboard: Value = serde_json::from_str(&text).context("the dashboard")?;
    let mut found = Vec::new();
    collect(&dashboard, &mut found);
    Ok(found)
}

fn collect(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            let text = ["expr", "definition"].iter().filter_map(|key| object.get(*key)?.as_str());
            found.extend(text.map(str::to_owned));
            object.values().for_each(|value| collect(value, found));
        }
        Value::Array(array) => array.iter().for_each(|value| collect(value, found)),
        _ => {}
    }
}

/// All figures that rules and dashboard ask for.
pub(crate) fn asked_for() -> Result<BTreeSet<String>> {
    Ok(expressions()?.iter().chain([&rules()?]).flat_map(|text| names(text)).collect())
}

#[test]
fn promtool_likes_the_rules_and_they_do_what_their_tests_say() -> Result<()> {
    let path = |name: &str| monitoring().join(name).display().to_string();
    for (verb, file, words) in [("check", "alerts.yml", "SUCCESS"), ("test", "alerts.test.yml", "SUCCESS")] {
        let output = promtool(&[verb, "rules", &path(file)], "")?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        eprintln!("{}", said.trim());
        ensure!(output.status.success() && said.contains(words) && !said.contains("FAILED"), "{said}");
    }
    Ok(())
}

/// Each alert says how bad it is, what it is, and what to do; and is in the tests of the rules.
#[test]
fn every_alert_says_what_to_do() -> Result<()> {
    let (rules, tests) = (rules()?, fs::read_to_string(monitoring().join("alerts.test.yml"))?);
    let alerts: Vec<_> = rules.split("- alert: ").skip(1).collect();
    ensure!(alerts.len() > 15, "{}", alerts.len());
    for alert in alerts {
        let name = alert.lines().next().context("an alert without a name")?;
        for part in ["severity: ", "summary: ", "description: "] {
            ensure!(alert.contains(part), "{name} has no {part}");
        }
        ensure!(alert.contains("`deployer ") || alert.contains("`systemctl "), "{name} names no command");
        ensure!(tests.contains(name), "{name} is in no test");
    }
    Ok(())
}

/// Every panel has a title, says what it shows, and has expressions that Prometheus can read.
#[test]
fn the_dashboard_is_whole() -> Result<()> {
    let text = fs::read_to_string(monitoring().join("dashboard.json")).context("the dashboard")?;
    let dashboard: Value = serde_json::from_str(&text)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let mut ids = BTreeSet::new();
    for panel in panels {
        ensure!(panel["title"].as_str().is_some_and(|title| !title.is_empty()), "{panel}");
        ensure!(ids.insert(panel["id"].as_u64()), "an id is used twice: {panel}");
        let whole = panel["type"] == "row" || panel["description"].as_str().is_some_and(|text| text.len() > 5);
        ensure!(whole, "no description: {}", panel["title"]);
    }
    // A rules file of its expressions, with Grafana's variables filled in.
    let filled = |text: &str| text.replace("$__rate_interval", "1m").replace("$__range", "1h").replace('\'', "''");
    let readable = expressions()?.into_iter().filter(|text| !text.starts_with("label_values("));
    let rule = |(index, text): (usize, String)| format!("    - record: a:{index}\n      expr: '{}'\n", filled(&text));
    let rules: Vec<_> = readable.enumerate().map(rule).collect();
    ensure!(rules.len() > 50, "{} expressions", rules.len());
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("dashboard.yml");
    fs::write(&file, format!("groups:\n- name: dashboard\n  rules:\n{}", rules.concat()))?;
    let output = promtool(&["check", "rules", &file.display().to_string()], "")?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success() && said.contains(&format!("{} rules found", rules.len())), "{said}");
    Ok(())
}
