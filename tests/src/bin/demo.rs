//! `cargo xtask demo`: the main job on embedded defaults, with real traffic, and a result that a person can read.

use std::{
    collections::BTreeMap,
    io::{Write, stderr, stdout},
    process::ExitCode,
    time::Duration,
};

use anyhow::Result;
use clap::Parser;
use deployer_tests::{
    crash::{Account, Row},
    daemon::ServiceConfig,
    rollout::{Crash, Figures, How, Rollout},
    sandbox,
    side_by_side::{Deploys, SideBySide, Traffic, Twin},
};
use serde_json::json;

/// Two acts under load, with nginx, Python workers, and deployer in between. A rolling restart from v1 to v2, and the kill of
/// a worker; then two versions side by side, whose pages are each answered by their own.
#[derive(Parser)]
struct Arguments {
    /// 8 workers instead of 40, shorter pages: little more than a minute.
    #[arg(long)]
    quick: bool,
    /// One JSON object on standard output; all else goes to standard error.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match demo(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(stderr(), "demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(arguments: &Arguments) -> Result<bool> {
    sandbox::clean_on_signal()?;
    let workers = if arguments.quick { 8 } else { 40 };
    let rollout = Rollout {
        config: ServiceConfig { batch: if arguments.quick { "4" } else { "8" }.to_owned(), ..ServiceConfig::default() },
        rate: if arguments.quick { 300.0 } else { 450.0 },
        before: Duration::from_secs(6),
        after: Duration::from_secs(4),
        how: How::Roll { show: true },
        crash: true,
        ..Rollout::new("demo", workers)
    };
    let say = |what: &str| drop(writeln!(stderr(), "== {what}"));
    let figures = rollout.run(say)?;
    if !arguments.json {
        stdout().write_all(table(&figures, workers).as_bytes())?;
    }
    let sides = side_by_side(arguments.quick);
    let (deploys, twin) = (sides.deploys(say)?, sides.twin(say)?);
    let text = match arguments.json {
        true => format!("{}\n", as_json(&figures, workers, &deploys, &twin)),
        false => format!("\n{}{}", versions(&deploys), twin_table(&twin)),
    };
    stdout().write_all(text.as_bytes())?;
    figures.crash.as_ref().map_or(Ok(()), |crash| crash.account.must_be_clean())?;
    let rolled = figures.exit == 0 && figures.failed() == 0 && figures.doubled() == 0 && figures.report.cold == 0;
    if !deploys.is_clean() {
        writeln!(stderr(), "demo: {:?}\n{}", deploys.exits, deploys.traffic.seen)?;
    }
    Ok(rolled && deploys.is_clean() && twin.exit == 0)
}

/// The second act.
fn side_by_side(quick: bool) -> SideBySide {
    match quick {
        true => SideBySide { workers: 4, sessions: 80, xhrs: 5, life: Duration::from_secs(2) },
        false => SideBySide { workers: 8, sessions: 200, xhrs: 10, life: Duration::from_secs(8) },
    }
}

fn as_json(figures: &Figures, workers: u16, deploys: &Deploys, twin: &Twin) -> serde_json::Value {
    json!({
        "requests": figures.report.requests,
        "failed": figures.failed(),
        "doubled": figures.doubled(),
        "cold": figures.report.cold,
        "workers": workers,
        "seconds": figures.seconds,
        "p99_before_ms": figures.p99_ms("before"),
        "p99_during_ms": figures.p99_ms("during"),
        "p99_after_ms": figures.p99_ms("after"),
        "steered": figures.sum("steered"),
        "by_version": figures.report.by_version,
        "nginx_error_lines": figures.nginx_errors.len(),
        "crash": figures.crash.as_ref().map(crash_as_json),
        "exit": figures.exit,
        "versions": versions_as_json(deploys, twin),
    })
}

fn versions_as_json(deploys: &Deploys, twin: &Twin) -> serde_json::Value {
    let mut versions = traffic_as_json(&deploys.traffic);
    versions["seconds_to_roll_back"] = json!(deploys.back_seconds);
    versions["exits"] = json!(deploys.exits);
    versions["rolling_restart"] = traffic_as_json(&twin.traffic);
    versions["rolling_restart"]["exit"] = json!(twin.exit);
    versions
}

fn traffic_as_json(traffic: &Traffic) -> serde_json::Value {
    let seen = &traffic.seen;
    json!({
        "pages": seen.pages,
        "xhrs": seen.xhrs,
        "mixed": seen.mixed,
        "mixed_pages": seen.mixed_pages.len(),
        "failed": seen.failed,
        "doubled": traffic.doubled,
        "nginx_error_lines": traffic.nginx_errors.len(),
    })
}

fn crash_as_json(crash: &Crash) -> serde_json::Value {
    let account = &crash.account;
    json!({
        "worker": crash.port,
        "inside": account.sum(Row::inside),
        "failed": account.sum(|row| row.failed),
        "sent_again": account.resent,
        "others_lost": others_lost(account),
        "refused": account.refused_lines,
        "cold": crash.cold,
        "seconds": crash.seconds,
    })
}

/// Requests that came to nothing, and were not inside the killed worker.
fn others_lost(account: &Account) -> usize {
    account.sum(|row| row.late) + account.unexplained.len()
}

fn crash_in_words(crash: &Crash) -> String {
    let account = &crash.account;
    format!(
        "{} requests inside it: {} lost, {} sent again by nginx; {} others lost, {} refused, {} served cold; up again after {:.1} s",
        account.sum(Row::inside),
        account.sum(|row| row.failed),
        account.resent,
        others_lost(account),
        account.refused_lines,
        crash.cold,
        crash.seconds
    )
}

fn table(figures: &Figures, workers: u16) -> String {
    let versions: Vec<_> = figures.report.by_version.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let rows = [
        ("workers restarted", format!("{workers} in {:.1} s", figures.seconds)),
        ("requests", format!("{} ({})", figures.report.requests, versions.join(", "))),
        ("failed", figures.failed().to_string()),
        ("served twice", figures.doubled().to_string()),
        ("served cold", figures.report.cold.to_string()),
        ("connections steered", figures.sum("steered").to_string()),
        ("nginx error lines", figures.nginx_errors.len().to_string()),
        (
            "99th percentile",
            format!(
                "{:.1} ms before, {:.1} ms during, {:.1} ms after",
                figures.p99_ms("before"),
                figures.p99_ms("during"),
                figures.p99_ms("after")
            ),
        ),
        ("kill -9 of a worker", figures.crash.as_ref().map(crash_in_words).unwrap_or_default()),
    ];
    rows_of(&rows)
}

fn rows_of(rows: &[(&str, String)]) -> String {
    rows.iter().map(|(name, value)| format!("{name:<20} {value}\n")).collect()
}

fn counted(pages: &BTreeMap<String, usize>) -> String {
    let versions: Vec<_> = pages.iter().map(|(name, count)| format!("{name} {count}")).collect();
    format!("{} ({})", pages.values().sum::<usize>(), versions.join(", "))
}

/// What the pages have met in the two deploys.
fn versions(deploys: &Deploys) -> String {
    let Traffic { seen, doubled, nginx_errors } = &deploys.traffic;
    let back = deploys.back_seconds.map_or_else(|| "never".to_owned(), |seconds| format!("{:.0} ms", seconds * 1e3));
    rows_of(&[
        ("pages", counted(&seen.pages)),
        ("XHRs of these", seen.xhrs.to_string()),
        ("mixed", format!("{} XHRs answered by another version than their page's", seen.mixed)),
        ("failed", seen.failed.to_string()),
        ("served twice", doubled.to_string()),
        ("nginx error lines", nginx_errors.len().to_string()),
        ("rollback", format!("{back} from the command to the first page of v2")),
    ])
}

/// And in a rolling restart.
fn twin_table(twin: &Twin) -> String {
    let seen = &twin.traffic.seen;
    let mixed =
        format!("{} of {} XHRs, on {} pages; {} failed", seen.mixed, seen.xhrs, seen.mixed_pages.len(), seen.failed);
    rows_of(&[("a rolling restart", format!("mixed {mixed}"))])
}
